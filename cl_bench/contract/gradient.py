"""Methods that train by gradient descent: optimisers, schedules, the classes that compete, classifier alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.method import Loss, Method, ParameterGroup, Phase, Task
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import task_norm
from cl_bench.models.statistics import ClassStatistics, Covariance

Schedule = Literal["constant", "cosine", "coda", "inflora", "steps"]


def _constant(epoch: int, epochs: int) -> float:
    return 1.0


def _cosine(epoch: int, epochs: int) -> float:
    """Half a cosine from 1 towards 0, by epoch."""
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / epochs, dtype=torch.float64))))


def _coda(epoch: int, epochs: int) -> float:
    """cos(99 pi e / (200 (E - 1))): from 1 to about 0.016, by epoch (the formula in CODA-Prompt's scheduler)."""
    angle = 99 * torch.pi * epoch / (200 * max(epochs - 1, 1))
    return float(torch.cos(torch.tensor(angle, dtype=torch.float64)))


def _inflora(epoch: int, epochs: int) -> float:
    """`_coda` one epoch late: the first two epochs are at the base rate, as the released scheduler of CODA-Prompt and
    InfLoRA comes out, which sets itself back by one epoch when it is made."""
    return _coda(max(epoch - 1, 0), epochs)


_SCHEDULES = {"constant": _constant, "cosine": _cosine, "coda": _coda, "inflora": _inflora}


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMethod(Method):
    """A method that trains by gradient descent: adds the optimiser's hyper-parameters and the classes that compete.

    Attributes:
        schedule: of the learning rate, by epoch; `steps` multiplies it by `decay` at each of the `milestones` (epochs).
        clip_norm: bound on the norm of the whole gradient.
        loss: cross-entropy over the current task's classes only (`masked`), or over `all` classes seen so far.
        align: classifier alignment (SLCA, ICCV 2023, arXiv 2303.05118): keep a Gaussian of each class's features and,
            after each task but the first, train the head on features drawn from them.
        align_epochs, align_lr: of that training (SGD, momentum 0.9, weight decay 5e-4, cosine).
        align_samples: features per class and epoch, and per batch.
        align_covariance: what is kept of each class's covariance.
        align_temperature: logits are divided by this and by the mean norm of a task's logits; none: neither.
        align_shrink: by how much the means of the oldest classes are pulled towards 0.
        align_restore: the next task goes on with the head as it was before alignment.
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
    align: bool = False
    align_epochs: PositiveInt = 5
    align_lr: PositiveFloat = 0.01
    align_samples: PositiveInt = 256
    align_covariance: Covariance = "full"
    align_temperature: PositiveFloat | None = 0.1
    align_shrink: Annotated[float, Field(ge=0, lt=1)] = 0.1
    align_restore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "steps" and not self.milestones:
            raise UserError(
                "schedule = steps needs milestones, the epochs at which the rate falls, e.g. milestones=10+15"
            )

    def cross_entropy(self, task: Task) -> Loss:
        """Cross-entropy over the classes that `loss` lets compete."""
        return masked_cross_entropy(task.classes if self.loss == "masked" else task.seen, task.num_classes)

    def create(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        model = self.build(backbone, num_classes)
        if self.align:
            if not (isinstance(model, FeatureModel) and isinstance(model.head, nn.Linear)):
                raise UserError(f"align=true: {type(self).__name__} trains no linear head that could be aligned")
            model.keep_statistics(self.align_covariance, self.align_restore)
        return model

    def alignment(self, task: Task, images: TaskSamples) -> list[Phase]:
        if not self.align:
            return []
        model = task.model
        with torch.no_grad():
            features, labels = images.collect(model.own_features)
            model.statistics.update(features, labels, task.index)
        head = model.head
        if model.aligned is not None:
            head = model.aligned
            head.load_state_dict(model.head.state_dict())
        return [self.aligning(task, model.statistics, head, list(head.parameters()), "align")] if task.index else []

    def aligning(
        self,
        task: Task,
        statistics: ClassStatistics,
        head: Callable[[Tensor], Tensor],
        parameters: list[Any],
        name: str,
    ) -> Phase:
        """The phase that trains `parameters` of a head on features drawn from class statistics."""
        tasks = statistics.by_task()
        cross_entropy = masked_cross_entropy(statistics.labels.tolist(), task.num_classes)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            if self.align_temperature is not None:
                logits = logits / (task_norm(logits, tasks) * self.align_temperature)
            return cross_entropy(logits, labels)

        return Phase(
            parameters=[{"params": parameters}],
            epochs=self.align_epochs,
            batch_size=self.align_samples,
            loss=loss,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=self.align_lr, momentum=0.9, weight_decay=5e-4),
            schedule=_cosine,
            forward=head,
            batches=lambda epoch: statistics.batches(self.align_samples, (*task.key, name, epoch), self.align_shrink),
        )

    def kept(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        kept = self.storage(backbone, num_classes, classes)
        if self.align:
            dim = int(backbone.num_features)
            kept["statistics"] = ClassStatistics.numbers(self.align_covariance, dim, classes)
            kept["aligned head"] = num_classes * (dim + 1) * self.align_restore
        return kept

    def phase(
        self,
        parameters: Sequence[ParameterGroup],
        loss: Loss,
        forward: Callable[[Tensor], Any] | None = None,
    ) -> Phase:
        """A phase with this method's optimiser; a group's `lr` wins over the field."""
        return Phase(
            parameters=parameters,
            epochs=self.epochs,
            batch_size=self.batch_size,
            loss=loss,
            optimizer=self._optimizer,
            schedule=self._steps if self.schedule == "steps" else _SCHEDULES[self.schedule],
            clip_norm=self.clip_norm,
            forward=forward,
        )

    def _steps(self, epoch: int, epochs: int) -> float:
        return float(self.decay ** sum(epoch >= milestone for milestone in self.milestones or ()))

    def _optimizer(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, weight_decay=self.weight_decay)


def masked_cross_entropy(classes: Iterable[int], num_classes: int) -> Loss:
    """Cross-entropy in which only `classes` compete: all other logits are -inf ("local" or "masked" softmax).

    Returns:
        A loss from (logits [B, num_classes], labels [B]) to per-sample values [B].
    """
    outside = torch.ones(num_classes, dtype=torch.bool)
    outside[list(classes)] = False

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal outside
        # Once, not in every step: a copy from the host makes it wait for the device.
        outside = outside.to(logits.device)
        masked = logits.masked_fill(outside, float("-inf"))
        return nn.functional.cross_entropy(masked, labels, reduction="none")

    return loss
