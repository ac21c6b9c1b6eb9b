"""Ranges in which `cl-bench tune` searches hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from cl_bench.errors import UserError, unknown_name
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
    """Check a search space, and replace every `Depending` by the range that holds for these hyper-parameters.

    Args:
        space: ranges by hyper-parameter.
        options: values of all hyper-parameters of the method, by name.

    Returns:
        Ranges by hyper-parameter, without any `Depending`.

    Raises:
        UserError: a name is no hyper-parameter, or a range is none.
    """
    found = {}
    for name, values in space.items():
        for option in (name, *([values.option] if isinstance(values, Depending) else [])):
            if option not in options:
                raise unknown_name("hyper-parameter in the search space", option, options)
        if isinstance(values, Depending):
            value = str(options[values.option])
            if value not in values.ranges:
                raise UserError(f"the search space of '{name}' has no range for {values.option}={value}; give it one")
            values = values.ranges[value]
        if not _is_range(values):
            raise UserError(
                f"the search space of '{name}' is {values!r}; expected LogUniform(low, high) with 0 < low < high, "
                "Uniform(low, high) with low < high, or Choice(value, ...)"
            )
        found[name] = values
    return found


def _is_range(values: object) -> TypeGuard[LogUniform | Uniform | Choice]:
    if isinstance(values, Choice):
        return bool(values.values)
    if not isinstance(values, LogUniform | Uniform):
        return False
    return values.low < values.high and (values.low > 0 or isinstance(values, Uniform))
