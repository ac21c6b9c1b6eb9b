"""Methods that train by gradient descent: their optimiser, schedule, and the classes in their cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from cl_bench.contract import schedules
from cl_bench.contract.alignment import Alignable
from cl_bench.contract.losses import asymmetric_cross_entropy, masked_cross_entropy
from cl_bench.contract.method import Method
from cl_bench.contract.phase import Loss, Optimization, ParameterGroup, Phase
from cl_bench.contract.rehearsal import Rehearsal
from cl_bench.contract.schedules import Schedule
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.errors import UserError


@schedules.register("steps")
def steps(method: Any, epoch: int, epochs: int) -> float:
    """Factor `decay` for each of the method's `milestones` (epochs) that has been reached."""
    return float(method.decay ** sum(epoch >= milestone for milestone in method.milestones or ()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Descent(Method):
    """Hyper-parameters of an optimiser, and the choice of classes in the cross-entropy.

    Attributes:
        epochs: passes over the samples of a task.
        batch_size: samples per optimiser step.
        optimizer: `sgd` (with `momentum`), `adam` or `adamw`.
        lr: learning rate before the schedule.
        momentum: momentum of SGD; Adam and AdamW ignore it.
        weight_decay: weight decay of the optimiser.
        schedule: how the learning rate changes from epoch to epoch; `steps` multiplies it by `decay` at each of the
            `milestones`.
        milestones: epochs, from 0, at which `steps` lowers the learning rate.
        decay: factor on the learning rate at each milestone.
        clip_norm: bound on the norm of the whole gradient; none: no bound.
        loss: `masked` takes the cross-entropy over the current task's classes, `all` over all classes seen so far.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(3e-4, 0.3), "schedule": Choice("constant", "cosine")}

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 0.0
    schedule: Schedule = "constant"
    milestones: tuple[NonNegativeInt, ...] | None = None
    decay: PositiveFloat = 0.1
    clip_norm: PositiveFloat | None = None
    loss: Literal["masked", "all"] = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "steps" and not self.milestones:
            raise UserError(
                "schedule = steps needs milestones, the epochs at which the rate falls, e.g. milestones=10+15"
            )

    def cross_entropy(self, task: Task) -> Loss:
        """Per-sample cross-entropy over the classes that the hyper-parameter `loss` selects.

        In a method with exemplars, `masked` lets all classes seen compete for these.
        """
        if self.loss == "masked" and self.exemplars:
            return asymmetric_cross_entropy(task.classes, task.seen, task.num_classes)
        return masked_cross_entropy(task.classes if self.loss == "masked" else task.seen, task.num_classes)

    def phase(
        self,
        parameters: Sequence[ParameterGroup],
        loss: Loss | None = None,
        forward: Callable[[Tensor], Any] | None = None,
        **more: Any,
    ) -> Phase:
        """Make a phase with this method's optimiser, epochs and batch size, and as many exemplars if it keeps any.

        Args:
            parameters: optimiser groups; the `lr` or `weight_decay` of a group wins over the hyper-parameter.
            loss: see `Phase`.
            forward: see `Phase`.
            more: further attributes of `Phase`, such as `step` or `epochs`; they win over the hyper-parameters.
        """
        own = vars(self.optimization(parameters)) | {"epochs": self.epochs, "batch_size": self.batch_size}
        if "batches" not in more and any(isinstance(part, Rehearsal) for part in self.parts):
            own["exemplars"] = self.batch_size
        return Phase(**{**own, "loss": loss, "forward": forward, **more})

    def optimization(self, parameters: Sequence[ParameterGroup]) -> Optimization:
        """Make this method's optimiser for other parameters, for a phase with several optimisers."""
        return Optimization(
            parameters=parameters,
            optimizer=self._optimizer,
            schedule=partial(schedules.find(self.schedule), self),
            clip_norm=self.clip_norm,
        )

    def _optimizer(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMethod(Alignable, Descent):
    """A method that trains by gradient descent and, with `align`, aligns its classifier after each task.

    Its hyper-parameters are those of an optimiser (`epochs`, `batch_size`, `optimizer`, `lr`, `momentum`,
    `weight_decay`, `schedule`, `milestones`, `decay`, `clip_norm`, `loss`) and those of alignment (`align`, `align_*`).
    """
