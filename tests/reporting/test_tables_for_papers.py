"""Tables for a paper: chosen rows and columns, differences from one row, best and second best, and siunitx."""

import csv
import re
from io import StringIO
from pathlib import Path

import pytest
from pylatexenc.latexwalker import LatexWalker

import cl_bench as cl_bench_package
from cl_bench.reporting import result_table, text_tables
from cl_bench.reporting.render import latex_text
from cl_bench.reporting.runs import label_runs, sections
from cl_bench.reporting.text_tables import Column, LatexOptions, TextTable
from tests.helpers import factories, reports
from tests.helpers.command import Cli

RANKED = TextTable(
    "ranked",
    "A caption",
    (
        Column("method", numeric=False),
        Column("acc", higher=True),
        Column("forgetting", higher=False),
        Column("minutes"),
    ),
    (
        ("alpha", "77.12 ± 0.31", "4.00", "1.0"),
        ("beta", "77.12 ± 1.20", "−1.50 ± 0.20", "12.5"),
        ("gamma", "76.05 ± 0.40", "5.00", "0.50"),
        ("joint", "90.00 ± 0.10", "–", "3.0"),
    ),
    unranked=frozenset((3, c) for c in range(4)),
)
STORE = Path("results/runs")


@pytest.fixture
def store(cl_bench: Cli) -> Path:
    """Three methods with three seeds each, one of them in two variants, and joint training."""
    runs = [factories.record(name, seed) for name in ("alpha", "beta", "gamma") for seed in range(3)]
    runs += [factories.record("alpha", s, label="alpha[rank=8]", hyperparameters={"rank": 8}) for s in range(3)]
    factories.write(STORE, *runs, *(factories.record("joint", seed, joint=True) for seed in range(3)))
    return STORE


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


# --- best and second best ------------------------------------------------------------------------------------------


def test_the_best_and_the_second_best_printed_numbers_are_marked_by_the_direction_of_the_metric() -> None:
    best, second = text_tables.ranked(RANKED)
    assert best == {(0, 1), (1, 1), (1, 2)}, "ties share the place, less forgetting is better, joint competes with none"
    assert second == {(2, 1), (0, 2)}


def test_a_column_with_one_comparable_number_has_no_best() -> None:
    alone = TextTable("one", "", RANKED.columns, RANKED.rows[2:], unranked=frozenset((1, c) for c in range(4)))
    assert text_tables.ranked(alone) == (frozenset(), frozenset())
    assert "Bold" not in text_tables.latex(alone)


def test_latex_marks_them_and_says_so() -> None:
    text = text_tables.latex(RANKED)
    assert r"alpha & \textbf{77.12 $\pm$ 0.31} & \underline{4.00} & 1.0 \\" in text
    assert "Bold: best of a column; underlined: second best; not ranked: joint." in text
    assert "Bold" not in text_tables.markdown(RANKED)


# --- siunitx -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("77.12", "77.12"),
        ("77.12 ± 0.31", "77.12(31)"),
        ("7.12 ± 12.31", "7.12(1231)"),
        ("−0.50 ± 0.07", "-0.50(7)"),
        ("+1.20", "+1.20"),
        ("81.01 (0.20) [a,b]", "81.01(20)"),
        ("5", "5"),
        ("3.0 ± 0.25", None),
        ("<0.001", None),
        ("0.37 M", None),
        ("3/0/1", None),
        ("–", None),
        ("", None),
    ],
)
def test_numbers_are_read_with_their_uncertainty_in_units_of_the_last_digit(text: str, expected: str | None) -> None:
    found = latex_text.number(text)
    assert (found.text if found else None) == expected


def test_siunitx_aligns_numbers_and_braces_what_is_none() -> None:
    text = text_tables.latex(RANKED, LatexOptions(siunitx=True, command="cl-bench table x\nrm"))
    first, second = text.splitlines()[:2]
    assert first == r"% cl-bench table x\nrm", "a line end would end the comment"
    assert second == r"% Needs \usepackage{booktabs} and \usepackage{siunitx} (version 3)."
    assert r"\begin{tabular}{lS[table-format=2.2(3)]S[table-format=+1.2(2)]S[table-format=2.2]}" in text
    assert r"method & {acc} & {forgetting} & {minutes} \\" in text
    assert r"beta & \bfseries 77.12(120) & \bfseries -1.50(20) & 12.5 \\" in text
    assert r"gamma & {\underline{\tablenum[table-format=2.2(3)]{76.05(40)}}} & 5.00 & 0.50 \\" in text
    assert r"joint & 90.00(10) & {--} & 3.0 \\" in text
    assert text.count(r"\sisetup{detect-weight, mode=text, retain-explicit-plus, separate-uncertainty}") == 1
    nodes, _, length = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert length == len(text) and nodes


def test_standard_errors_in_parentheses_stay_there_and_marks_follow_the_number() -> None:
    columns = (Column("method", numeric=False), Column("ours"))
    text = text_tables.latex(TextTable("p", "", columns, (("a", "81.01 (0.20) [a]"),)), LatexOptions(siunitx=True))
    assert r"a & 81.01(20){\,{[}a{]}} \\" in text and "separate-uncertainty" not in text


# --- the commands --------------------------------------------------------------------------------------------------


def test_every_format_has_the_chosen_rows_and_columns_in_their_order(cl_bench: Cli, store: Path) -> None:
    chosen = ("--rows", "gamma,alpha[],joint", "--columns", "bwt,acc", "--highlight", "alp*")
    table = rows(cl_bench("table", "results", *chosen, "--format", "csv").out)
    assert [row["label"] for row in table] == ["gamma", "alpha", "joint"]
    assert {"bwt_mean", "acc_n", "seeds"} <= table[0].keys() and not {"aaa_mean", "trainable"} & table[0].keys()
    tex = cl_bench("table", "results", *chosen, "--format", "tex")
    lines = [line for line in tex.out.splitlines() if line.endswith(r"\\")]
    assert [line.split(" & ")[0] for line in lines] == ["method", "gamma", r"\textbf{alpha}", "joint"]
    assert lines[0] == r"method & bwt, \% & acc, \% \\"
    command = (
        "% cl-bench table results --rows 'gamma,alpha[],joint' --columns bwt,acc --highlight 'alp*' --format tex\n"
    )
    assert tex.out.startswith(command)
    assert cl_bench("report", *chosen).code == 0
    (written,) = Path("reports/tables").glob("*.csv")
    assert [row["label"] for row in rows(written.read_text())] == ["gamma", "alpha", "joint"]
    (protocol,) = reports.at_once(Path("reports/index.html").read_text())["protocols"]
    assert [(row["label"], row["highlight"]) for row in protocol["rows"]] == [
        ("gamma", False), ("alpha", True), ("joint", False),
    ]  # fmt: skip
    figure = next(Path("reports/figures").glob("*-accuracy.csv")).read_text()
    assert {row["label"] for row in rows(figure)} == {"gamma", "alpha", "joint"}


def test_the_python_api_takes_the_same_choice(store: Path) -> None:
    page = cl_bench_package.report(
        store, out="made", rows=["gamma", "beta"], columns="acc", against="gamma", siunitx=True
    )
    (tex,) = Path("made/tables").glob("*.tex")
    lines = [line.split(" & ")[0] for line in tex.read_text().splitlines() if line.endswith(r"\\")]
    assert lines == ["method", "gamma", "beta"] and r"\sisetup" in tex.read_text()
    command = (
        "cl-bench report --results results/runs --out made --rows gamma,beta --columns acc --against gamma --siunitx"
    )
    assert tex.read_text().startswith(f"% {command}\n") and command in page.read_text()


def test_differences_are_those_of_compare(cl_bench: Cli, store: Path) -> None:
    table = rows(cl_bench("table", "results", "--rows", "beta,gamma", "--against", "alpha[]", "--format", "csv").out)
    assert [row["label"] for row in table] == ["beta", "gamma", "alpha"], "the baseline is always shown"
    compared = rows(cl_bench("compare", "--rows", "beta,gamma", "--against", "alpha", "--format", "csv").out)
    assert [row["row"] for row in compared] == ["beta", "gamma"]
    for one, other in zip(table, compared, strict=False):
        assert (one["difference"], one["difference_low"], one["p_holm"]) == tuple(
            other[name] for name in ("difference", "low", "p_holm")
        )
    assert table[2]["difference"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "results", "--columns", "acx"), "unknown --columns 'acx'; known: .* Did you mean 'acc'"),
        (("table", "results", "--columns", "difference"), "unknown --columns 'difference'"),
        (("table", "results", "--rows", "alhpa"), "--rows: no row matches 'alhpa'. Did you mean 'alpha'"),
        (("table", "results", "--against", "alpha*"), "--against 'alpha\\*' matches 2 rows"),
        (("table", "results", "--siunitx"), "--siunitx is for LaTeX tables; give --format tex"),
        (("table", "sdlora-table2", "--against", "sdlora"), "use it with 'cl-bench table results'"),
        (("table", "sdlora-table2", "--columns", "forgetting"), "unknown --columns 'forgetting'; known: aaa, acc"),
        (("report", "--rows", "qqq"), "--rows: no row matches 'qqq'"),
        (("compare", "alpha", "beta", "--rows", "gamma"), "as arguments or by --rows, not both"),
        (("compare", "alpha", "beta", "--columns", "qqq"), "unknown --columns 'qqq'"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    cl_bench: Cli, store: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = cl_bench(*arguments)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert re.search(message, outcome.err), outcome.err


# --- notes ---------------------------------------------------------------------------------------------------------


def test_versions_are_named_where_a_table_mixes_them_and_a_dash_under_tuning_is_explained() -> None:
    def notes(*versions: str, trials: int = 0) -> str:
        made = [
            factories.record(name).model_copy(update={"environment": {"cl-bench": version}, "tuning_trials": trials})
            for name, version in zip("ab", versions, strict=True)
        ]
        (section,) = sections(label_runs((record, "runs") for record in made))
        return "\n".join(result_table.build(section).notes)

    mixed = notes("0.1.0", "0.2.0")
    assert "cl-bench versions: " in mixed and "0.1.0 (a)" in mixed and "0.2.0 (b)" in mixed
    assert "versions" not in notes("0.1.0", "0.1.0")
    assert "tuning –: no search" in notes("0.1.0", "0.1.0")
    assert "tuning –" not in notes("0.1.0", "0.1.0", trials=3)
