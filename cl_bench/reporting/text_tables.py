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

from cl_bench.errors import unknown_name
from cl_bench.reporting import spreadsheets

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


@dataclass(frozen=True)
class Column:
    """Head of a column; neighbouring columns of the same `group` share a head above their own."""

    title: str
    group: str = ""
    numeric: bool = True


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
        data: the numbers behind the texts, in full precision, for CSV.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    rules: frozenset[int] = frozenset()
    bold: frozenset[tuple[int, int]] = frozenset()
    data: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    @property
    def grouped(self) -> bool:
        """Whether there is a second line of heads, above the heads of the columns."""
        return any(column.group for column in self.columns)

    def groups(self) -> list[tuple[str, int]]:
        """The upper heads, from left to right, with the number of columns below each."""
        return [(name, len(list(found))) for name, found in groupby(column.group for column in self.columns)]


def write(table: TextTable, form: str) -> str:
    """Convert a table to one of `FORMATS`.

    Raises:
        UserError: unknown format.
    """
    if form not in FORMATS:
        raise unknown_name("--format", form, [*FORMATS, "terminal"])
    return FORMATS[form](table)


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


def latex(table: TextTable) -> str:
    """A `table` environment; needs the package `booktabs`. A table too wide for a page is split between groups."""
    label = re.sub(r"[^A-Za-z0-9._:+-]+", "-", table.name)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.caption)}}}", rf"\label{{tab:{label}}}"]
    for number, part in enumerate(_parts(table, PAGE)):
        lines += ["", r"\medskip"] if number else []
        lines += _tabular(part)
    if table.notes:
        notes = " ".join(map(_latex, table.notes))
        lines += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {notes}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _tabular(table: TextTable) -> list[str]:
    """The lines of a `tabular` environment."""
    lines = [rf"\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in table.columns)}}}", r"\toprule"]
    if table.grouped:
        heads, rules, place = [], [], 1
        for name, width in table.groups():
            heads.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}" if name else " & ".join([""] * width))
            rules += [rf"\cmidrule(lr){{{place}-{place + width - 1}}}"] if name else []
            place += width
        lines += [" & ".join(heads) + r" \\", " ".join(rules)]
    lines += [" & ".join(_latex(column.title) for column in table.columns) + r" \\", r"\midrule"]
    for r, row in enumerate(table.rows):
        lines += [r"\midrule"] if r in table.rules else []
        cells = [rf"\textbf{{{_latex(text)}}}" if (r, c) in table.bold else _latex(text) for c, text in enumerate(row)]
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

    parts = _parts(table, out.width)
    for number, part in enumerate(parts):
        caption, notes = table.caption if number == 0 else "", table.notes if part is parts[-1] else ()
        # Rendered here: a console stops following the width of the terminal once its own width is set.
        options = out.options.update_width(max(out.width, _needed(part, range(len(part.columns)))))
        out.print(Segments(out.render(rich(replace(part, caption=caption, notes=notes)), options)), crop=False)


def _parts(table: TextTable, width: int) -> list[TextTable]:
    """Split a table between groups into parts of at most `width` characters; columns without group are in each part."""
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
    return [_chosen(table, sorted([*heads, *piece])) for piece in pieces] or [table]


def _chosen(table: TextTable, columns: Sequence[int]) -> TextTable:
    return replace(
        table,
        columns=tuple(table.columns[c] for c in columns),
        rows=tuple(tuple(row[c] for c in columns) for row in table.rows),
        bold=frozenset(
            (r, place) for place, c in enumerate(columns) for r in range(len(table.rows)) if (r, c) in table.bold
        ),
    )


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


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    DASH: "--",
    "−": "$-$",
    DAGGER: r"\textdagger{}",
    DOUBLE_DAGGER: r"\textdaggerdbl{}",
    SECTION_SIGN: r"\S{}",
    # At the start of a row LaTeX would read brackets as an argument of the \\ before it.
    "[": "{[}",
    "]": "{]}",
}


def _latex(text: str) -> str:
    """Escape characters with a meaning in LaTeX; characters that its fonts lack are left as they are."""
    # Prevent ligatures: two hyphens, as in the name of an option, would become a dash; quotes likewise.
    parts = re.split("(?<=[-'`,?!])(?=[-'`,])", " ".join(text.split()))
    return "{}".join("".join(_LATEX.get(character, character) for character in part) for part in parts)
