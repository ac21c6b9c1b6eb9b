from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_bench import metrics

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
ATOL = 1e-12
Run = tuple[list[list[int | None]], list[int]]


def lower(hits: list[list[int]]) -> list[list[int | None]]:
    """Class-incremental counts: None for tasks that are not learned yet."""
    return [[hit if j <= t else None for j, hit in enumerate(row)] for t, row in enumerate(hits)]


@st.composite
def sequential_runs(draw: st.DrawFn, min_tasks: int = 1) -> Run:
    total = draw(st.lists(st.integers(1, 200), min_size=min_tasks, max_size=8))
    hits = [[draw(st.integers(0, total[j])) for j in range(len(total))] for _ in total]
    return lower(hits), total


@pytest.mark.parametrize("case", GOLDEN["cases"].values(), ids=GOLDEN["cases"].keys())
@pytest.mark.parametrize(
    ("function", "key", "sign"),
    [
        (metrics.acc, "last_sample_weighted", 1),
        (metrics.acc_task, "last_mean_of_tasks", 1),
        (metrics.accuracy_curve, "curve_sample_weighted", 1),
        (metrics.accuracy_curve_task, "curve_mean_of_tasks", 1),
        (metrics.aaa, "aaa_sample_weighted", 1),
        (metrics.aaa_task, "aaa_mean_of_tasks", 1),
        (metrics.learning_accuracy, "learning_accuracy", 1),
        (metrics.forgetting_rwalk_curve, "forgetting_curve_max_before", 1),
        (metrics.forgetting_coda, "forgetting_coda", 1),
        (metrics.bwt_all, "bwt_diaz_rodriguez", 1),
        (metrics.pilot_aaa, "pilot_avg_top1_percent", 1),
        (metrics.pilot_forgetting, "pilot_forgetting_percent", 1),
        (metrics.forgetting, "forgetting_max_incl_last_minus_last", 1),
        (metrics.forgetting_rwalk, "forgetting_max_before_last_minus_last", 1),
        (metrics.bwt, "bwt", 1),
        (metrics.bwt, "forgetting_first_minus_last", -1),
    ],
)
def test_golden(case: dict[str, Any], function: Any, key: str, sign: int) -> None:
    actual = function(lower(case["hits"]), case["counts"])
    np.testing.assert_allclose(sign * np.asarray(actual), case["expected"][key], rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", GOLDEN["cases"].values(), ids=GOLDEN["cases"].keys())
def test_golden_accuracy_matrix_and_learning_accuracy(case: dict[str, Any]) -> None:
    matrix = metrics.accuracy_matrix(case["hits"], case["counts"])
    np.testing.assert_allclose(matrix, np.array(case["hits"]) / np.array(case["counts"]), rtol=0, atol=ATOL)
    assert np.diag(matrix).mean() == pytest.approx(case["expected"]["learning_accuracy"], abs=ATOL)


@pytest.mark.parametrize("case", GOLDEN["cases"].values(), ids=GOLDEN["cases"].keys())
def test_golden_rwalk_after_every_task(case: dict[str, Any]) -> None:
    counts, total = lower(case["hits"]), case["counts"]
    prefixes = [
        metrics.forgetting_rwalk([row[: k + 1] for row in counts[: k + 1]], total[: k + 1])
        for k in range(1, len(total))
    ]
    np.testing.assert_allclose(prefixes, case["expected"]["forgetting_curve_max_before"], rtol=0, atol=ATOL)


@given(sequential_runs())
def test_ranges(run: Run) -> None:
    assert metrics.is_sequential(*run)
    for value in (metrics.acc(*run), metrics.aaa(*run), metrics.acc_task(*run), metrics.aaa_task(*run)):
        assert 0 <= value <= 1
    assert np.all(metrics.forgetting_per_task(*run) >= 0)
    if len(run[1]) == 1:
        return
    assert 0 <= metrics.forgetting(*run) <= 1
    assert -1 <= metrics.bwt(*run) <= 1
    # The best including the last stage, the best before it, and the first value are in this order.
    assert metrics.forgetting(*run) >= metrics.forgetting_rwalk(*run) - ATOL >= -metrics.bwt(*run) - 2 * ATOL


@given(sequential_runs())
def test_curves_end_in_the_final_values(run: Run) -> None:
    assert metrics.accuracy_curve(*run)[-1] == metrics.acc(*run)
    assert metrics.accuracy_curve_task(*run)[-1] == metrics.acc_task(*run)
    np.testing.assert_equal(metrics.forgetting_curve(*run)[-1], metrics.forgetting(*run))
    assert np.isnan(metrics.forgetting_curve(*run)[0])


@given(sequential_runs(), st.randoms(use_true_random=False))
def test_final_accuracy_does_not_depend_on_the_order_of_tasks(run: Run, random: Any) -> None:
    counts, total = run
    order = random.sample(range(len(total)), len(total))
    last = [[counts[-1][j] for j in order]]
    for metric in (metrics.acc, metrics.acc_task):
        assert metric(last, [total[j] for j in order]) == pytest.approx(metric(counts, total), abs=ATOL)


@given(sequential_runs(min_tasks=2))
def test_weighted_and_plain_means_agree_for_test_sets_of_one_size(run: Run) -> None:
    counts, total = run
    even = [[None if c is None else c * 1000 // total[j] for j, c in enumerate(row)] for row in counts]
    sizes = [1000] * len(total)
    assert metrics.acc(even, sizes) == pytest.approx(metrics.acc_task(even, sizes), abs=ATOL)
    assert metrics.aaa(even, sizes) == pytest.approx(metrics.aaa_task(even, sizes), abs=ATOL)


@given(sequential_runs(), st.integers(2, 5))
def test_only_the_ratio_of_counts_matters(run: Run, factor: int) -> None:
    counts, total = run
    more = [[None if c is None else factor * c for c in row] for row in counts]
    for metric in (
        metrics.acc,
        metrics.aaa,
        metrics.acc_task,
        metrics.aaa_task,
        metrics.forgetting,
        metrics.bwt,
    ):
        assert metric(more, [factor * n for n in total]) == pytest.approx(metric(counts, total), abs=ATOL, nan_ok=True)


def test_joint_training_is_not_sequential() -> None:
    assert not metrics.is_sequential([[9, 8]], [10, 10])
    assert metrics.acc([[9, 8]], [10, 10]) == pytest.approx(0.85)


def test_a_cut_off_run_is_not_sequential() -> None:
    assert not metrics.is_sequential([[9, None]], [10, 10])


@pytest.mark.filterwarnings("error")
def test_what_compares_tasks_is_undefined_for_a_single_one() -> None:
    run: Run = ([[7]], [10])
    values = {name: metrics.value(name, *run) for name in metrics.METRICS}
    undefined = {name for name, value in values.items() if np.isnan(value)}
    assert undefined == {"forgetting", "forgetting_rwalk", "forgetting_coda", "bwt", "bwt_all"}
    assert undefined == {name for name, metric in metrics.METRICS.items() if metric.tasks > 1}
    assert {values[name] for name in values.keys() - undefined} == {0.7}
    assert np.isnan([metrics.fwt(*run, [0.1]), metrics.pilot_forgetting(*run)]).all()
    assert metrics.forgetting_per_task(*run).size == metrics.forgetting_rwalk_curve(*run).size == 0


@pytest.mark.filterwarnings("error")
def test_a_task_without_test_images_has_no_accuracy() -> None:
    counts, total = lower([[7, 0], [6, 0]]), [10, 0]
    np.testing.assert_equal(metrics.accuracy_matrix(counts, total), [[0.7, np.nan], [0.6, np.nan]])
    assert metrics.accuracy_curve(counts, total).tolist() == [0.7, 0.6]
    assert metrics.accuracy_curve_task(counts, total).tolist() == [0.7, 0.6]
    assert metrics.forgetting(counts, total) == pytest.approx(0.1)
    assert np.isnan(metrics.learning_accuracy(counts, total))
    assert np.isnan(metrics.acc([[0]], [0]))


@pytest.mark.parametrize(("counts", "total"), [([[11]], [10]), ([[-1]], [10]), ([[1, 2]], [10]), ([], [10])])
def test_impossible_counts_are_refused(counts: list[list[int | None]], total: list[int]) -> None:
    with pytest.raises(ValueError, match=r"count|shape"):
        metrics.accuracy_matrix(counts, total)


@pytest.mark.parametrize("case", GOLDEN["cases"].values(), ids=GOLDEN["cases"].keys())
def test_golden_values_that_need_a_reference(case: dict[str, Any]) -> None:
    counts, expected = (case["hits"], case["counts"]), case["expected"]
    forward = metrics.fwt(*counts, case["random_init_accuracy"])
    assert forward == pytest.approx(expected["fwt"], abs=ATOL)
    learned = lower(case["hits"]), case["counts"], case["joint_reference_accuracy"]
    assert metrics.intransigence_per_task(*learned) == pytest.approx(expected["intransigence_per_task"], abs=ATOL)
    assert metrics.intransigence(*learned) == pytest.approx(expected["intransigence_mean"], abs=ATOL)


def test_every_golden_value_is_checked() -> None:
    source = Path(__file__).read_text()
    assert [key for key in GOLDEN["definitions"] if f'"{key}"' not in source] == []


@given(sequential_runs())
def test_metrics_by_name(run: Run) -> None:
    for name, metric in metrics.METRICS.items():
        value = metrics.value(name, *run)
        np.testing.assert_equal(value, metric.value(*run))
        assert -1 <= value <= 1 or (np.isnan(value) and len(run[1]) < metric.tasks)
    joint = ([run[0][-1]], run[1])
    defined = {name for name in metrics.METRICS if not np.isnan(metrics.value(name, *joint))}
    alone = {name for name, metric in metrics.METRICS.items() if metric.tasks == 1}
    assert defined == ({"acc", "acc_task"} if len(run[1]) > 1 else alone)


@pytest.mark.parametrize("correct", [[[3, None], [2, 4]], [[3, 4]], [[3, None, None], [2, 4, None], [1, 0, 5]]])
def test_all_values_are_those_of_each_metric(correct: list[list[int | None]]) -> None:
    total = [5] * len(correct[-1])
    one_by_one = {name: metrics.value(name, correct, total) for name in metrics.METRICS}
    assert metrics.values(correct, total) == pytest.approx(one_by_one, rel=0, abs=0, nan_ok=True)
