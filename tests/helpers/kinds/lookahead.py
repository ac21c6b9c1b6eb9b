"""Lookahead: a custom training step with two optimisers, at shifted parameters, on halves of the batch's classes.

The step is a small version of the gradient alignment of LoDA (ICML 2026, arXiv 2603.00191).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench import Classifier, FeatureModel, GradientMethod, Phase, StepBatch, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookahead(GradientMethod):
    """Hyper-parameters.

    Attributes:
        rho: length of the shift of the norm's parameters along the gradient of the other half.
        head_lr: learning rate of the head, which has a separate optimiser.
    """

    paper: ClassVar[str] = "an example of a step of one's own"

    epochs: PositiveInt = 2
    batch_size: PositiveInt = 16
    rho: NonNegativeFloat = 0.3
    head_lr: PositiveFloat = 0.05

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Classifier(backbone.requires_grad_(False), num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"head": num_classes * (int(backbone.num_features) + 1), "norm": 2 * int(backbone.num_features)}

    def phases(self, task: Task) -> list[Phase]:
        model, cross_entropy = task.model, self.cross_entropy(task)
        norm = list(model.backbone.norm.parameters())

        def loss(batch: StepBatch, chosen: Tensor) -> Tensor:
            return cross_entropy(model(batch.inputs[chosen]), batch.labels[chosen]).mean()

        def step(batch: StepBatch) -> tuple[Tensor, Tensor]:
            logits = model(batch.inputs)
            whole = cross_entropy(logits, batch.labels).mean()
            batch.update(whole, "head")
            first, second = halves(batch)
            for source, target in ((first, second), (second, first)):
                if not (source.any() and target.any()):
                    continue
                gradients = torch.autograd.grad(loss(batch, source), norm)
                shifts = [self.rho * g / g.norm().clamp_min(1e-12) for g in gradients]
                with torch.no_grad():
                    for parameter, shift in zip(norm, shifts, strict=True):
                        parameter -= shift
                batch.update(loss(batch, target))
                with torch.no_grad():
                    for parameter, shift in zip(norm, shifts, strict=True):
                        parameter += shift
            return whole, logits.detach()

        head = self.optimization([{"params": list(model.head.parameters()), "lr": self.head_lr}])
        return [self.phase([{"params": norm}], step=step, others={"head": head})]


def halves(batch: StepBatch) -> tuple[Tensor, Tensor]:
    """Masks [B] of the samples of a random half of the batch's classes, and of the other half."""
    classes = batch.labels.unique()
    order = torch.randperm(len(classes), generator=batch.generator("halves")).to(classes.device)
    first = torch.isin(batch.labels, classes[order[: len(classes) // 2]])
    return first, ~first
