"""The ranges in which `cl-bench tune` searches a hyper-parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cl_bench.experiment import Scalar, Value


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


@dataclass(frozen=True, init=False)
class Depending:
    """A range for each value of another hyper-parameter, which is a text and is not searched itself."""

    option: str
    ranges: Mapping[str, LogUniform | Uniform | Choice]

    def __init__(self, option: str, **ranges: LogUniform | Uniform | Choice) -> None:
        object.__setattr__(self, "option", option)
        object.__setattr__(self, "ranges", ranges)


Range = LogUniform | Uniform | Choice | Depending


def resolved(space: Mapping[str, Range], options: Mapping[str, Value]) -> dict[str, LogUniform | Uniform | Choice]:
    """A search space for a method with these hyper-parameters (all of them, by name)."""
    return {
        name: values.ranges[str(options[values.option])] if isinstance(values, Depending) else values
        for name, values in space.items()
    }
