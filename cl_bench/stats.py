"""Uncertainty and comparison of repeated runs: pure functions of numbers, with results in the unit of the numbers.

Three to five runs are usual, which determines the methods: Student's t (the percentile bootstrap of five values covers
far less than its nominal level), paired tests on the same seeds and class orders, no signed-rank test (its smallest
two-sided p for five pairs is 0.0625), and average ranks only for ten blocks or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
"""Confidence level of every interval that cl-bench prints."""
NOISE = 1e-9
"""Differences below this are rounding errors of equal numbers: one image of a million is 1e-6, and 1e-4 in percent."""
FEWEST_BLOCKS = 10
"""Smallest number of blocks for average ranks; with fewer, Nemenyi's critical difference spans most of the scale."""


@dataclass(frozen=True)
class Summary:
    """Mean of `n` values and the confidence interval of that mean, in the unit of the values.

    Attributes:
        n: number of values.
        mean: arithmetic mean.
        half_width: half the width of the symmetric interval; None for a single value.
        stderr: standard error of the mean; None for a single value.
    """

    n: int
    mean: float
    half_width: float | None
    stderr: float | None = None

    @property
    def low(self) -> float | None:
        """Lower end of the interval, not clipped to the scale."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval, not clipped to the scale."""
        return None if self.half_width is None else self.mean + self.half_width


def summarise(values: ArrayLike, level: float = LEVEL) -> Summary:
    """Mean with its Student-t interval: mean +- t_{(1 + level) / 2, n - 1} s / sqrt(n).

    s is the sample standard deviation (n - 1 in the denominator). Source: Student 1908; assumes independent,
    roughly normal values, here one per seed. With n = 1 there is no interval.

    Args:
        values: shape [n], n >= 1, finite.
        level: confidence level in (0, 1).

    Raises:
        ValueError: no values, a value that is not finite, or more than one dimension.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ValueError(f"cannot summarise values of shape {sample.shape}: one dimension is expected")
    return summarise_curves(sample[:, None], level)[0]


def summarise_curves(curves: Sequence[ArrayLike] | NDArray[np.float64], level: float = LEVEL) -> list[Summary]:
    """`summarise` at each point of `curves`, shape [n, points]: pointwise intervals, not a joint band."""
    sample = np.asarray(curves, dtype=np.float64)
    if sample.ndim != 2 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"cannot summarise values of shape {sample.shape}: none, or some that are not finite")
    n, means = len(sample), sample.mean(axis=0)
    if n == 1:
        return [Summary(1, float(mean), None) for mean in means]
    errors = sample.std(axis=0, ddof=1) / n**0.5
    quantile = float(stdtrit(n - 1, (1 + level) / 2))
    return [
        Summary(n, float(mean), quantile * float(error), float(error))
        for mean, error in zip(means, errors, strict=True)
    ]


# --- two rows on the same seeds and class orders ---------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Differences of two rows on the same blocks (seed and class order), in the unit of the values.

    Attributes:
        difference: mean of a - b with its Student-t interval.
        t, p: two-sided paired t test; None for fewer than two blocks or equal differences (p is 1 if all are 0).
        effect: Cohen's d_z = mean / standard deviation of the differences, times Hedges' correction for small samples
            (1 - 3 / (4 (n - 1) - 1)); None with fewer than three blocks, as the correction is 0 for two, or where all
            differences are equal.
        wins, ties, losses: numbers of blocks in which a is better than, equal to and worse than b.
    """

    difference: Summary
    t: float | None
    p: float | None
    effect: float | None
    wins: int
    ties: int
    losses: int


def paired(a: ArrayLike, b: ArrayLike, higher: bool = True) -> Paired:
    """Compare two rows block by block (paired t test).

    Where all differences are the same there is no spread to test against: p is 1 if they are 0. Otherwise there is no
    test, although t would be infinite: accuracies are counts of images, and with a spread of five images two seeds
    differ by the same count in one of twenty comparisons of equals, which no correction for many rows would survive.

    Args:
        a, b: shape [n], the same blocks in the same order.
        higher: whether higher values are better.

    Raises:
        ValueError: the shapes differ, there are no blocks, or a value is not finite.
    """
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"cannot pair values of shapes {one.shape} and {other.shape}")
    differences = one - other
    summary = summarise(differences)
    better = differences if higher else -differences
    wins, losses = int((better > NOISE).sum()), int((better < -NOISE).sum())
    n = len(differences)
    counts = wins, n - wins - losses, losses
    if n < 2 or _alike(differences):
        return Paired(summary, None, 1.0 if n > 1 and counts[1] == n else None, None, *counts)
    spread = float(differences.std(ddof=1))
    t = summary.mean / (spread / n**0.5)
    # As `scipy.stats.ttest_rel`, of which a page with all pairs of its rows needs thousands.
    p = 2 * float(stdtr(n - 1, -abs(t)))
    effect = summary.mean / spread * (1 - 3 / (4 * (n - 1) - 1)) if n > 2 else None
    return Paired(summary, t, p, effect, *counts)


def _alike(differences: NDArray[np.float64]) -> bool:
    return bool(np.ptp(differences) <= NOISE)


def holm(pvalues: Sequence[float]) -> list[float]:
    """p-values corrected for multiple tests (Holm 1979), which bounds the chance of any false alarm by the level.

    The k-th smallest of m is multiplied by m - k + 1, and is at least the corrected one before it and at most 1.
    `multipletests` of statsmodels gives the same numbers, but collects garbage in each call, which takes seconds in a
    report that holds thousands of runs.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in corrected]


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (TOST; Schuirmann 1987) of |mean difference| < margin.

    Attributes:
        margin: the largest difference that counts as the same.
        p: the larger p-value of the two tests.
        low, high: 90 % interval of the mean difference; it lies within the margin exactly if p < 0.05.
    """

    margin: float
    p: float
    low: float
    high: float

    @property
    def equivalent(self) -> bool:
        """Whether the difference is within the margin at the 5 % level."""
        return self.p < 0.05


def equivalence(a: ArrayLike, b: ArrayLike, margin: float) -> Equivalence | None:
    """Whether two rows are the same within a margin, on the same blocks.

    Returns:
        None with fewer than two blocks, or where all differences are the same but not 0 (see `paired`); p is 0 where
        the rows are equal on every block.

    Raises:
        ValueError: the margin is not positive and finite, or the shapes differ.
    """
    from statsmodels.stats.weightstats import ttost_paired

    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not 0 < margin < np.inf or one.shape != other.shape:
        raise ValueError(f"cannot test {one.shape} and {other.shape} for equivalence within {margin}")
    differences = one - other
    equal = bool((np.abs(differences) <= NOISE).all())
    if len(one) < 2 or (_alike(differences) and not equal):
        return None
    interval = summarise(differences, 0.9)
    assert interval.low is not None and interval.high is not None
    p = 0.0 if equal else float(ttost_paired(one, other, -margin, margin)[0])
    return Equivalence(margin, p, interval.low, interval.high)


def equivalence_pooled(groups: Sequence[Sequence[float]], margin: float) -> list[Equivalence] | None:
    """Whether the mean of each group of paired differences is within a margin, with one spread for all groups.

    The spread is that of the values around their group's mean (residual mean square of a one-way analysis of
    variance), so it has more degrees of freedom than a group's own; it assumes the same for all of them.

    Args:
        groups: differences of the pairs of each group.

    Returns:
        One test a group; None where no group has two values, or no value differs from its group's mean.

    Raises:
        ValueError: the margin is not positive and finite, or a group is empty.
    """
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    if not 0 < margin < np.inf or any(group.size == 0 for group in values):
        raise ValueError(f"cannot test groups of {[len(group) for group in values]} for equivalence within {margin}")
    freedom = sum(len(group) - 1 for group in values)
    if freedom == 0 or all(map(_alike, values)):
        return None
    spread = (sum(float(((group - group.mean()) ** 2).sum()) for group in values) / freedom) ** 0.5
    tests = []
    for group in values:
        mean, error = float(group.mean()), spread / len(group) ** 0.5
        half_width = float(stdtrit(freedom, 0.95)) * error
        p = float(stdtr(freedom, (abs(mean) - margin) / error))
        tests.append(Equivalence(margin, p, mean - half_width, mean + half_width))
    return tests


# --- inside a seed: the same test images -----------------------------------------------------------------------


@dataclass(frozen=True)
class SampleDifference:
    """Difference in accuracy of two models on the same test images.

    Attributes:
        difference: accuracy of a minus that of b, a fraction.
        low, high: percentile interval of the paired bootstrap over images, inside each task.
        disagreement: share of the images on which exactly one of them is right.
    """

    difference: float
    low: float
    high: float
    disagreement: float


def bootstrap_difference(
    hits_a: ArrayLike, hits_b: ArrayLike, task: ArrayLike, seed: int = 0, draws: int = 10_000, level: float = LEVEL
) -> SampleDifference:
    """Paired bootstrap over test images (Efron & Tibshirani 1993), stratified by task.

    The interval shows the uncertainty from the choice of test images; the uncertainty from training needs more seeds.
    Only the numbers of images that both, one or none of the models get right matter, so whole test sets are drawn as
    multinomials.

    Args:
        hits_a, hits_b: bool [n], the same images.
        task: int [n], task of each image.
        seed: seed of the random draws.
        draws: number of bootstrap samples.
        level: confidence level in (0, 1).

    Raises:
        ValueError: the shapes differ, or there are no images.
    """
    one, other, tasks = np.asarray(hits_a, dtype=bool), np.asarray(hits_b, dtype=bool), np.asarray(task)
    if not (one.shape == other.shape == tasks.shape) or one.ndim != 1 or not len(one):
        raise ValueError(f"cannot pair hits of shapes {one.shape} and {other.shape} on {tasks.shape} images")
    # +1 where only a is right, -1 where only b is, else 0.
    gains = one.astype(np.int64) - other.astype(np.int64)
    random = np.random.default_rng([seed, len(gains)])
    sums = np.zeros(draws)
    for number in np.unique(tasks):
        mine = gains[tasks == number]
        shares = np.array([(mine == 1).mean(), (mine == -1).mean(), (mine == 0).mean()])
        drawn = random.multinomial(len(mine), shares / shares.sum(), size=draws)
        sums += drawn[:, 0] - drawn[:, 1]
    low, high = np.quantile(sums / len(gains), [(1 - level) / 2, (1 + level) / 2])
    return SampleDifference(float(gains.mean()), float(low), float(high), float(np.abs(gains).mean()))


# --- many rows on many blocks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Average ranks of rows over blocks (Demsar, JMLR 2006).

    Attributes:
        ranks: by row, best (lowest) first.
        p: Friedman's test that all rows are alike.
        groups: maximal sets of rows, in the order of rank, that Nemenyi's test cannot tell apart at the 5 % level.
        blocks: number of blocks.
    """

    ranks: dict[str, float]
    p: float
    groups: tuple[tuple[str, ...], ...]
    blocks: int


def average_ranks(table: pd.DataFrame, higher: bool = True) -> Ranking:
    """Rank rows in every block and average.

    Args:
        table: blocks x rows, complete.
        higher: whether higher values are better.

    Raises:
        ValueError: there are fewer than ten blocks or three rows, or a value is missing.
    """
    # Imported here: with scipy.stats, both take a second, which no other table needs.
    import scikit_posthocs
    from scipy.stats import friedmanchisquare

    blocks, rows = table.shape
    if blocks < FEWEST_BLOCKS or rows < 3 or table.isna().any(axis=None):
        raise ValueError(f"ranks need {FEWEST_BLOCKS} blocks and 3 rows without gaps, not {blocks} x {rows}")
    # Sums of the same counts in another order differ in the last digit, which must not break ties.
    table = table.round(9)
    ranked = table.rank(axis=1, ascending=not higher)
    means = ranked.mean().sort_values(kind="stable")
    alike = not (ranked.nunique(axis=1) > 1).any()
    p = 1.0 if alike else float(friedmanchisquare(*(table[name] for name in table)).pvalue)
    order = list(means.index)
    if alike:
        return Ranking({str(n): float(means[n]) for n in order}, p, (tuple(map(str, order)),), blocks)
    pairs = scikit_posthocs.posthoc_nemenyi_friedman(table.reset_index(drop=True)).loc[order, order].to_numpy()
    groups: list[tuple[str, ...]] = []
    for start in range(rows):
        end = start
        while end + 1 < rows and pairs[start, end + 1] >= 0.05:
            end += 1
        # Not inside the group before.
        if end > start and not (groups and str(order[end]) in groups[-1]):
            groups.append(tuple(str(name) for name in order[start : end + 1]))
    return Ranking({str(name): float(means[name]) for name in order}, p, tuple(groups), blocks)
