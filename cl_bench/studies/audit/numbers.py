"""The numbers that a method stores, declares and hides."""

from __future__ import annotations

import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.method import Method, declared_storage
from cl_bench.models.vit import PassState
from cl_bench.studies.audit.observation import digest
from cl_bench.training.strategy import ContinualStrategy


def stored_numbers(strategy: ContinualStrategy, pretrained: Mapping[str, bytes]) -> int:
    """What is kept beside the pre-trained backbone: as the strategy counts it or, if that is more, by its bits."""
    state = strategy.model.state_dict()
    own = (
        tensor.numel()
        for name, tensor in state.items()
        if not name.startswith("backbone.") or pretrained.get(name.removeprefix("backbone.")) != digest(tensor)
    )
    return max(strategy.stored_numbers(), sum(own))


def declared_numbers(
    method: Method, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]
) -> int | None:
    """The most that the method says it keeps after tasks of so many classes; None if it says nothing."""
    if type(method).storage is Method.storage:
        return None
    return sum(declared_storage(method, backbone, num_classes, classes).values())


def hidden_numbers(strategy: ContinualStrategy) -> Callable[[], dict[str, int]]:
    """A function that finds, by attribute, the numbers that live outside the parameters and buffers of the model.

    Containers are compared with what they hold now, since modules have shapes and the like as attributes; so is all
    that the backbone brings along.
    """
    attributes = frozenset(vars(strategy))
    start = census(strategy, attributes)

    def hidden() -> dict[str, int]:
        now = census(strategy, attributes)
        found = {
            place: numbers - start.tensors.get(place, 0) * place.startswith("model.backbone.")
            for place, numbers in now.tensors.items()
        }
        for place, numbers in now.plain.items():
            more = numbers - start.plain.get(place, 0)
            # A module that is new has its shapes.
            if more > (0 if place.rpartition(".")[0] in start.owners else SHAPE):
                found[place] = found.get(place, 0) + more
        return {place: numbers for place, numbers in found.items() if numbers > 0}

    return hidden


SHAPE = 4
"""Most numbers in the shapes that a layer keeps as an attribute (the padding of a convolution)."""


@dataclass
class Census:
    """Numbers outside the state dict, by attribute.

    Attributes:
        owners: of the attributes: the method, its class, the strategy, the modules of the model.
        tensors: numbers in tensors, arrays and bytes.
        plain: numbers in lists and other containers.
    """

    owners: set[str] = field(default_factory=set)
    tensors: dict[str, int] = field(default_factory=dict)
    plain: dict[str, int] = field(default_factory=dict)


def census(strategy: ContinualStrategy, attributes: frozenset[str]) -> Census:
    """Count all numbers outside the state dict that are within reach.

    Args:
        attributes: names of the strategy's own attributes, which are left out.
    """
    model, method = strategy.model, strategy.method
    state = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict(keep_vars=True).values()}
    modules = dict(model.named_modules(prefix="model"))
    owners: dict[str, Mapping[str, Any]] = {"method": vars(method)}
    for cls in type(method).__mro__[: type(method).__mro__.index(Method)]:
        owners[cls.__name__] = {name: part for name, part in vars(cls).items() if not name.startswith("__")}
    owners["strategy"] = {name: part for name, part in vars(strategy).items() if name not in attributes}
    owners |= {name: vars(module) for name, module in modules.items()}
    stack = [(f"{owner}.{name}", part) for owner, held in owners.items() for name, part in held.items()]
    found = Census(set(owners))
    seen = {id(method), *map(id, modules.values())}
    # What is made on the way is kept until the end, so that no id comes twice.
    made: list[Any] = []
    while stack:
        place, value = stack.pop()
        if isinstance(value, _SKIPPED) or id(value) in seen:
            continue
        seen.add(id(value))
        made.append(value)
        tensors = 0
        if isinstance(value, Tensor):
            tensors = value.numel() * (value.untyped_storage().data_ptr() not in state)
        elif isinstance(value, np.ndarray):
            tensors = value.size
        elif isinstance(value, bytes | bytearray | array.array):
            tensors = len(value)
        inside = _inside(value)
        plain = isinstance(value, _CONTAINERS) * sum(isinstance(part, _NUMBERS) for part in inside)
        for counts, numbers in ((found.tensors, tensors), (found.plain, plain)):
            if numbers:
                counts[place] = counts.get(place, 0) + numbers
        stack += [(place, part) for part in inside]
    return found


_NUMBERS = (int, float, complex, np.generic)
_CONTAINERS = (dict, MappingProxyType, list, tuple, set, frozenset, deque)
_SKIPPED = (*_NUMBERS, str, type(None), type, ModuleType, ContinualStrategy, PassState)


def _inside(value: Any) -> list[Any]:
    """What an object holds: elements, attributes; what a function has closed over."""
    if isinstance(value, dict | MappingProxyType):
        return list(value.values())
    if isinstance(value, _CONTAINERS):
        return list(value)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    held = list(getattr(value, "__dict__", {}).values())
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        held += [getattr(value, name) for name in names if hasattr(value, name)]
    if isinstance(value, FunctionType):
        held += [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        held += [value.__defaults__, value.__kwdefaults__]
    return held
