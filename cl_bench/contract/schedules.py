"""Learning-rate schedules by name: two of everybody's here, the others registered by the methods that own them."""

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
"""The factor on every learning rate, from (the method, for schedules with hyper-parameters; epoch from 0; epochs)."""

_FACTORS: dict[str, Factor] = {}


def register(name: str) -> Callable[[Factor], Factor]:
    """Decorate a function that is from now on the schedule of this name, for all methods.

    Raises:
        UserError: another module has registered the name.
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
    """The schedule of this name.

    Raises:
        KeyError: nobody has registered it.
    """
    if name not in _FACTORS:
        # It may belong to a method that has not been imported yet.
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
"""The name of a schedule, as a hyper-parameter."""


def cos(angle: float) -> float:
    """Of an angle in radians; torch's, as in stored results: in one of a thousand its last bit is not Python's."""
    return float(torch.cos(torch.tensor(angle, dtype=torch.float64)))


@register("constant")
def constant(method: Any, epoch: int, epochs: int) -> float:
    """1."""
    return 1.0


@register("cosine")
def cosine(method: Any, epoch: int, epochs: int) -> float:
    """Half a cosine from 1 towards 0, by epoch."""
    return 0.5 * (1 + cos(torch.pi * epoch / epochs))
