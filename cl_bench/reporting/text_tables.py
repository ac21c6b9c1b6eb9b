"""The text table behind everything that the project prints: on the terminal, as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import pandas as pd

from cl_bench.errors import printable, unknown_name
from cl_bench.reporting import spreadsheets
from cl_bench.reporting.render import latex_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
"""Used for an undefined value, and between the ends of a range."""
DAGGER = "\N{DAGGER}"
DOUBLE_DAGGER = "\N{DOUBLE DAGGER}"
SECTION_SIGN = "\N{SECTION SIGN}"
PAGE = 128
"""Approximate number of characters across a page in LaTeX."""


Cells = frozenset[tuple[int, int]]
"""Cells of a table as pairs (row, column)."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        group: head above its own, shared with neighbouring columns of the same group.
        numeric: whether the cells are numbers, which are aligned to the right.
        name: the name by which `with_columns` picks it; empty: it is always there.
        higher: whether larger numbers are better; None: the column has no best.
        fields: columns of the table's `data` that hold its numbers.
    """

    title: str
    group: str = ""
    numeric: bool = True
    name: str = ""
    higher: bool | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextTable:
    """A table of texts with caption and notes.

    Attributes:
        name: part of file names.
        caption: one sentence on what the table shows.
        rows: texts, shape [rows, columns]; "" for an empty cell.
        notes: sentences below the table.
        rules: indices of the rows with a line above them.
        bold: cells (row, column) in bold.
        unranked: cells (row, column) that cannot be the best of their column, because they are not comparable.
        data: the numbers behind the texts, in full precision, for CSV.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    rules: frozenset[int] = frozenset()
    bold: Cells = frozenset()
    unranked: Cells = frozenset()
    data: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    @property
    def grouped(self) -> bool:
        """Whether there is a second line of heads, above the heads of the columns."""
        return any(column.group for column in self.columns)

    def groups(self) -> list[tuple[str, int]]:
        """The upper heads, from left to right, with the number of columns below each."""
        return _groups(self.columns)


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    return [(name, len(list(found))) for name, found in groupby(column.group for column in columns)]


@dataclass(frozen=True)
class LatexOptions:
    """How LaTeX tables are written.

    Attributes:
        siunitx: use columns of the package siunitx, which align numbers at the decimal point.
        command: command line that makes the table, for a comment above it; empty: no such comment.
    """

    siunitx: bool = False
    command: str = ""


def write(table: TextTable, form: str, options: LatexOptions | None = None) -> str:
    """Convert a table to one of `FORMATS`.

    Args:
        options: only for the format `tex`.

    Raises:
        UserError: unknown format.
    """
    if form not in FORMATS:
        raise unknown_name("--format", form, [*FORMATS, "terminal"])
    return latex(table, options) if form == "tex" else FORMATS[form](table)


def with_columns(table: TextTable, names: Sequence[str]) -> TextTable:
    """The table with the named columns only, in this order after those without a name; its `data` likewise.

    Raises:
        UserError: no column has such a name.
    """
    places = {column.name: c for c, column in enumerate(table.columns) if column.name}
    for name in names:
        if name not in places:
            raise unknown_name("--columns", name, places)
    unnamed = [c for c, column in enumerate(table.columns) if not column.name]
    chosen = [*unnamed, *(places[name] for name in dict.fromkeys(names))]
    kept = {field for c in chosen for field in table.columns[c].fields}
    left = {field for column in table.columns for field in column.fields} - kept
    return replace(_chosen(table, chosen), data=table.data.drop(columns=[f for f in table.data if f in left]))


def csv(table: TextTable) -> str:
    """Raw numbers, empty where undefined."""
    return spreadsheets.to_csv(table.data)


def markdown(table: TextTable) -> str:
    """A pipe table with its caption above and its notes below."""
    header = [_markdown(f"{c.group} {c.title}".strip()) for c in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    cells = [
        [f"**{_markdown(text)}**" if (r, c) in table.bold and text else _markdown(text) for c, text in enumerate(row)]
        for r, row in enumerate(table.rows)
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *cells))
    notes = "\n".join(f"- {_markdown(note)}" for note in table.notes)
    return f"**{_markdown(table.caption)}**\n\n{body}\n" + (f"\n{notes}\n" if notes else "")


def latex(table: TextTable, options: LatexOptions | None = None) -> str:
    """A `table` environment; needs the package `booktabs`, with siunitx columns also `siunitx`.

    The best value of a column is bold, the second best underlined, if the column has a `higher`. A table too wide for a
    page is split between groups.
    """
    options = options or LatexOptions()
    label = re.sub(r"[^A-Za-z0-9._:+-]+", "-", table.name)
    packages = [r"\usepackage{booktabs}", *([r"\usepackage{siunitx} (version 3)"] if options.siunitx else [])]
    lines = [f"% {printable(options.command)}"] if options.command else []
    lines += [f"% Needs {' and '.join(packages)}."]
    lines += [r"\begin{table}", r"\centering", rf"\caption{{{latex_text.escaped(table.caption)}}}"]
    lines += [rf"\label{{tab:{label}}}"]
    if options.siunitx:
        separate = ", separate-uncertainty" if any("±" in text for row in table.rows for text in row) else ""
        lines.append(rf"\sisetup{{detect-weight, mode=text, retain-explicit-plus{separate}}}")
    best, second = ranked(table)
    for number, columns in enumerate(_parts(table, PAGE)):
        lines += ["", r"\medskip"] if number else []
        lines += _tabular(table, columns, best, second, options.siunitx)
    notes = [*table.notes, *_about_ranks(table, best, second)]
    if notes:
        text = " ".join(map(latex_text.escaped, notes))
        lines += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {text}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def ranked(table: TextTable) -> tuple[Cells, Cells]:
    """The cells with the best, and with the second-best number of each column; all of those that print the same number.

    Columns without `higher` and columns with fewer than two comparable numbers have none.
    """
    best, second = set[tuple[int, int]](), set[tuple[int, int]]()
    for c, column in enumerate(table.columns):
        matches = {r: _LEADING.match(row[c]) for r, row in enumerate(table.rows) if (r, c) not in table.unranked}
        numbers = {r: float(match[0].replace("\N{MINUS SIGN}", "-")) for r, match in matches.items() if match}
        if column.higher is None or len(numbers) < 2:
            continue
        for place, value in zip((best, second), sorted(set(numbers.values()), reverse=column.higher), strict=False):
            place |= {(r, c) for r, found in numbers.items() if found == value}
    return frozenset(best), frozenset(second)


_LEADING = re.compile(r"[+\-\N{MINUS SIGN}]?[0-9]+(\.[0-9]+)?")


def _about_ranks(table: TextTable, best: Cells, second: Cells) -> list[str]:
    """A note on what is bold and underlined; none if nothing is."""
    if not best:
        return []
    columns = {c for _, c in best}
    left = dict.fromkeys(table.rows[r][0] for r, c in sorted(table.unranked) if c in columns and table.rows[r][c])
    parts = ["Bold: best of a column", *(["underlined: second best"] if second else [])]
    return ["; ".join([*parts, *([f"not ranked: {', '.join(left)}"] if left else [])]) + "."]


def _tabular(table: TextTable, part: Sequence[int], best: Cells, second: Cells, siunitx: bool) -> list[str]:
    """The lines of a `tabular` environment with some columns of a table."""
    shown = [table.columns[c] for c in part]
    aligned = [c for c in part if siunitx and table.columns[c].numeric]
    formats = {c: text for c in aligned if (text := latex_text.table_format([row[c] for row in table.rows]))}
    kinds = [f"S[{formats[c]}]" if c in formats else "r" if table.columns[c].numeric else "l" for c in part]
    lines = [rf"\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule"]
    if table.grouped:
        heads, rules, place = [], [], 1
        for name, width in _groups(shown):
            head = latex_text.escaped(name)
            heads.append(rf"\multicolumn{{{width}}}{{c}}{{{head}}}" if name else " & ".join([""] * width))
            rules += [rf"\cmidrule(lr){{{place}-{place + width - 1}}}"] if name else []
            place += width
        lines += [" & ".join(heads) + r" \\", " ".join(rules)]
    titles = {c: latex_text.escaped(table.columns[c].title) for c in part}
    lines += [" & ".join(f"{{{titles[c]}}}" if c in formats else titles[c] for c in part) + r" \\", r"\midrule"]
    # Where columns have a best, bold numbers are the best ones; a row that stands out has its name in bold.
    bold = {(r, c) for r, c in table.bold if not (best and table.columns[c].numeric)} | best
    for r, row in enumerate(table.rows):
        lines += [r"\midrule"] if r in table.rules else []
        cells = [latex_text.cell(row[c], formats.get(c, ""), (r, c) in bold, (r, c) in second) for c in part]
        lines.append(" & ".join(cells) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def html(table: TextTable) -> str:
    """A `table` element with a caption, and a list of notes after it."""
    lines = ["<table>", f"<caption>{escape(table.caption)}</caption>", "<thead>"]
    if table.grouped:
        heads = [
            f'<th scope="colgroup" colspan="{width}">{escape(name)}</th>' if name else f'<td colspan="{width}"></td>'
            for name, width in table.groups()
        ]
        lines.append(f"<tr>{''.join(heads)}</tr>")
    lines.append("<tr>" + "".join(f'<th scope="col">{escape(c.title)}</th>' for c in table.columns) + "</tr>")
    lines += ["</thead>", "<tbody>"]
    for r, row in enumerate(table.rows):
        cells = []
        for c, text in enumerate(row):
            shown = f"<strong>{escape(text)}</strong>" if (r, c) in table.bold and text else escape(text)
            cells.append(f'<th scope="row">{shown}</th>' if c == 0 else f"<td>{shown}</td>")
        rule = ' class="rule"' if r in table.rules else ""
        lines.append(f"<tr{rule}>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table>"]
    if table.notes:
        lines += ["<ul>", *(f"<li>{escape(note)}</li>" for note in table.notes), "</ul>"]
    return "\n".join([*lines, ""])


def rich(table: TextTable) -> RichTable:
    """For the terminal: the caption as title, the notes below."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Text, not str, because rich would parse `[masked=true]` in a label as markup.
    view = Table(
        title=Text(table.caption),
        caption=Text("\n".join(table.notes)),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for number, column in enumerate(table.columns):
        title = Text("\n".join(_head(table, number)))
        if column.numeric:
            view.add_column(title, justify="right", no_wrap=True)
        else:
            view.add_column(title, overflow="fold", min_width=12)
    for r, row in enumerate(table.rows):
        cells = [Text(text, style="bold" if (r, c) in table.bold else "") for c, text in enumerate(row)]
        view.add_row(*cells, end_section=r + 1 in table.rules)
    return view


def show(table: TextTable, out: Console) -> None:
    """Print on the terminal; if it is narrow, groups of columns are printed below each other, and lines wrap."""
    from rich.segment import Segments

    parts = [_chosen(table, columns) for columns in _parts(table, out.width)]
    for number, part in enumerate(parts):
        caption, notes = table.caption if number == 0 else "", table.notes if part is parts[-1] else ()
        # Rendered here: a console stops following the width of the terminal once its own width is set.
        options = out.options.update_width(max(out.width, _needed(part, range(len(part.columns)))))
        out.print(Segments(out.render(rich(replace(part, caption=caption, notes=notes)), options)), crop=False)


def _parts(table: TextTable, width: int) -> list[list[int]]:
    """The columns of parts of at most `width` characters, split between groups; those without group are in each."""
    heads, pieces, start = [], list[list[int]](), 0
    for name, count in table.groups():
        columns = list(range(start, start + count))
        start += count
        if not name:
            heads += columns
        elif pieces and _needed(table, [*heads, *pieces[-1], *columns]) <= width:
            pieces[-1] += columns
        else:
            pieces.append(columns)
    return [sorted([*heads, *piece]) for piece in pieces] or [list(range(len(table.columns)))]


def _chosen(table: TextTable, columns: Sequence[int]) -> TextTable:
    return replace(
        table,
        columns=tuple(table.columns[c] for c in columns),
        rows=tuple(tuple(row[c] for c in columns) for row in table.rows),
        bold=_moved(table.bold, columns),
        unranked=_moved(table.unranked, columns),
    )


def _moved(cells: Cells, columns: Sequence[int]) -> Cells:
    """The same cells in a table of these columns."""
    places = {c: place for place, c in enumerate(columns)}
    return frozenset((r, places[c]) for r, c in cells if c in places)


def _head(table: TextTable, number: int) -> list[str]:
    """Lines of the head of a column; the upper head is printed above the first of its columns."""
    column = table.columns[number]
    begins = number == 0 or table.columns[number - 1].group != column.group
    width = max([20, *(len(row[number]) for row in table.rows)])
    return [*(textwrap.wrap(column.group, width, break_on_hyphens=False) if begins else []), column.title]


def _needed(table: TextTable, columns: Iterable[int]) -> int:
    """Width in characters of a line with these columns; columns of texts take 12 to 28 and wrap beyond."""
    from rich.cells import cell_len

    widths = {c: max(map(cell_len, [*_head(table, c), *(row[c] for row in table.rows)])) for c in columns}
    return 1 + sum(3 + (width if table.columns[c].numeric else min(max(width, 12), 28)) for c, width in widths.items())


FORMATS: Mapping[str, Callable[[TextTable], str]] = {"md": markdown, "csv": csv, "tex": latex, "html": html}
"""Converters by suffix of the file."""


def by_row(what: str, texts: Sequence[tuple[str, str]]) -> str:
    """One sentence on a property of all rows: one text if they agree, else a clause per group of rows.

    A group of more than half of the rows, and more than three, is written as `all others`.

    Args:
        what: name of the property.
        texts: pairs of a row's name and its value of the property.
    """
    groups: dict[str, list[str]] = {}
    for label, text in texts:
        groups.setdefault(text, []).append(label)
    if len(groups) == 1:
        return f"{what}: {texts[0][1]}."
    largest = max(groups, key=lambda text: len(groups[text]))
    others = largest if len(groups[largest]) > max(3, len(texts) / 2) else None
    clauses = [f"{text} ({', '.join(labels)})" for text, labels in groups.items() if text != others]
    return f"{what}: " + "; ".join([*clauses, f"{others} (all others)"] if others else clauses) + "."


def _markdown(text: str) -> str:
    """Escape characters that would end a cell or start markup."""
    return re.sub(r"([\\|*_`<>$&~\[\]])", r"\\\1", " ".join(text.split()))
