"""IncLoRA: a new low-rank direction per task, without any protection from interference.

The baseline of O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152), and the base class of the variants of
LoRA. All directions have the coefficient 1, and the loss is

    cross-entropy + penalty

What happens between tasks is `boundary`: a direction per task, of which earlier ones are frozen (`stack`); one
direction, trained in turn (`continue`: sequential LoRA); or one that is added to the weights and starts anew (`merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.lora_method import LoRAMethod
from cl_bench.contract.phase import Loss, Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.models.base import FeatureModel
from cl_bench.models.lora import LoRABank, LoRAModel, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class IncLoRA(LoRAMethod):
    """Hyper-parameters.

    Attributes:
        rank: rank r of every direction.
        targets: projections that are updated.
        alpha: scale of every direction is alpha / rank, as in LoRA; none: 1. Penalties use unscaled directions.
        boundary: before the next task, the direction is frozen and another one added (`stack`); or it is folded into a
            matrix [d, d] per projection and another one started (`merge`; the same function as `stack`); or the next
            task goes on with it (`continue`).
    """

    paper: ClassVar[str] = "incremental LoRA (floor; EMNLP Findings 2023, arXiv 2310.14152)"
    citations: ClassVar[tuple[str, ...]] = ("wang2023olora", "hu2022lora")

    rank: PositiveInt = 10
    targets: tuple[Target, ...] = ("q", "v")
    alpha: PositiveFloat | None = None
    boundary: Literal["continue", "stack", "merge"] = "stack"

    def penalty(self, task: Task) -> Tensor | None:
        """Scalar that the loss adds to the cross-entropy; None: nothing."""
        return None

    def objective(self, task: Task) -> Loss:
        """Per-sample cross-entropy plus the penalty."""
        cross_entropy = self.cross_entropy(task)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            penalty = self.penalty(task)
            losses = cross_entropy(logits, labels)
            return losses if penalty is None else losses + penalty

        return loss

    def bank(self, *shape: Any) -> LoRABank:
        """Make an empty bank from (backbone, targets, rank, alpha)."""
        return LoRABank(*shape)

    def model(self, backbone: VisionTransformer, num_classes: int) -> LoRAModel:
        """Make the model with an empty bank."""
        return LoRAModel(backbone, num_classes, self.targets, self.rank, self.alpha, self.bank)

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        model = self.model(backbone, num_classes)
        if self.boundary == "merge":
            model.bank.keep_base()
        return model

    def direction_numbers(self, backbone: VisionTransformer) -> int:
        """Number of parameters of one direction."""
        return LoRABank.numbers(backbone, self.targets, self.rank)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        directions = len(classes) if self.boundary == "stack" else 1
        numbers = {
            "directions": directions * self.direction_numbers(backbone),
            "head": num_classes * (int(backbone.num_features) + 1),
        }
        if self.boundary == "merge":
            numbers["base"] = len(backbone.blocks) * len(self.targets) * int(backbone.embed_dim) ** 2
        return numbers

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if self.boundary == "merge":
            task.model.merge()
        if self.boundary != "continue" or task.index == 0:
            self.start(task)

    def start(self, task: Task) -> None:
        """Start what a task adds to the bank: one direction."""
        task.model.grow(self.rank, task.generator("direction"))

    def direction_phase(self, task: Task, **more: Any) -> Phase:
        """Make the phase that trains the last direction and the head; `more` are further attributes of `Phase`."""
        trained = [*task.model.bank.direction(-1), *task.model.head.parameters()]
        return self.phase([{"params": trained}], self.objective(task), **more)

    def phases(self, task: Task) -> list[Phase]:
        return [self.direction_phase(task)]
