"""Heads of fixed size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.models.base import FeatureModel


def linear_head(dim: int, num_classes: int) -> nn.Linear:
    """A linear head with bias, as PILOT and SD-LoRA start it: weights U(-sqrt(3/dim), sqrt(3/dim)), bias 0.

    It has its full size from the start (classes not seen yet are masked by the caller): without weight decay, a row
    that never gets a gradient is the same as one that is added later.
    """
    head = nn.Linear(dim, num_classes)
    nn.init.uniform_(head.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))
    nn.init.zeros_(head.bias)
    return head


def cosine(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine similarity of rows [B, d] with others [..., m, d]: [..., B, m]; rows of zeros give 0."""
    normalize = nn.functional.normalize
    return normalize(rows, dim=-1) @ normalize(others, dim=-1).transpose(-1, -2)


class Classifier(FeatureModel):
    """A backbone with a linear head on its CLS feature."""

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone, linear_head(backbone.num_features, num_classes))

    def parameter_groups(self, lr: float, backbone_lr_scale: float) -> list[dict[str, Any]]:
        """Optimiser groups of the backbone and the head, each with its learning rate."""
        return [
            {"params": list(self.backbone.parameters()), "lr": lr * backbone_lr_scale},
            {"params": list(self.head.parameters()), "lr": lr},
        ]


class CosinePrototypes(nn.Module):
    """Cosine similarity to one prototype per class, [B, dim] -> [B, num_classes]; classes without one give 0.

    `prototypes` [num_classes, dim] are means of features, `counts` [num_classes] of how many.
    """

    prototypes: Tensor
    counts: Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(num_classes, dim))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take features [n, dim] with their labels [n] into the means."""
        for label in labels.unique():
            mine = features[labels == label]
            self.counts[label] += len(mine)
            # Of a class that comes for the first time, exactly the mean.
            self.prototypes[label] += (mine.mean(dim=0) - self.prototypes[label]) * (len(mine) / self.counts[label])

    def forward(self, features: Tensor) -> Tensor:
        return cosine(features, self.prototypes)


class CosineHead(nn.Module):
    """A trained cosine classifier with one learned scale, [B, dim] -> [B, num_classes] (RanPAC's and PILOT's)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim).uniform_(-1 / math.sqrt(dim), 1 / math.sqrt(dim)))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * cosine(features, self.weight)


def task_norm(logits: Tensor, tasks: Sequence[Sequence[int]]) -> Tensor:
    """Mean over tasks of the norm of the task's logits, [B, C] -> [B, 1] (SLCA's logit normalisation)."""
    norms = [logits[:, list(columns)].norm(dim=1) + 1e-7 for columns in tasks]
    return torch.stack(norms, dim=1).mean(dim=1, keepdim=True)
