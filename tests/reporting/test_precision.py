"""Precision marks a row of a table and keeps its seeds, pairs and paper cells apart from those of another precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_bench.experiment import Limits
from cl_bench.reporting import comparison, precision, result_table
from cl_bench.reporting.frames import run_frame, table_frame
from cl_bench.reporting.intransigence import intransigence, references
from cl_bench.reporting.paper import figures as paper_figures
from cl_bench.reporting.paper import tables as paper_tables
from cl_bench.reporting.runs import Run, Section, collect, sections
from tests.helpers.command import Cli, assert_refused
from tests.helpers.factories import record, write


def runs_in(folder: Path) -> list[Run]:
    return collect([(folder, folder.name)], pytest.fail)


def section_in(folder: Path) -> Section:
    (section,) = sections(runs_in(folder))
    return section


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three rows in fp32 on seeds 0 to 2; `alpha` and `mine` in bf16 on the same seeds."""
    folder = tmp_path / "runs"
    write(
        folder,
        *(record(name, seed, drop=drop) for name, drop in (("alpha", 0.02), ("beta", 0.04)) for seed in range(3)),
        *(record("joint", seed, joint=True) for seed in range(3)),
        *(record("alpha", seed, drop=0.03, precision="bf16") for seed in range(3)),
        *(record("mine", seed, drop=0.01, precision="bf16") for seed in range(3)),
    )
    return folder


def test_two_precisions_share_a_table_and_pool_no_seeds(mixed: Path) -> None:
    table = result_table.build(section_in(mixed))
    assert {row.label: (row.precision, row.seeds) for row in table.rows} == {
        "alpha": ("fp32", (0, 1, 2)),
        "beta": ("fp32", (0, 1, 2)),
        "joint": ("fp32", (0, 1, 2)),
        "alpha[bf16]": ("bf16", (0, 1, 2)),
        "mine[bf16]": ("bf16", (0, 1, 2)),
    }
    assert "split 5b5b5b5b, fp32 and bf16 (protocol" in table.caption
    assert any(note.startswith("Precision: fp32, except in rows marked [bf16].") for note in table.notes)
    frame = table_frame([table]).set_index("method")
    assert frame.precision.to_dict() == {row.label: row.precision for row in table.rows}
    assert set(frame.protocol) == {table.protocol.digest}
    assert run_frame(runs_in(mixed)).groupby("precision").size().to_dict() == {"bf16": 6, "fp32": 9}


def test_one_precision_is_named_once_and_marks_nothing(tmp_path: Path) -> None:
    write(tmp_path, *(record(name, 0, precision="bf16") for name in ("alpha", "beta")))
    table = result_table.build(section_in(tmp_path))
    assert {row.label for row in table.rows} == {"alpha", "beta"}
    assert "split 5b5b5b5b, bf16 (protocol" in table.caption and not any("Precision" in note for note in table.notes)


def test_the_precision_of_most_rows_carries_no_mark(tmp_path: Path) -> None:
    write(tmp_path, record("alpha", 0), record("beta", 0, precision="bf16"))
    assert set(section_in(tmp_path).rows) == {"alpha", "beta[bf16]"}
    # Seven more seeds are no more rows.
    write(tmp_path, *(record("alpha", seed) for seed in range(1, 8)), record("gamma", 0, precision="bf16"))
    assert set(section_in(tmp_path).rows) == {"alpha[fp32]", "beta", "gamma"}


def test_the_mark_joins_the_options_and_gives_way_to_labels_in_use(tmp_path: Path) -> None:
    write(
        tmp_path,
        record("alpha", 0),
        record("beta", 0, label="alpha[bf16]"),
        record("gamma", 0),
        record("alpha", 0, precision="bf16"),
        record("alpha", 0, precision="bf16", label="alpha[rank=8]", hyperparameters={"rank": 8}),
    )
    assert set(section_in(tmp_path).rows) == {"alpha", "alpha[bf16]", "alpha[bf16] (2)", "alpha[rank=8,bf16]", "gamma"}


def test_rows_are_paired_within_a_precision(mixed: Path) -> None:
    section = section_in(mixed)
    pairs = {frozenset((pair.row, pair.other)) for pair in comparison.pairwise(section)}
    within = (("alpha", "beta"), ("alpha", "joint"), ("beta", "joint"), ("alpha[bf16]", "mine[bf16]"))
    assert pairs == {frozenset(pair) for pair in within}
    usual, other = precision.by_precision(section)
    assert (list(usual.rows), list(other.rows)) == (["alpha", "beta", "joint"], ["alpha", "mine"])
    assert usual.slug != other.slug


def test_compare_pairs_across_precisions_only_if_asked(cl_bench: Cli, mixed: Path) -> None:
    def compare(*arguments: str) -> str:
        outcome = cl_bench("compare", *arguments, "--format", "md", "--results", str(mixed))
        assert outcome.code == 0, outcome.err
        return outcome.out

    def compared(text: str) -> list[str]:
        lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
        return [line.replace("\\", "") for line in lines if line not in ("row", "---")]

    # A name without a mark stands for the row in each precision, in a table of its own.
    both = compare("--baseline", "alpha")
    assert sorted(compared(both)) == ["beta", "joint", "mine"] and both.count("minus that of alpha") == 2
    assert "Not compared, because computed in bf16 instead of fp32: alpha\\[bf16\\], mine\\[bf16\\]" in both
    across = compare("alpha", "mine", "--across", "precision")
    assert compared(across) == ["mine[bf16]"]
    assert "Paired across precisions (bf16: mine\\[bf16\\]; fp32: alpha)" in across
    assert compared(compare("alpha[bf16]", "mine")) == ["mine"]
    assert sorted(compared(compare("--baseline", "alpha[bf16]", "--across", "precision"))) == [
        "alpha", "beta", "joint", "mine[bf16]",
    ]  # fmt: skip
    refused = cl_bench("compare", "beta", "mine", "--results", str(mixed))
    assert_refused(refused, "'beta' has nothing to be compared with", "mine[bf16]", "--across precision")
    assert_refused(
        cl_bench("compare", "beta", "alpha", "--across", "seeds", "--results", str(mixed)), "--across 'seeds'"
    )


def test_a_row_ranks_among_rows_of_its_precision(tmp_path: Path) -> None:
    """Ten blocks of fp32 and ten of bf16 are twenty blocks of the same rows, not ten of twice as many."""
    for seed in range(10):
        for name, drop in (("alpha", 0.01), ("beta", 0.02), ("gamma", 0.04)):
            write(tmp_path, *(record(name, seed, drop=drop, precision=kind) for kind in ("fp32", "bf16")))
    chart = comparison.ranks(sections(runs_in(tmp_path)))
    assert chart is not None and "of 3 rows over 20 blocks" in chart.caption


def test_intransigence_takes_joint_training_of_the_same_precision(tmp_path: Path) -> None:
    joint = [record("joint", 0, joint=True, tasks=2, limits=Limits(tasks=k)) for k in (1, 2)]
    joint.append(record("joint", 0, joint=True, tasks=2))
    write(tmp_path, *(record("alpha", 0, tasks=2, precision=kind) for kind in ("fp32", "bf16")), *joint)
    runs = runs_in(tmp_path)
    defined = {run.precision: bool(intransigence(run, references(runs))) for run in runs if run.unmarked == "alpha"}
    assert defined == {"fp32": True, "bf16": False}


def test_cells_of_papers_hold_one_precision(tmp_path: Path) -> None:
    stream = {"benchmark": "cifar100", "backbone": "vit_base_patch16_224.augreg_in21k"}
    write(
        tmp_path,
        *(record("sdlora", seed, **stream) for seed in range(3)),
        *(record("sdlora", seed, **stream, precision="bf16") for seed in range(2)),
        record("inflora", 0, **stream),
    )
    runs = runs_in(tmp_path)
    table = paper_tables.build("sdlora-table2", runs, "cifar100")
    cells = table.text_table.data
    assert sorted(cells[cells.metric == "acc"]["n"].dropna()) == [1, 2, 3]
    assert any("precision bf16 instead of fp32" in note for note in table.text_table.notes)
    figure = paper_figures.build("sdlora-fig2", runs, "cifar100")
    assert any("2 runs" in note and "a precision other than fp32" in note for note in figure.notes)
