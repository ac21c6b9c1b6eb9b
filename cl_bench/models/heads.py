"""Heads of fixed size, and the model that every method with a head builds on: features of an image, and a head."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.models.growing import Growing
from cl_bench.models.statistics import ClassStatistics, Covariance
from cl_bench.models.vit import cls_features


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


class FeatureModel(Growing):
    """A backbone, features of each image made with it, and a head on them: [B, C, H, W] -> logits [B, num_classes].

    With classifier alignment it also keeps statistics of each class's features. If the trained head is to go on from
    where it was, there is a second one, `aligned`: it predicts, `head` is trained.
    """

    statistics: ClassStatistics | None
    aligned: nn.Linear | None

    def __init__(self, backbone: VisionTransformer, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.statistics = None
        self.aligned = None

    def keep_statistics(self, covariance: Covariance, aligned: bool) -> None:
        """Make room for class statistics and, if `aligned`, for the second head."""
        assert isinstance(self.head, nn.Linear)
        self.statistics = ClassStatistics(self.head.in_features, covariance)
        self.aligned = copy.deepcopy(self.head) if aligned else None

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.head.parameters()).device

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, [B, d]: here the CLS features of the backbone."""
        return cls_features(self.backbone, images)

    def own_features(self, images: Tensor) -> Tensor:
        """The same for images that are known to be the current task's: what class statistics are made of."""
        return self.features(images)

    @property
    def predicting_head(self) -> nn.Module:
        """The aligned head, if there is one."""
        return self.head if self.aligned is None else self.aligned

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features: by the trained head while it is trained, else by the predicting one."""
        return (self.head if self.training else self.predicting_head)(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


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
