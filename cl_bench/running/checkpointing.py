"""What a run has brought so far, and the checkpoints from which another process can go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from numpy.typing import NDArray

from cl_bench import backbones
from cl_bench.errors import counted
from cl_bench.experiment import Environment, Session
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import RunProgress
from cl_bench.store import Arrays, predictions
from cl_bench.streams.scenarios import TaskStream
from cl_bench.training.checkpoint import Checkpoint, Facts, Stage, random_state, write
from cl_bench.training.evaluation import Counts
from cl_bench.training.probes import PROBES, Probe
from cl_bench.training.strategy import ContinualStrategy


class StageLog:
    """The results of the stages that are over, of this process and of those before it.

    Attributes:
        stages: counts, times and sizes of each.
        total: test images per task.
        probe: what is measured besides.
        sessions: how many processes have worked on the run.
        environment: of this process.
        earlier_sessions: those before it.
    """

    def __init__(self, probe: Probe, environment: Environment) -> None:
        self.stages: list[Stage] = []
        self.total: list[int] = []
        self.probe = probe
        self.sessions = 1
        self.environment = environment
        self.earlier_sessions: list[Session] = []
        self._predictions: dict[str, list[NDArray[np.int16]]] = {"predicted": [], "predicted_task_aware": []}
        self._images: dict[str, NDArray[np.int16]] = {}

    def add(self, counts: Counts, stage: Stage) -> None:
        """Add a stage that is over."""
        self.total = counts.total
        self._images = {"label": counts.label, "task": counts.task}
        self._predictions["predicted"].append(counts.predicted)
        self._predictions["predicted_task_aware"].append(counts.predicted_task_aware)
        self.stages.append(stage)

    def arrays(self) -> Arrays:
        """`label`, `task` [images]; `predicted`, `predicted_task_aware` [stages, images]; empty before the first."""
        if not self.stages:
            return {}
        return {**self._images, **{name: np.stack(rows) for name, rows in self._predictions.items()}}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from what another process has brought.

        Raises:
            KeyError, RuntimeError, ValueError: it does not fit together.
        """
        facts, tensors = checkpoint.facts, checkpoint.tensors
        for name, rows in self._predictions.items():
            rows[:] = list(tensors[name].numpy()) if facts.stages else []
            if len(rows) != len(facts.stages):
                raise ValueError(f"'{name}' does not have one row for each stage")
        self._images = {name: tensors[name].numpy() for name in ("label", "task") if facts.stages}
        self.stages, self.total = list(facts.stages), facts.total
        self.sessions = facts.sessions + 1
        self.earlier_sessions = _with_writer(facts)

    def check(self, facts: Facts, stream: TaskStream, stages: Sequence[Sequence[int]]) -> None:
        """Raise `ValueError` if what was restored is not of this stream, or could not be of an unfinished run on it.

        Args:
            stages: the tasks that each stage of the run learns.
        """
        done = len(self.stages)
        if done >= len(stages):
            raise ValueError(f"{counted(done, 'stage')} are done of {len(stages)}, so the run would be over")
        learned = [label for stage in stages[: done + (facts.position is not None)] for j in stage for label in
                   stream.tasks[j]]  # fmt: skip
        if facts.seen != sorted(set(learned)):
            raise ValueError(f"{counted(len(facts.seen), 'class')} seen are not those of the tasks so far")
        if not done:
            return
        arrays, sizes = self.arrays(), [len(experience.dataset) for experience in stream.test]
        if self.total != sizes:
            raise ValueError(f"test sets of {self.total} images, the stream has {sizes}")
        labels = np.concatenate([experience.dataset.targets for experience in stream.test])
        shape = (done, len(labels))
        fit = all(arrays[name].shape == shape and arrays[name].dtype.kind == "i" for name in self._predictions)
        if not fit or not np.array_equal(arrays["label"], labels):
            raise ValueError("its predictions are not of the test images of the stream")
        for stage, tasks in zip(self.stages, stages, strict=False):
            if [hits is not None for hits in stage.correct] != [j <= tasks[-1] for j in range(len(sizes))]:
                raise ValueError("hits are not counted on the tasks that were learned")
        counts: dict[str, Sequence[Sequence[int | None]]] = {
            "predicted": [stage.correct for stage in self.stages],
            "predicted_task_aware": [stage.correct_task_aware for stage in self.stages],
        }
        if wrong := predictions.fault(arrays, sizes, len(stream.classes), counts):
            raise ValueError(wrong)


def _with_writer(facts: Facts) -> list[Session]:
    """The sessions before the one that goes on from a checkpoint: those before its writer, and its writer."""
    earlier = list(facts.earlier_sessions)
    unknown = facts.sessions - 1 - sum(session.processes for session in earlier)
    if unknown < 0 or (unknown and earlier):
        raise ValueError(f"{counted(len(earlier), 'session')} are not the {facts.sessions - 1} before its writer")
    if unknown:
        earlier.append(Session(environment={}, processes=unknown, stages=0))
    place = facts.position
    writer = Session(
        environment=facts.environment,
        stages=len(facts.stages),
        phase=place.phase if place else None,
        epoch=place.epoch if place else None,
    )
    if earlier and earlier[-1].environment == writer.environment:
        # Of thousands of sessions, a record keeps what differs.
        before = earlier.pop()
        writer = writer.model_copy(update={"processes": before.processes + 1})
    return [*earlier, writer]


class Checkpointer(SupervisedPlugin):  # type: ignore[misc]
    """Writes checkpoints while a run executes, and keeps the time and the images of the current stage.

    Args:
        environment: of this process.
        path: of the checkpoint; None: none are written.
        every: minutes between two of them inside a task.
    """

    def __init__(
        self,
        planned: PlannedRun,
        device: torch.device,
        environment: Environment,
        progress: RunProgress,
        path: Path | None,
        every: float,
    ) -> None:
        super().__init__()
        self.planned, self.progress, self.path, self.every = planned, progress, path, every
        # Compared on the device, ten times faster than on the host; to stay there they would take its memory.
        self._pre_trained = {
            f"model.backbone.{name}": tensor.pin_memory() if device.type == "cuda" else tensor
            for name, tensor in backbones.weights(planned.backbone).items()
        }
        self.log = StageLog(PROBES[planned.experiment.probe](), environment)
        self._warned = False
        self._written = time.monotonic()
        self.begin_stage(0.0, 0)

    def begin_stage(self, seconds: float, samples: int) -> None:
        """Begin a stage, on which so many seconds and training images have been spent before."""
        self._start, self._samples = time.perf_counter() - seconds, samples

    def end_stage(self, counts: Counts, strategy: ContinualStrategy, trained: float) -> None:
        """End a stage whose training was over at this time (`time.perf_counter`)."""
        stage = Stage(
            correct=counts.correct,
            correct_task_aware=counts.correct_task_aware,
            train_seconds=round(trained - self._start, 3),
            eval_seconds=round(time.perf_counter() - trained, 3),
            train_samples=self._samples,
            trainable=strategy.trainable,
            stored=strategy.stored_numbers(),
        )
        self.log.add(counts, stage)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.phase.batches is None:
            self._samples += len(strategy.mb_y)
            self.progress.advance(len(strategy.mb_y))
        if strategy.position is not None and time.monotonic() - self._written >= 60 * self.every:
            self.write(strategy)

    def write(self, strategy: ContinualStrategy) -> None:
        """Write a checkpoint, if there is a place for it; where that fails, the run goes on without."""
        if self.path is None:
            return
        log = self.log
        done = Facts(
            key=self.planned.experiment.key,
            sessions=log.sessions,
            environment=log.environment,
            earlier_sessions=log.earlier_sessions,
            stages=log.stages,
            total=log.total,
        )
        found = strategy.checkpoint(done)
        if found.facts.position is not None:
            found.facts.position.seconds = time.perf_counter() - self._start
            found.facts.position.samples = self._samples
        tensors = {name: tensor for name, tensor in found.tensors.items() if not self._is_pre_trained(name, tensor)}
        tensors |= {name: torch.from_numpy(array) for name, array in self.log.arrays().items()}
        tensors |= {f"probe.{name}": tensor for name, tensor in self.log.probe.tensors().items()}
        tensors |= {f"random.{name}": state for name, state in random_state().items()}
        try:
            write(self.path, Checkpoint(found.facts, tensors))
        except OSError as error:
            if not self._warned:
                self.progress.warn(f"no checkpoint of {self.planned.label} can be written ({error.strerror})")
            self._warned = True
        self._written = time.monotonic()

    def _is_pre_trained(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor of a checkpoint is a weight of the backbone as it was pre-trained: it need not be kept."""
        pre_trained = self._pre_trained.get(name)
        return pre_trained is not None and torch.equal(tensor, pre_trained.to(tensor.device, non_blocking=True))
