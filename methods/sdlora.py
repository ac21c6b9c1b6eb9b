"""SD-LoRA: scalable decoupled low-rank adaptation (Wu et al., ICLR 2025, arXiv 2501.13198).

The released semantics, checked against WuYichen-97/SD-Lora-CL @ 8bacded. With A_k [r, d], B_k [d, r] on q and v of
every block, the weights at task t are

    W = W_0 + sum_{k<t} a_k B_k A_k / (||B_k||_F ||A_k||_F) + a_t B_t A_t

where the paper (Eq. 4) divides every direction, the current one included, by ||B_k A_k||_F. One magnitude a_k per
task is shared by all projections; all magnitudes start anew with each task and are trained with the current
direction and the head; earlier directions are frozen. Only the current task's classes compete in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.adapters.heads import linear_head
from cl_bench.adapters.lora import LoRABank
from cl_bench.data.samples import TaskImages
from cl_bench.experiment import Scalar
from cl_bench.method import GradientMethod, Phase, Task, masked_cross_entropy


class SDLoRAModel(nn.Module):
    """The backbone with magnitudes times directions on q and v, and a linear head."""

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.directions = LoRABank(backbone, ("q", "v"))
        self.magnitudes = nn.ParameterList()
        self.head = linear_head(backbone.num_features, num_classes)

    def grow(self, rank: int, magnitude: float, generator: torch.Generator) -> None:
        """Start a task: a new direction, and all magnitudes back at their initial value."""
        self.directions.grow(rank, generator)
        device = self.head.weight.device
        count = len(self.directions.A)
        self.magnitudes = nn.ParameterList(nn.Parameter(torch.tensor(magnitude, device=device)) for _ in range(count))

    def update(self) -> Tensor:
        """The change of the weights, [blocks, 2, d, d]: raw for the current direction, normalised for the others."""
        with torch.no_grad():
            norms = self.directions.factor_norms()
            norms[-1] = 1
        magnitudes = torch.stack(list(self.magnitudes))
        return self.directions.update(magnitudes[:, None, None] / norms)

    def forward(self, images: Tensor) -> Tensor:
        if not len(self.magnitudes):
            return self.head(self.backbone(images))
        return self.head(self.directions.features(self.backbone, self.update(), images))


@dataclass(frozen=True, kw_only=True, eq=False)
class SDLoRA(GradientMethod):
    """Hyper-parameters; the defaults are the released ones for ImageNet-R.

    Attributes:
        rank: r of every direction.
        magnitude: a_k at the start of each task (the paper says 1, the released code 0.8).
    """

    paper: ClassVar[str] = "SD-LoRA (ICLR 2025, arXiv 2501.13198)"

    rank: PositiveInt = 10
    magnitude: PositiveFloat = 0.8
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        return SDLoRAModel(backbone, num_classes)

    def before_task(self, task: Task, images: TaskImages) -> None:
        task.model.grow(self.rank, self.magnitude, task.generator("direction"))

    def phases(self, task: Task) -> list[Phase]:
        model = task.model
        current = [model.directions.A[-1], model.directions.B[-1]]
        parameters = [*current, *model.magnitudes, *model.head.parameters()]
        return [self.phase([{"params": parameters}], masked_cross_entropy(task.classes, task.num_classes))]

    def traces(self, task: Task) -> dict[str, list[dict[str, Scalar]]]:
        """The learned magnitudes (Figures 3 and 6 of the paper)."""
        values = enumerate(float(value.detach()) for value in task.model.magnitudes)
        return {"magnitudes": [{"stage": task.index, "direction": k, "value": value} for k, value in values]}
