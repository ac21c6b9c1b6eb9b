"""Tables in every format: any text of a cell is shown unchanged, and the structure of the table holds."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexNode, LatexWalker
from rich.console import Console

from cl_bench.errors import UserError
from cl_bench.reporting import text_tables
from cl_bench.reporting.text_tables import Column, TextTable

# All formats except HTML reduce white space to single spaces.
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12).map(
    lambda text: " ".join(text.split())
)
HOSTILE = st.one_of(TEXTS, st.text(r"\|*_`<>$&~[]{}%#^-'\"±", max_size=8))
EXAMPLE = TextTable(
    name="example",
    caption="Accuracy, 50 % of it & more",
    columns=(
        Column("method", numeric=False),
        Column("ours", "N = 5: acc, %"),
        Column("paper", "N = 5: acc, %"),
        Column("ours", "N = 10: acc, %"),
        Column("paper", "N = 10: acc, %"),
    ),
    rows=(
        ("sdlora[rank=8]", "79.1 ± 0.2", "79.15", "", "77.34"),
        ("c_d", "1", "2", "3", "4"),
        ("e", "5", "6", "7", "8"),
    ),
    notes=("--benchmark was given.", "[a] epochs differ."),
    rules=frozenset({1}),
    bold=frozenset({(0, 1), (0, 3)}),
    data=pd.DataFrame({"row": ["a,b", 'c"d'], "mean": [0.1 + 0.2, None]}),
)


@st.composite
def tables(draw: st.DrawFn) -> TextTable:
    """A table of hostile texts, with and without groups, rules and bold cells."""
    width, height = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    groups = draw(st.lists(st.one_of(st.just(""), HOSTILE), min_size=width, max_size=width))
    columns = tuple(Column(draw(HOSTILE), group, draw(st.booleans())) for group in groups)
    rows = tuple(tuple(draw(HOSTILE) for _ in range(width)) for _ in range(height))
    bold = draw(st.frozensets(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))))
    rules = draw(st.frozensets(st.integers(1, height)))
    return TextTable("any", draw(HOSTILE), columns, rows, tuple(draw(st.lists(HOSTILE, max_size=2))), rules, bold)


# --- Markdown ----------------------------------------------------------------------------------------------------


def pipe_cells(line: str) -> list[str]:
    """The cells of a line of a pipe table, unescaped and without bold marks."""
    cells = [cell.strip() for cell in _hidden(line).split("|")][1:-1]
    plain = [cell[2:-2] if cell.startswith("**") else cell for cell in cells]
    return [_shown(cell) for cell in plain]


def _hidden(text: str) -> str:
    """Replace escaped characters by private ones, so that all remaining special characters are markup."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", lambda match: chr(0xE000 + ord(match[1])), text)


def _shown(text: str) -> str:
    return re.sub("[\ue000-\ue0ff]", lambda match: chr(ord(match[0]) - 0xE000), text)


@settings(deadline=None)
@given(tables())
def test_markdown_keeps_every_text_and_the_number_of_cells(table: TextTable) -> None:
    caption, _, rest = text_tables.markdown(table).partition("\n\n")
    assert _shown(_hidden(caption)[2:-2]) == table.caption
    body, _, notes = rest.partition("\n\n")
    head, rule, *lines = body.splitlines()
    assert pipe_cells(head) == [f"{column.group} {column.title}".strip() for column in table.columns]
    assert [cell.endswith(":") for cell in pipe_cells(rule)] == [column.numeric for column in table.columns]
    assert [pipe_cells(line) for line in lines] == [list(row) for row in table.rows]
    assert [_shown(_hidden(line)[2:]) for line in notes.splitlines()] == list(table.notes)


@settings(deadline=None)
@given(HOSTILE)
def test_markdown_leaves_no_markup_in_a_text(text: str) -> None:
    line = text_tables.markdown(replace(EXAMPLE, rows=((text, "", "", "", ""),), bold=frozenset())).splitlines()[4]
    assert not re.search(r"[*_`<>$&~\[\]]", _hidden(line))


def test_markdown_shows_what_is_bold() -> None:
    lines = text_tables.markdown(EXAMPLE).splitlines()
    assert lines[4] == r"| sdlora\[rank=8\] | **79.1 ± 0.2** | 79.15 |  | 77.34 |", (
        "and no stars where there is nothing"
    )


# --- LaTeX -------------------------------------------------------------------------------------------------------


def environment(nodes: list[LatexNode], name: str) -> LatexEnvironmentNode:
    (found,) = [node for node in nodes if isinstance(node, LatexEnvironmentNode) and node.environmentname == name]
    return found


def as_text(latex: str) -> str:
    """The text that LaTeX prints."""
    known = get_default_latex_context_db()
    names = {
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "textasciitilde": "~",
        "textasciicircum": "^",
        "S": "§",
    }
    macros = [MacroTextSpec(name, text) for name, text in names.items()]
    known.add_context_category("text", macros=macros, prepend=True)
    return plain(LatexNodes2Text(known, math_mode="text").latex_to_text(latex))


def plain(text: str) -> str:
    """A text without spaces, which TeX drops after macros, and with hyphens for minus signs, as in mathematics."""
    return re.sub(r"\s", "", text).replace("\N{MINUS SIGN}", "-")


@settings(deadline=None)
@given(tables())
def test_latex_keeps_every_text_and_the_number_of_cells(table: TextTable) -> None:
    document = text_tables.latex(table)
    nodes, _, length = LatexWalker(document, tolerant_parsing=False).get_latex_nodes()
    assert length == len(document)
    environment(environment(nodes, "table").nodelist, "tabular")
    body = [line for line in document.splitlines() if line.endswith(r" \\")]
    heads = 2 if table.grouped else 1
    for line, texts in zip(body[heads - 1 :], [[c.title for c in table.columns], *table.rows], strict=True):
        cells = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        assert [as_text(cell) for cell in cells] == [plain(text) for text in texts]
        assert not re.search(r"[<>|^~]|(?<!\{)[\[\]]", " ".join(cells)), "TeX's fonts have others in their place"
    if table.grouped:
        spans = re.findall(r"\\multicolumn\{(\d+)\}", body[0])
        empty = len(re.split(r"(?<!\\)&", body[0].removesuffix(r" \\"))) - len(spans)
        assert sum(map(int, spans)) + empty == len(table.columns), "upper heads cover all columns"


def test_latex_names_rules_heads_and_notes() -> None:
    text = text_tables.latex(EXAMPLE)
    assert r"\multicolumn{2}{c}{N = 5: acc, \%} & \multicolumn{2}{c}{N = 10: acc, \%} \\" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in text
    assert r"\begin{tabular}{lrrrr}" in text and r"\caption{Accuracy, 50 \% of it \& more}" in text
    assert r"sdlora{[}rank=8{]} & \textbf{79.1 $\pm$ 0.2} & 79.15" in text
    lines = text.splitlines()
    assert lines[lines.index(next(line for line in lines if line.startswith("c\\_d"))) - 1] == r"\midrule"
    assert lines.index(r"\end{tabular}") < next(n for n, line in enumerate(lines) if "epochs differ" in line)
    assert r"-{}-benchmark was given." in text, "two hyphens would become a dash"


def wide(groups: int) -> TextTable:
    """A table with a number of groups of two columns; each cell has a different number."""
    columns = [Column("method", numeric=False)]
    columns += [Column(title, f"stream {group}") for group in range(groups) for title in ("acc", "aaa")]
    rows = tuple(tuple(f"{r}{c:02}" for c in range(len(columns))) for r in range(3))
    return TextTable("wide", "Many streams", tuple(columns), rows, ("A note.",), bold=frozenset({(1, 2 * groups)}))


def test_latex_splits_a_wide_table_between_groups() -> None:
    assert text_tables.latex(wide(2)).count(r"\begin{tabular}") == 1
    text = text_tables.latex(wide(8))
    parts = re.findall(r"\\begin\{tabular\}\{(l(?:rr)+)\}", text)
    assert len(parts) > 1 and "".join(parts).count("r") == 16
    assert text.count("Many streams") == text.count("A note.") == text.count(r"\begin{table}") == 1
    for row in wide(8).rows:
        assert text.count(row[0]) == len(parts) and all(text.count(cell) == 1 for cell in row[1:])
    assert r"\textbf{116}" in text and text.count(r"\textbf") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    hostile = replace(EXAMPLE, rows=((r"\|*_`<>$&~[]{}%#^--'±", "", "", "", ""), *EXAMPLE.rows))
    body = text_tables.latex(hostile) + text_tables.latex(wide(8))
    text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "a.tex").write_text(text)
    subprocess.run(["pdflatex", "-halt-on-error", "-interaction=batchmode", "a.tex"], cwd=tmp_path, check=True)


# --- HTML --------------------------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """Texts of a table by kind, and the attributes of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.caption, self.notes = "", list[str]()
        self.lines: list[list[str]] = []
        self.cells: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert not self.tags, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.lines.append([])
        elif tag in ("th", "td"):
            self.lines[-1].append("")
            self.cells.append((tag, dict(attrs)))
        elif tag == "li":
            self.notes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if "caption" in self.tags:
            self.caption += data
        elif {"th", "td"} & set(self.tags):
            self.lines[-1][-1] += data
        elif "li" in self.tags:
            self.notes[-1] += data


@settings(deadline=None)
@given(tables())
def test_html_keeps_every_text(table: TextTable) -> None:
    parsed = Parsed(text_tables.html(table))
    assert parsed.caption == table.caption
    assert parsed.notes == list(table.notes)
    upper = [[name for name, _ in table.groups()]] if table.grouped else []
    assert parsed.lines == [*upper, [column.title for column in table.columns], *map(list, table.rows)]


def test_html_says_what_a_head_is_for() -> None:
    parsed = Parsed(text_tables.html(EXAMPLE))
    scopes = [attributes.get("scope") for tag, attributes in parsed.cells if tag == "th"]
    assert scopes == ["colgroup"] * 2 + ["col"] * 5 + ["row"] * 3
    assert [attributes["colspan"] for _, attributes in parsed.cells if "colspan" in attributes] == ["1", "2", "2"]
    assert "style" not in text_tables.html(EXAMPLE)


# --- CSV, terminal, formats --------------------------------------------------------------------------------------


def test_csv_has_the_numbers_in_full() -> None:
    rows = list(csv.DictReader(StringIO(text_tables.csv(EXAMPLE))))
    assert [row["row"] for row in rows] == ["a,b", 'c"d']
    assert float(rows[0]["mean"]) == 0.1 + 0.2 and rows[1]["mean"] == ""


def printed(table: TextTable, width: int) -> str:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    text_tables.show(table, console)
    assert console.width == width
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_wide_terminal_shows_all_columns_side_by_side() -> None:
    text = printed(EXAMPLE, 200)
    (line,) = [line for line in text.splitlines() if "sdlora[rank=8]" in line]
    assert line.split() == ["sdlora[rank=8]", "79.1", "±", "0.2", "79.15", "77.34"]
    assert text.index("Accuracy") < text.index("N = 5") < text.index("sdlora") < text.index("epochs differ")


def test_a_narrow_terminal_shows_groups_of_columns_one_below_the_other() -> None:
    text = printed(EXAMPLE, 60)
    assert max(map(len, text.splitlines())) <= 60
    lines = [line.split() for line in text.splitlines() if "sdlora[rank=8]" in line]
    assert lines == [["sdlora[rank=8]", "79.1", "±", "0.2", "79.15"], ["sdlora[rank=8]", "77.34"]]
    assert text.count("Accuracy, 50 %") == text.count("epochs differ") == 1


def test_a_console_still_follows_its_terminal_after_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=StringIO(), force_terminal=False)
    for columns in (30, 200, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        text_tables.show(EXAMPLE, console)
        assert console.width == columns


@settings(deadline=None)
@given(tables(), st.integers(20, 120))
def test_every_number_is_on_a_terminal_of_any_width(table: TextTable, width: int) -> None:
    numbers = [[f"{r}0{c}" for c in range(len(table.columns))] for r in range(len(table.rows))]
    text = printed(replace(table, rows=tuple(map(tuple, numbers))), width)
    assert {number for row in numbers for number in row} <= set(re.findall(r"\d+", text))


@pytest.mark.parametrize("form", text_tables.FORMATS)
def test_every_format_is_written_by_name(form: str) -> None:
    assert "sdlora" in text_tables.write(EXAMPLE, form) or form == "csv"
    assert text_tables.write(EXAMPLE, form) == text_tables.FORMATS[form](EXAMPLE)


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'xlsx'.*csv.*html.*md.*tex"):
        text_tables.write(EXAMPLE, "xlsx")
