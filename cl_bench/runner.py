"""One experiment, from stream to stored result."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch.utils.flop_counter import FlopCounterMode

from cl_bench import __version__, streams
from cl_bench.errors import UserError
from cl_bench.experiment import Experiment, Scalar
from cl_bench.plan import PlannedRun
from cl_bench.store import Arrays, RunRecord, Store
from cl_bench.strategy import ContinualStrategy, Counts
from cl_bench.streams.build import TaskStream, build


class Progress:
    """What a run tells while it goes on; the base class is silent."""

    def start(self, run: PlannedRun, images: int) -> None:
        """A run begins that will pass about this many images through the network."""

    def advance(self, images: int) -> None:
        """So many more images are done."""

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        """A training stage is over: accuracy so far (fraction) and seconds since the run began."""


class _Advance(SupervisedPlugin):  # type: ignore[misc]
    """Reports images as they are trained on."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress
        self.images = 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.phase.batches is None:
            self.images += len(strategy.mb_y)
            self.progress.advance(len(strategy.mb_y))


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: not one of these, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device '{name}' is unknown; expected auto, cpu, cuda or cuda:N")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device '{name}' cannot be used here ({reason}); try auto or cpu") from error
    return torch.device(name)


def run(planned: PlannedRun, store: Store, device: torch.device, progress: Progress | None = None) -> RunRecord:
    """Carry out an experiment and store its record. Nothing is stored if it fails.

    The numbers depend on the experiment alone, up to the rounding of other hardware and library versions.
    """
    progress = progress or Progress()
    record, arrays = execute(planned, device, progress)
    store.write(record, arrays)
    return record


def execute(planned: PlannedRun, device: torch.device, progress: Progress) -> tuple[RunRecord, Arrays]:
    """Train on every stage and evaluate all tasks after each."""
    experiment, method = planned.experiment, planned.method
    _resolve_precision(experiment)
    stream = _stream(experiment)
    advance = _Advance(progress)
    strategy = ContinualStrategy(
        plugins=[method, advance],
        backbone=planned.backbone,
        num_classes=len(stream.classes),
        num_tasks=len(stream.tasks),
        seed=experiment.seed,
        device=device,
    )
    joint = method.trains_on == "stream"
    experiences = list(stream.joint if joint else stream.train)
    stages = [list(range(len(stream.tasks)))] if joint else [[task] for task in range(len(stream.tasks))]
    test_images = sum(len(experience.dataset) for experience in stream.test)
    train_images = sum(len(experience.dataset) for experience in experiences)
    epochs = int(getattr(method, "epochs", 0))
    progress.start(planned, epochs * train_images + len(stages) * test_images)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    counts: list[Counts] = []
    seconds: list[tuple[float, float]] = []
    samples: list[int] = []
    trainable: list[int] = []
    stored: list[int] = []
    traces: dict[str, list[dict[str, Scalar]]] = {}
    for index, experience in enumerate(experiences):
        start, images = time.perf_counter(), advance.images
        strategy.train(experience, eval_streams=[])
        _wait(device)
        trained = time.perf_counter()
        counts.append(strategy.count_matrix(stream.test, learned=stages[index][-1] + 1))
        seconds.append((trained - start, time.perf_counter() - trained))
        samples.append(advance.images - images)
        trainable.append(strategy.trainable)
        stored.append(strategy.stored_numbers())
        assert strategy.task is not None
        for name, rows in method.traces(strategy.task).items():
            traces.setdefault(name, []).extend(rows)
        progress.advance(test_images)
        progress.stage(index, len(stages), _accuracy(counts[-1]), time.perf_counter() - began)

    record = RunRecord(
        key=experiment.key,
        label=planned.label,
        recipe=planned.recipe.name,
        tuning_trials=planned.recipe.trials,
        tuning_minutes=planned.recipe.minutes,
        experiment=experiment,
        stages=stages,
        correct=[c.correct for c in counts],
        correct_task_aware=[c.correct_task_aware for c in counts],
        total=counts[0].total,
        classes=list(stream.classes),
        domains=list(stream.domains),
        train_seconds=[round(train, 3) for train, _ in seconds],
        eval_seconds=[round(evaluation, 3) for _, evaluation in seconds],
        train_samples=samples,
        eval_samples=[test_images] * len(stages),
        trainable=trainable,
        stored=stored,
        flops_per_image=_flops(strategy, stream),
        forward_passes=method.forward_passes,
        peak_memory_bytes=_peak_memory(device),
        environment=_environment(device),
        traces=traces,
    )
    arrays = {
        "label": counts[0].label,
        "task": counts[0].task,
        "predicted": np.stack([c.predicted for c in counts]),
        "predicted_task_aware": np.stack([c.predicted_task_aware for c in counts]),
    }
    return record, arrays


def _stream(experiment: Experiment) -> TaskStream:
    source = streams.find(experiment.benchmark).source()
    return build(
        source,
        experiment.tasks,
        experiment.class_order,
        experiment.transforms,
        experiment.limits,
        experiment.scenario,
    )


def _resolve_precision(experiment: Experiment) -> None:
    """fp32 means fp32: no TF32 in matrix products or convolutions."""
    assert experiment.precision == "fp32"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _accuracy(counts: Counts) -> float:
    pairs = [(hits, total) for hits, total in zip(counts.correct, counts.total, strict=True) if hits is not None]
    return sum(hits for hits, _ in pairs) / sum(total for _, total in pairs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(strategy: ContinualStrategy, stream: TaskStream) -> int:
    """Floating-point operations of one prediction, two per multiply-add (attention included)."""
    image = stream.test[0].dataset[0][0][None].to(strategy.device)
    model = strategy.predictor()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _environment(device: torch.device) -> dict[str, Scalar]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "cl-bench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "avalanche-lib": version("avalanche-lib"),
        "numpy": np.__version__,
        "platform": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
