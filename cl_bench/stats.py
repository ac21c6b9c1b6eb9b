"""Uncertainty over repeated runs: pure functions of a list of numbers, in the numbers' own unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

LEVEL = 0.95
"""Confidence level of every interval that cl-bench prints."""


@dataclass(frozen=True)
class Summary:
    """Mean of `n` values and the confidence interval of that mean, in the unit of the values.

    Attributes:
        n: how many values.
        mean: their arithmetic mean.
        half_width: of the symmetric interval; None where one value says nothing about the spread.
        stderr: standard error of the mean; None likewise.
    """

    n: int
    mean: float
    half_width: float | None
    stderr: float | None = None

    @property
    def low(self) -> float | None:
        """Lower end of the interval; not cut at the ends of the scale."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval; not cut at the ends of the scale."""
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
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"cannot summarise {sample.size} values of shape {sample.shape}: not finite, or none")
    n, mean = sample.size, float(sample.mean())
    if n == 1:
        return Summary(1, mean, None)
    stderr = float(sample.std(ddof=1)) / n**0.5
    return Summary(n, mean, float(scipy_stats.t.ppf((1 + level) / 2, n - 1)) * stderr, stderr)


def summarise_curves(curves: Sequence[ArrayLike], level: float = LEVEL) -> list[Summary]:
    """`summarise` at each point of `curves`, shape [n, points]: pointwise intervals, not a joint band."""
    return [summarise(point, level) for point in np.asarray(curves, dtype=np.float64).T]
