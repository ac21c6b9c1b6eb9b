"""Ranges in which `cl-bench tune` searches hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cl_bench.experiment import Scalar, Value


@dataclass(frozen=True)
class LogUniform:
    """A positive number, drawn log-uniformly from [low, high].

    Attributes:
        low: smallest value, positive.
        high: largest value.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Uniform:
    """A number, drawn uniformly from [low, high].

    Attributes:
        low: smallest value.
        high: largest value.
    """

    low: float
    high: float


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few values, e.g. `Choice("constant", "cosine")`.

    Attributes:
        values: the values to choose from.
    """

    values: tuple[Scalar, ...]

    def __init__(self, *values: Scalar) -> None:
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, init=False)
class Depending:
    """A range that depends on another hyper-parameter, which is a text and is not searched itself.

    `Depending("optimizer", sgd=LogUniform(1e-3, 1e-1), adam=LogUniform(1e-5, 1e-3))` searches another learning rate for
    each optimiser.

    Attributes:
        option: name of the other hyper-parameter.
        ranges: range by the value of the other hyper-parameter.
    """

    option: str
    ranges: Mapping[str, LogUniform | Uniform | Choice]

    def __init__(self, option: str, **ranges: LogUniform | Uniform | Choice) -> None:
        object.__setattr__(self, "option", option)
        object.__setattr__(self, "ranges", ranges)


Range = LogUniform | Uniform | Choice | Depending


def resolved(space: Mapping[str, Range], options: Mapping[str, Value]) -> dict[str, LogUniform | Uniform | Choice]:
    """Replace every `Depending` of a search space by the range that holds for these hyper-parameters.

    Args:
        space: ranges by hyper-parameter.
        options: values of all hyper-parameters of the method, by name.

    Returns:
        Ranges by hyper-parameter, without any `Depending`.
    """
    return {
        name: values.ranges[str(options[values.option])] if isinstance(values, Depending) else values
        for name, values in space.items()
    }
