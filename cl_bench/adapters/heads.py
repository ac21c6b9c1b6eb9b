"""Classification heads of fixed size, and the plain classifier made of a backbone and a head."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def linear_head(dim: int, num_classes: int) -> nn.Linear:
    """A linear head with bias, as PILOT and SD-LoRA start it: weights U(-sqrt(3/dim), sqrt(3/dim)), bias 0.

    It has its full size from the start (classes not seen yet are masked by the caller): without weight decay, a row
    that never gets a gradient is the same as one that is added later.
    """
    head = nn.Linear(dim, num_classes)
    nn.init.uniform_(head.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))
    nn.init.zeros_(head.bias)
    return head


class Classifier(nn.Module):
    """A backbone with a linear head on its CLS feature: [B, C, H, W] -> logits [B, num_classes]."""

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = linear_head(backbone.num_features, num_classes)

    def parameter_groups(self, lr: float, backbone_lr_scale: float) -> list[dict[str, Any]]:
        """Optimiser groups of the backbone and the head, each with its learning rate."""
        return [
            {"params": list(self.backbone.parameters()), "lr": lr * backbone_lr_scale},
            {"params": list(self.head.parameters()), "lr": lr},
        ]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class CosinePrototypes(nn.Module):
    """Cosine similarity to one prototype per class, [B, dim] -> [B, num_classes]; classes without one give 0."""

    prototypes: Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(num_classes, dim))

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features, dim=1) @ nn.functional.normalize(self.prototypes, dim=1).T
