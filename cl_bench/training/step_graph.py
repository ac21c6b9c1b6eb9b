"""Training steps as CUDA graphs: the forward pass, the loss and the gradients of a phase, captured once and replayed.

For a small network the host needs longer to launch the kernels of a step than the device to run them. A graph launches
them all at once. The kernels are the same, and so are the numbers. The optimiser's step stays outside: its learning
rate changes, and the host launches it while the device is still computing.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cl_bench.contract.task import Scratch
from cl_bench.errors import reason

T = TypeVar("T")
Gradients = tuple[Tensor | None, ...]
_TOLERANCE = 0.01
"""Largest relative difference between a replayed and a computed gradient; atomic additions may change the last bits."""
_CHECKED = 2
"""Number of replays that are compared with a computed step before they are used."""


@dataclass(frozen=True)
class Computed:
    """What a step computes before the optimiser's step.

    Attributes:
        outputs: outputs of the training pass, without gradients.
        loss: the mean loss, without gradients.
        total: the sum of the losses in float64.
        gradients: gradient of each trained parameter; None if the loss does not depend on it.
    """

    outputs: tuple[Tensor, ...]
    loss: Tensor
    total: Tensor
    gradients: Gradients

    def differs(self, other: Computed) -> bool:
        """Whether the loss or a gradient differs from another computation by more than rounding."""
        pairs = zip((self.loss, *self.gradients), (other.loss, *other.gradients), strict=True)
        return any(
            (a is None) != (b is None)
            or (a is not None and b is not None and not _close(a.detach().float(), b.detach().float()))
            for a, b in pairs
        )


def _close(a: Tensor, b: Tensor) -> bool:
    if bool(torch.equal(a.isfinite(), b.isfinite())) and not bool(a.isfinite().all()):
        return True
    return bool((a - b).norm() <= _TOLERANCE * b.norm() + torch.finfo(torch.float32).tiny)


Compute = Callable[[Tensor, Tensor], Computed]
"""Computes a step from images [B, C, H, W] and labels [B]."""


class StepGraph:
    """The steps of one phase, computed by a CUDA graph as soon as this is known to give the same numbers.

    The first step of a phase is not computed here, because it may compile. In the second it is observed whether the
    host waits for the device, which no graph can do. Then the graph is captured. Its first two replays are compared
    with the computed step; if they differ, it is not used. Only batches of the second step's shape are replayed.

    Args:
        compute: computes a step; between two calls it may change nothing but the values of tensors.
        model, scratch: hold all tensors that `compute` reads.
        refusal: why no graph may be captured; empty if it may.

    Attributes:
        refusal: why steps are not replayed; empty if they are, or may be later.
        replays: number of replayed steps, without those that were only compared.
    """

    captures = 0
    """Number of graphs captured in this process."""

    def __init__(self, compute: Compute, model: nn.Module, scratch: Scratch, refusal: str = "") -> None:
        self.refusal = refusal
        self.replays = self._compared = 0
        self._compute, self._model, self._scratch = compute, model, scratch
        self._steps = 0
        self._captured: Captured | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Computed | None:
        """Compute a step with its gradients; None: the caller must compute it."""
        self._steps += 1
        if self.refusal or self._steps == 1 or len(images) != len(labels):
            return None
        if self._captured is None:
            computed = self._observed(images, labels)
            if not self.refusal:
                self._capture(images, labels)
            return computed
        if not self._captured.fits(images):
            return None
        if moved := self._captured.moved():
            self._drop(f"'{moved}' was replaced by another tensor; change it in place")
            return None
        if self._compared == _CHECKED:
            self.replays += 1
            return self._captured.replay(images, labels)
        computed = self._compute(images, labels)
        if self._captured.replay(images, labels).differs(computed):
            self._drop(
                "a replayed step gives other numbers, so the loss or the forward pass depends on more than tensors"
            )
        self._compared += 1
        return computed

    def _drop(self, refusal: str) -> None:
        self.refusal, self._captured = refusal, None

    def _observed(self, images: Tensor, labels: Tensor) -> Computed:
        """Compute a step, and refuse to capture it if the host waited for the device."""
        with Captured.waits() as waits:
            computed = self._compute(images, labels)
        if waits:
            self.refusal = "the host reads a number from the device in every step"
        return computed

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        try:
            self._captured = Captured(self._compute, self._model, self._scratch, images, labels)
        except RuntimeError as error:
            _recover(images.device)
            # The end of a broken capture fails as well, which says less.
            self._drop(f"the step cannot be captured: {reason(error.__context__ or error)}")
        else:
            StepGraph.captures += 1


class Captured:
    """A captured step: its inputs and results have fixed places in the device's memory."""

    @staticmethod
    def supports(device: torch.device) -> bool:
        """Whether steps on a device can be captured."""
        return device.type == "cuda"

    @staticmethod
    @contextmanager
    def waits() -> Iterator[list[str]]:
        """Context that collects torch's warnings of places where the host waits for the device."""
        before, found = torch.cuda.get_sync_debug_mode(), list[str]()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(before)
        # The mode warns of itself, too.
        found += [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]

    def __init__(self, compute: Compute, model: nn.Module, scratch: Scratch, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._places = list(_places(model, scratch))
        self._computed, self._run = self._captured(lambda: compute(self._images, self._labels))

    def _captured(self, compute: Callable[[], Computed]) -> tuple[Computed, Callable[[], object]]:
        """The results of a computation, and a function that overwrites them by those of the present inputs."""
        device = self._images.device
        with torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            pool, *_ = _pool(device)
            computed = _capture(graph, pool, compute)

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return computed, replay

    def fits(self, images: Tensor) -> bool:
        """Whether images have the shape and layout of the captured ones."""
        return images.shape == self._images.shape and images.stride() == self._images.stride()

    def moved(self) -> str:
        """Name of a tensor of the model that has another place than at the capture; empty if none has."""
        return next((name for name, holder, key, place in self._places if _place(holder.get(key)) != place), "")

    def replay(self, images: Tensor, labels: Tensor) -> Computed:
        """Compute a step. The gradients, and outputs other than the logits, are overwritten by the next replay."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._run()
        computed = self._computed
        outputs = (computed.outputs[0].clone(), *computed.outputs[1:])
        return replace(computed, outputs=outputs, loss=computed.loss.clone(), total=computed.total.clone())


def _place(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (id(tensor), tensor.data_ptr())


def _places(model: nn.Module, scratch: Scratch) -> Iterator[tuple[str, Any, str, tuple[int, int]]]:
    """Name, holder, key and place of each tensor of the model and of the scratch."""
    for prefix, module in model.named_modules():
        for holder in (module._parameters, module._buffers):
            for key, tensor in holder.items():
                yield f"{prefix}.{key}".lstrip("."), holder, key, _place(tensor)
    for key, tensor in scratch.items():
        yield f"task.scratch['{key}']", scratch, key, _place(tensor)


@cache
def _pool(device: torch.device) -> tuple[Any, torch.cuda.CUDAGraph, Tensor]:
    """The memory pool of all graphs of a device, in which a graph takes over the memory of the one before.

    It exists as long as a graph uses it, so a tiny one is kept.
    """
    pool, graph = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    number = torch.zeros(1, device=device)
    _capture(graph, pool, lambda: number.add_(1))
    return pool, graph, number


def _capture(graph: torch.cuda.CUDAGraph, pool: Any, run: Callable[[], T]) -> T:
    """Capture the kernels that a function launches, on a stream of its own; nothing is executed.

    Raises:
        RuntimeError: something in the function cannot be captured.
    """
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    collecting = gc.isenabled()
    # Freed objects of another step would wait for the device in the middle of the capture.
    gc.disable()
    try:
        with torch.cuda.stream(stream):
            # Another thread may prepare batches meanwhile, which is no part of the step.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = run()
            finally:
                graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def _recover(device: torch.device) -> None:
    """End what a broken capture has left open in the allocator and in the device's random generator."""
    with torch.cuda.device(device):
        pool, *_ = _pool(device)
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        _pool.cache_clear()
        # The generator believes in a capture until one has ended well.
        _pool(device)
