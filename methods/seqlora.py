"""Sequential LoRA: one low-rank update, trained on one task after the other, without any protection from forgetting.

The floor of the LoRA family. Tables of InfLoRA, SD-LoRA and LoRA-P&M use the name for various targets, heads and
masks; the defaults here are q and v, one head, and the masked loss, all of which are fields.
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
    """Hyper-parameters of the one low-rank update."""

    paper: ClassVar[str] = "sequential LoRA (floor)"
    citations: ClassVar[tuple[str, ...]] = ("hu2022lora",)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return super().storage(backbone, num_classes, classes[:1])

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if not len(task.model.bank):
            super().before_task(task, images)
