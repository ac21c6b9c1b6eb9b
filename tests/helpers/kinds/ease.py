"""EASE: an adapter per task, and prototypes of all classes in the subspaces of all adapters.

Zhou et al., "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning" (CVPR 2024, arXiv
2403.12030); checked against sun-hailong/CVPR24-Ease @ 6d67508. Task t trains a new adapter, together with a cosine
head for its own classes, which is discarded afterwards. Then the adapter is frozen. With f_j(x), the features of
adapter j,

    P[c, j] = mean of f_j over the training images of c          for classes c of task t and j <= t.

For a class of an old task o there are no images left for a newer adapter. Its prototype under adapter j is synthesised
from the classes N of all tasks from j on, weighted by its similarity to them under its own adapter:

    P[c, j] = sum over n in N of softmax_n(cos(P[c, o], P[n, o])) P[n, j]          for j > o.

A prediction uses the features of all adapters, which takes a backbone pass per adapter:

    logit of c = cos(f_o(x), P[c, o]) + alpha / (tasks - 1) * sum over the other j of cos(f_j(x), P[c, j]).

Left out: dropout inside the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize, one_hot, pad

from cl_bench import (
    Adapters,
    CosineHead,
    FeatureModel,
    GradientMethod,
    Growing,
    GrowingModules,
    Phase,
    Task,
    TaskSamples,
)
from cl_bench.contract.schedules import Schedule
from cl_bench.experiment import Scenario


def cosine(rows: Tensor, others: Tensor) -> Tensor:
    """Cosines [n, m] of rows [n, d] with others [m, d]; rows of zeros give 0."""
    return normalize(rows, dim=1) @ normalize(others, dim=1).T


class Prototypes(Growing):
    """A prototype of each class in each of the S subspaces, [B, S d] -> [B, num_classes].

    Attributes:
        prototypes: shape [num_classes, S, d]; zeros where there is none.
        own: index of the subspace of the class's own task, shape [num_classes].
    """

    prototypes: Tensor
    own: Tensor

    def __init__(self, dim: int, num_classes: int, alpha: float, beta: float | None, reweighted: bool) -> None:
        super().__init__()
        self.alpha, self.beta, self.reweighted = alpha, beta, reweighted
        self.register_buffer("prototypes", torch.zeros(num_classes, 0 if beta is None else 1, dim))
        self.register_buffer("own", torch.zeros(num_classes, dtype=torch.int64))

    def grow(self) -> None:
        """Add a subspace."""
        self.prototypes = pad(self.prototypes, (0, 0, 0, 1))

    def forward(self, features: Tensor) -> Tensor:
        if not self.reweighted:
            return cosine(features, self.prototypes.flatten(1))
        units = normalize(features.unflatten(1, self.prototypes.shape[1:]), dim=2)
        cosines = torch.einsum("bsd,csd->bcs", units, normalize(self.prototypes, dim=2))
        subspaces = cosines.shape[2]
        others = subspaces - (1 if self.beta is None else 2)
        weights = torch.full_like(cosines[0], self.alpha / max(others, 1))
        if self.beta is not None:
            weights[:, 0] = self.beta
        weights.masked_fill_(one_hot(self.own, subspaces).bool(), 1)
        return (cosines * weights).sum(dim=2)

    def synthesise(self, seen: Sequence[int], once: bool) -> None:
        """Synthesise the prototypes of classes in subspaces of later tasks.

        Args:
            seen: labels of all classes so far.
            once: whether to synthesise only in the newest subspace.
        """
        classes = torch.tensor(seen, device=self.own.device)
        own, subspaces = self.own[classes], self.prototypes.shape[1]
        for o in own.unique().tolist():
            old = classes[own == o]
            for j in range(max(o + 1, subspaces - 1) if once else o + 1, subspaces):
                newer = classes[own >= j]
                alike = cosine(self.prototypes[old, o], self.prototypes[newer, o])
                self.prototypes[old, j] = alike.softmax(dim=1) @ self.prototypes[newer, j]


class EASEModel(FeatureModel):
    """Concatenated features of all adapters, preceded by those of the frozen backbone if there is a weight `beta`."""

    def __init__(self, backbone: VisionTransformer, head: Prototypes, width: int) -> None:
        super().__init__(backbone.requires_grad_(False), head)
        self.adapters = GrowingModules(lambda: Adapters(backbone, width))

    def features(self, images: Tensor) -> Tensor:
        frozen = [] if self.head.beta is None else [super().features(images)]
        return torch.cat([*frozen, *(adapter.features(self.vit, images) for adapter in self.adapters)], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class EASE(GradientMethod):
    """Hyper-parameters; the defaults are the released ones for CIFAR-100.

    Attributes:
        width: width of the adapters.
        alpha: total weight of all subspaces other than the class's own.
        beta: weight of an additional subspace, the features of the frozen backbone; None: not used.
        reweighted: use the logit above; otherwise the cosine of features and prototypes concatenated over subspaces.
        synthesis: after each task, synthesise in `all` newer subspaces again, or `once`, in the newest only.
    """

    paper: ClassVar[str] = "EASE (CVPR 2024, arXiv 2403.12030)"
    stores: ClassVar[str] = "an adapter per task, one mean per class and adapter"
    forward_passes: ClassVar[int | str] = "one per task"
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental",)

    width: PositiveInt = 64
    alpha: NonNegativeFloat = 0.1
    beta: NonNegativeFloat | None = None
    reweighted: bool = True
    synthesis: Literal["all", "once"] = "all"
    batch_size: PositiveInt = 48
    lr: PositiveFloat = 0.025
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Schedule = "cosine"

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        head = Prototypes(int(backbone.num_features), num_classes, self.alpha, self.beta, self.reweighted)
        return EASEModel(backbone, head, self.width)

    def passes(self, tasks: int) -> int:
        return tasks + (self.beta is not None)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim = int(backbone.num_features)
        adapter = len(backbone.blocks) * (2 * dim * self.width + self.width + dim)
        return {
            "adapters": len(classes) * adapter,
            "prototypes": num_classes * (self.passes(len(classes)) * dim + 1),
        }

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        model = task.model
        model.adapters.grow()
        model.head.grow()
        model.head.own[list(task.classes)] = model.head.prototypes.shape[1] - 1
        dim = model.head.prototypes.shape[2]
        task.scratch.keep("head", CosineHead(dim, len(task.classes)).to(model.device))

    def phases(self, task: Task) -> list[Phase]:
        model, adapter = task.model, task.model.adapters[-1]
        weight, scale = (task.scratch.trainable(f"head.{name}") for name in ("weight", "scale"))
        classes = torch.tensor(task.classes, device=weight.device)

        def forward(images: Tensor) -> Tensor:
            logits = scale * cosine(adapter.features(model.vit, images), weight)
            return logits.new_full((len(images), task.num_classes), -torch.inf).index_copy(1, classes, logits)

        return [self.phase([{"params": [*adapter.parameters(), weight, scale]}], self.cross_entropy(task), forward)]

    def after_task(self, task: Task, samples: TaskSamples) -> None:
        head = task.model.head
        features, labels = samples.collect(task.model.features)
        for label in task.classes:
            head.prototypes[label] = features[labels == label].mean(dim=0).unflatten(0, head.prototypes.shape[1:])
        head.synthesise(task.seen, self.synthesis == "once")
