"""Counts the numbers that a method stores, declares and hides."""

from __future__ import annotations

import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.method import Method, declared_storage
from cl_bench.data.samples import StoreSamples
from cl_bench.models.lora import FrozenFactors
from cl_bench.models.vit import PassState
from cl_bench.studies.audit.observation import digest
from cl_bench.training.strategy import ContinualStrategy


def stored_numbers(strategy: ContinualStrategy, pretrained: Mapping[str, bytes]) -> int:
    """Numbers stored in addition to the pre-trained backbone.

    The maximum of the strategy's own count and of a count of all tensors that differ from the pre-trained ones.
    """
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
    """Maximum of stored numbers that the method declares; None if it declares none.

    Args:
        num_classes: size of the label set of the whole stream.
        classes: number of classes of each task that was learned.
    """
    if type(method).storage is Method.storage:
        return None
    return sum(declared_storage(method, backbone, num_classes, classes).values())


def exemplar_bytes(strategy: ContinualStrategy, own: StoreSamples) -> int:
    """Bytes of the tensors outside the backbone in which images of a task are found as they are.

    Looked for are a few images of the task that has been learned, as stored pixels and in the test view.
    """
    positions = np.linspace(0, len(own.labels) - 1, _SOUGHT).astype(np.int64)
    views = own.view(positions, None, torch.device("cpu")).numpy()
    stored = own.dataset.store.images[own.ids[positions]]
    # An image of one colour may be found anywhere.
    sought = [image.tobytes() for image in (*stored, *views) if image.min() < image.max()]
    kept = 0
    for name, tensor in strategy.model.state_dict().items():
        held = b"" if name.startswith("backbone.") else tensor.detach().cpu().contiguous().numpy().tobytes()
        if any(image in held for image in sought):
            kept += len(held)
    return kept


_SOUGHT = 16
"""Number of images of a task that are looked for in the model."""


def hidden_numbers(strategy: ContinualStrategy) -> Callable[[], dict[str, int]]:
    """A function that counts, by attribute, the numbers outside the parameters and buffers of the model.

    Numbers in containers and in the backbone that exist now are subtracted later, since modules have shapes and the
    like as attributes.
    """
    attributes = frozenset(vars(strategy))
    start = census(strategy, attributes)

    def count() -> dict[str, int]:
        now = census(strategy, attributes)
        hidden = {
            place: numbers - start.tensors.get(place, 0) * place.startswith("model.backbone.")
            for place, numbers in now.tensors.items()
        }
        for place, numbers in now.plain.items():
            more = numbers - start.plain.get(place, 0)
            # A new module may have a shape among its attributes.
            if more > (0 if place.rpartition(".")[0] in start.owners else SHAPE):
                hidden[place] = hidden.get(place, 0) + more
        return {place: numbers for place, numbers in hidden.items() if numbers > 0}

    return count


SHAPE = 4
"""Maximum of numbers in a shape that a layer has as an attribute (the padding of a convolution)."""


@dataclass
class Census:
    """Numbers outside the state dict, by attribute.

    Attributes:
        owners: names of the objects with these attributes: the method, its class, the strategy, the model's modules.
        tensors: numbers in tensors, arrays and bytes, by attribute.
        plain: numbers in lists and other containers, by attribute.
    """

    owners: set[str] = field(default_factory=set)
    tensors: dict[str, int] = field(default_factory=dict)
    plain: dict[str, int] = field(default_factory=dict)


def census(strategy: ContinualStrategy, attributes: frozenset[str]) -> Census:
    """Count all numbers outside the state dict that the method, the strategy or the model refer to.

    Args:
        attributes: names of attributes of the strategy itself, which are not counted.
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
    result = Census(set(owners))
    seen = {id(method), *map(id, modules.values())}
    # Holds temporary objects until the end, so that none is freed and its id reused.
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
        for counts, numbers in ((result.tensors, tensors), (result.plain, plain)):
            if numbers:
                counts[place] = counts.get(place, 0) + numbers
        stack += [(place, part) for part in inside]
    return result


_NUMBERS = (int, float, complex, np.generic)
_CONTAINERS = (dict, MappingProxyType, list, tuple, set, frozenset, deque)
_SKIPPED = (*_NUMBERS, str, type(None), type, ModuleType, ContinualStrategy, PassState, FrozenFactors)


def _inside(value: Any) -> list[Any]:
    """The objects that an object refers to: elements, attributes, and closures and defaults of a function."""
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
