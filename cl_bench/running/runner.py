"""One experiment, from stream to stored result."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from numpy.typing import NDArray

from cl_bench import __version__, backbones, streams
from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import Experiment, Precision, Scalar
from cl_bench.models import vit
from cl_bench.models.vit import Execution
from cl_bench.running.plan import PlannedRun
from cl_bench.store import Arrays, RunRecord, Store
from cl_bench.streams.scenarios import TaskStream, build
from cl_bench.training.checkpoint import (
    Checkpoint,
    Facts,
    Position,
    Stage,
    UnusableCheckpoint,
    random_state,
    read,
    restore_random_state,
    write,
)
from cl_bench.training.probes import PROBES, Probe
from cl_bench.training.strategy import ContinualStrategy, Counts


@dataclass(frozen=True)
class Settings:
    """How runs are carried out; none of it is part of the experiment.

    Attributes:
        checkpoint_every: minutes between checkpoints inside a task.
        fresh: start from the beginning, whatever checkpoint there is.
        compiled: compile the backbone; None: on a GPU only, where it is worth its time.
        deterministic: the same numbers twice on one device, for slower kernels.
    """

    checkpoint_every: float = 10.0
    fresh: bool = False
    compiled: bool | None = None
    deterministic: bool = False


class Progress:
    """What a run tells while it goes on; the base class is silent."""

    def for_concurrent_run(self) -> Progress:
        """Progress view for a concurrently executing run."""
        return self

    def start(self, run: PlannedRun, images: int) -> None:
        """A run begins that will pass about this many images through the network."""

    def advance(self, images: int) -> None:
        """So many more images are done."""

    def resume(self, done: int, stages: int) -> None:
        """The run that has begun goes on from a checkpoint, after so many stages."""

    def warn(self, text: str) -> None:
        """Something that the user should know."""

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        """A training stage is over: accuracy so far (fraction) and seconds since the run began."""


class _Session(SupervisedPlugin):  # type: ignore[misc]
    """One process's work on a run: what it has brought so far, and its checkpoints.

    Args:
        path: of the checkpoint; None: none are written.
        every: minutes between two of them inside a task.
    """

    def __init__(
        self, planned: PlannedRun, device: torch.device, progress: Progress, path: Path | None, every: float
    ) -> None:
        super().__init__()
        self.planned, self.progress, self.path, self.every = planned, progress, path, every
        # Compared on the device, ten times faster than on the host; to stay there they would take its memory.
        self.pristine = {
            f"backbone.{name}": tensor.pin_memory() if device.type == "cuda" else tensor
            for name, tensor in backbones.weights(planned.backbone).items()
        }
        self.stages: list[Stage] = []
        self.arrays: dict[str, list[NDArray[np.int16]]] = {"predicted": [], "predicted_task_aware": []}
        self.fixed: dict[str, NDArray[np.int16]] = {}
        self.total: list[int] = []
        self.probe: Probe = PROBES[planned.experiment.probe]()
        self.sessions = 1
        self.warned = False
        self.written = time.monotonic()
        self.begin(0.0, 0)

    def begin(self, seconds: float, samples: int) -> None:
        """A stage begins, on which so much has been spent before."""
        self.start, self.samples = time.perf_counter() - seconds, samples

    def add(self, counts: Counts, strategy: ContinualStrategy, trained: float) -> None:
        """A stage is over, whose training was at this time."""
        self.total = counts.total
        self.fixed = {"label": counts.label, "task": counts.task}
        self.arrays["predicted"].append(counts.predicted)
        self.arrays["predicted_task_aware"].append(counts.predicted_task_aware)
        self.stages.append(
            Stage(
                correct=counts.correct,
                correct_task_aware=counts.correct_task_aware,
                train_seconds=round(trained - self.start, 3),
                eval_seconds=round(time.perf_counter() - trained, 3),
                train_samples=self.samples,
                trainable=strategy.trainable,
                stored=strategy.stored_numbers(),
            )
        )

    def take(self, checkpoint: Checkpoint) -> None:
        """Go on from what another process has brought.

        Raises:
            KeyError, RuntimeError, ValueError: it does not fit together.
        """
        facts, tensors = checkpoint.facts, checkpoint.tensors
        for name, rows in self.arrays.items():
            rows[:] = list(tensors[name].numpy()) if facts.stages else []
            if len(rows) != len(facts.stages):
                raise ValueError(f"'{name}' does not have one row for each stage")
        self.fixed = {name: tensors[name].numpy() for name in ("label", "task") if facts.stages}
        self.stages, self.total = list(facts.stages), facts.total
        self.probe.load(checkpoint.part("probe."))
        self.sessions = facts.sessions + 1

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.phase.batches is None:
            self.samples += len(strategy.mb_y)
            self.progress.advance(len(strategy.mb_y))
        if strategy.position is not None and time.monotonic() - self.written >= 60 * self.every:
            spent = {"seconds": time.perf_counter() - self.start, "samples": self.samples}
            self.write(strategy, strategy.where().model_copy(update=spent))

    def write(self, strategy: ContinualStrategy, position: Position | None = None) -> None:
        """Write a checkpoint, if there is a place for it; where that fails, the run goes on without."""
        if self.path is None:
            return
        facts = Facts(
            key=self.planned.experiment.key,
            sessions=self.sessions,
            stages=self.stages,
            total=self.total,
            position=position,
            seen=list(strategy.seen),
            trained=sorted(strategy.trained),
            trainable=strategy.trainable,
            traces=strategy.traces,
        )
        tensors = {f"model.{name}": tensor for name, tensor in self._changed(strategy).items()}
        if position is not None:
            tensors |= {f"optimizer.{name}": tensor for name, tensor in strategy.optimizer_state().items()}
        if self.stages:
            tensors |= {name: torch.from_numpy(np.stack(rows)) for name, rows in self.arrays.items()}
            tensors |= {name: torch.from_numpy(row) for name, row in self.fixed.items()}
        tensors |= {f"probe.{name}": tensor for name, tensor in self.probe.tensors().items()}
        tensors |= {f"random.{name}": state for name, state in random_state().items()}
        try:
            write(self.path, Checkpoint(facts, tensors))
        except OSError as error:
            if not self.warned:
                self.progress.warn(f"no checkpoint of {self.planned.label} can be written ({error.strerror})")
            self.warned = True
        self.written = time.monotonic()

    def _changed(self, strategy: ContinualStrategy) -> dict[str, torch.Tensor]:
        """The state of the model without weights that are still the pre-trained ones."""

        def same(name: str, tensor: torch.Tensor) -> bool:
            pristine = self.pristine.get(name)
            return pristine is not None and torch.equal(tensor, pristine.to(tensor.device, non_blocking=True))

        return {name: t for name, t in strategy.model.state_dict().items() if not same(name, t)}


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


def run(
    planned: PlannedRun,
    store: Store,
    device: torch.device,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> RunRecord:
    """Carry out an experiment and store its record. Nothing is stored if it fails.

    A run that was killed goes on from its last checkpoint: one is written after every task. The numbers depend on the
    experiment alone, up to the rounding of other hardware and library versions; on one machine, on the CPU, they are
    bit by bit those of a run that was never killed.

    """
    settings = settings or Settings()
    path = store.checkpoint_path(planned.experiment)
    if settings.fresh:
        store.forget_checkpoint(planned.experiment)
    record, arrays = execute(planned, device, progress or Progress(), path, settings)
    # If another process was first, its record stays: the numbers are the same.
    store.write(record, arrays, replace=settings.fresh)
    store.forget_checkpoint(planned.experiment)
    return record


def execute(
    planned: PlannedRun,
    device: torch.device,
    progress: Progress,
    checkpoint: Path | None = None,
    settings: Settings | None = None,
) -> tuple[RunRecord, Arrays]:
    """Train on every stage and evaluate all tasks after each, from the checkpoint on, if there is one."""
    experiment, method = planned.experiment, planned.method
    settings = settings or Settings()
    execution = set_up(experiment, device, settings)
    stream = stream_of(planned)
    joint = method.trains_on == "stream"
    experiences = list(stream.joint if joint else stream.train)
    stages = [list(range(len(stream.tasks)))] if joint else [[task] for task in range(len(stream.tasks))]
    test_images = sum(len(experience.dataset) for experience in stream.test)
    train_images = sum(len(experience.dataset) for experience in experiences)
    epochs = int(getattr(method, "epochs", 0))
    every = settings.checkpoint_every
    strategy, session, position = _begin(planned, stream, device, execution, progress, checkpoint, every)
    done = len(session.stages)
    progress.start(planned, epochs * train_images + len(stages) * test_images)
    if session.sessions > 1:
        progress.advance(sum(stage.train_samples for stage in session.stages) + done * test_images)
        progress.resume(done, len(stages))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    for index, experience in enumerate(experiences[done:], start=done):
        session.begin(position.seconds if position else 0.0, position.samples if position else 0)
        position = None
        strategy.train(experience, eval_streams=[])
        wait(device)
        trained = time.perf_counter()
        counts = strategy.count_matrix(stream.test, learned=stages[index][-1] + 1)
        session.add(counts, strategy, trained)
        session.probe.after_stage(index, strategy, stream.test)
        progress.advance(test_images)
        progress.stage(index, len(stages), _accuracy(counts), time.perf_counter() - began)
        if index + 1 < len(stages):
            session.write(strategy)

    finished = session.stages
    record = RunRecord(
        key=experiment.key,
        label=planned.label,
        recipe=planned.recipe.name,
        tuning_trials=planned.recipe.trials,
        tuning_minutes=planned.recipe.minutes,
        experiment=experiment,
        stages=stages,
        sessions=session.sessions,
        correct=[stage.correct for stage in finished],
        correct_task_aware=[stage.correct_task_aware for stage in finished],
        total=session.total,
        classes=list(stream.classes),
        domains=list(stream.domains),
        train_seconds=[stage.train_seconds for stage in finished],
        eval_seconds=[stage.eval_seconds for stage in finished],
        train_samples=[stage.train_samples for stage in finished],
        eval_samples=[test_images] * len(stages),
        trainable=[stage.trainable for stage in finished],
        stored=[stage.stored for stage in finished],
        flops_per_image=flops_of(strategy, stream),
        forward_passes=method.forward_passes,
        peak_memory_bytes=_peak_memory(device),
        environment=_environment(device) | {"compiled": execution.compiled, "deterministic": settings.deterministic},
        traces=strategy.traces,
    )
    return record, {**session.fixed, **{name: np.stack(rows) for name, rows in session.arrays.items()}}


def _begin(
    planned: PlannedRun,
    stream: TaskStream,
    device: torch.device,
    execution: Execution,
    progress: Progress,
    checkpoint: Path | None,
    every: float,
) -> tuple[ContinualStrategy, _Session, Position | None]:
    """A strategy, what has been done with it before, and where inside a task it stands; of a checkpoint that cannot be
    used, the user is told."""

    def fresh() -> tuple[ContinualStrategy, _Session]:
        session = _Session(planned, device, progress, checkpoint, every)
        return strategy_of(planned, stream, device, execution, session), session

    strategy, session = fresh()
    try:
        found = read(checkpoint, planned.experiment.key) if checkpoint else None
        if found is None:
            return strategy, session, None
        try:
            session.take(found)
            strategy.resume(found.part("model."), found.facts, found.part("optimizer."))
            restore_random_state(found.part("random."))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UnusableCheckpoint(f"{checkpoint}: {str(error).splitlines()[0]}") from error
        return strategy, session, found.facts.position
    except UnusableCheckpoint as error:
        progress.warn(f"a checkpoint cannot be used, so the run starts from its beginning: {error}")
        return *fresh(), None


def strategy_of(
    planned: PlannedRun, stream: TaskStream, device: torch.device, execution: Execution, *plugins: SupervisedPlugin
) -> ContinualStrategy:
    """The strategy of a run, with more plugins beside its method."""
    return ContinualStrategy(
        plugins=[planned.method, *plugins],
        backbone=planned.backbone,
        num_classes=len(stream.classes),
        num_tasks=len(stream.tasks),
        seed=planned.experiment.seed,
        device=device,
        execution=execution,
    )


def stream_of(planned: PlannedRun) -> TaskStream:
    """The stream that a run learns."""
    experiment = planned.experiment
    source = streams.find(experiment.benchmark, planned.data).source(experiment.storage)
    return build(
        source,
        experiment.tasks,
        experiment.class_order,
        experiment.transforms,
        experiment.limits,
        experiment.scenario,
    )


def resolve_precision(asked: str, device: torch.device) -> Precision:
    """The precision for `auto`, `fp32` or `bf16`: auto is bf16 where the device multiplies it faster than fp32.

    Raises:
        UserError: not one of these.
    """
    if asked == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    if asked not in get_args(Precision):
        raise unknown_name("precision", asked, ["auto", *get_args(Precision)])
    return cast(Precision, asked)


def set_up(experiment: Experiment, device: torch.device, settings: Settings) -> Execution:
    """Prepare torch for a run: fp32 means fp32, without TF32 in matrix products or convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(settings.deterministic)
    if settings.deterministic:
        # Read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Of two fastest kernels, another one may win next time.
    torch.backends.cudnn.benchmark = False
    compiled = settings.compiled if settings.compiled is not None else device.type == "cuda"
    return Execution(experiment.precision, compiled)


def _accuracy(counts: Counts) -> float:
    pairs = [(hits, total) for hits, total in zip(counts.correct, counts.total, strict=True) if hits is not None]
    return sum(hits for hits, _ in pairs) / sum(total for _, total in pairs)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(strategy: ContinualStrategy, stream: TaskStream) -> int:
    """Floating-point operations of one prediction."""
    image = stream.test[0].dataset[0][0][None].to(strategy.device)
    model = strategy.predictor()
    return vit.flops(model, lambda: model(image))


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
