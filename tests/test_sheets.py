"""One table in every format: what comes out is what went in, whatever it holds."""

from __future__ import annotations

import csv as csv_reader
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker
from rich.console import Console

from cl_bench.errors import UserError
from cl_bench.report import sheets
from cl_bench.report.sheets import Column, Sheet

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
CELLS = st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4)


def sheet(rows: list[tuple[str, ...]], caption: str = "caption", notes: tuple[str, ...] = ()) -> Sheet:
    columns = (Column("method", numeric=False), Column("acc", "N = 5"), Column("aaa", "N = 5"))
    return Sheet("name", caption, columns, tuple(rows), notes, data=pd.DataFrame({"a": [1.5]}))


def flat(text: str) -> str:
    return " ".join(text.split())


class Cells(HTMLParser):
    """The texts of all cells, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


@given(CELLS)
def test_html_gives_back_every_text(rows: list[tuple[str, ...]]) -> None:
    parser = Cells()
    parser.feed(sheets.html(sheet(rows)))
    assert parser.rows[2:] == [[cell.replace("\r", "\n") for cell in row] for row in rows]


@given(CELLS)
def test_markdown_keeps_its_cells_apart(rows: list[tuple[str, ...]]) -> None:
    lines = [line for line in sheets.markdown(sheet(rows)).split("\n") if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    for line, row in zip(lines[2:], rows, strict=True):
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]
        assert len(cells) == 3
        assert [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells] == [flat(cell) for cell in row]


@given(CELLS, TEXT, TEXT)
def test_latex_parses_with_a_cell_for_each_text(rows: list[tuple[str, ...]], caption: str, note: str) -> None:
    source = sheets.latex(sheet(rows, caption, (note,)))
    nodes, _, _ = LatexWalker(source, tolerant_parsing=False).get_latex_nodes()
    (table,) = [node for node in nodes if isinstance(node, LatexEnvironmentNode)]
    assert table.environmentname == "table"
    (body,) = [n for n in table.nodelist if isinstance(n, LatexEnvironmentNode) and n.environmentname == "tabular"]
    lines = body.latex_verbatim().split("\\midrule\n")[1].split("\\bottomrule")[0].strip().split("\n")
    assert len(lines) == len(rows)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 and line.endswith(r" \\") for line in lines)


def test_groups_rules_and_bold_in_every_format() -> None:
    made = Sheet(
        "name", "caption", (Column("m", numeric=False), Column("acc", "N = 5"), Column("aaa", "N = 5"), Column("z")),
        (("a", "1", "2", "3"), ("b", "4", "", "6")), ("note",), frozenset({1}), frozenset({(1, 1)}),
    )  # fmt: skip
    latex = sheets.latex(made)
    assert r" & \multicolumn{2}{c}{N = 5} &  \\" in latex and r"\cmidrule(lr){2-3}" in latex
    assert r"\textbf{4}" in latex and latex.count(r"\midrule") == 2 and r"\begin{tabular}{lrrr}" in latex
    assert "| b | **4** |  | 6 |" in sheets.markdown(made) and "| m | N = 5 acc | N = 5 aaa | z |" in sheets.markdown(
        made
    )
    assert '<th scope="colgroup" colspan="2">N = 5</th>' in sheets.html(made) and "<strong>4</strong>" in sheets.html(
        made
    )
    console = Console(width=80, file=StringIO(), record=True)
    sheets.show(made, console)
    shown = console.export_text()
    assert "N = 5" in shown and "note" in shown and "caption" in shown


def test_csv_has_the_numbers_not_the_texts() -> None:
    (head, row) = csv_reader.reader(StringIO(sheets.csv(sheet([("a", "b", "c")]))))
    assert (head, row) == (["a"], ["1.5"])


def test_unknown_formats_are_refused_with_a_guess() -> None:
    with pytest.raises(UserError, match="'latex'.*expected|unknown --format 'latex'"):
        sheets.write(sheet([("a", "b", "c")]), "latex")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here; the structure is parsed instead")
def test_latex_compiles_as_it_is(tmp_path: Path) -> None:
    rows = [(r"a_b[rate=5%]&#{1}~^\$", "77.18 ± 0.99", "−1.2"), ("[first]", "", "×")]
    body = sheets.latex(sheet(rows, "a [caption] with 100 % and † and –", ("a note_",)))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + body + "\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
