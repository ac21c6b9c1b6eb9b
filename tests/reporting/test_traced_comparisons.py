"""Paired comparisons of what runs traced: measurements, places, rows without a partner, and the sentences of errors."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests.helpers.command import Cli
from tests.helpers.factories import record, write

SEEDS = range(4)


def closed(seed: int, high: bool) -> list[dict[str, Any]]:
    """A trace by stage and block: gates that close with the stages, and a rank without a value in the first stage."""
    random = np.random.default_rng([seed, high])
    return [
        {"stage": stage, "block": block, "closed": float(high) * stage + 0.1 * block + random.uniform(0, 0.05)}
        | ({"rank": 8 - 2 * stage} if stage else {})
        for stage in (0, 1)
        for block in range(3)
    ]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Rows `gated` and `open` with the trace `gates`, `gated` also with `extra`, and `plain` without any."""
    folder = tmp_path / "runs"
    for seed in SEEDS:
        traces = {"gates": closed(seed, True), "extra": [{"stage": 0, "target": "q", "norm": 1234.5 + seed}]}
        write(
            folder,
            record("gated", seed).model_copy(update={"traces": traces}),
            record("open", seed).model_copy(update={"traces": {"gates": closed(seed, False)}}),
            record("plain", seed),
        )
    return folder


def _lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def test_a_measurement_is_a_mean_over_the_trace_paired_by_seed(cl_bench: Cli, runs: Path) -> None:
    command = ("compare", "gated", "--against", "open", "--trace", "gates", "--results", str(runs))
    outcome = cl_bench(*command, "--format", "csv")
    assert outcome.code == 0, outcome
    shown = {line["trace"]: line for line in _lines(outcome.out)}
    assert set(shown) == {"gates.closed", "gates.rank"}, "stage and block are places, no measurements"
    means = {
        high: np.array([np.mean([row["closed"] for row in closed(seed, high)]) for seed in SEEDS])
        for high in (True, False)
    }
    line = shown["gates.closed"]
    assert float(line["value"]) == pytest.approx(means[True].mean())
    assert float(line["baseline_value"]) == pytest.approx(means[False].mean())
    expected = scipy_stats.ttest_rel(means[True], means[False])
    assert float(line["difference"]) == pytest.approx((means[True] - means[False]).mean())
    assert float(line["p"]) == pytest.approx(expected.pvalue)
    assert (line["n"], line["more"], line["equal"], line["less"]) == ("4", "4", "0", "0")
    # Only where it is defined: in the second stage, equal in all runs.
    assert float(shown["gates.rank"]["value"]) == 6 and shown["gates.rank"]["equal"] == "4"
    read = cl_bench(*command, "--format", "md").out
    assert "| gated | closed | 4 |" in read and "corrected for the 2 tests of this table" in read


def test_places_get_a_line_each_in_their_order(cl_bench: Cli, runs: Path) -> None:
    outcome = cl_bench(
        "compare", "gated", "--against", "open", "--trace", "gates.closed", "--by", "stage", "--results", str(runs),
        "--format", "csv",
    )  # fmt: skip
    lines = _lines(outcome.out)
    assert [(line["trace"], line["stage"]) for line in lines] == [("gates.closed", "0"), ("gates.closed", "1")]
    at_last = [np.mean([row["closed"] for row in closed(seed, True) if row["stage"] == 1]) for seed in SEEDS]
    assert float(lines[1]["value"]) == pytest.approx(np.mean(at_last))


def test_a_row_without_a_partner_stands_alone_and_one_without_the_trace_is_named(cl_bench: Cli, runs: Path) -> None:
    outcome = cl_bench(
        "compare", "--against", "open", "--trace", "gates,extra", "--results", str(runs), "--format", "md"
    )
    assert outcome.code == 0, outcome
    (alone,) = (line for line in outcome.out.splitlines() if "extra.norm" in line)
    assert "| 4 | 1236 ± 2 | – | – | – | – | – | – |" in alone
    assert "Without such a trace: plain." in outcome.out
    assert "Where open has no such measurement, there is no difference: gated." in outcome.out


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--trace", "gate"], "unknown --trace 'gate'; known: extra, gates. Did you mean 'gates'?"),
        (["--trace", "gates.close"], "unknown measurement of --trace gates 'close'; known: closed, rank."),
        (["--trace", "gates.block"], "unknown measurement of --trace gates 'block'"),
        (["--trace", "gates", "--by", "target"], "unknown --by 'target'; known: block, stage."),
        (["--trace", "gates", "--by", "rank"], "unknown --by 'rank'"),
        (["--trace", ","], "--trace is empty"),
        (["--by", "stage"], "--by stage splits a trace; name one, e.g. --trace updates --by stage"),
        (["--trace", "gates", "--margin", "1"], "without --margin and --samples"),
    ],
)
def test_bad_input_is_one_sentence(cl_bench: Cli, runs: Path, arguments: list[str], fragment: str) -> None:
    outcome = cl_bench("compare", "gated", "--against", "open", "--results", str(runs), *arguments)
    assert outcome.code == 2 and fragment in outcome.err and "Traceback" not in outcome.err


def test_rows_that_traced_nothing_are_no_table(cl_bench: Cli, runs: Path) -> None:
    outcome = cl_bench("compare", "plain", "--against", "open", "--trace", "gates", "--results", str(runs))
    assert outcome.code == 2 and "no row to be compared with 'open' traced 'gates'" in outcome.err
