"""Distilled: keeps a teacher, old class means and a running mean of features in the scratch state of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench import Classifier, FeatureModel, GradientMethod, Phase, Task, TaskSamples


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled(GradientMethod):
    """Trains the final norm and the head, and keeps the features close to those before the task.

    The teacher is a copy of the model from before the task. One loss term compares features with those of the teacher,
    another with the class means under it, both centred by a running mean of the features in the task. Neither teacher,
    class means nor running mean is stored.
    """

    paper: ClassVar[str] = "an example of scratch tensors"

    epochs: PositiveInt = 2
    batch_size: PositiveInt = 16

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Classifier(backbone.requires_grad_(False), num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"head": num_classes * (int(backbone.num_features) + 1), "norm": 2 * int(backbone.num_features)}

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        task.scratch.keep("teacher", task.model)
        features, labels = samples.collect(task.model.features)
        means = torch.zeros(task.num_classes, features.shape[1], device=features.device)
        for label in labels.unique():
            means[label] = features[labels == label].mean(dim=0)
        task.scratch["means"] = means
        task.scratch["running"] = torch.zeros_like(means[0])

    def phases(self, task: Task) -> list[Phase]:
        model, scratch, cross_entropy = task.model, task.scratch, self.cross_entropy(task)

        def forward(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            features = model.features(images)
            return model.head(features), features, scratch.call("teacher", model, images, method="features")

        def loss(outputs: tuple[Tensor, Tensor, Tensor], labels: Tensor) -> Tensor:
            logits, features, old = outputs
            with torch.no_grad():
                scratch["running"].lerp_(features.mean(dim=0), 0.1)
            distillation = (features - old).square().mean(dim=1)
            centred = (features - scratch["running"]) - (scratch["means"][labels] - scratch["running"])
            return cross_entropy(logits, labels) + distillation + 0.1 * centred.square().mean(dim=1)

        return [self.phase([{"params": [*model.head.parameters(), *model.backbone.norm.parameters()]}], loss, forward)]
