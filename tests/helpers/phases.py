"""Methods built from functions, on a model with parameters for computing by hand, and runs of them that are killed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract import registry
from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Batch
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Limits
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier
from cl_bench.running import plan, runner
from cl_bench.running.progress import RunProgress
from cl_bench.running.runner import Settings
from cl_bench.store import Arrays, RunRecord
from tests.helpers.tiny import cut
from tests.helpers.training import snapshot, strategy_of, train


class Numbers(Classifier):
    """A linear probe with parameters `x` and `y` [2] that no prediction depends on, and a buffer for decisions."""

    decided: Tensor

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone.requires_grad_(False), num_classes)
        self.x = nn.Parameter(torch.tensor(4.0))
        self.y = nn.Parameter(torch.tensor([3.0, -4.0]))
        self.register_buffer("decided", torch.zeros(()))


@dataclass(frozen=True, kw_only=True, eq=False)
class OnNumbers(GradientMethod):
    """Base class of the methods that `method` builds."""

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Numbers(backbone, num_classes)


def method(**functions: Any) -> type[OnNumbers]:
    """A method class `Mine` with these functions, e.g. `phases(self, task)`."""
    return type("Mine", (OnNumbers,), functions)


def learn(plugin: Any, *others: Any, stages: int = 1, **arguments: Any) -> Any:
    """The strategy after training on the first `stages` tasks of the tiny stream, with 20 images each."""
    return train(strategy_of(plugin, *others, **arguments), cut(), stages=stages)


def always(inputs: Iterable[Tensor]) -> Callable[[int], list[Batch]]:
    """The same batches in every epoch of a phase; the labels of a batch are 0, 1, 2, 3, 0, ..."""
    batches = [(each, torch.arange(len(each)) % 4, len(each)) for each in inputs]
    return lambda epoch: batches


def features(steps: int, size: int = 6) -> list[Tensor]:
    """Inputs [size, 32] of a linear head, one per step."""
    generator = torch.Generator().manual_seed(steps)
    return [torch.randn(size, 32, generator=generator) for _ in range(steps)]


class Killed(BaseException):
    """Stands for the death of the process: no code under test catches it."""


@cache
def _planned() -> plan.PlannedRun:
    (entry,) = registry.lookup(["linear"], []).values()
    limits = Limits(tasks=2, train_per_class=3, test_per_class=1)
    (run,) = plan.plan([plan.RunSpec(method=entry, benchmark="icons-tune", limits=limits)])
    return run


@dataclass(frozen=True)
class Finished:
    """Results of a run, and the number of its sessions."""

    record: RunRecord
    arrays: Arrays
    model: dict[str, Tensor]
    sessions: int


def carry_out(
    kind: type[Any],
    checkpoint: Path,
    steps: int | None = None,
    **hyperparameters: Any,
) -> Finished:
    """Run a method on two tasks of twelve images, killed and resumed until it is finished.

    A session inherits only the checkpoint of the previous one, and begins with other states of the global generators.

    Args:
        steps: number of steps after which each session is killed; None: never.
    """
    sessions = taken = 0
    states: list[dict[str, Tensor]] = []

    class Watched(kind):  # type: ignore[misc]
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            # The checkpoint of this step is written after this call.
            nonlocal taken
            taken += 1
            if steps is not None and taken > steps:
                raise Killed

        def after_task(self, task: Task, samples: TaskSamples) -> None:
            super().after_task(task, samples)
            states.append(snapshot(task.model))

    Watched.__name__ = kind.__name__
    while True:
        sessions, taken = sessions + 1, 0
        assert sessions < 100, "it never gets any further"
        torch.manual_seed(sessions)
        planned = replace(_planned(), method=Watched(**hyperparameters))
        try:
            record, arrays = runner.execute(
                planned, torch.device("cpu"), RunProgress(), checkpoint, Settings(checkpoint_every=0)
            )
        except Killed:
            continue
        return Finished(record, arrays, states[-1], sessions)
