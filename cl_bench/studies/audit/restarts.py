"""Restarts of a run: a new strategy resumes from nothing but the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from cl_bench.training.checkpoint import Checkpoint, Facts, Stage, random_state, read, write
from cl_bench.training.strategy import ContinualStrategy

_KEY = "audit"
# A strategy only counts the finished stages in a checkpoint, so their content does not matter.
_STAGE = Stage(
    correct=[], correct_task_aware=[], train_seconds=0, eval_seconds=0, train_samples=0, trainable=0, stored=0
)


class Interrupted(Exception):
    """Raised by `Interruption` to stop training inside a task."""


class Interruption(SupervisedPlugin):  # type: ignore[misc]
    """Stops training inside a task, after a step from which a run could resume.

    Attributes:
        steps: number of such steps of the current task so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin(None)

    def begin(self, after: int | None) -> None:
        """Begin a task, to be stopped after this number of steps; None or 0: not at all."""
        self.steps, self._after = 0, after

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.position is not None:
            self.steps += 1
            if self.steps == self._after:
                raise Interrupted


def checkpoint_of(strategy: ContinualStrategy, pretrained: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint that a run would leave for the process that resumes it, written to a file and read again.

    Args:
        pretrained: initial state of the backbone; unchanged weights are left out of the checkpoint.
    """
    checkpoint = strategy.checkpoint(Facts(key=_KEY, stages=[_STAGE] * strategy.tasks_learned))
    known = {f"model.backbone.{name}": tensor for name, tensor in pretrained.items()}
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if name not in known or not torch.equal(tensor, known[name])
    }
    tensors |= {f"random.{name}": state for name, state in random_state().items()}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        write(path, Checkpoint(checkpoint.facts, tensors))
        restored = read(path, _KEY)
    assert restored is not None
    return restored
