"""Sparse: a hook after each optimiser step makes a proximal step on the gate of a low-rank update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import FeatureModel, GradientMethod, LoRAModel, Phase, Task, TaskSamples


class GatedLoRA(LoRAModel):
    """One direction, scaled by a trained gate per block and projection, [L, P] (as in SoRA, EMNLP 2023)."""

    def __init__(self, backbone: VisionTransformer, num_classes: int, rank: int) -> None:
        super().__init__(backbone, num_classes, ("q", "v"), rank)
        self.gate = nn.Parameter(torch.ones(self.bank.blocks, len(self.bank.targets)))

    def coefficients(self) -> Tensor:
        return self.gate.expand(len(self.bank), -1, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sparse(GradientMethod):
    """Hyper-parameters.

    Attributes:
        rank: rank of the direction.
        threshold: the proximal step moves the gate towards 0 by `threshold` * `lr`.
    """

    paper: ClassVar[str] = "an example of a hook after each optimiser step"

    epochs: PositiveInt = 2
    batch_size: PositiveInt = 16
    rank: PositiveInt = 2
    threshold: PositiveFloat = 0.5

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return GatedLoRA(backbone, num_classes, self.rank)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        places = 2 * len(backbone.blocks)
        head = num_classes * (int(backbone.num_features) + 1)
        return {"direction": places * 2 * self.rank * int(backbone.embed_dim), "gate": places, "head": head}

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        if task.index == 0:
            task.model.grow(self.rank, task.generator("direction"))

    def phases(self, task: Task) -> list[Phase]:
        model = task.model

        def shrink(step: int, steps: int) -> None:
            model.gate.copy_(nn.functional.softshrink(model.gate, self.threshold * self.lr))

        trained = [model.gate, *model.bank.direction(0), *model.head.parameters()]
        return [self.phase([{"params": trained}], self.cross_entropy(task), after_step=shrink)]
