"""What a continual-learning method must provide.

A method is one file with one frozen dataclass: its fields are the hyper-parameters, its four functions the maths.
It is an Avalanche plugin, but holds no state: everything that outlives a task is a parameter or buffer of the
module that `build` returns, so that checkpoints, stored-memory columns and audits come for free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from avalanche.core import SupervisedPlugin
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.hyperparameters import validated, validators
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.data.samples import TaskImages
from cl_bench.errors import UserError
from cl_bench.experiment import Scalar, Scenario, Value
from cl_bench.models.heads import FeatureModel, task_norm
from cl_bench.models.statistics import ClassStatistics, Covariance
from cl_bench.randomness import Key, generator

ParameterGroup = dict[str, Any]
Loss = Callable[[Any, Tensor], Tensor]
Batch = tuple[Tensor, Tensor, int]
Schedule = Literal["constant", "cosine", "coda", "inflora", "steps"]
Traces = dict[str, list[dict[str, Scalar]]]
"""Rows by name of table."""


@dataclass(frozen=True)
class Task:
    """What a method may know while it learns a task.

    Attributes:
        index: 0-based position in the stream.
        classes: labels of this task.
        seen: labels of this task and all before it.
        num_classes: size of the head.
        num_tasks: length of the stream, or None for methods that do not declare `needs_num_tasks`.
        model: what `build` returned.
        key: of all random draws in this task.
    """

    index: int
    classes: tuple[int, ...]
    seen: tuple[int, ...]
    num_classes: int
    num_tasks: int | None
    model: Any
    key: Key

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator for one purpose in this task, the same whenever and wherever it is asked for."""
        return generator((*self.key, purpose))


@dataclass(frozen=True)
class Phase:
    """One optimisation inside a task, with a fresh optimiser.

    Attributes:
        parameters: what is optimised: torch optimiser groups; a group may set its own `lr` or `weight_decay`.
        loss: per-sample losses [B] from (output of `forward`, labels [B]).
        forward: the training forward pass, to logits [B, num_classes] or to a tuple that begins with them and goes on
            with whatever else [B, ...] the loss needs; None: the model itself.
        batches: (inputs, labels, how many of them count) of an epoch; None: the task's images.
        optimizer: made from the groups.
        schedule: factor on every learning rate, from (epoch, epochs).
        clip_norm: bound on the norm of the whole gradient, or None.
    """

    parameters: Sequence[ParameterGroup]
    epochs: int
    batch_size: int
    loss: Loss
    optimizer: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]
    clip_norm: float | None = None
    forward: Callable[[Tensor], Any] | None = None
    batches: Callable[[int], Iterable[Batch]] | None = None

    def trainable(self) -> list[nn.Parameter]:
        """All parameters of all groups."""
        return [parameter for group in self.parameters for parameter in group["params"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Method(SupervisedPlugin):  # type: ignore[misc]
    """Base of all methods. Fields of the subclass are its hyper-parameters, validated by their annotations.

    Class attributes:
        revision: raised whenever the method's results change.
        paper: name, venue, arXiv id.
        needs_num_tasks: whether the length of the stream must be known in advance (a fact that tables show).
        stores: what is kept about old tasks beside the adapters, in words.
        forward_passes: backbone passes per prediction.
        scenarios: the kinds of streams that the method is for.
        trains_on: `task` (one experience after the other) or `stream` (all at once: joint training).
        published: recipes of the literature, hyper-parameters by paper benchmark (`imagenet-r`, `cifar100`, ...); where
            a paper's text differs from its code, the text is `imagenet-r.paper`.
        space: what `cl-bench tune` searches, by hyper-parameter.
    """

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    needs_num_tasks: ClassVar[bool] = False
    stores: ClassVar[str] = "nothing"
    forward_passes: ClassVar[int] = 1
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental", "domain-incremental")
    trains_on: ClassVar[Literal["task", "stream"]] = "task"
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        for name in validators(type(self)):  # type: ignore[arg-type]
            object.__setattr__(self, name, validated(type(self), name, getattr(self, name)))

    def check(self, num_tasks: int) -> None:
        """Raise `UserError` if the hyper-parameters do not fit a stream of this length; called before any run."""

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        """The model: adapters and head on the backbone. `model(images)` [B, C, H, W] gives the prediction's logits
        [B, num_classes], for each sample alone and without task identity; unseen classes are masked by the caller.

        A model whose prediction starts from a frozen feature of the image may define `query(images)` [B, d] and
        accept it as `model(images, query)`: it is then computed once per test image and stream, not once per task.
        One whose adapters can be folded into weights may define `merged()`, a module that predicts the same for less.
        """
        raise NotImplementedError

    def create(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        """The model as it is run: what `build` returns, and what the harness adds to it."""
        return self.build(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        """What is optimised for this task, in order; none for methods without gradients."""
        return []

    def before_task(self, task: Task, images: TaskImages) -> None:
        """Gradient-free work before training: growing adapters, designing subspaces. Current images only."""

    def after_task(self, task: Task, images: TaskImages) -> None:
        """Gradient-free work after training: statistics, prototypes. Current images only."""

    def alignment(self, task: Task, images: TaskImages) -> list[Phase]:
        """What is optimised after that, on class statistics instead of images."""
        return []

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        """The most numbers that are kept beside the frozen backbone after tasks of so many `classes` each, by kind:
        what `cl-bench audit` holds against what the model stores."""
        return {}

    def kept(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        """`storage`, and what the harness adds to it."""
        return self.storage(backbone, num_classes, classes)

    def traces(self, task: Task) -> Traces:
        """Rows for the run record's `traces` after this task, e.g. learned magnitudes."""
        return {}

    def step_traces(self, task: Task, step: int) -> Traces:
        """The same while the task is learned, after so many optimiser steps of a phase: asked for at the first and the
        last of them and at about 24 in between, so it may cost some milliseconds."""
        return {}

    def values(self) -> dict[str, Value]:
        """The hyper-parameters by name, as JSON values."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


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

    def alignment(self, task: Task, images: TaskImages) -> list[Phase]:
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
