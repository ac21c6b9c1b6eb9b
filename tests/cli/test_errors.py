"""`cl-bench errors`: tables on the terminal, files in a folder, and one sentence for bad input."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command import RUNS, Cli, assert_refused
from tests.helpers.factories import record, write


@pytest.fixture
def filled(cl_bench: Cli) -> Cli:
    """Two runs of `alpha` in 10 tasks, one in 5."""
    write(RUNS, *(record("alpha", seed) for seed in range(2)), record("alpha", 0, tasks=5, classes_per_task=20))
    return cl_bench


def test_a_row_is_summed_and_a_run_is_shown_alone(filled: Cli) -> None:
    outcome = filled("errors", "alpha", "--protocol", "10x10", "--top", "3", "--out", "made", "--format", "csv")
    assert outcome.code == 0, outcome
    assert "alpha, 2 runs (seeds 0, 1): where predictions go" in outcome.out
    assert "most confused pairs" in outcome.out and "forgotten most" in outcome.out
    confusion = pd.read_csv("made/confusion.csv")
    total = sum(sum(record("alpha", seed).total) for seed in range(2))
    assert confusion["images"].sum() == total
    right = sum(count or 0 for seed in range(2) for count in record("alpha", seed).correct[-1])
    assert confusion[confusion["true"] == confusion["predicted"]]["images"].sum() == right
    flow = pd.read_csv("made/flow.csv")
    assert flow.groupby("stage")["share"].sum().round(6).eq(100).all() and flow["stage"].max() == 10
    assert len(pd.read_csv("made/forgotten-images.csv")) == 3 and not list(Path("made").glob("*.png"))
    assert "the images themselves are not shown: icons-100 has another split" in outcome.err
    alone = filled("errors", record("alpha", 1).key[:8], "--task", "2")
    assert alone.code == 0 and "alpha, 1 run (seed 1)" in alone.out and "→" in alone.out


def test_what_cannot_be_shown_is_one_sentence(filled: Cli) -> None:
    assert_refused(filled("errors", "alpha"), "a row of 2 protocols", "--protocol icons-100-10x10")
    assert_refused(filled("errors", "alhpa"), "no row matches 'alhpa'", "Did you mean 'alpha'?")
    assert_refused(filled("errors", "alpha", "--protocol", "7x7"), "--protocol '7x7'", "icons-100-5x20")
    assert_refused(filled("errors", "alpha", "--protocol", "5x20", "--task", "6"), "--task 6: the stream has 5 tasks")
    assert_refused(filled("errors", "alpha", "--protocol", "5x20", "--format", "gif"), "--format", "gif")
