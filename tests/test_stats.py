from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.api import OLS

from cl_bench.stats import equivalence, equivalence_pooled, summarise, summarise_curves

VALUES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 6)), min_size=2, max_size=30)


@given(VALUES, st.floats(0.5, 0.999))
def test_agrees_with_scipy(values: list[float], level: float) -> None:
    assume(np.ptp(values) > 1e-3)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(level)
    summary = summarise(values, level)
    assert summary.n == len(values)
    assert summary.low == pytest.approx(expected.low, rel=1e-9, abs=1e-9)
    assert summary.high == pytest.approx(expected.high, rel=1e-9, abs=1e-9)


@given(VALUES)
def test_interval_contains_the_mean(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.low is not None and summary.high is not None
    assert summary.low <= summary.mean <= summary.high
    assert min(values) - 1e-9 <= summary.mean <= max(values) + 1e-9


@given(VALUES, st.integers(2, 5))
def test_interval_shrinks_with_more_of_the_same_values(values: list[float], times: int) -> None:
    assume(np.ptp(values) > 1e-3)
    once, often = summarise(values), summarise(values * times)
    assert once.half_width is not None and often.half_width is not None
    assert often.half_width < once.half_width


@given(VALUES, st.floats(0.1, 10), st.floats(-10, 10))
def test_follows_a_change_of_unit(values: list[float], scale: float, shift: float) -> None:
    plain, moved = summarise(values), summarise([scale * v + shift for v in values])
    assert plain.half_width is not None
    assert moved.mean == pytest.approx(scale * plain.mean + shift, abs=1e-8)
    assert moved.half_width == pytest.approx(scale * plain.half_width, rel=1e-6, abs=1e-8)


def test_known_value() -> None:
    """t(0.975, 4) = 2.776445, s = sqrt(2.5), n = 5."""
    assert summarise([1, 2, 3, 4, 5]).half_width == pytest.approx(2.7764451052 * math.sqrt(2.5 / 5))


def test_one_value_has_no_interval() -> None:
    summary = summarise([0.5])
    assert (summary.n, summary.mean, summary.half_width, summary.low, summary.high) == (
        1,
        0.5,
        None,
        None,
        None,
    )


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert summarise([0.25] * 5).half_width == 0


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0], [2.0]]])
def test_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot summarise"):
        summarise(values)


def test_curves_are_summarised_point_by_point() -> None:
    curves = [[0.9, 0.8, 0.7], [0.8, 0.6, 0.7]]
    assert summarise_curves(curves) == [summarise([0.9, 0.8]), summarise([0.8, 0.6]), summarise([0.7, 0.7])]


@given(st.lists(VALUES, min_size=1, max_size=4), st.floats(0.1, 50))
def test_pooled_equivalence_agrees_with_a_linear_model(groups: list[list[float]], margin: float) -> None:
    assume(all(np.ptp(group) > 1e-3 for group in groups))
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    fit = OLS(np.concatenate(groups), np.eye(len(groups))[owner]).fit()
    tests = equivalence_pooled(groups, margin)
    assert tests is not None
    assert [[test.low, test.high] for test in tests] == pytest.approx(fit.conf_int(0.1), rel=1e-7, abs=1e-7)
    assert [test.equivalent for test in tests] == [-margin < test.low and test.high < margin for test in tests]


def test_one_group_is_pooled_with_itself() -> None:
    differences = [0.3, -0.2, 0.9, 0.1]
    (pooled,) = equivalence_pooled([differences], 1.0) or []
    alone = equivalence(differences, [0.0] * 4, 1.0)
    assert alone is not None
    assert (pooled.p, pooled.low, pooled.high) == pytest.approx((alone.p, alone.low, alone.high))


def test_nothing_to_pool() -> None:
    assert equivalence_pooled([[0.5], [0.2]], 1.0) is None
    assert equivalence_pooled([[0.5, 0.5], [0.2]], 1.0) is None
    with pytest.raises(ValueError, match="cannot test groups"):
        equivalence_pooled([[0.5], []], 1.0)
    with pytest.raises(ValueError, match="cannot test groups"):
        equivalence_pooled([[0.5, 0.1]], 0.0)
