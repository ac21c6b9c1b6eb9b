"""Measures how fast a method trains and predicts on this machine, and what limits its speed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cl_bench.contract.phase import Phase
from cl_bench.data.samples import Samples, TrainingBatches, samples_of
from cl_bench.errors import Diverged
from cl_bench.experiment import Precision
from cl_bench.models.base import FeatureModel
from cl_bench.models.vit import Execution
from cl_bench.running.device import synchronize
from cl_bench.running.plan import PlannedRun
from cl_bench.running.runner import Settings, strategy_of, stream_of
from cl_bench.studies.regime import Regime, observe
from cl_bench.training import plugins
from cl_bench.training.phase_run import PhaseRun
from cl_bench.training.step_graph import Captured
from cl_bench.training.strategy import ContinualStrategy

GROUPS = 5
"""Number of timed groups of steps; the median over groups is reported."""


@dataclass(frozen=True)
class Speed:
    """Speed of one method.

    Attributes:
        label: label of the method.
        batch: images per training step.
        step: seconds per training step, with the images already on the device.
        share: necessary FLOP/s of a step divided by the `ceiling`. Necessary are two FLOPs per multiply-add of the
            forward and backward passes in the method's definition, without recomputation; 0 if there is no ceiling.
        memory: peak bytes on the device during these steps; 0 on a CPU.
        start: seconds of the first step, mostly compilation.
        prediction: predicted images per second from the second evaluation on, when frozen queries are cached.
        data: training views made from stored images, per second.
        waits: whether the host waits for the device during a step; None on a CPU.
        regime: what bounds the step; None on a CPU.
        graph_refusal: why steps are not replayed from a CUDA graph; empty if they are.
        fault: why the timed steps are not valid training (parameters that are not finite); empty if they are.
    """

    label: str
    batch: int
    step: float
    share: float
    memory: int
    start: float
    prediction: float
    data: float
    waits: bool | None
    regime: Regime | None = None
    graph_refusal: str = ""
    fault: str = ""

    @property
    def rate(self) -> float:
        """Training images per second."""
        return self.batch / self.step

    @property
    def headroom(self) -> float:
        """Rate of making training views, divided by that of training; below 1, the network waits for data."""
        return self.data / self.rate


def device_name(device: torch.device) -> str:
    """Name of the device in words: `NVIDIA H200`, or `CPU, 2 threads`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def ceiling(device: torch.device, precision: Precision) -> float:
    """FLOP/s of a large square matrix product on the device, at this precision."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=Execution(precision).dtype or torch.float32) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, 10)


def seconds(run: Callable[[], object], device: torch.device, steps: int) -> float:
    """Seconds per step after warm-up.

    The median over `GROUPS` groups of steps, with one synchronisation at the end of each group; for steps of more than
    a second, the faster of two steps.
    """

    def group(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            run()
        synchronize(device)
        return (time.perf_counter() - began) / count

    once = group(1)
    if once > 1:
        return min(once, group(1))
    group(3)
    return median(group(steps) for _ in range(GROUPS))


def measure(
    planned: PlannedRun,
    device: torch.device,
    settings: Settings,
    *,
    task: int = 0,
    steps: int = 10,
    ceiling: float = 0.0,
) -> Speed:
    """Measure the speed of a method, set up as for a run, in the first phase of a task.

    Args:
        task: index of the task, from 0; earlier tasks are started but not learned.
        steps: steps per group.
        ceiling: FLOP/s by which `Speed.share` is divided; 0: unknown.
    """
    execution = settings.set_up(planned.experiment.precision, device)
    stream = stream_of(planned)
    method = planned.method
    strategy = strategy_of(planned, stream, device, execution)
    experiences = list(stream.joint if method.trains_on == "stream" else stream.train)[: task + 1]
    phase: Phase | None = None
    for index, experience in enumerate(experiences):
        strategy.tasks_learned = index
        samples = samples_of(experience.dataset)
        phase = first_phase(strategy, samples)
    batches = TrainingBatches(samples, phase.batch_size if phase else 128, ("bench",), device)
    images, labels, _ = next(iter(batches))
    step, first, memory, waits, fault = float("nan"), 0.0, 0, None, ""
    regime, refusal = None, "there are no steps"
    if phase is not None:
        phase_run, run = training_step(strategy, phase, images, labels)
        began = time.perf_counter()
        run()
        synchronize(device)
        first = time.perf_counter() - began
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = seconds(run, device, steps)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        if device.type == "cuda":
            with Captured.waits() as places:
                run()
            waits = bool(places)
        regime = observe(run, step) if device.type == "cuda" else None
        refusal = phase_run.graph.refusal
        try:
            phase_run.check_finite()
        except Diverged as error:
            fault = str(error)
    strategy.model.eval()
    speed = Speed(
        label=planned.label,
        batch=batches.batch_size,
        step=step,
        share=_needed(strategy, phase, images[:1]) * len(images) / step / ceiling if ceiling and phase else 0.0,
        memory=memory,
        start=first,
        prediction=_prediction(strategy, images, device, steps),
        data=_data(batches, device, steps),
        waits=waits,
        regime=regime,
        graph_refusal=refusal,
        fault=fault,
    )
    del strategy, phase, images
    gc.collect()
    return speed


def first_phase(strategy: ContinualStrategy, samples: Samples) -> Phase | None:
    """Begin the next task, and return its first phase; None if the task has no phases."""
    strategy.begin_task(samples)
    assert strategy.task is not None
    return next(iter(strategy.method.phases(strategy.task)), None)


def training_step(
    strategy: ContinualStrategy, phase: Phase, images: Tensor, labels: Tensor
) -> tuple[PhaseRun, Callable[[], None]]:
    """A started phase, and a function that takes one training step of it, as the strategy does."""
    assert strategy.task is not None
    strategy.model.train()
    refusal = plugins.refuse_graphs(strategy)
    run = PhaseRun(phase, "the first phase", strategy.model, strategy.task.scratch, refusal)
    return run, lambda: run.take(images, labels, ("bench",))


def _prediction(strategy: ContinualStrategy, images: Tensor, device: torch.device, steps: int) -> float:
    """Images per second of the predictor, in batches of the size used in evaluations."""
    model = strategy.predictor()
    size = strategy.eval_mb_size
    batch = images[torch.arange(size, device=device) % len(images)]
    with torch.no_grad():
        query = model.query(batch) if isinstance(model, FeatureModel) else None
        known = () if query is None else (query,)
        return size / seconds(lambda: model(batch, *known), device, steps)


def _data(batches: TrainingBatches, device: torch.device, steps: int) -> float:
    """Training views per second, made by repeating one epoch."""
    views: Iterator[Any] = chain.from_iterable(repeat(batches))
    return batches.batch_size / seconds(lambda: next(views), device, steps)


def _needed(strategy: ContinualStrategy, phase: Phase | None, image: Tensor) -> int:
    """Necessary FLOPs per image of a training step.

    They are those of the passes of a prediction, and of the backward pass through the last of them: once for the
    gradients of activations and, if the backbone itself is trained, once more for those of weights.
    """
    model = strategy.model
    predicted = model.flops(lambda: model(image))
    query = model.flops(lambda: model.query(image))
    trained = {id(parameter) for parameter in (phase.trained() if phase else [])}
    whole = any(id(parameter) in trained for parameter in model.backbone.blocks.parameters())
    return predicted + (predicted - query) * (1 + whole)
