"""The base class of continual-learning methods.

A method is one file with one frozen dataclass: its fields are the hyper-parameters, its functions the maths. It is an
Avalanche plugin without state: everything that outlives a task is a parameter or buffer of the module that `build`
returns, so checkpoints, counts of stored numbers and audits need no code in the method.
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
from cl_bench.contract.task import Traces as Traces
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.experiment import Scenario, Value
from cl_bench.models.base import FeatureModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Method(SupervisedPlugin):  # type: ignore[misc]
    """Base class of all methods: facts for tables, hyper-parameters, and the functions that define the maths.

    A subclass is a frozen dataclass. Its fields are the hyper-parameters, validated by their annotations when an
    instance is made; a value that does not fit raises `UserError`. The attributes below are set on the class.

    Attributes:
        revision: version of the method's results, part of their keys; raise it whenever results change.
        paper: name of the method, venue and arXiv id.
        needs_num_tasks: whether the method must know the length of the stream in advance, which tables mark.
        stores: what the model stores about old tasks in addition to its adapters, in words.
        exemplars: name of the hyper-parameter that sets the size of the memory of past images in MB, which tables mark;
            empty: exemplar-free.
        forward_passes: backbone passes per prediction; in words if the number grows with the tasks (see `passes`).
        scenarios: kinds of streams that the method supports.
        trains_on: `task` trains on one experience after the other, `stream` on all of them at once (joint training).
        published: hyper-parameters from the literature, by the paper's benchmark (`imagenet-r`, `cifar100`, ...). Where
            a paper's text differs from its program, `imagenet-r` is the program and `imagenet-r.paper` the text.
        space: range that `cl-bench tune` searches, by hyper-parameter.
        citations: keys of the method's papers in the bibliography of cl-bench, for `cl-bench cite`; empty for a
            baseline without a paper; None: not declared.
        cited_with: keys that are cited as well where a hyper-parameter has a value (`adaptation=ssf`) or another one
            (`backbone_lr_scale!=1`); an entry replaces that of a base class under the same condition.
        bibtex: BibTeX entries of papers that are not in that bibliography; all of them are cited.
    """

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    needs_num_tasks: ClassVar[bool] = False
    stores: ClassVar[str] = "nothing"
    exemplars: ClassVar[str] = ""
    forward_passes: ClassVar[int | str] = 1
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental", "domain-incremental")
    trains_on: ClassVar[Literal["task", "stream"]] = "task"
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
    space: ClassVar[Mapping[str, Range]] = {}
    citations: ClassVar[tuple[str, ...] | None] = None
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    bibtex: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name in validators(type(self)):  # type: ignore[arg-type]
            object.__setattr__(self, name, validated(type(self), name, getattr(self, name)))

    def check(self, num_tasks: int) -> None:
        """Check the hyper-parameters against the length of the stream; called before a run starts.

        Args:
            num_tasks: number of tasks of the stream.

        Raises:
            UserError: the hyper-parameters do not fit a stream of this length.
        """

    def check_backbone(self, backbone: VisionTransformer, num_tasks: int) -> None:
        """Check the hyper-parameters against backbone and length of the stream together; called before a run starts.

        Args:
            backbone: the ViT that the model will be built on, perhaps without weights.
            num_tasks: number of tasks of the stream.

        Raises:
            UserError: the hyper-parameters do not fit both.
        """

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        """Build the model: the backbone with the method's modules and a head.

        A call of the model maps images [B, C, H, W] to logits [B, num_classes]. The logits of a sample depend on that
        sample alone, not on its batch and not on its task. The caller masks classes that have not been seen.

        Args:
            backbone: pre-trained ViT without head.
            num_classes: number of classes of the whole stream.
        """
        raise NotImplementedError

    def phases(self, task: Task) -> list[Phase]:
        """Describe what is optimised for a task, in order; an empty list for methods without gradients.

        A pure function of the task and its model, without side effects. If the method defines `after_phase`, this
        function is called again after each phase, and the list may have grown by phases that `after_phase` decided on
        and recorded in the model. The list always begins with the phases that are already done.
        """
        return []

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        """Work without gradients before training, such as growing adapters or designing subspaces.

        In this function, `after_phase` and `after_task`, torch's global CPU generator is seeded for the task, so new
        modules start alike in every run.

        Args:
            task: the task to be learned.
            samples: training samples of this task.
        """

    def after_phase(self, task: Task, samples: TaskSamples, number: int) -> None:
        """Work without gradients after a phase, such as the decision whether another phase follows.

        A run that resumes from a checkpoint does not call this function again for a finished phase: record decisions
        in the model.

        Args:
            task: the task that is being learned.
            samples: training samples of this task.
            number: position of the finished phase in `phases(task)`, from 0.
        """

    def after_task(self, task: Task, samples: TaskSamples) -> None:
        """Work without gradients after training, such as class statistics or prototypes.

        Args:
            task: the task that has been learned.
            samples: training samples of this task.
        """

    @property
    def parts(self) -> tuple[Part, ...]:
        """Additions to the method's own maths that any method can take, such as classifier alignment."""
        return ()

    @property
    def exemplar_mb(self) -> float:
        """Size of the memory of past images in MB of 10^6 bytes; 0: exemplar-free."""
        return float(getattr(self, self.exemplars)) if self.exemplars else 0.0

    def passes(self, tasks: int) -> int:
        """Number of backbone passes per prediction after `tasks` learned tasks.

        Raises:
            UserError: `forward_passes` is in words, and the method does not override this function.
        """
        if isinstance(self.forward_passes, int):
            return self.forward_passes
        name = type(self).__name__
        raise UserError(f"{name}.forward_passes is in words ('{self.forward_passes}'): define {name}.passes(tasks)")

    @property
    def stateful_prediction(self) -> bool:
        """Whether predictions change the model, as in released code that is known to be wrong.

        If so, nothing of a prediction is cached, and the method fails the audit.
        """
        return False

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        """Declare how many numbers the model stores in addition to the frozen backbone, at most.

        `cl-bench audit` compares this with what the model really stores.

        Args:
            backbone: the ViT that the model is built on.
            num_classes: number of classes of the whole stream.
            classes: number of classes of each task learned so far.

        Returns:
            Number of stored numbers by kind, e.g. `{"head": 7700, "prompts": 3840}`; their sum is the declared bound.
        """
        return {}

    def traces(self, task: Task) -> Traces:
        """Rows to store with the run after a task, such as learned magnitudes, by the name of their table.

        Texts, and the columns `stage` (`task.index`), `phase`, `epoch`, `step`, `task`, `block`, `target`, `direction`
        and `link`, say where a row was measured. All other numbers are measurements for `cl-bench compare --trace`.
        """
        return {}

    def step_traces(self, task: Task, step: int) -> Traces:
        """Rows to store with the run while a task is learned, by the name of their table.

        Called after the first and the last optimiser step of a phase and after about 24 steps between them, so a call
        may take some milliseconds.

        Args:
            task: the task that is being learned.
            step: optimiser steps done in the phase.
        """
        return {}

    def values(self) -> dict[str, Value]:
        """Hyper-parameters by name, as JSON values."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def build_model(method: Method, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
    """Build a method's model and extend it by the method's parts.

    Raises:
        UserError: `Method.build` returned no `FeatureModel`, or the backbone does not fit the method.
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
    """Numbers that a method and its parts declare to store, by kind; see `Method.storage`."""
    numbers = dict(method.storage(backbone, num_classes, classes))
    for part in method.parts:
        numbers |= part.storage(backbone, num_classes, classes)
    return numbers
