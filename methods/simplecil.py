"""SimpleCIL: nearest class mean of frozen features, the floor that every method must beat.

Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models" (IJCV 2024, arXiv 2303.07338); checked
against LAMDA-CL/LAMDA-PILOT @ 5240714.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.adapters.heads import CosinePrototypes
from cl_bench.data.samples import TaskImages
from cl_bench.method import Method, Task


class PrototypeClassifier(nn.Module):
    """Cosine similarity of the frozen feature to each class mean."""

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = CosinePrototypes(backbone.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


@dataclass(frozen=True, kw_only=True, eq=False)
class SimpleCIL(Method):
    """No hyper-parameters."""

    paper: ClassVar[str] = "SimpleCIL (IJCV 2024, arXiv 2303.07338)"
    stores: ClassVar[str] = "one mean per class"

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        return PrototypeClassifier(backbone, num_classes)

    def after_task(self, task: Task, images: TaskImages) -> None:
        """mu_c = mean of the features of class c in the test view, not normalised before averaging."""
        model = task.model
        features, labels = (
            torch.cat(part) for part in zip(*((model.backbone(x), y) for x, y in images.batches()), strict=True)
        )
        for label in task.classes:
            model.head.prototypes[label] = features[labels == label].mean(dim=0)
