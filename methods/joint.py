"""Joint training: the whole model on all classes at once, the ceiling of what sequential training can reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveFloat
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cl_bench.adapters.heads import Classifier
from cl_bench.method import GradientMethod, Phase, Task, masked_cross_entropy


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint(GradientMethod):
    """Hyper-parameters.

    Attributes:
        backbone_lr_scale: learning rate of the backbone relative to the head's.
    """

    paper: ClassVar[str] = "joint training (ceiling)"
    stores: ClassVar[str] = "all images"
    trains_on: ClassVar[Literal["task", "stream"]] = "stream"

    backbone_lr_scale: PositiveFloat = 1.0

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        return Classifier(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        groups = task.model.parameter_groups(self.lr, self.backbone_lr_scale)
        return [self.phase(groups, masked_cross_entropy(task.seen, task.num_classes))]
