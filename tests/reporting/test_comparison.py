"""Paired comparisons of rows: tests, equivalence, ranks, and the same test images within a seed."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from cl_bench import metrics, stats
from cl_bench.experiment import Limits
from cl_bench.reporting import comparison, text_tables
from cl_bench.reporting.charts import Ranks
from cl_bench.reporting.frames import export_frame, run_frame
from cl_bench.reporting.intransigence import intransigence, references
from cl_bench.reporting.runs import Section, collect, sections
from cl_bench.store import RunRecord
from tests.helpers import ROOT
from tests.helpers.command import Cli
from tests.helpers.factories import experiment, record, write

REFERENCE = ROOT / "results" / "reference"
NUMBERS = st.lists(
    st.tuples(st.floats(-50, 50, allow_subnormal=False), st.floats(-50, 50, allow_subnormal=False)),
    min_size=2,
    max_size=12,
)


# --- two rows ----------------------------------------------------------------------------------------------------


@given(NUMBERS)
def test_a_paired_test_is_that_of_scipy_and_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    a, b = (np.array(values) for values in zip(*pairs, strict=True))
    result, mirrored = stats.paired(a, b), stats.paired(b, a)
    assert (result.wins, result.ties, result.losses) == (mirrored.losses, mirrored.ties, mirrored.wins)
    assert result.p == pytest.approx(mirrored.p)
    assert result.difference.mean == pytest.approx(-mirrored.difference.mean)
    if result.t is not None and (a - b).std() > 1e-6:
        reference = scipy_stats.ttest_rel(a, b)
        interval = reference.confidence_interval(0.95)
        assert (result.t, result.p) == pytest.approx((reference.statistic, reference.pvalue), rel=1e-6, abs=1e-9)
        assert (result.difference.low, result.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-6)


def test_equal_values_give_a_verdict_not_nan() -> None:
    same = stats.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.p, same.t, same.effect, same.ties) == (1.0, None, None, 3)
    equivalent = stats.equivalence([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.5)
    assert equivalent is not None and equivalent.equivalent
    assert stats.paired([1.0], [2.0]).p is None


def test_without_spread_there_is_no_test() -> None:
    shifted = stats.paired([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert (shifted.p, shifted.t, shifted.effect, shifted.wins) == (None, None, None, 3)
    assert stats.equivalence([1.5, 2.5, 3.5], [1.0, 2.0, 3.0], 1.0) is None


@pytest.mark.parametrize("seeds", [2, 3])
def test_equals_on_few_images_do_not_survive_the_correction_for_thirty_rows(seeds: int) -> None:
    """Differences are counts of images, so equal differences on two seeds can be chance and prove nothing."""
    counts = np.random.default_rng(seeds).normal(scale=2, size=(3000, seeds)).round()
    found = [stats.paired(row, np.zeros(seeds)).p for row in counts]
    assert np.mean([p is not None and p < 0.05 / 30 for p in found]) < 0.005


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=10).flatmap(
        lambda hits: st.tuples(st.just(hits), st.permutations(hits))
    )
)
def test_the_same_hits_in_other_tasks_are_a_tie(rows: tuple[list[int], list[int]]) -> None:
    total = [50] * len(rows[0])
    one, other = ([100 * metrics.acc_task([row], total)] for row in rows)
    result = stats.paired(one, other)
    assert (result.wins, result.ties, result.losses) == (0, 1, 0)


def test_less_is_better_where_the_metric_says_so() -> None:
    assert stats.paired([1.0, 2.0], [3.0, 4.5], higher=False).wins == 2


def test_effect_size_by_hand() -> None:
    result = stats.paired([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])
    assert result.effect == pytest.approx(3.0 / np.std([1, 2, 6], ddof=1) * (1 - 3 / 7))
    assert stats.paired([1.0, 2.0], [0.0, 0.0]).effect is None, "Hedges' correction would make it 0"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(pvalues: list[float]) -> None:
    corrected = stats.holm(pvalues)
    assert all(p <= c <= 1 for p, c in zip(pvalues, corrected, strict=True))
    order = np.argsort(pvalues, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= -1e-12).all()


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    pvalues = [*np.random.default_rng(0).uniform(0, 0.2, 40).tolist(), 0.0, 0.05, 0.05, 1.0]
    assert stats.holm(pvalues) == multipletests(pvalues, method="holm")[1].tolist()


@given(NUMBERS, st.floats(0.1, 60))
def test_equivalence_is_where_the_90_percent_interval_lies_within_the_margin(
    pairs: list[tuple[float, float]], margin: float
) -> None:
    a, b = (np.array(values) for values in zip(*pairs, strict=True))
    result, mirrored = stats.equivalence(a, b, margin), stats.equivalence(b, a, margin)
    assert (result is None) == (mirrored is None)
    if result is None or mirrored is None:
        assert np.ptp(a - b) <= stats.NOISE
        return
    assert result.p == pytest.approx(mirrored.p, abs=1e-9)
    if (a - b).std() > 1e-6 and abs(result.p - 0.05) > 1e-6:
        assert result.equivalent == (-margin < result.low and result.high < margin)


def test_no_equivalence_without_a_margin_or_a_second_pair() -> None:
    assert stats.equivalence([1.0], [1.0], 1.0) is None
    for margin in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError):
            stats.equivalence([1.0, 2.0], [1.0, 2.0], margin)


def test_student_intervals_of_five_cover_where_percentile_bootstraps_do_not() -> None:
    """The reason for t intervals in tables: over five runs they cover the mean in 95 % of cases, bootstraps do not."""
    random = np.random.default_rng(0)
    samples = random.normal(size=(2000, 5))
    intervals = stats.summarise_curves(samples.T)
    student = np.mean([abs(value.mean) <= (value.half_width or 0) for value in intervals])
    means = samples[np.arange(2000)[:, None, None], random.integers(0, 5, (2000, 400, 5))].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    bootstrap = np.mean((low <= 0) & (high >= 0))
    assert 0.935 < student < 0.965
    assert bootstrap < 0.88


# --- the same images ---------------------------------------------------------------------------------------------


def test_the_bootstrap_over_images_agrees_with_drawing_them_one_by_one() -> None:
    random = np.random.default_rng(1)
    task = np.repeat([0, 1], [120, 60])
    a, b = random.random(180) < 0.8, random.random(180) < 0.7
    result = stats.bootstrap_difference(a, b, task)
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert result.disagreement == pytest.approx((a != b).mean())
    drawn = []
    for _ in range(4000):
        chosen = np.concatenate([random.integers(0, 120, 120), 120 + random.integers(0, 60, 60)])
        drawn.append(a[chosen].mean() - b[chosen].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.012)
    assert result == stats.bootstrap_difference(a, b, task)


def test_the_bootstrap_over_images_draws_inside_each_task() -> None:
    """Resampling within tasks: if all images of a task agree, so do all samples of that task."""
    task = np.repeat([0, 1], 50)
    result = stats.bootstrap_difference(task == 0, np.zeros(100, dtype=bool), task)
    assert (result.low, result.difference, result.high) == (0.5, 0.5, 0.5)
    # The same images, treated as one task.
    pooled = stats.bootstrap_difference(task == 0, np.zeros(100, dtype=bool), np.zeros(100))
    assert pooled.low < 0.42 and pooled.high > 0.58


def test_the_same_predictions_do_not_differ() -> None:
    hits = np.array([True, False, True])
    result = stats.bootstrap_difference(hits, hits, [0, 0, 1])
    assert (result.difference, result.low, result.high, result.disagreement) == (0, 0, 0, 0)
    with pytest.raises(ValueError):
        stats.bootstrap_difference([], [], [])


# --- ranks -------------------------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    random = np.random.default_rng(2)
    noise = random.normal(scale=0.1, size=(12, 4))
    table = pd.DataFrame(noise + [4.0, 3.0, 3.0, 0.0], columns=list("abcd"))
    ranking = stats.average_ranks(table)
    assert list(ranking.ranks)[0] == "a" and list(ranking.ranks)[-1] == "d"
    assert ranking.ranks["a"] == 1 and ranking.ranks["d"] == 4 and ranking.p < 0.001
    assert any({"b", "c"} <= set(group) for group in ranking.groups)
    assert not any({"a", "d"} <= set(group) for group in ranking.groups)
    # Nemenyi's critical difference for 4 rows and 12 blocks (Demsar, table 5: q = 2.569).
    critical = 2.569 * np.sqrt(4 * 5 / (6 * 12))
    for group in ranking.groups:
        assert abs(ranking.ranks[group[0]] - ranking.ranks[group[-1]]) < critical
    assert list(stats.average_ranks(table, higher=False).ranks)[0] == "d"


def test_rows_that_are_all_alike_share_one_group() -> None:
    ranking = stats.average_ranks(pd.DataFrame(np.ones((10, 3)), columns=list("abc")))
    assert ranking.p == 1 and ranking.groups == (("a", "b", "c"),)


def test_the_last_digit_of_equal_values_breaks_no_tie() -> None:
    noise = np.random.default_rng(3).normal(scale=1e-13, size=(12, 3))
    ranking = stats.average_ranks(pd.DataFrame(80 + noise, columns=list("abc")))
    assert set(ranking.ranks.values()) == {2.0} and ranking.p == 1


@pytest.mark.parametrize("shape", [(9, 3), (10, 2)])
def test_too_few_blocks_or_rows_are_not_ranked(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="ranks need 10 blocks and 3 rows"):
        stats.average_ranks(pd.DataFrame(np.zeros(shape)))


def test_critical_differences_need_ten_blocks(tmp_path: Path) -> None:
    names = ("alpha", "beta", "gamma")
    write(tmp_path, *(record(name, seed, drop=0.01 * i) for i, name in enumerate(names) for seed in range(9)))
    assert comparison.ranks(_sections(tmp_path)) is None
    write(tmp_path, *(record(name, 9, drop=0.01 * i) for i, name in enumerate(names)))
    chart = comparison.ranks(_sections(tmp_path))
    assert chart is not None and isinstance(chart.panels[0], Ranks)
    assert [label for label, _ in chart.panels[0].ranks] == list(names)
    assert "10 blocks" in chart.panels[0].note


def test_the_diagram_is_drawn_or_says_what_it_needs(cl_bench: Cli, tmp_path: Path) -> None:
    names = ("alpha", "beta", "gamma")
    folder = tmp_path / "results" / "runs"
    write(folder, *(record(name, seed, drop=0.01 * i) for i, name in enumerate(names) for seed in range(9)))
    refused = cl_bench("figure", "ranks")
    assert refused.code == 2 and "same ten streams and seeds" in refused.err
    write(folder, *(record(name, 9, drop=0.01 * i) for i, name in enumerate(names)))
    assert cl_bench("figure", "ranks", "--format", "png", "--out", "out").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["ranks.csv", "ranks.png"]


# --- stored runs -------------------------------------------------------------------------------------------------


def _sections(folder: Path) -> list[Section]:
    return sections(collect([(folder, "runs")], pytest.fail))


def test_only_shared_seeds_and_orders_are_paired(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(record("alpha", seed) for seed in range(4)),
        *(record("beta", seed, drop=0.06) for seed in range(2, 6)),
        record("beta", 0, class_order="natural"),
    )
    (section,) = _sections(tmp_path)
    (pair,) = comparison.against(section, "alpha")
    assert pair.blocks == ((2, "permutation:2"), (3, "permutation:3"))
    by_seed = {label: {run.record.experiment.seed: run.record for run in runs} for label, runs in section.rows.items()}
    beta, alpha = (
        [100 * metrics.acc(by_seed[label][seed].correct, by_seed[label][seed].total) for seed in (2, 3)]
        for label in ("beta", "alpha")
    )
    assert pair.result.difference.mean == pytest.approx(np.mean(beta) - np.mean(alpha))
    assert pair.result.p == pytest.approx(scipy_stats.ttest_rel(beta, alpha).pvalue)
    assert comparison.text_table(section, "alpha", ["beta"], "acc", None) is not None


def test_a_row_is_compared_once_however_often_it_is_named(cl_bench: Cli) -> None:
    rest = ("--format", "csv", "--results", str(REFERENCE))
    once, twice = (cl_bench("compare", "sdlora", *rows, *rest) for rows in (["coda"], ["coda", "sdlora", "coda"]))
    assert once.code == 0 and once.out == twice.out


def test_rows_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    write(
        tmp_path, *(record(name, 0) for name in ("alpha", "beta")), record("gamma", 7), record("joint", 0, joint=True)
    )
    (section,) = _sections(tmp_path)
    made = comparison.text_table(section, "alpha", metric="forgetting")
    assert made is not None and [row[0] for row in made.rows] == ["beta"]
    assert any(note.startswith("Not compared") and note.endswith(": gamma, joint.") for note in made.notes)
    plain = comparison.text_table(section, "alpha", ["beta"])
    assert plain is not None and not any("Not compared" in note for note in plain.notes)


def test_rows_without_spread_are_explained(tmp_path: Path) -> None:
    run = record("alpha", 0)
    write(tmp_path, *(_twin(run, name, seed, fewer) for name, fewer in (("alpha", 0), ("beta", 3)) for seed in (0, 1)))
    (section,) = _sections(tmp_path)
    made = comparison.text_table(section, "alpha", margin=5)
    assert made is not None
    assert made.rows[0][2:] == (
        f"−{300 / sum(run.total):.2f} ± 0.00",
        *[text_tables.DASH] * 3,
        "0/0/2",
        *[text_tables.DASH] * 2,
    )
    assert "Same difference in every pair, so no variance for a test: beta." in made.notes


def test_predictions_on_other_images_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, record("alpha", 0), record("beta", 0))
    (section,) = _sections(tmp_path)
    made = comparison.text_table(section, "alpha", folders=[tmp_path])
    assert made is not None and made.rows[0][-1] == text_tables.DASH
    assert any("1 of 1 pair of runs" in note for note in made.notes)


def test_two_orders_of_one_seed_have_different_names(tmp_path: Path) -> None:
    for order in ("natural", "permutation:0"):
        run = record("alpha", 0, class_order=order)
        write(tmp_path, run, _twin(run, "beta", 0, fewer=3, class_order=order))
    (section,) = _sections(tmp_path)
    made = comparison.text_table(section, "alpha", folders=[tmp_path])
    assert made is not None and made.data is not None
    (row,) = made.data.to_dict("records")
    for order in ("natural", "permutation:0"):
        total = sum(record("alpha", 0, class_order=order).total)
        assert row[f"seed_0_{order}_difference"] == pytest.approx(-300 / total)
        assert row[f"seed_0_{order}_disagreement"] == pytest.approx(300 / total)
        assert order in made.rows[0][-1]


def _twin(run: RunRecord, method: str, seed: int, fewer: int, **changes: Any) -> RunRecord:
    """A run of another method on the same test images, with `fewer` fewer final hits on the first task."""
    correct = [list(row) for row in run.correct]
    correct[-1][0] = (correct[-1][0] or 0) - fewer
    new = experiment(method, seed, **changes)
    return run.model_copy(update={"experiment": new, "key": new.key, "label": method, "correct": correct})


def test_compare_on_the_reference_results(cl_bench: Cli) -> None:
    outcome = cl_bench(
        "compare", "sdlora", "inflora", "seqlora", "--margin", "1", "--samples", "--results", str(REFERENCE),
        "--format", "csv", "--benchmark", "icons-100",
    )  # fmt: skip
    assert outcome.code == 0
    first = outcome.out.split("row,baseline")[1]
    lines = {row["row"]: row for row in csv.DictReader(StringIO("row,baseline" + first))}
    assert set(lines) == {"inflora", "seqlora"}
    assert lines["seqlora"]["n"] == "5" and float(lines["seqlora"]["p_tost"]) < 0.05
    raw = [float(line["p"]) for line in lines.values()]
    assert [float(line["p_holm"]) for line in lines.values()] == pytest.approx(stats.holm(raw))
    for seed in range(5):
        low, mean, high = (float(lines["inflora"][f"seed_{seed}_{part}"]) for part in ("low", "difference", "high"))
        assert low <= mean <= high


def test_the_table_says_how_to_read_it(cl_bench: Cli) -> None:
    outcome = cl_bench("compare", "sdlora", "coda", "--results", str(REFERENCE), "--format", "md")
    for words in ("paired t test", "95 % Student-t interval", "Holm", "5 pairs", "No signed-rank test"):
        assert words in outcome.out


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "say what to compare"),
        (["sdlra"], "Did you mean 'sdlora'"),
        (["sdlora", "--metric", "accuracy"], "unknown metric 'accuracy'"),
        (["sdlora", "--benchmark", "icons"], "unknown --benchmark 'icons'"),
        (["sdlora", "optima", "--metric", "acc", "--format", "pdf"], "--format"),
        (["sdlora", "coda", "--margin", "0"], "--margin 0: expected percentage points above 0"),
        (["sdlora", "coda", "--margin", "nan"], "--margin nan: expected percentage points above 0"),
        (["sdlora"], "'sdlora' cannot be compared with itself"),
        (["joint", "sdlora", "--metric", "forgetting"], "forgetting needs tasks learned one after the other"),
    ],
    ids=["nothing", "row", "metric", "benchmark", "format", "margin", "margin-nan", "itself", "undefined"],
)
def test_bad_input_is_one_sentence(cl_bench: Cli, arguments: list[str], fragment: str) -> None:
    outcome = cl_bench("compare", *arguments, "--results", str(REFERENCE))
    assert outcome.code == 2 and fragment in outcome.err and "Traceback" not in outcome.err


def test_one_run_is_no_comparison_with_intervals(tmp_path: Path) -> None:
    write(tmp_path, record("alpha", 0), record("beta", 0))
    (section,) = _sections(tmp_path)
    made = comparison.text_table(section, "alpha", metric="acc")
    assert made is not None
    assert "±" not in made.rows[0][2] and "One pair: no interval and no test." in made.notes
    assert text_tables.write(made, "tex")


def test_intransigence_is_against_joint_training_on_every_prefix(tmp_path: Path) -> None:
    run = record("alpha", 1, tasks=3)
    joint = [record("joint", 1, joint=True, tasks=3, limits=Limits(tasks=k)) for k in (1, 2)]
    joint.append(record("joint", 1, joint=True, tasks=3))
    write(tmp_path, run, *joint, record("joint", 2, joint=True, tasks=3))
    runs = collect([(tmp_path, "runs")], pytest.fail)
    (mine,) = [one for one in runs if one.label == "alpha"]
    reference = [(one.correct[0][k] or 0) / one.total[k] for k, one in enumerate(joint)]
    expected = [reference[k] - (run.correct[k][k] or 0) / run.total[k] for k in range(3)]
    assert intransigence(mine, references(runs))["joint"] == pytest.approx(expected)
    frame = run_frame(runs).set_index("label")
    assert frame.loc["alpha", "intransigence"] == pytest.approx(np.mean(expected))
    assert export_frame(runs)["intransigence"].notna().sum() == 1
    assert intransigence(mine, references([one for one in runs if one.protocol.limits.tasks != 2])) == {}


def test_forward_transfer_is_against_chance(tmp_path: Path) -> None:
    run = record("alpha", 0)
    write(tmp_path, run)
    aware = np.array(run.correct_task_aware) / np.array(run.total)
    expected = np.mean([aware[j - 1, j] - 0.1 for j in range(1, 10)])
    assert run_frame(collect([(tmp_path, "runs")], pytest.fail))["fwt"][0] == pytest.approx(expected)
