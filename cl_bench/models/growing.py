"""Modules whose tensors change in number and shape from task to task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, count, takewhile
from typing import Any

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """A module whose parameter lists and buffers grow (and may shrink) over the tasks.

    `load_state_dict` first gives them the lengths and shapes of the stored tensors, so weights alone restore a model.
    Device, dtype and `requires_grad` stay those of the module, and names are still checked. Submodules that grow are
    elements of `GrowingModules`.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        _resize_lists(self, state_dict, prefix, next(chain(self.parameters(), self.buffers()), None))
        _reshape(self.named_buffers(recurse=False), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class GrowingModules(Growing, nn.ModuleList):
    """A list of modules that grows over the tasks, such as one adapter per task.

    `load_state_dict` first gives the list the stored number of elements, fewer or more, and then gives every parameter,
    buffer and parameter list inside an element, at any depth, its stored shape. Device, dtype and `requires_grad` stay
    those of the module, and names are still checked. An element may hold further `GrowingModules`.

    Args:
        make: makes a new element at each call.
    """

    _place: Tensor

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.make = make
        # It moves with the model and tells the first element its device.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def grow(self) -> nn.Module:
        """Append a new element on the device of the list.

        `make` may draw from torch's global generator: it is seeded in `Method.before_task`, `after_phase` and
        `after_task`.

        Returns:
            The new element.
        """
        device = next(self.parameters(), self._place).device
        element = self.make().to(device).train(self.training)
        self.append(element)
        return element

    def __getitem__(self, index: Any) -> Any:
        # For a slice, torch would call this class with the elements as its argument.
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def get_extra_state(self) -> Tensor:
        """The number of elements, as the shape of an empty tensor, so that it adds no stored number.

        Names in a state dict do not reveal it, as an element may hold no tensors yet.
        """
        return torch.empty(len(self), 0)

    def set_extra_state(self, state: Tensor) -> None:
        """Give the list the number of elements of a state dict."""
        del self[len(state) :]
        # The values of new elements are replaced at once, so they must not advance the random generator.
        with torch.random.fork_rng(devices=[]):
            while len(self) < len(state):
                self.grow()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # The call sets the number of elements; torch loads the elements after this function has returned.
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        _resize_lists(self, state_dict, prefix, self._place)
        for number, element in self.named_children():
            like = next(chain(element.parameters(), element.buffers()), self._place)
            for name, module in element.named_modules(prefix=f"{prefix}{number}"):
                _resize_lists(module, state_dict, f"{name}.", like)
                _reshape(module.named_parameters(recurse=False), state_dict, f"{name}.")
                _reshape(module.named_buffers(recurse=False), state_dict, f"{name}.")
                _repeat_shape(module)


def _resize_lists(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, like: Tensor | None) -> None:
    """Give a module's own parameter lists their stored lengths and shapes.

    Args:
        like: a tensor on the device for parameters of an empty list; None: they stay on the device of the stored ones.
    """
    for name, child in list(module.named_children()):
        if not isinstance(child, nn.ParameterList):
            continue
        keys = list(takewhile(state_dict.__contains__, (f"{prefix}{name}.{i}" for i in count())))
        if len(keys) != len(child):
            parameters = list(child)[: len(keys)]
            for key in keys[len(parameters) :]:
                stored = state_dict[key]
                if parameters:
                    new = nn.Parameter(torch.empty_like(parameters[-1]), parameters[-1].requires_grad)
                else:
                    new = nn.Parameter(torch.empty_like(stored, device=None if like is None else like.device))
                parameters.append(new)
            child = nn.ParameterList(parameters)
            setattr(module, name, child)
        _reshape(child.named_parameters(), state_dict, f"{prefix}{name}.")


def _reshape(tensors: Iterable[tuple[str, Tensor]], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Give tensors their stored shapes, before their values are loaded."""
    for name, tensor in tensors:
        stored = state_dict.get(prefix + name)
        if isinstance(stored, Tensor) and stored.shape != tensor.shape:
            # In place, so that tied parameters stay tied.
            tensor.grad = None
            tensor.data = torch.empty(stored.shape, dtype=tensor.dtype, device=tensor.device)


def _repeat_shape(module: nn.Module) -> None:
    """Set the size attributes of torch's layers to the shapes of their weights."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
