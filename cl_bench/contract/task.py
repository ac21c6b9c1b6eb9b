"""What a method knows about a task, and tensors that last for one task."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench.errors import UserError
from cl_bench.experiment import Scalar
from cl_bench.randomness import Key, generator

Traces = dict[str, list[dict[str, Scalar]]]
"""Traced rows by the name of their table."""


class Scratch(MutableMapping[str, Tensor]):
    """Tensors by name that last for one task: a teacher, old features, running statistics of activations.

    Assignment copies a tensor, so later changes of the original do not matter. The copies are part of checkpoints and
    are deleted when the task ends; they do not count as stored numbers.

    Args:
        device: device of all copies; None: each copy stays on the device of its original.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"task.scratch['{name}'] was given {type(tensor).__name__}, expected a tensor: only these are in "
                "checkpoints"
            )
        # A restored copy is contiguous; sums over another layout would round differently.
        copied = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._tensors[name] = copied if self._device is None else copied.to(self._device)

    def __delitem__(self, name: str) -> None:
        del self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def trainable(self, name: str) -> nn.Parameter:
        """The tensor as a parameter that a phase may train; every call returns the same parameter.

        Raises:
            KeyError: there is no tensor of this name.
        """
        tensor = self._tensors[name]
        if not isinstance(tensor, nn.Parameter):
            tensor = self._tensors[name] = nn.Parameter(tensor)
        return tensor

    def keep(self, name: str, module: nn.Module) -> None:
        """Copy all parameters and buffers of a module as they are now, for `call` and `trainables`.

        Args:
            name: name under which the copies are found again.
            module: the module to copy; it is not changed.
        """
        tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        self.update({f"{name}.{key}": tensor for key, tensor in tensors})

    def trainables(self, name: str, module: nn.Module) -> list[nn.Parameter]:
        """Copied parameters of a module, as parameters that a phase may train.

        Args:
            name: name given to `keep`.
            module: a module with the structure of the copied one.
        """
        return [self.trainable(f"{name}.{key}") for key, _ in module.named_parameters()]

    def call(self, name: str, module: nn.Module, *inputs: Any, method: str = "forward", gradients: bool = False) -> Any:
        """Call a module with the copied tensors in place of its own.

        Args:
            name: name given to `keep`.
            module: a module with the structure of the copied one; its own parameters stay as they are.
            inputs: positional arguments of the call.
            method: name of the module's method to call.
            gradients: whether gradients flow through the call, to the inputs and to `trainables`.

        Returns:
            What the called method returns.

        Raises:
            RuntimeError: the module's structure differs from that of the copied one.
        """
        prefix = f"{name}."
        tensors = {f"module.{key[len(prefix) :]}": tensor for key, tensor in self.items() if key.startswith(prefix)}
        with nullcontext() if gradients else torch.no_grad():
            return functional_call(_Calling(module, method), tensors, inputs, strict=True)


class _Calling(nn.Module):
    """A module whose forward pass calls a named method of another module."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Any) -> Any:
        return getattr(self.module, self.method)(*inputs)


@dataclass(frozen=True)
class Task:
    """What a method may know about the task that it learns.

    Attributes:
        index: position of the task in the stream, from 0.
        classes: labels of this task.
        seen: labels of this task and of all tasks before it.
        num_classes: number of classes of the whole stream, the size of the head.
        num_tasks: length of the stream; None for methods that do not declare `needs_num_tasks`.
        model: the model that `Method.build` returned.
        key: key of all random draws in this task; its last part is the number of the task.
        scratch: tensors that last until the task ends.
    """

    index: int
    classes: tuple[int, ...]
    seen: tuple[int, ...]
    num_classes: int
    num_tasks: int | None
    model: Any
    key: Key
    scratch: Scratch = field(default_factory=Scratch)

    def generator(self, purpose: str, *, every_task: bool = False) -> torch.Generator:
        """Make a CPU generator for one purpose in this task; equal purposes give equal draws, on any machine.

        Args:
            purpose: what the numbers are drawn for.
            every_task: whether all tasks of a run draw the same numbers.
        """
        key = self.key[:-1] if every_task else self.key
        return generator((*key, purpose))
