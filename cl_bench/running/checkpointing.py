"""What a run has brought so far, and the checkpoints from which another process can go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from numpy.typing import NDArray

from cl_bench import backbones
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import Progress
from cl_bench.store import Arrays
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
    """

    def __init__(self, probe: Probe) -> None:
        self.stages: list[Stage] = []
        self.total: list[int] = []
        self.probe = probe
        self.sessions = 1
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
        self.probe.load(checkpoint.part("probe."))
        self.sessions = facts.sessions + 1


class Checkpointer(SupervisedPlugin):  # type: ignore[misc]
    """Writes checkpoints while a run executes, and keeps the time and the images of the current stage.

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
        self._pre_trained = {
            f"model.backbone.{name}": tensor.pin_memory() if device.type == "cuda" else tensor
            for name, tensor in backbones.weights(planned.backbone).items()
        }
        self.log = StageLog(PROBES[planned.experiment.probe]())
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
        done = Facts(key=self.planned.experiment.key, sessions=log.sessions, stages=log.stages, total=log.total)
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
