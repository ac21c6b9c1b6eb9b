"""What bounds a training step on a GPU: the host that launches kernels, memory traffic, or arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

Bound = Literal["launch-bound", "memory-bound", "compute-bound"]
_PRODUCTS = re.compile(r"gemm|nvjet|xmma|cutlass|matmul|attention|attn|fmha|flash|sdpa|conv", re.IGNORECASE)
"""Names of kernels that compute matrix products or attention."""
_IDLE = 0.3
"""Share of a step without any kernel from which it is launch-bound."""
_STEPS = 5


@dataclass(frozen=True)
class Regime:
    """Where the time of a step goes.

    Attributes:
        busy: share of the time in which the GPU runs a kernel.
        products: share of the kernels' time that goes into matrix products and attention.
    """

    busy: float
    products: float

    @property
    def bound(self) -> Bound:
        """What bounds the step: the host if the GPU is often idle, otherwise what most of the kernels compute."""
        if self.busy < 1 - _IDLE:
            return "launch-bound"
        return "compute-bound" if self.products >= 0.5 else "memory-bound"

    def advice(self, refusal: str) -> str:
        """What the user can do about it, in one sentence.

        Args:
            refusal: why steps are not replayed from a CUDA graph; empty if they are.
        """
        if self.bound == "launch-bound":
            idle = f"launch-bound: the GPU waits for the host {100 * (1 - self.busy):.0f} % of the time"
            larger = "take a larger batch, or several runs side by side (--jobs)"
            return f"{idle}; no CUDA graph, because {refusal}; {larger}" if refusal else f"{idle}; {larger}"
        share = f"{100 * self.products:.0f} % of the kernels' time goes into matrix products and attention"
        if self.bound == "compute-bound":
            return f"compute-bound: {share}; a smaller --size or backbone, or bf16, is all that helps"
        return f"memory-bound: {share}, the rest into norms, GELU and copies; bf16 halves their traffic"


def regime_of(spans: Iterable[tuple[str, float, float]], seconds: float) -> Regime:
    """The regime of some steps.

    Args:
        spans: name, start and end in seconds of every kernel and copy on the GPU.
        seconds: duration of these steps without a profiler, which slows down the host.
    """
    kernels = sorted(spans, key=lambda span: span[1])
    busy, end = 0.0, float("-inf")
    for _, start, stop in kernels:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    total = sum(stop - start for _, start, stop in kernels)
    products = sum(stop - start for name, start, stop in kernels if _PRODUCTS.search(name))
    return Regime(min(1.0, busy / seconds), products / total if total else 0.0)


def observe(run: Callable[[], object], seconds: float) -> Regime:
    """Observe some steps on a GPU with torch's profiler.

    Args:
        run: takes a step.
        seconds: duration of a step without the profiler.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_STEPS):
            run()
        torch.cuda.synchronize()
    on_gpu = (event for event in profiler.events() or [] if event.device_type.name == "CUDA")
    spans = [(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6) for event in on_gpu]
    return regime_of(spans, _STEPS * seconds)
