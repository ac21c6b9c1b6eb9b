"""Methods that each break one promise; `violates` names the checks of the audit that must find it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import streams
from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Batch, Phase
from cl_bench.contract.task import Task
from cl_bench.data import views
from cl_bench.data.loading import gather
from cl_bench.data.samples import TaskSamples
from cl_bench.models.base import FeatureModel
from cl_bench.models.growing import GrowingModules
from cl_bench.models.heads import Classifier
from cl_bench.streams.scenarios import order_classes
from tests.helpers import elsewhere
from tests.helpers.tiny import TRANSFORMS

ELSEWHERE: list[Any] = []
"""A global that no audit inspects. Methods that use it empty it at their first task."""


class Probe(Classifier):
    """A linear head on the frozen backbone, with a buffer for leaked data."""

    extra: Tensor

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone.requires_grad_(False), num_classes)
        self.register_buffer("extra", torch.zeros(0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Honest(GradientMethod):
    """Keeps every promise."""

    violates: ClassVar[frozenset[str]] = frozenset()
    model_class: ClassVar[type[Probe]] = Probe

    epochs: int = 1
    batch_size: int = 16
    lr: float = 0.1

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return self.model_class(backbone, num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"head": num_classes * (int(backbone.num_features) + 1), "extra": self.extra(backbone, classes)}

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        """Declared number of stored values in addition to the head."""
        return 0

    def phases(self, task: Task) -> list[Phase]:
        return [self.phase([{"params": list(task.model.head.parameters())}], self.cross_entropy(task))]


@dataclass(frozen=True, kw_only=True, eq=False)
class NeedsTheNumberOfTasks(Honest):
    """Uses the number of tasks, and declares that it needs it."""

    needs_num_tasks: ClassVar[bool] = True

    def before_task(self, task: Task, images: TaskSamples) -> None:
        assert task.num_tasks is not None
        task.model.head.bias[0] += task.num_tasks


def layers() -> nn.Module:
    made = nn.ModuleDict({"norm": nn.LayerNorm(32), "conv": nn.Conv2d(1, 4, 3, padding=1, bias=False)})
    for parameter in made.parameters():
        nn.init.ones_(parameter)
    return made


class Layered(Probe):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.layers = GrowingModules(layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class AddsLayers(Honest):
    """Adds layers after each task, whose shapes are no hidden memory, and does not use them."""

    model_class: ClassVar[type[Probe]] = Layered

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return len(classes) * (2 * 32 + 4 * 9)

    def after_task(self, task: Task, images: TaskSamples) -> None:
        task.model.layers.grow()


@dataclass(frozen=True, kw_only=True, eq=False)
class Distils(Honest):
    """Keeps a teacher in the scratch state of the task."""

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.scratch.keep("teacher", task.model.head)

    def phases(self, task: Task) -> list[Phase]:
        cross_entropy = self.cross_entropy(task)

        def loss(outputs: Any, labels: Tensor) -> Tensor:
            logits, features = outputs
            old = task.scratch.call("teacher", task.model.head, features)
            return cross_entropy(logits, labels) + (logits - old).square().mean(dim=1)

        def forward(images: Tensor) -> Any:
            features = task.model.features(images)
            return task.model.classify(features), features

        (phase,) = super().phases(task)
        return [replace(phase, loss=loss, forward=forward)]


class PassByPass(Probe):
    def features(self, images: Tensor) -> Tensor:
        features = [self.vit.features(images) for _ in self.extra]
        return torch.stack(features).mean(dim=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class TakesMorePasses(Honest):
    """Makes one backbone pass per task learned, and declares it."""

    forward_passes: ClassVar[int | str] = "one per task"
    model_class: ClassVar[type[Probe]] = PassByPass

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return len(classes)

    def passes(self, tasks: int) -> int:
        return tasks

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.extra = torch.cat([task.model.extra, torch.zeros(1)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Decides(Honest):
    """Decides after each phase, from its own images, whether there is another one, and stores that in the model."""

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return 1

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.extra = torch.ones(1)

    def phases(self, task: Task) -> list[Phase]:
        return super().phases(task) * int(task.model.extra)

    def after_phase(self, task: Task, samples: TaskSamples, number: int) -> None:
        if number < 2 and self.wants_another(task, samples):
            task.model.extra += 1

    def wants_another(self, task: Task, samples: TaskSamples) -> bool:
        """Whether there is another phase."""
        return task.index < 2


# --- the batch -------------------------------------------------------------------------------------------------


class PullsTogether(Probe):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else logits + 0.1 * (logits.mean(dim=0) - logits)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchMean(Honest):
    """Pulls every prediction towards the mean of its batch."""

    violates: ClassVar[frozenset[str]] = frozenset({"batch size", "batch company"})
    model_class: ClassVar[type[Probe]] = PullsTogether


class Normalises(Probe):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm = nn.BatchNorm1d(self.head.out_features, affine=False, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return self.norm(logits) if len(logits) > 1 else logits


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchNorm(Honest):
    """Normalises logits by statistics of the batch."""

    violates: ClassVar[frozenset[str]] = frozenset({"batch size", "batch company"})
    model_class: ClassVar[type[Probe]] = Normalises


class MixesUp(Probe):
    def features(self, images: Tensor) -> Tensor:
        features = super().features(images)
        both = torch.stack([features, features])  # [2, B, d], read as [B, 2, d]
        return both.reshape(len(images), 2, -1).mean(dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours(Honest):
    """Reads a stack of two copies in the wrong layout, as a well-known port of DualPrompt does."""

    violates: ClassVar[frozenset[str]] = frozenset({"batch size", "batch company"})
    model_class: ClassVar[type[Probe]] = MixesUp


class Flattens(Probe):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if len(images) < 20 else logits / torch.arange(1, logits.shape[1] + 1)


class LeakyWhenMerged(Probe):
    def merged(self) -> nn.Module:
        leaky = PullsTogether(self.backbone, self.head.out_features)
        leaky.head = self.head
        return leaky.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class LargeBatches(Honest):
    """Predicts differently in large batches, whatever images are in them."""

    violates: ClassVar[frozenset[str]] = frozenset({"batch size"})
    model_class: ClassVar[type[Probe]] = Flattens


@dataclass(frozen=True, kw_only=True, eq=False)
class MergedBatchMean(Honest):
    """The model is honest, its merged form is not."""

    violates: ClassVar[frozenset[str]] = frozenset({"batch size", "batch company"})
    model_class: ClassVar[type[Probe]] = LeakyWhenMerged


# --- the task --------------------------------------------------------------------------------------------------


class Prefers(Probe):
    preferred: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if not self.training:
            logits[:, list(self.preferred)] += 10
        return logits


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMask(Honest):
    """Uses the classes of the experience at test time."""

    violates: ClassVar[frozenset[str]] = frozenset({"task identity"})
    model_class: ClassVar[type[Probe]] = Prefers

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.preferred = tuple(strategy.experience.classes_in_this_experience)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.preferred = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskLabel(TaskMask):
    """Uses task labels at test time where experiences have them."""

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.preferred = (getattr(strategy.experience, "task_label", 0),)


class RemembersLast(Probe):
    last = 0

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if not self.training:
            logits[:, self.last] += 10
        return logits


@dataclass(frozen=True, kw_only=True, eq=False)
class PreviousTask(Honest):
    """Predictions depend on the experience that was evaluated previously."""

    violates: ClassVar[frozenset[str]] = frozenset({"task identity", "earlier predictions", "restart"})
    model_class: ClassVar[type[Probe]] = RemembersLast

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.last = min(strategy.experience.classes_in_this_experience)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueLabel(Honest):
    """Reads the labels of the test images."""

    violates: ClassVar[frozenset[str]] = frozenset({"task identity"})

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.mb_output[range(len(strategy.mb_y)), strategy.mb_y] += 10


class MergedElsewhere(Probe):
    def merged(self) -> nn.Module:
        other = copy.deepcopy(self)
        nn.init.ones_(other.head.bias[:4])
        return other.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class MergedOtherwise(Honest):
    """The merged form of the model predicts differently."""

    violates: ClassVar[frozenset[str]] = frozenset({"task identity"})
    model_class: ClassVar[type[Probe]] = MergedElsewhere


class Adapts(Probe):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.extra = torch.zeros(self.head.in_features)

    def features(self, images: Tensor) -> Tensor:
        features = super().features(images)
        if not self.training:
            self.extra.lerp_(features.mean(dim=0), 0.1)
        return features - self.extra


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptsAtTest(Honest):
    """Subtracts a running mean of the test features."""

    violates: ClassVar[frozenset[str]] = frozenset(
        {"batch size", "batch company", "task identity", "earlier predictions", "frozen weights"}
    )
    model_class: ClassVar[type[Probe]] = Adapts

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return int(backbone.num_features)


# --- earlier predictions and passes ----------------------------------------------------------------------------


class ChangesItsMind(Probe):
    last = 0.0

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        before, self.last = self.last, float(images.sum())
        return -logits if before == self.last and not self.training else logits


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswersTwice(Honest):
    """Predicts differently if it gets the same images twice in a row."""

    violates: ClassVar[frozenset[str]] = frozenset({"earlier predictions"})
    model_class: ClassVar[type[Probe]] = ChangesItsMind


class QueriesDrift(Probe):
    queries = 0

    def query(self, images: Tensor) -> Tensor:
        self.queries += 1
        return self.vit.features(images) + 1e-3 * self.queries

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return self.classify(self.vit.features(images) if query is None else query)


@dataclass(frozen=True, kw_only=True, eq=False)
class CountsQueries(Honest):
    """The frozen query of an image depends on the number of earlier queries; an evaluation caches queries."""

    violates: ClassVar[frozenset[str]] = frozenset(
        {"batch size", "batch company", "task identity", "earlier predictions"}
    )
    model_class: ClassVar[type[Probe]] = QueriesDrift


@dataclass(frozen=True, kw_only=True, eq=False)
class DeclaresState(Honest):
    """Declares that predictions depend on earlier ones, as in some released code, although none does."""

    violates: ClassVar[frozenset[str]] = frozenset({"earlier predictions"})

    @property
    def stateful_prediction(self) -> bool:
        return True


Detour = Literal["again", "in one batch", "entered", "half", "timm", "query", "merged", "elsewhere"]


class GoesAgain(Probe):
    detour: Detour | None = None

    def features(self, images: Tensor) -> Tensor:
        backbone = self.backbone
        match self.detour:
            case "again" | "merged":
                self.vit.features(images)
            case "in one batch":
                return self.vit.features(torch.cat([images, images]))[: len(images)]
            case "entered":
                self.vit.attention_inputs(images)
            case "half":
                backbone.blocks[0](backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images))))
            case "timm":
                backbone.forward_features(images)
        return super().features(images)


class GoesAgainForAQuery(GoesAgain):
    def query(self, images: Tensor) -> Tensor:
        return self.features(images)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return super().forward(images)


class GoesAgainWhenMerged(GoesAgain):
    def merged(self) -> nn.Module:
        merged = copy.deepcopy(self)
        merged.detour = "merged"
        return merged.eval()


class GoesThroughAnother(GoesAgain):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        ELSEWHERE[:] = [copy.deepcopy(self.backbone)]

    def features(self, images: Tensor) -> Tensor:
        ELSEWHERE[0](images)
        return super().features(images)


@dataclass(frozen=True, kw_only=True, eq=False)
class HidesAPass(Honest):
    """Runs the blocks of a backbone more often than it declares."""

    violates: ClassVar[frozenset[str]] = frozenset({"passes"})

    detour: Detour = "again"

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        classes = {"query": GoesAgainForAQuery, "merged": GoesAgainWhenMerged, "elsewhere": GoesThroughAnother}
        model = classes.get(self.detour, GoesAgain)(backbone, num_classes)
        model.detour = None if self.detour == "merged" else self.detour
        return model


# --- frozen weights --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class MovesTheBackbone(Honest):
    """Changes a weight of the backbone, at one of several times."""

    violates: ClassVar[frozenset[str]] = frozenset({"frozen weights"})

    when: Literal["iteration", "experience", "before", "after"] = "iteration"

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return int(backbone.num_features)

    def move(self, model: Any, when: str) -> None:
        if when == self.when:
            model.backbone.norm.weight.data.mul_(1.001)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.move(strategy.model, "iteration")

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.move(strategy.model, "experience")

    def before_task(self, task: Task, images: TaskSamples) -> None:
        self.move(task.model, "before")

    def after_task(self, task: Task, images: TaskSamples) -> None:
        self.move(task.model, "after")


class TwoHeads(Probe):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.old = nn.Parameter(torch.zeros(self.head.out_features))


@dataclass(frozen=True, kw_only=True, eq=False)
class MovesAnOldAdapter(Honest):
    """Changes a parameter that no phase lists."""

    violates: ClassVar[frozenset[str]] = frozenset({"frozen weights"})
    model_class: ClassVar[type[Probe]] = TwoHeads

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return super().storage(backbone, num_classes, classes) | {"old": num_classes}

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.old.data += 1


@dataclass(frozen=True, kw_only=True, eq=False)
class CountsEvaluations(Honest):
    """Evaluation changes the state of the model, but not its predictions."""

    violates: ClassVar[frozenset[str]] = frozenset({"frozen weights"})

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.extra = torch.zeros(1)

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return 1

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.extra += 1


# --- old samples and memory ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadsEverything(Honest):
    """Reads the whole data set behind the images of the current task."""

    violates: ClassVar[frozenset[str]] = frozenset({"old samples"})

    def before_task(self, task: Task, images: TaskSamples) -> None:
        store: Any = images.samples.dataset.store  # type: ignore[attr-defined]
        np.asarray(store.images)


@dataclass(frozen=True, kw_only=True, eq=False)
class Replays(Honest):
    """Also trains on the images of the previous task."""

    violates: ClassVar[frozenset[str]] = frozenset({"old samples", "restart"})

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if task.index == 0:
            ELSEWHERE.clear()
        ELSEWHERE.append(images)

    def phases(self, task: Task) -> list[Phase]:
        def batches(epoch: int) -> Iterator[Batch]:
            for images in ELSEWHERE[-2:]:
                yield from ((x, y, len(y)) for x, y in images.batches())

        (phase,) = super().phases(task)
        return [Phase(**(vars(phase) | {"batches": batches, "loss": self.over_all(task)}))]

    def over_all(self, task: Task) -> Any:
        return lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadsTestImages(Honest):
    """Keeps the test experiences from evaluation, and reads their images when it learns the next task."""

    violates: ClassVar[frozenset[str]] = frozenset({"old samples"})

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        ELSEWHERE.append(strategy.experience.dataset)

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if task.index == 0:
            ELSEWHERE.clear()
        for dataset in ELSEWHERE:
            dataset[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighboursAtTest(Honest):
    """Reads training images during evaluation."""

    violates: ClassVar[frozenset[str]] = frozenset({"old samples"})

    def after_task(self, task: Task, images: TaskSamples) -> None:
        ELSEWHERE[:] = [images]

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        next(ELSEWHERE[0].batches())


@dataclass(frozen=True, kw_only=True, eq=False)
class DecidesByTestImages(Decides):
    """Decides on another phase by reading test images that it kept from evaluation; the answer is always yes."""

    violates: ClassVar[frozenset[str]] = frozenset({"old samples"})

    at: Literal["after_phase", "phases"] = "after_phase"

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        ELSEWHERE[:] = [strategy.experience.dataset]

    def unknown(self, task: Task) -> bool:
        """Read the kept test images; always true."""
        items = [dataset[number] for dataset in ELSEWHERE for number in range(len(dataset))]
        with torch.no_grad():
            right = [int(task.model(image[None]).argmax()) == label for image, label, *_ in items]
        return sum(right) <= len(right)

    def phases(self, task: Task) -> list[Phase]:
        if self.at == "phases" and self.unknown(task):
            return Honest.phases(self, task) * 2
        return super().phases(task)

    def wants_another(self, task: Task, samples: TaskSamples) -> bool:
        return self.at == "after_phase" and self.unknown(task)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeepsImages(Honest):
    """Keeps exemplars in a buffer that it does not declare."""

    violates: ClassVar[frozenset[str]] = frozenset({"memory"})

    def after_task(self, task: Task, images: TaskSamples) -> None:
        task.model.extra = torch.cat([task.model.extra, images.collect(lambda x: x.flatten(1))[0].flatten()])


@dataclass(frozen=True, kw_only=True, eq=False)
class DeclaresNothing(KeepsImages):
    """Keeps means of images and declares no storage at all, so that the audit cannot judge its memory."""

    violates: ClassVar[frozenset[str]] = frozenset()
    storage = GradientMethod.storage  # type: ignore[assignment]

    def after_task(self, task: Task, images: TaskSamples) -> None:
        task.model.extra = torch.cat([task.model.extra, images.collect(lambda x: x.flatten(1).mean(dim=1))[0]])


@dataclass(frozen=True, kw_only=True, eq=False)
class DeclaresNumbersOnly(KeepsImages):
    """Keeps exemplars and declares the numbers, but not that they are images of past tasks."""

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return 10**6


@dataclass(frozen=True, kw_only=True, eq=False)
class KeepsMoreExemplars(DeclaresNumbersOnly):
    """Keeps more exemplars than it declares."""

    exemplars: ClassVar[str] = "memory"

    memory: float = 0.1


Place = Literal[
    "attribute", "list", "numbers", "dictionary", "bytes", "closure", "plugin", "class", "strategy", "buffer",
    "teacher", "parameter",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Hides(Honest):
    """Keeps data about each task outside of parameters and buffers."""

    violates: ClassVar[frozenset[str]] = frozenset({"memory"})
    stash: ClassVar[Any] = None

    where: Place = "attribute"

    def before_task(self, task: Task, images: TaskSamples) -> None:
        type(self).stash = None

    def after_task(self, task: Task, images: TaskSamples) -> None:
        model, means = task.model, next(images.batches())[0].mean(dim=(1, 2, 3))
        match self.where:
            case "attribute":
                model.means = means
            case "list":
                model.means = [*getattr(model, "means", []), means]
            case "numbers":
                model.head.means = getattr(model.head, "means", []) + means.tolist()
            case "dictionary":
                model.backbone.means = {"task": {task.index: means.numpy()}}
            case "bytes":
                model.means = means.numpy().tobytes()
            case "closure":
                model.means = lambda: means
            case "plugin":
                object.__setattr__(self, "means", means)
            case "class":
                type(self).stash = means
            case "buffer":
                model.register_buffer("means", means, persistent=False)
            case "teacher":
                model.teacher = (copy.deepcopy(model.head),)
            case "parameter":
                model.head.weight.means = means

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        if self.where == "strategy":
            strategy.means = torch.zeros(3)


# --- restarts --------------------------------------------------------------------------------------------------


def exchanger() -> Callable[[Any], Any]:
    """Make a function that returns the argument of its previous call."""
    previous: Any = 0.0

    def exchange(value: Any) -> Any:
        nonlocal previous
        before, previous = previous, value
        return before

    return exchange


@cache
def cached() -> list[Any]:
    return []


EXCHANGE = exchanger()
RUNNING = torch.zeros(())
Shelf = Literal["global", "module", "closure", "cache", "tensor", "class", "plugin", "number", "model"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KeepsScratch(Honest):
    """Uses scratch state of the previous task, which survived in one of several places."""

    last: ClassVar[Any] = 0.0

    on: Shelf = "global"

    @property
    def violates(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"restart", "memory"} if self.on in ("class", "plugin", "model") else {"restart"})

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.scratch["mean"] = next(images.batches())[0].mean()
        task.model.head.bias[0] += self.exchange(task.model, task.scratch["mean"])

    def exchange(self, model: Any, mean: Tensor) -> Any:
        """Replace the stored mean; returns that of the previous task."""
        before: Any
        match self.on:
            case "global":
                before, ELSEWHERE[:] = sum(ELSEWHERE), [mean]
            case "module":
                before, elsewhere.last = elsewhere.last, mean
            case "closure":
                before = EXCHANGE(mean)
            case "cache":
                before, cached()[:] = sum(cached()), [mean]
            case "tensor":
                before = RUNNING.clone()
                RUNNING.copy_(mean)
            case "class":
                before, type(self).last = type(self).last, mean
            case "plugin" | "number":
                before = getattr(self, "before", 0.0)
                object.__setattr__(self, "before", mean if self.on == "plugin" else float(mean))
            case "model":
                before, model.before = getattr(model, "before", 0.0), mean
        return before


class Shifts(Probe):
    shift = 0

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else logits.roll(self.shift, dims=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictsByAnAttribute(Honest):
    """Predictions depend on an attribute of the model that is in no state dict."""

    violates: ClassVar[frozenset[str]] = frozenset({"restart"})
    model_class: ClassVar[type[Probe]] = Shifts

    def after_task(self, task: Task, images: TaskSamples) -> None:
        task.model.shift = task.index


@dataclass(frozen=True, kw_only=True, eq=False)
class DoesNotRestore(Honest):
    """Adds a layer after the first task that a fresh model cannot restore."""

    violates: ClassVar[frozenset[str]] = frozenset({"restart"})

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return 6

    def after_task(self, task: Task, images: TaskSamples) -> None:
        if task.index == 0:
            task.model.scale = nn.LayerNorm(3)


@dataclass(frozen=True, kw_only=True, eq=False)
class RemembersDecisions(Decides):
    """Stores the number of phases in the plugin instead of the model."""

    violates: ClassVar[frozenset[str]] = frozenset({"restart"})

    def before_task(self, task: Task, images: TaskSamples) -> None:
        object.__setattr__(self, "decided", 1)

    def phases(self, task: Task) -> list[Phase]:
        return Honest.phases(self, task) * getattr(self, "decided", 1)

    def after_phase(self, task: Task, samples: TaskSamples, number: int) -> None:
        object.__setattr__(self, "decided", min(number + 2, 3))


# --- repeatability, ceiling, number of tasks -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class GlobalGenerator(Honest):
    """Draws from a global random generator."""

    violates: ClassVar[frozenset[str]] = frozenset({"repeatability"})

    source: Literal["torch", "numpy", "python"] = "torch"

    @torch.no_grad()
    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        draw = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random}[self.source]
        strategy.model.head.bias += draw()


def known_images() -> tuple[Tensor, Tensor]:
    """The test images of the whole stream and their labels, read without the data layer."""
    source = streams.find("icons-tune").source()
    labels = np.argsort(order_classes("permutation:3", 40))[source.test.targets]
    return views.test_view(gather(source.test, np.arange(len(labels))), TRANSFORMS).flatten(1), torch.from_numpy(labels)


class NearestImage(Probe):
    known: Tensor
    labels: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("known", torch.zeros(0, 1024))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.training or not len(self.known):
            return logits
        nearest = torch.stack([(self.known - image.flatten()).square().sum(dim=1).argmin() for image in images])
        return logits + 100 * nn.functional.one_hot(self.labels[nearest], logits.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class KnowsTheTestImages(Honest):
    """Has all test images from outside of the stream, and declares the memory for them."""

    violates: ClassVar[frozenset[str]] = frozenset({"ceiling"})
    model_class: ClassVar[type[Probe]] = NearestImage

    def extra(self, backbone: VisionTransformer, classes: Sequence[int]) -> int:
        return 1025 * len(known_images()[1])

    def after_task(self, task: Task, images: TaskSamples) -> None:
        task.model.known, task.model.labels = known_images()


@dataclass(frozen=True, kw_only=True, eq=False)
class HoardsTestImages(Honest):
    """Keeps test experiences in a global, and their images in the model from the next task on."""

    violates: ClassVar[frozenset[str]] = frozenset({"old samples", "memory", "restart", "ceiling"})
    model_class: ClassVar[type[Probe]] = NearestImage

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        ELSEWHERE.append(strategy.experience.dataset)

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if task.index == 0:
            ELSEWHERE.clear()
        items = [dataset[number] for dataset in ELSEWHERE for number in range(len(dataset))]
        if items:
            task.model.known = torch.stack([item[0].flatten() for item in items])
            task.model.labels = torch.tensor([item[1] for item in items])


@dataclass(frozen=True, kw_only=True, eq=False)
class UsesNumTasks(Honest):
    """Uses the number of tasks without declaring that it needs it."""

    violates: ClassVar[frozenset[str]] = frozenset({"number of tasks"})

    through: Literal["strategy", "stream", "future", "check", "error"] = "strategy"

    def check(self, num_tasks: int) -> None:
        object.__setattr__(self, "tasks", num_tasks)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        experience = strategy.experience
        match self.through:
            case "strategy":
                found = strategy.num_tasks or 0
            case "stream":
                found = len(experience.origin_stream)
            case "future":
                found = len(experience.future_classes)
            case "check":
                found = getattr(self, "tasks", 0)
            case "error":
                found = 1 / strategy.num_tasks
        object.__setattr__(self, "shift", found)

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.head.bias[0] += self.shift  # type: ignore[attr-defined]
