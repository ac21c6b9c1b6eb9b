"""The ranges in which `cl-bench tune` searches a hyper-parameter."""

from __future__ import annotations

from dataclasses import dataclass

from cl_bench.experiment import Scalar


@dataclass(frozen=True)
class LogUniform:
    """A positive number, log-uniform in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class Uniform:
    """A number, uniform in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few values."""

    values: tuple[Scalar, ...]

    def __init__(self, *values: Scalar) -> None:
        object.__setattr__(self, "values", values)


Range = LogUniform | Uniform | Choice
