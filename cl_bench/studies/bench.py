"""How fast a method trains and predicts on this machine, and what bounds it."""

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
from cl_bench.running.device import set_up, synchronize
from cl_bench.running.plan import PlannedRun
from cl_bench.running.runner import Settings, strategy_of, stream_of
from cl_bench.training.phase_run import PhaseRun
from cl_bench.training.strategy import ContinualStrategy

GROUPS = 5
"""Groups of steps that are timed; the median group counts."""


@dataclass(frozen=True)
class Speed:
    """What was measured of one method.

    Attributes:
        label: of the method.
        batch: images per training step.
        step: seconds of a training step, its images being on the device.
        share: of the `ceiling` that the FLOPs of a step that are needed make use of: two per multiply-add of the passes
            that the method's maths asks for, forward and back, without recomputation; 0 without a ceiling.
        memory: peak bytes on the device in these steps, or 0 on a CPU.
        start: seconds until the first step was done: compilation, mostly.
        prediction: images per second, from the second evaluation on (frozen queries are known then).
        data: training views per second, made from stored images.
        waits: whether a step made the host wait for the device; None on a CPU.
        fault: why what was timed is no training: its numbers are not finite; empty if they are.
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
    fault: str = ""

    @property
    def rate(self) -> float:
        """Training images per second."""
        return self.batch / self.step

    @property
    def headroom(self) -> float:
        """How many times faster images are made than trained on; below 1, the network waits for them."""
        return self.data / self.rate


def device_name(device: torch.device) -> str:
    """In words: `NVIDIA H200`, or `CPU, 2 threads`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def ceiling(device: torch.device, precision: Precision) -> float:
    """FLOP/s of a large square matrix product at this precision."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=Execution(precision).dtype or torch.float32) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, 10)


def seconds(run: Callable[[], object], device: torch.device, steps: int) -> float:
    """Seconds of a step after warming up: in groups of which none is waited in, the median of `GROUPS`; of slow steps,
    which take a second and more, the quicker of two."""

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
    """Time a method as `run` carries it out, in the first phase of a task.

    Args:
        task: which one, from 0; the tasks before it are begun, but not learned.
        steps: per group.
        ceiling: FLOP/s that `share` is of.
    """
    execution = set_up(
        planned.experiment.precision, device, compiled=settings.compiled, deterministic=settings.deterministic
    )
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
        waits = _waits(run) if device.type == "cuda" else None
        try:
            phase_run.check_finite()
        except Diverged as error:
            fault = str(error)
    strategy.model.eval()
    found = Speed(
        label=planned.label,
        batch=batches.batch_size,
        step=step,
        share=_needed(strategy, phase, images[:1]) * len(images) / step / ceiling if ceiling and phase else 0.0,
        memory=memory,
        start=first,
        prediction=_prediction(strategy, images, device, steps),
        data=_data(batches, device, steps),
        waits=waits,
        fault=fault,
    )
    del strategy, phase, images
    gc.collect()
    return found


def first_phase(strategy: ContinualStrategy, samples: Samples) -> Phase | None:
    """Begin the next task; its first phase on images, if there is one."""
    strategy.begin_task(samples)
    assert strategy.task is not None
    return next(iter(strategy.method.phases(strategy.task)), None)


def training_step(
    strategy: ContinualStrategy, phase: Phase, images: Tensor, labels: Tensor
) -> tuple[PhaseRun, Callable[[], None]]:
    """A phase, and a function that takes a training step of it as the strategy does."""
    assert strategy.task is not None
    strategy.model.train()
    run = PhaseRun(phase, "the first phase", strategy.model, strategy.task.scratch)
    return run, lambda: run.take(images, labels, ("bench",))


def _waits(run: Callable[[], None]) -> bool:
    """Whether the host waits for the device in a step."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _prediction(strategy: ContinualStrategy, images: Tensor, device: torch.device, steps: int) -> float:
    """Images per second of the predictor, on batches as in an evaluation."""
    model = strategy.predictor()
    size = strategy.eval_mb_size
    batch = images[torch.arange(size, device=device) % len(images)]
    with torch.no_grad():
        query = model.query(batch) if isinstance(model, FeatureModel) else None
        known = () if query is None else (query,)
        return size / seconds(lambda: model(batch, *known), device, steps)


def _data(batches: TrainingBatches, device: torch.device, steps: int) -> float:
    """Training views per second: the same epoch over and over."""
    views: Iterator[Any] = chain.from_iterable(repeat(batches))
    return batches.batch_size / seconds(lambda: next(views), device, steps)


def _needed(strategy: ContinualStrategy, phase: Phase | None, image: Tensor) -> int:
    """FLOPs per image of a training step: the passes of a prediction, and the way back through the last of them, once
    for the activations and, where the backbone itself is trained, once for the weights."""
    model = strategy.model
    predicted = model.flops(lambda: model(image))
    query = model.flops(lambda: model.query(image))
    trained = {id(parameter) for parameter in (phase.trained() if phase else [])}
    whole = any(id(parameter) in trained for parameter in model.backbone.blocks.parameters())
    return predicted + (predicted - query) * (1 + whole)
