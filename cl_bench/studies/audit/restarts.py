"""Restarts of a run: a new strategy goes on from nothing but what a checkpoint holds."""

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
# Of those that are over, a strategy only counts how many there are.
_STAGE = Stage(
    correct=[], correct_task_aware=[], train_seconds=0, eval_seconds=0, train_samples=0, trainable=0, stored=0
)


class Interrupted(Exception):
    """Training was stopped inside a task."""


class Interruption(SupervisedPlugin):  # type: ignore[misc]
    """Stops training inside a task, where a run could go on from; counts the steps that have such a place.

    Attributes:
        steps: of the current task.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin(None)

    def begin(self, after: int | None) -> None:
        """Begin a task, which is stopped after so many steps."""
        self.steps, self._after = 0, after

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.position is not None:
            self.steps += 1
            if self.steps == self._after:
                raise Interrupted


def checkpoint_of(strategy: ContinualStrategy, pretrained: Mapping[str, Tensor]) -> Checkpoint:
    """What a run would leave to the process that goes on with it, written and read again.

    Args:
        pretrained: state of the backbone; what is still so is no part of a checkpoint.
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
        found = read(path, _KEY)
    assert found is not None
    return found
