"""Sequential LoRA: one low-rank update, trained on all tasks in turn with nothing against forgetting.

The floor of the LoRA family. Published under this name with various targets, heads and masks (InfLoRA's, SD-LoRA's
and LoRA-P&M's tables); here q and v, one head, and the masked loss, all of them fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples

from .inclora import IncLoRA


@dataclass(frozen=True, kw_only=True, eq=False)
class SeqLoRA(IncLoRA):
    """Rank and targets of the one update."""

    paper: ClassVar[str] = "sequential LoRA (floor)"
    citations: ClassVar[tuple[str, ...]] = ("hu2022lora",)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return super().storage(backbone, num_classes, classes[:1])

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if not len(task.model.bank):
            super().before_task(task, images)
