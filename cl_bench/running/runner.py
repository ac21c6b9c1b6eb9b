"""Carries out one experiment, from its stream to its stored record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from cl_bench import backbones, streams
from cl_bench.contract.method import build_model
from cl_bench.errors import UserError
from cl_bench.experiment import Precision, differences, value_text
from cl_bench.models.vit import Execution
from cl_bench.randomness import seeded
from cl_bench.running import compile_choice
from cl_bench.running.checkpointing import Checkpointer, StageLog
from cl_bench.running.device import environment_of, peak_memory, set_up, synchronize
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import RunProgress
from cl_bench.running.trackers import LogConfig
from cl_bench.running.tracking import Tracking
from cl_bench.store import Arrays, RunRecord, Store
from cl_bench.streams.scenarios import TaskStream, build
from cl_bench.training.checkpoint import Position, UnusableCheckpoint, read, restore, restore_random_state
from cl_bench.training.evaluation import Counts
from cl_bench.training.strategy import ContinualStrategy


@dataclass(frozen=True)
class Settings:
    """How runs are carried out; these settings are not part of the experiment.

    Attributes:
        checkpoint_every: minutes between checkpoints inside a task.
        fresh: ignore an existing checkpoint and start from the beginning.
        compiled: compile passes; None: only on a GPU, for a run of which this saves time (see `compile_choice`).
        deterministic: use slower kernels that repeat their results bit by bit on one device.
        replace: replace a stored result.
        log: what the run logs to; None: nothing.
        graphs: replay training steps from CUDA graphs where there are any.
    """

    checkpoint_every: float = 10.0
    fresh: bool = False
    compiled: bool | None = None
    deterministic: bool = False
    replace: bool = False
    log: LogConfig | None = None
    graphs: bool = True

    def set_up(self, precision: Precision, device: torch.device) -> Execution:
        """Configure torch for a run on a device, and return how its passes are executed."""
        return set_up(precision, device, compiled=self.compiled, deterministic=self.deterministic, graphs=self.graphs)


def run(
    planned: PlannedRun,
    store: Store,
    device: torch.device,
    progress: RunProgress | None = None,
    settings: Settings | None = None,
) -> RunRecord:
    """Carry out an experiment and store its record. If it fails, nothing is stored.

    A checkpoint is written after every task, and a run that was killed resumes from the last one. The results depend
    only on the experiment, up to the rounding of other hardware and library versions; on the CPU of one machine, a
    resumed run gives the same bits as one that was never killed.

    Raises:
        UserError: the results cannot be written, or the method or the data is faulty.
    """
    settings = settings or Settings()
    store.check_paths(planned.experiment)
    path = store.checkpoint_path(planned.experiment)
    if settings.fresh:
        store.forget_checkpoint(planned.experiment)
    record, arrays = execute(planned, device, progress or RunProgress(), path, settings)
    # If another process was first, its record stays: the numbers are the same.
    store.write(record, arrays, replace=settings.replace)
    store.forget_checkpoint(planned.experiment)
    return record


def execute(
    planned: PlannedRun,
    device: torch.device,
    progress: RunProgress,
    checkpoint: Path | None = None,
    settings: Settings | None = None,
) -> tuple[RunRecord, Arrays]:
    """Train each stage and evaluate on all tasks after it, from the checkpoint on if there is one.

    Returns:
        The record of the run, and its arrays (see `StageLog.arrays`); nothing is stored.
    """
    experiment, method = planned.experiment, planned.method
    settings = settings or Settings()
    stream = stream_of(planned)
    environment = environment_of(device)
    if settings.compiled is None and device.type == "cuda":
        choice = compile_choice.of_run(planned, stream, environment, checkpoint)
        progress.note(f"{planned.label}: {choice.why}")
        settings = replace(settings, compiled=choice.compiled)
    execution = settings.set_up(experiment.precision, device)
    environment |= {"compiled": execution.compiled, "deterministic": settings.deterministic}
    joint = method.trains_on == "stream"
    experiences = list(stream.joint if joint else stream.train)
    stages = [list(range(len(stream.tasks)))] if joint else [[task] for task in range(len(stream.tasks))]
    test_images = sum(len(experience.dataset) for experience in stream.test)
    train_images = sum(len(experience.dataset) for experience in experiences)
    epochs = int(getattr(method, "epochs", 0))
    tracking = Tracking(settings.log, planned, progress)

    def begin() -> tuple[ContinualStrategy, Checkpointer]:
        every = settings.checkpoint_every
        checkpointer = Checkpointer(planned, device, environment, progress, tracking, checkpoint, every)
        return strategy_of(planned, stream, device, execution, checkpointer), checkpointer

    strategy, checkpointer, position = _begin(planned, stream, stages, experiences, begin, progress, checkpoint)
    log = checkpointer.log
    done = len(log.stages)
    progress.start(planned, epochs * train_images + len(stages) * test_images)
    if log.sessions > 1:
        progress.advance(sum(stage.train_samples for stage in log.stages) + done * test_images)
        progress.resume(done, len(stages))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    with tracking.logging(environment, checkpointer.steps):
        for index, experience in enumerate(experiences[done:], start=done):
            checkpointer.begin_stage(position.seconds if position else 0.0, position.samples if position else 0)
            position = None
            strategy.train(experience, eval_streams=[])
            synchronize(device)
            trained = time.perf_counter()
            counts = strategy.count_matrix(stream.test, learned=stages[index][-1] + 1)
            checkpointer.end_stage(counts, strategy, trained)
            log.probe.after_stage(index, strategy, stream.test)
            progress.advance(test_images)
            progress.stage(index, len(stages), _accuracy(counts), time.perf_counter() - began)
            if execution.compiled and index == done:
                compile_choice.remember_graphs(planned, environment)
            if index + 1 < len(stages):
                checkpointer.write(strategy)
                if index == done:
                    check_restores(planned, strategy)
        return _record(planned, stream, stages, strategy, log, device), log.arrays()


def _record(
    planned: PlannedRun,
    stream: TaskStream,
    stages: Sequence[Sequence[int]],
    strategy: ContinualStrategy,
    log: StageLog,
    device: torch.device,
) -> RunRecord:
    """The record of a run whose stages are all finished."""
    finished = log.stages
    test_images = sum(len(experience.dataset) for experience in stream.test)
    return RunRecord(
        key=planned.experiment.key,
        label=planned.label,
        recipe=planned.recipe.name,
        tuning_trials=planned.recipe.trials,
        tuning_minutes=planned.recipe.minutes,
        experiment=planned.experiment,
        stages=[list(tasks) for tasks in stages],
        sessions=log.sessions,
        correct=[stage.correct for stage in finished],
        correct_task_aware=[stage.correct_task_aware for stage in finished],
        total=log.total,
        classes=list(stream.classes),
        domains=list(stream.domains),
        train_seconds=[stage.train_seconds for stage in finished],
        eval_seconds=[stage.eval_seconds for stage in finished],
        train_samples=[stage.train_samples for stage in finished],
        eval_samples=[test_images] * len(stages),
        trainable=[stage.trainable for stage in finished],
        stored=[stage.stored for stage in finished],
        exemplar_mb=planned.method.exemplar_mb,
        flops_per_image=flops_of(strategy, stream),
        forward_passes=planned.method.passes(strategy.tasks_learned),
        peak_memory_bytes=peak_memory(device),
        environment=log.environment,
        earlier_sessions=log.earlier_sessions,
        traces=strategy.traces,
    )


def _begin(
    planned: PlannedRun,
    stream: TaskStream,
    stages: Sequence[Sequence[int]],
    experiences: Sequence[Any],
    begin: Callable[[], tuple[ContinualStrategy, Checkpointer]],
    progress: RunProgress,
    checkpoint: Path | None,
) -> tuple[ContinualStrategy, Checkpointer, Position | None]:
    """Begin a run, or resume it from its checkpoint.

    Warns the user of a checkpoint that cannot be used or was written in another environment.

    Args:
        stages, experiences: the tasks that each stage of the run learns, and the experience that it trains on.
        begin: makes a fresh strategy and its checkpointer.

    Returns:
        The strategy, its checkpointer, and the position inside a task at which training resumes; None: at its start.
    """
    strategy, checkpointer = begin()
    log = checkpointer.log
    try:
        content = read(checkpoint, planned.experiment.key) if checkpoint else None
        if content is None:
            return strategy, checkpointer, None
        try:
            checkpointer.restore(content)
            log.check(content.facts, stream, stages)
            strategy.resume(content, experiences[len(log.stages)])
            if content.facts.position is None and strategy.stored_numbers() != log.stages[-1].stored:
                raise ValueError("the size of the model is not that after its last task")
            log.probe.load(content.part("probe."), strategy.model)
            restore_random_state(content.part("random."))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnusableCheckpoint(f"{checkpoint}: damaged, {str(error).splitlines()[0]}") from error
    except UnusableCheckpoint as error:
        progress.warn(f"a checkpoint cannot be used, so the run starts from its beginning: {error}")
        return *begin(), None
    if different := differences([content.facts.environment, log.environment]):
        changes = ", ".join(
            f"{name} {value_text(now)} (was {value_text(was)})" for name, (was, now) in different.items()
        )
        progress.warn(f"{planned.name} resumes in another environment than that of its checkpoint: {changes}")
    return strategy, checkpointer, content.facts.position


def check_restores(planned: PlannedRun, strategy: ContinualStrategy) -> None:
    """Raise `UserError` if a killed run could not resume, because a fresh model cannot load the state of this one."""
    backbone = backbones.skeleton(planned.backbone)
    with seeded(("restores",)):
        fresh = build_model(planned.method, backbone, strategy.num_classes)
    # Names and shapes suffice; copies could take much memory.
    shapes = {name: tensor.to("meta") for name, tensor in strategy.model.state_dict().items()}
    try:
        restore(fresh, shapes, type(planned.method).__name__, assign=True)
    except RuntimeError as error:
        raise UserError(f"{error}; if this run were killed, it could not resume") from error


def strategy_of(
    planned: PlannedRun, stream: TaskStream, device: torch.device, execution: Execution, *plugins: SupervisedPlugin
) -> ContinualStrategy:
    """The strategy of a run, with these plugins in addition to its method."""
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
    """The stream on which a run trains and is evaluated."""
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


def _accuracy(counts: Counts) -> float:
    pairs = [(hits, total) for hits, total in zip(counts.correct, counts.total, strict=True) if hits is not None]
    return sum(hits for hits, _ in pairs) / sum(total for _, total in pairs)


def flops_of(strategy: ContinualStrategy, stream: TaskStream) -> int:
    """Floating-point operations of the prediction for one image."""
    image = stream.test[0].dataset[0][0][None].to(strategy.device)
    predictor = strategy.predictor()
    return strategy.model.flops(lambda: predictor(image))
