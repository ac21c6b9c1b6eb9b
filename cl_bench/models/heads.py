"""Heads of fixed size: linear, cosine, class means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.models.base import FeatureModel


def linear_head(dim: int, num_classes: int) -> nn.Linear:
    """Make a linear head [B, dim] -> [B, num_classes] with the start of PILOT and SD-LoRA.

    Weights are drawn from U(-sqrt(3/dim), sqrt(3/dim)), biases are 0. The head has its full size from the start, and
    the caller masks unseen classes: without weight decay, a row that never gets a gradient equals one that is added
    later.
    """
    head = nn.Linear(dim, num_classes)
    nn.init.uniform_(head.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))
    nn.init.zeros_(head.bias)
    return head


def cosine(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine similarities [..., B, m] of rows [B, d] with others [..., m, d]; rows of zeros give 0."""
    normalize = nn.functional.normalize
    return normalize(rows, dim=-1) @ normalize(others, dim=-1).transpose(-1, -2)


class Classifier(FeatureModel):
    """A backbone with a linear head on its CLS feature: images [B, C, H, W] -> logits [B, num_classes].

    Args:
        backbone: ViT without head; its parameters stay trainable.
        num_classes: size of the head.
    """

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone, linear_head(backbone.num_features, num_classes))

    def parameter_groups(self, lr: float, backbone_lr_scale: float) -> list[dict[str, Any]]:
        """Optimiser groups of the backbone and of the head, each with its learning rate.

        Args:
            lr: learning rate of the head.
            backbone_lr_scale: factor on `lr` for the backbone.
        """
        return [
            {"params": list(self.backbone.parameters()), "lr": lr * backbone_lr_scale},
            {"params": list(self.head.parameters()), "lr": lr},
        ]


class CosinePrototypes(nn.Module):
    """Cosine similarities to class means: features [B, dim] -> [B, num_classes]; classes without images give 0.

    Attributes:
        prototypes: mean feature of each class, [num_classes, dim].
        counts: number of features in each mean, int64 [num_classes].
    """

    prototypes: Tensor
    counts: Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(num_classes, dim))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features [n, dim] with labels [n] to the running class means."""
        for label in labels.unique():
            mine = features[labels == label]
            self.counts[label] += len(mine)
            # For a new class, the factor is 1, so the prototype is exactly the mean.
            self.prototypes[label] += (mine.mean(dim=0) - self.prototypes[label]) * (len(mine) / self.counts[label])

    def forward(self, features: Tensor) -> Tensor:
        return cosine(features, self.prototypes)


class CosineHead(nn.Module):
    """A trained cosine classifier with one learned scale: [B, dim] -> [B, num_classes], as in RanPAC and PILOT."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim).uniform_(-1 / math.sqrt(dim), 1 / math.sqrt(dim)))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * cosine(features, self.weight)


def task_norm(logits: Tensor, tasks: Sequence[Tensor]) -> Tensor:
    """Mean over tasks of the norm of the task's logits, [B, C] -> [B, 1]: SLCA's logit normalisation.

    Args:
        logits: [B, C].
        tasks: labels of each task, int64 [n], on the device of the logits: lists would be copied there in every call,
            for which the host waits.
    """
    norms = [logits[:, columns].norm(dim=1) + 1e-7 for columns in tasks]
    return torch.stack(norms, dim=1).mean(dim=1, keepdim=True)
