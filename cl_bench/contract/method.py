"""What a continual-learning method must provide.

A method is one file with one frozen dataclass: its fields are the hyper-parameters, its four functions the maths.
It is an Avalanche plugin, but holds no state: everything that outlives a task is a parameter or buffer of the
module that `build` returns, so that checkpoints, stored-memory columns and audits come for free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from avalanche.core import SupervisedPlugin
from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.hyperparameters import validated, validators
from cl_bench.contract.part import Part
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.experiment import Scalar, Scenario, Value
from cl_bench.models.base import FeatureModel

Traces = dict[str, list[dict[str, Scalar]]]
"""Rows by name of table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Method(SupervisedPlugin):  # type: ignore[misc]
    """Base of all methods. Fields of the subclass are its hyper-parameters, validated by their annotations.

    Class attributes:
        revision: raised whenever the method's results change.
        paper: name, venue, arXiv id.
        needs_num_tasks: whether the length of the stream must be known in advance (a fact that tables show).
        stores: what is kept about old tasks beside the adapters, in words.
        forward_passes: backbone passes per prediction; in words if their number grows with the tasks (see `passes`).
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
    forward_passes: ClassVar[int | str] = 1
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental", "domain-incremental")
    trains_on: ClassVar[Literal["task", "stream"]] = "task"
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        for name in validators(type(self)):  # type: ignore[arg-type]
            object.__setattr__(self, name, validated(type(self), name, getattr(self, name)))

    def check(self, num_tasks: int) -> None:
        """Raise `UserError` if the hyper-parameters do not fit a stream of this length; called before any run."""

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        """The model: adapters and head on the backbone. `model(images)` [B, C, H, W] gives the prediction's logits
        [B, num_classes], for each sample alone and without task identity; unseen classes are masked by the caller."""
        raise NotImplementedError

    def phases(self, task: Task) -> list[Phase]:
        """What is optimised for this task, in order; none for methods without gradients.

        A pure function of the task and its model. A method that defines `after_phase` is asked again after each phase:
        the list may have become longer, by what was decided and lies in the model. It always begins with the phases
        that are done.
        """
        return []

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        """Gradient-free work before training: growing adapters, designing subspaces. Current samples only. In this and
        the next two, torch's global CPU generator is seeded for the task: new modules start alike in every run."""

    def after_phase(self, task: Task, samples: TaskSamples, number: int) -> None:
        """Gradient-free work after a phase (counted from 0), e.g. a decision on whether there is another one. A run
        that goes on from a checkpoint does not decide again: write what is decided into the model. Current samples
        only."""

    def after_task(self, task: Task, samples: TaskSamples) -> None:
        """Gradient-free work after training: statistics, prototypes. Current samples only."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the method takes on besides its own maths, e.g. classifier alignment."""
        return ()

    def passes(self, tasks: int) -> int:
        """Backbone passes per prediction after so many tasks.

        Raises:
            UserError: `forward_passes` is in words, and the method does not define this.
        """
        if isinstance(self.forward_passes, int):
            return self.forward_passes
        name = type(self).__name__
        raise UserError(f"{name}.forward_passes is in words ('{self.forward_passes}'): define {name}.passes(tasks)")

    @property
    def stateful_prediction(self) -> bool:
        """Whether predictions change the model, as in released code that is known to be wrong: nothing about a
        prediction is then remembered, and the audit fails."""
        return False

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        """The most numbers that are kept beside the frozen backbone after tasks of so many `classes` each, by kind:
        what `cl-bench audit` holds against what the model stores."""
        return {}

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


def build_model(method: Method, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
    """The model as it is run: what `Method.build` returns, and what its parts add to it.

    Raises:
        UserError: it is no `FeatureModel`, or the backbone does not fit the method.
    """
    model = method.build(backbone, num_classes)
    if not isinstance(model, FeatureModel):
        raise UserError(
            f"{type(method).__name__}.build returned {type(model).__name__}, expected a FeatureModel: derive it from "
            "cl_bench.FeatureModel, which calls the backbone for you (see docs/add-a-method.md)"
        )
    for part in method.parts:
        part.extend(model, type(method).__name__)
    return model


def declared_storage(
    method: Method, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]
) -> dict[str, int]:
    """`Method.storage`, and what the method's parts keep."""
    numbers = dict(method.storage(backbone, num_classes, classes))
    for part in method.parts:
        numbers |= part.storage(backbone, num_classes, classes)
    return numbers
