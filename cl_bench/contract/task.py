"""What a method knows while it learns a task, and what it keeps for that long only."""

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
from cl_bench.randomness import Key, generator


class Scratch(MutableMapping[str, Tensor]):
    """Tensors of one task by name: a teacher, old features, running statistics of activations.

    A tensor is copied when it is put here: what becomes of the original changes nothing. The copies lie in checkpoints,
    and not in what is stored; when the task ends they are gone.

    Args:
        device: on which all of them lie; None: each on that of the original.
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
        # In the layout of a restored copy: in another one the same numbers round differently.
        copied = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._tensors[name] = copied if self._device is None else copied.to(self._device)

    def __delitem__(self, name: str) -> None:
        del self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def trainable(self, name: str) -> nn.Parameter:
        """The tensor of this name as a parameter that a phase may train, the same whenever it is asked for."""
        tensor = self._tensors[name]
        if not isinstance(tensor, nn.Parameter):
            tensor = self._tensors[name] = nn.Parameter(tensor)
        return tensor

    def keep(self, name: str, module: nn.Module) -> None:
        """Keep a copy of all parameters and buffers of a module as they are now, for `call`."""
        tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        self.update({f"{name}.{key}": tensor for key, tensor in tensors})

    def trainables(self, name: str, module: nn.Module) -> list[nn.Parameter]:
        """What was kept of a module's parameters under this name, as parameters that a phase may train.

        Args:
            module: of the same structure as what was kept.
        """
        return [self.trainable(f"{name}.{key}") for key, _ in module.named_parameters()]

    def call(self, name: str, module: nn.Module, *inputs: Any, method: str = "forward", gradients: bool = False) -> Any:
        """What a module gives for these inputs with the tensors kept under this name.

        Args:
            module: of the same structure as what was kept; its own parameters stay as they are.
            method: which of its methods is called.
            gradients: flow through this call, to the inputs and to `trainables`.

        Raises:
            RuntimeError: the module's structure is another one.
        """
        prefix = f"{name}."
        tensors = {f"module.{key[len(prefix) :]}": tensor for key, tensor in self.items() if key.startswith(prefix)}
        with nullcontext() if gradients else torch.no_grad():
            return functional_call(_Calling(module, method), tensors, inputs, strict=True)


class _Calling(nn.Module):
    """A module whose forward pass is another method of a module."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Any) -> Any:
        return getattr(self.module, self.method)(*inputs)


@dataclass(frozen=True)
class Task:
    """What a method may know while it learns a task.

    Attributes:
        index: 0-based position in the stream.
        classes: labels of this task.
        seen: labels of this task and all before it.
        num_classes: size of the head.
        num_tasks: length of the stream, or None for methods that do not declare `needs_num_tasks`.
        model: what `build` returned.
        key: of all random draws in this task.
        scratch: what is kept until the task ends.
    """

    index: int
    classes: tuple[int, ...]
    seen: tuple[int, ...]
    num_classes: int
    num_tasks: int | None
    model: Any
    key: Key
    scratch: Scratch = field(default_factory=Scratch)

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator for one purpose in this task, the same whenever and wherever it is asked for."""
        return generator((*self.key, purpose))
