"""Results of the finished stages of a run, and the checkpoints from which another process can resume it."""

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
from cl_bench.running.device import peak_memory
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import RunProgress
from cl_bench.running.signals import raise_if_interrupted
from cl_bench.running.tracking import Tracking
from cl_bench.store import Arrays, predictions
from cl_bench.streams.scenarios import TaskStream
from cl_bench.training.checkpoint import Checkpoint, Facts, Stage, random_state, write
from cl_bench.training.evaluation import Counts
from cl_bench.training.probes import PROBES, Probe
from cl_bench.training.strategy import ContinualStrategy


class StageLog:
    """Results of all finished stages, from this process and earlier ones.

    Attributes:
        stages: counts, times and sizes of each stage.
        total: number of test images of each task.
        probe: the optional measurement besides the counts.
        sessions: number of processes that have worked on the run, this one included.
        environment: environment of this process.
        earlier_sessions: sessions of earlier processes.
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
        """Add a finished stage."""
        self.total = counts.total
        self._images = {"label": counts.label, "task": counts.task}
        self._predictions["predicted"].append(counts.predicted)
        self._predictions["predicted_task_aware"].append(counts.predicted_task_aware)
        self.stages.append(stage)

    def arrays(self) -> Arrays:
        """`label`, `task` [images]; `predicted`, `predicted_task_aware` [stages, images]; empty without stages."""
        if not self.stages:
            return {}
        return {**self._images, **{name: np.stack(rows) for name, rows in self._predictions.items()}}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the results of an earlier process from its checkpoint.

        Raises:
            KeyError, RuntimeError, ValueError: the parts of the checkpoint contradict each other.
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
        """Raise `ValueError` unless the restored results can be those of an unfinished run on this stream.

        Args:
            stages: indices of the tasks that each stage of the run learns.
        """
        done = len(self.stages)
        if done >= len(stages):
            raise ValueError(f"{counted(done, 'stage')} of {len(stages)} are done, so the run would be finished")
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
            raise ValueError("its predictions do not fit the test images of the stream")
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
    """Sessions before the one that resumes from a checkpoint: those before the writer's, then the writer's."""
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
        # Consecutive sessions in one environment are merged, so that thousands of them do not fill the record.
        before = earlier.pop()
        writer = writer.model_copy(update={"processes": before.processes + 1})
    return [*earlier, writer]


_STEPS = "steps"
"""Name of the number of steps in a checkpoint."""


class Checkpointer(SupervisedPlugin):  # type: ignore[misc]
    """Writes checkpoints during a run, and measures the time and the training images of the current stage.

    Args:
        environment: environment of this process.
        path: where the checkpoint is written; None: write none.
        tracking: logs what is measured.
        every: minutes between checkpoints inside a task.

    Attributes:
        steps: training steps and evaluations of the run so far, in all processes.
    """

    def __init__(
        self,
        planned: PlannedRun,
        device: torch.device,
        environment: Environment,
        progress: RunProgress,
        tracking: Tracking,
        path: Path | None,
        every: float,
    ) -> None:
        super().__init__()
        self.planned, self.device, self.progress, self.tracking = planned, device, progress, tracking
        self.path, self.every, self.steps = path, every, 0
        # Comparing on the device is ten times faster than on the host. The weights stay on the host, in pinned memory,
        # to leave the device's memory to the run.
        self._pre_trained = {
            f"model.backbone.{name}": tensor.pin_memory() if device.type == "cuda" else tensor
            for name, tensor in backbones.weights(planned.backbone).items()
        }
        self.log = StageLog(PROBES[planned.experiment.probe](), environment)
        self._warned = False
        self._written = time.monotonic()
        self.begin_stage(0.0, 0)

    def begin_stage(self, seconds: float, samples: int) -> None:
        """Begin a stage, on which earlier processes have spent `seconds` and `samples` training images."""
        self._start, self._samples = time.perf_counter() - seconds, samples

    def end_stage(self, counts: Counts, strategy: ContinualStrategy, trained: float) -> None:
        """End a stage whose training ended at the time `trained` (of `time.perf_counter`)."""
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
        self.steps += 1
        self.tracking.stage(self.log.stages, self.log.total, self.steps, peak_memory(self.device))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        raise_if_interrupted()
        if strategy.phase.batches is None:
            self._samples += len(strategy.mb_y)
            self.progress.advance(len(strategy.mb_y))
        self.steps += 1
        finished = sum(stage.train_seconds + stage.eval_seconds for stage in self.log.stages)
        # Before the checkpoint: what this step measures is not measured again by a run that resumes from it.
        self.tracking.step(strategy, self.steps, finished + time.perf_counter() - self._start)
        if strategy.position is not None and time.monotonic() - self._written >= 60 * self.every:
            self.write(strategy)

    def write(self, strategy: ContinualStrategy) -> None:
        """Write a checkpoint, if a path is given; if writing fails, warn once and continue without one."""
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
        content = strategy.checkpoint(done)
        if content.facts.position is not None:
            content.facts.position.seconds = time.perf_counter() - self._start
            content.facts.position.samples = self._samples
        tensors = {name: tensor for name, tensor in content.tensors.items() if not self._is_pre_trained(name, tensor)}
        tensors |= {name: torch.from_numpy(array) for name, array in self.log.arrays().items()}
        tensors |= {f"probe.{name}": tensor for name, tensor in self.log.probe.tensors().items()}
        tensors |= {f"random.{name}": state for name, state in random_state().items()}
        tensors[_STEPS] = torch.tensor(self.steps)
        try:
            write(self.path, Checkpoint(content.facts, tensors), self._about())
        except OSError as error:
            if not self._warned:
                self.progress.warn(f"no checkpoint of {self.planned.label} can be written ({error.strerror})")
            self._warned = True
        self._written = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the results and the number of steps of an earlier process from its checkpoint.

        Raises:
            KeyError, RuntimeError, ValueError: the parts of the checkpoint contradict each other.
        """
        self.log.restore(checkpoint)
        steps = checkpoint.tensors.get(_STEPS)
        # Checkpoints of version 0.1.0 do not have it.
        self.steps = 0 if steps is None else int(steps)

    def _about(self) -> dict[str, str | int]:
        """What a report shows of the run while it is not finished."""
        experiment = self.planned.experiment
        stages = 1 if self.planned.method.trains_on == "stream" else experiment.limits.tasks or experiment.num_tasks
        return {
            "label": self.planned.label,
            "benchmark": experiment.benchmark,
            "seed": experiment.seed,
            "stages": stages,
        }

    def _is_pre_trained(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor is an unchanged pre-trained weight of the backbone, which a checkpoint can leave out."""
        pre_trained = self._pre_trained.get(name)
        return pre_trained is not None and torch.equal(tensor, pre_trained.to(tensor.device, non_blocking=True))
