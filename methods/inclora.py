"""IncLoRA: a new low-rank direction per task, without any protection from interference.

The baseline of O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152), and the base class of methods that add
a penalty: earlier directions are frozen, all directions have the coefficient 1, and the loss is

    cross-entropy + penalty(directions)

Sequential LoRA instead shares one direction among all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.models.base import FeatureModel
from cl_bench.models.lora import LoRABank, LoRAModel, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class IncLoRA(GradientMethod):
    """Hyper-parameters.

    Attributes:
        rank: rank r of every direction.
        targets: projections that are updated.
        alpha: scale of every direction is alpha / rank, as in LoRA; none: 1. Penalties use unscaled directions.
    """

    paper: ClassVar[str] = "incremental LoRA (floor; EMNLP Findings 2023, arXiv 2310.14152)"
    citations: ClassVar[tuple[str, ...]] = ("wang2023olora", "hu2022lora")

    rank: PositiveInt = 10
    targets: tuple[Target, ...] = ("q", "v")
    alpha: PositiveFloat | None = None

    def penalty(self, bank: LoRABank) -> Tensor | None:
        """Scalar that the loss adds to the cross-entropy; None: nothing."""
        return None

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return LoRAModel(backbone, num_classes, self.targets, self.rank, self.alpha)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        directions = len(classes) * LoRABank.numbers(backbone, self.targets, self.rank)
        return {"directions": directions, "head": num_classes * (int(backbone.num_features) + 1)}

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.grow(self.rank, task.generator("direction"))

    def phases(self, task: Task) -> list[Phase]:
        bank, cross_entropy = task.model.bank, self.cross_entropy(task)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            penalty = self.penalty(bank)
            losses = cross_entropy(logits, labels)
            return losses if penalty is None else losses + penalty

        return [self.phase([{"params": [*bank.direction(-1), *task.model.head.parameters()]}], loss)]
