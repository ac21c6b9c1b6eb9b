"""MOS: one adapter trained through all tasks and merged with its earlier copies, all of which predict.

Zhou, Sun, Ye and Zhan, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning" (AAAI 2025, arXiv
2412.09441); checked against sun-hailong/AAAI25-MOS @ 8d5e07c. One adapter a is trained through all tasks, with a linear
head, by masked cross-entropy and a term that keeps features apart. In task t > 1 each optimiser step is followed by

    a <- (1 - m) a + m (a_1 + ... + a_(t-1)) / (t - 1),          m = 0.1,

where a_k is the copy of a that was stored after task k. Then the head is aligned on features drawn from Gaussians.
Prototypes are class means of f_1, the features under a_1. After t tasks a prediction takes t backbone passes:

    p(x) = softmax(head(f_i(x))) + softmax(t cos(f_1(x), prototypes)),

where i is the task that the prototypes predict, replaced by the task that head(f_i(x)) predicts until these agree.

The released program also merges the adapter in use before each block of each pass, in training and at test (merge =
released), so that predictions depend on earlier predictions.

Left out: dropout inside the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import (
    Adapters,
    Alignment,
    ClassStatistics,
    CosinePrototypes,
    FeatureModel,
    GrowingModules,
    Phase,
    Task,
    TaskSamples,
)
from cl_bench.contract.gradient import Descent
from cl_bench.contract.part import Part
from cl_bench.contract.schedules import Schedule
from cl_bench.experiment import Scenario
from cl_bench.models.statistics import Covariance

Merge = Literal["step", "released"]
HEAD_LR = 0.1
"""Factor of the learning rate for the head."""
LOOK_UPS = 4
"""Largest number of adapters that a prediction tries."""


def self_similarity(rows: Tensor) -> Tensor:
    """Cross-entropy of R R^T / 0.8 against the identity: small if each row [n, d] is most similar to itself."""
    return nn.functional.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows), device=rows.device))


class MOSModel(FeatureModel):
    """The adapter being trained (`running`), its copy after each task (`stored`), and prototypes under the first copy.

    Args:
        momentum: share of the mean of the earlier adapters in a merge.
        in_passes: whether every pass merges its adapter before each block (merge = released). Predictions then use
            further copies, `drifting`, because these merges move adapters towards the mean of the stored ones.
    """

    statistics: ClassStatistics

    def __init__(
        self, backbone: VisionTransformer, num_classes: int, rank: int, momentum: float, in_passes: bool
    ) -> None:
        head = nn.Linear(backbone.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        super().__init__(backbone, head)
        self.momentum, self.in_passes = momentum, in_passes
        self.running = Adapters(backbone, rank)
        self.stored = GrowingModules(partial(Adapters, backbone, rank))
        self.drifting = GrowingModules(partial(Adapters, backbone, rank))
        self.prototypes = CosinePrototypes(backbone.num_features, num_classes)

    @torch.no_grad()
    def merge(self, adapters: Adapters, earlier: int) -> None:
        """Move adapters towards the mean of the first `earlier` stored ones, in place."""
        if earlier:
            for own, *others in zip(*(a.parameters() for a in (adapters, *self.stored[:earlier])), strict=True):
                own.lerp_(torch.stack(others).mean(dim=0), self.momentum)

    def adapted(self, images: Tensor, adapters: Adapters, earlier: int) -> Tensor:
        """Features [B, d] with adapters that have `earlier` stored predecessors."""
        if not self.in_passes:
            return adapters.features(self.vit, images)
        weights = {}
        for number, block in enumerate(adapters.blocks):
            self.merge(adapters, earlier)
            # Differentiable copies, because the next merge changes the weights in place.
            weights[number] = tuple(weight.clone() for weight in block.weights())
        return self.vit.features(images, parallel=weights)

    def features(self, images: Tensor) -> Tensor:
        return self.adapted(images, self.running, len(self.stored))

    def own_features(self, images: Tensor) -> Tensor:
        # Called after the task, when the last stored adapter is a copy of the running one.
        return self.adapted(images, self.running, len(self.stored) - 1)

    def features_of_all(self, images: Tensor) -> Tensor:
        """Features [B, t, d] with the adapter of each task."""
        adapters = self.drifting if self.in_passes else self.stored
        return torch.stack([self.adapted(images, each, i) for i, each in enumerate(adapters)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        if self.training or not len(self.stored):
            return self.head(self.features(images))
        return self.predict(self.features_of_all(images))

    def predict(self, features: Tensor) -> Tensor:
        """Sums of two predicted distributions [B, num_classes], from features with each stored adapter [B, t, d].

        One is that of the prototypes. The other is that of the head with the adapter of the task that the prototypes
        predict; it is repeated with the adapter of the task that the head predicts until these agree, at most four
        times.
        """
        seen, tasks = self.statistics.labels, self.statistics.tasks
        cosines, logits = self.prototypes(features[:, 0])[:, seen], self.head(features)[:, :, seen]
        chosen, following = tasks[cosines.argmax(dim=1)], tasks[logits.argmax(dim=2)]
        for _ in range(LOOK_UPS - 1):
            chosen = following.gather(1, chosen[:, None])[:, 0]
        refined = logits[torch.arange(len(chosen), device=chosen.device), chosen]
        both = refined.softmax(dim=1) + (len(self.stored) * cosines).softmax(dim=1)
        return both.new_zeros(len(both), self.head.out_features).index_copy(1, seen, both)


class ClassByClass(Alignment):
    """Alignment with class statistics from separate passes per class, whose order matters if passes merge adapters.

    Each batch has 3 times the size of a training batch.
    """

    def collect(self, model: FeatureModel, samples: TaskSamples) -> tuple[Tensor, Tensor]:
        classes = samples.samples.labels.unique().tolist()
        found = [
            replace(samples.of_class(label), batch_size=3 * self.samples // 5).collect(model.own_features)
            for label in classes
        ]
        features, labels = zip(*found, strict=True)
        return torch.cat(features), torch.cat(labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class MOS(Descent):
    """Hyper-parameters.

    Attributes:
        rank: rank of the adapters.
        merge_momentum: share of the mean of the earlier adapters in a merge.
        merge: `step` merges after every optimiser step, as in the paper. `released` also merges, permanently, before
            each block in every pass, at test too: adapters then hardly learn, and predictions depend on the number of
            earlier ones.
        similarity: weight of the term that separates features from those of the batch and from old class means.
        align_epochs, align_lr: epochs and learning rate of the classifier alignment after each task but the first (SGD,
            cosine), with 5 * `batch_size` features per class.
        covariance: the part of each class's covariance that is stored.
    """

    paper: ClassVar[str] = "MOS (AAAI 2025, arXiv 2412.09441)"
    stores: ClassVar[str] = "an adapter per task, a Gaussian and a prototype per class"
    forward_passes: ClassVar[int | str] = "one per task"
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental",)

    batch_size: PositiveInt = 48
    lr: PositiveFloat = 0.03
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Schedule = "cosine"
    rank: PositiveInt = 16
    merge_momentum: Annotated[float, Field(ge=0, le=1)] = 0.1
    merge: Merge = "step"
    similarity: NonNegativeFloat = 0.1
    align_epochs: PositiveInt = 30
    align_lr: PositiveFloat = 0.005
    covariance: Covariance = "full"

    @property
    def stateful_prediction(self) -> bool:
        return self.merge == "released"

    @property
    def parts(self) -> tuple[Part, ...]:
        kind = Alignment if self.merge == "step" else ClassByClass
        alignment = kind(
            epochs=self.align_epochs,
            lr=self.align_lr,
            weight_decay=self.weight_decay,
            samples=5 * self.batch_size,
            covariance=self.covariance,
            temperature=None,
            shrink=0.0,
            restore=False,
        )
        return (alignment,)

    def passes(self, tasks: int) -> int:
        return tasks

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        backbone.requires_grad_(False)
        return MOSModel(backbone, num_classes, self.rank, self.merge_momentum, self.merge == "released")

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim, rank = int(backbone.embed_dim), self.rank
        copies = 1 + len(classes) * (2 if self.merge == "released" else 1)
        return {
            "adapters": copies * len(backbone.blocks) * (2 * rank * dim + rank + dim),
            "head": num_classes * (dim + 1),
            "prototypes": num_classes * (dim + 1),
        }

    def phases(self, task: Task) -> list[Phase]:
        model, cross_entropy = task.model, self.cross_entropy(task)

        def forward(images: Tensor) -> tuple[Tensor, Tensor]:
            features = model.features(images)
            return model.head(features), features

        def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
            logits, features = outputs
            rows = torch.cat([model.statistics.means, features])
            return cross_entropy(logits, labels).mean() + self.similarity * self_similarity(rows)

        def merge(step: int, steps: int) -> None:
            model.merge(model.running, task.index)

        groups = [
            {"params": list(model.running.parameters())},
            {"params": list(model.head.parameters()), "lr": HEAD_LR * self.lr},
        ]
        return [self.phase(groups, loss, forward, after_step=merge)]

    def after_task(self, task: Task, samples: TaskSamples) -> None:
        model = task.model
        for copies in (model.stored, model.drifting) if model.in_passes else (model.stored,):
            copies.grow().load_state_dict(model.running.state_dict())
        model.prototypes.update(*samples.collect(partial(model.adapted, adapters=model.stored[0], earlier=0)))
