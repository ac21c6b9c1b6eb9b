"""What a continual-learning method must provide.

A method is one file with one frozen dataclass: its fields are the hyper-parameters, its four functions the maths.
It is an Avalanche plugin, but holds no state: everything that outlives a task is a parameter or buffer of the
module that `build` returns, so that checkpoints, stored-memory columns and audits come for free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from avalanche.core import SupervisedPlugin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.hyperparameters import validated, validators
from cl_bench.contract.search import Range
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Scalar, Scenario, Value
from cl_bench.randomness import Key, generator

ParameterGroup = dict[str, Any]
Loss = Callable[[Any, Tensor], Tensor]
Batch = tuple[Tensor, Tensor, int]
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

    def before_task(self, task: Task, images: TaskSamples) -> None:
        """Gradient-free work before training: growing adapters, designing subspaces. Current images only."""

    def after_task(self, task: Task, images: TaskSamples) -> None:
        """Gradient-free work after training: statistics, prototypes. Current images only."""

    def alignment(self, task: Task, images: TaskSamples) -> list[Phase]:
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
