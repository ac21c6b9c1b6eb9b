"""Sequential LoRA: one low-rank update, trained on all tasks in turn with nothing against forgetting.

The floor of the LoRA family. Published under this name with various targets, heads and masks (InfLoRA's, SD-LoRA's
and LoRA-P&M's tables); here q and v, one head, and the masked loss, all of them fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cl_bench.adapters.lora import LoRAModel, Target
from cl_bench.data.samples import TaskImages
from cl_bench.method import GradientMethod, Phase, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class SeqLoRA(GradientMethod):
    """Hyper-parameters.

    Attributes:
        rank: r of the update.
        targets: updated projections.
    """

    paper: ClassVar[str] = "sequential LoRA (floor)"

    rank: PositiveInt = 10
    targets: tuple[Target, ...] = ("q", "v")

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        return LoRAModel(backbone, num_classes, self.targets, self.rank)

    def before_task(self, task: Task, images: TaskImages) -> None:
        if not len(task.model.bank):
            task.model.grow(self.rank, task.generator("direction"))

    def phases(self, task: Task) -> list[Phase]:
        trained = [*task.model.bank.direction(-1), *task.model.head.parameters()]
        return [self.phase([{"params": trained}], self.cross_entropy(task))]
