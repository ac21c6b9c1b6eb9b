"""Learning-rate schedules by name: `constant` and `cosine`, and those that other modules and methods register."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from cl_bench.contract.sources import shipped
from cl_bench.errors import UserError

Factor = Callable[[Any, int, int], float]
"""Maps (method, epoch from 0, number of epochs) to the factor on every learning rate. The method gives a schedule its
hyper-parameters."""

_FACTORS: dict[str, Factor] = {}


def register(name: str) -> Callable[[Factor], Factor]:
    """Decorator that registers a function as the schedule of this name, for all methods.

    Raises:
        UserError: another module has already registered the name.
    """

    def decorate(factor: Factor) -> Factor:
        taken = _FACTORS.get(name)
        if taken is not None and taken.__module__ != factor.__module__:
            raise UserError(
                f"schedule '{name}' of {factor.__module__} has the name of one in {taken.__module__}; choose another"
            )
        _FACTORS[name] = factor
        return factor

    return decorate


def find(name: str) -> Factor:
    """The registered schedule of a name; imports the shipped methods if none of the imported modules has registered it.

    Raises:
        KeyError: no schedule has this name.
    """
    if name not in _FACTORS:
        # The name may belong to a method that has not been imported yet.
        for method in shipped():
            importlib.import_module(f"cl_bench.methods.{method.replace('-', '_')}")
    return _FACTORS[name]


def _known(name: str) -> str:
    try:
        find(name)
    except KeyError:
        *others, last = (f"'{each}'" for each in sorted(_FACTORS))
        raise PydanticCustomError("schedule", f"Input should be {', '.join(others)} or {last}") from None
    return name


Schedule = Annotated[str, AfterValidator(_known)]
"""Type of a hyper-parameter that is the name of a schedule."""


def cos(angle: float) -> float:
    """Cosine of an angle in radians, computed by torch.

    Stored results were computed with it. For one angle in a thousand, the last bit differs from that of `math.cos`.
    """
    return float(torch.cos(torch.tensor(angle, dtype=torch.float64)))


@register("constant")
def constant(method: Any, epoch: int, epochs: int) -> float:
    """A constant learning rate: the factor is always 1."""
    return 1.0


@register("cosine")
def cosine(method: Any, epoch: int, epochs: int) -> float:
    """Half a cosine, from 1 in the first epoch towards 0 after the last."""
    return 0.5 * (1 + cos(torch.pi * epoch / epochs))
