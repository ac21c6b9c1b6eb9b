"""Contrasted: a loss that couples the samples of a batch, and a learning-rate schedule registered by the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench import Classifier, FeatureModel, GradientMethod, Phase, Task
from cl_bench.contract import schedules
from cl_bench.contract.schedules import Schedule


@schedules.register("warm-up")
def warm_up(method: Any, epoch: int, epochs: int) -> float:
    """Factor of the learning rate: linear from 1 / epochs to 1."""
    return (epoch + 1) / epochs


def triplets(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss on the unit sphere: mean of relu(margin + farthest of own class - nearest of another)."""
    units = torch.nn.functional.normalize(features, dim=1)
    distances = (2 - 2 * units @ units.T).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    farthest = distances.masked_fill(~same, 0).amax(dim=1)
    nearest = distances.masked_fill(same, float("inf")).amin(dim=1)
    return (margin + farthest - nearest.clamp_max(4)).relu().mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrasted(GradientMethod):
    """Hyper-parameters.

    Attributes:
        margin: margin of the triplet loss.
    """

    paper: ClassVar[str] = "an example of a loss that couples a batch"

    epochs: PositiveInt = 2
    batch_size: PositiveInt = 16
    schedule: Schedule = "warm-up"
    margin: NonNegativeFloat = 0.5

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Classifier(backbone.requires_grad_(False), num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"head": num_classes * (int(backbone.num_features) + 1), "norm": 2 * int(backbone.num_features)}

    def phases(self, task: Task) -> list[Phase]:
        model, cross_entropy = task.model, self.cross_entropy(task)

        def forward(images: Tensor) -> tuple[Tensor, Tensor]:
            features = model.features(images)
            return model.head(features), features

        def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
            logits, features = outputs
            return cross_entropy(logits, labels).mean() + triplets(features, labels, self.margin)

        return [self.phase([{"params": [*model.head.parameters(), *model.backbone.norm.parameters()]}], loss, forward)]
