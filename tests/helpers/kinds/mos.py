"""MOS: an adapter that goes on from task to task and is merged with its earlier selves, all of which predict.

Zhou, Sun, Ye and Zhan, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning" (AAAI 2025, arXiv
2412.09441); checked against sun-hailong/AAAI25-MOS @ 8d5e07c. One adapter a is trained through all tasks, with a linear
head, by masked cross-entropy and a term that keeps features apart. In task t > 1 each optimiser step is followed by

    a <- (1 - m) a + m (a_1 + ... + a_(t-1)) / (t - 1),          m = 0.1,

where a_k is the copy of a that was stored after task k. Then the head is aligned on features drawn from Gaussians.
Prototypes are class means of f_1, the features under a_1. After t tasks a prediction takes t backbone passes:

    p(x) = softmax(head(f_i(x))) + softmax(t cos(f_1(x), prototypes)),

where i is the task that the prototypes predict, replaced by the task that head(f_i(x)) predicts until these agree.

The released program also merges before each block of each pass, in training and at test, whatever adapter the pass
uses (merge = released): what has been predicted before then changes what is predicted.

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
"""The head's share of the learning rate."""
LOOK_UPS = 4
"""How often a prediction may ask the adapter of the task that it predicts."""


def self_similarity(rows: Tensor) -> Tensor:
    """Cross-entropy of R R^T / 0.8 against the identity: small if each row [n, d] is most similar to itself."""
    return nn.functional.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows), device=rows.device))


class MOSModel(FeatureModel):
    """The adapter that is trained (`running`), its copy after each task (`stored`), and prototypes under the first.

    Args:
        momentum: share of the earlier adapters' mean in a merge.
        in_passes: every pass merges the adapter that it uses, before each block (merge = released). Further copies,
            `drifting`, then predict, since merges go on towards the mean of those that were stored.
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
        """Pull adapters towards the mean of the first so many stored ones, in place."""
        if earlier:
            for own, *others in zip(*(a.parameters() for a in (adapters, *self.stored[:earlier])), strict=True):
                own.lerp_(torch.stack(others).mean(dim=0), self.momentum)

    def adapted(self, images: Tensor, adapters: Adapters, earlier: int) -> Tensor:
        """Features [B, d] with adapters that come after so many stored ones."""
        if not self.in_passes:
            return adapters.features(self.vit, images)
        weights = {}
        for number, block in enumerate(adapters.blocks):
            self.merge(adapters, earlier)
            # Copies, as what this block uses is changed before the next one; gradients go through.
            weights[number] = tuple(weight.clone() for weight in block.weights())
        return self.vit.features(images, parallel=weights)

    def features(self, images: Tensor) -> Tensor:
        return self.adapted(images, self.running, len(self.stored))

    def own_features(self, images: Tensor) -> Tensor:
        # After the task, when the last stored one is a copy of these.
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
        """Probabilities, of two predictions in sum, [B, num_classes] from features with each stored adapter [B, t, d].

        A prediction is made with the adapter of the task that the prototypes choose, and again with that of the task
        which it falls into, until it stays there or four have been made.
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
    """With statistics from passes over a class each, 3 training batches at a time: if passes merge, it matters."""

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
        rank: of the adapters.
        merge_momentum: share of the earlier adapters' mean in a merge.
        merge: after every optimiser `step`, as the paper says; as `released` also before each block in every pass, at
            test too, for good: adapters are then hardly trained, and predictions depend on how many there were.
        similarity: weight of the term that keeps features apart from those of the batch and from old class means.
        align_epochs, align_lr: of the classifier alignment after each task but the first (SGD, cosine), with 5
            `batch_size` features per class.
        covariance: what is kept of each class's covariance.
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
        for kept in (model.stored, model.drifting) if model.in_passes else (model.stored,):
            kept.grow().load_state_dict(model.running.state_dict())
        model.prototypes.update(*samples.collect(partial(model.adapted, adapters=model.stored[0], earlier=0)))
