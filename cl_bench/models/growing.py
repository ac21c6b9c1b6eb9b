"""Modules whose tensors change in number and shape as tasks come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, count, takewhile
from typing import Any

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """A module that takes on the shapes of any state dict it is given.

    Its parameter lists and buffers grow (and may shrink) over the tasks. A fresh module that loads the state dict of a
    grown one first becomes as large, so that weights alone restore a model; device, dtype and `requires_grad` stay its
    own, and names are still checked. Of modules inside it, see `GrowingModules`.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        _resize_lists(self, state_dict, prefix, next(chain(self.parameters(), self.buffers()), None))
        _reshape(self.named_buffers(recurse=False), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class GrowingModules(Growing, nn.ModuleList):
    """A list of modules that grows over the tasks, such as one adapter per task.

    On loading a state dict it first takes on the number of elements there, fewer or more. Inside an element every
    parameter, buffer and parameter list, at any depth, then takes on the shape that is stored; device, dtype and
    `requires_grad` stay its own. An element may hold further lists of this kind. Names are still checked.

    Args:
        make: a new element, another one at each call.
    """

    _place: Tensor

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.make = make
        # Moves along with the model, so that the first element knows where to lie.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def grow(self) -> nn.Module:
        """Append a new element, on the device of those that are there.

        What `make` draws comes from torch's global generator, which is seeded in `before_task` and its like.

        Returns:
            the new element.
        """
        device = next(self.parameters(), self._place).device
        element = self.make().to(device).train(self.training)
        self.append(element)
        return element

    def __getitem__(self, index: Any) -> Any:
        # torch would make a slice by calling this class with the elements.
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def get_extra_state(self) -> Tensor:
        """The number of elements. Names do not tell it, as an element may be without tensors so far. It is stored as
        a shape, which counts as no stored number."""
        return torch.empty(len(self), 0)

    def set_extra_state(self, state: Tensor) -> None:
        """Take on the number of elements of a state dict."""
        del self[len(state) :]
        # The values of new elements are about to be replaced: they must not cost any random numbers.
        with torch.random.fork_rng(devices=[]):
            while len(self) < len(state):
                self.grow()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # This sets the number of elements; torch loads them after this function.
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
    """Give the parameter lists directly in a module the lengths and shapes that are stored.

    Args:
        like: on whose device the first parameter of an empty list lies; None: where the stored one does.
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
    """Give tensors the shapes that are stored for them; their values are to be loaded yet."""
    for name, tensor in tensors:
        stored = state_dict.get(prefix + name)
        if isinstance(stored, Tensor) and stored.shape != tensor.shape:
            # In place, so that tied parameters stay tied.
            tensor.grad = None
            tensor.data = torch.empty(stored.shape, dtype=tensor.dtype, device=tensor.device)


def _repeat_shape(module: nn.Module) -> None:
    """Let attributes of torch's layers follow the shape of their weights."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
