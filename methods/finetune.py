"""Sequential fine-tuning: the whole model, task after task, with nothing against forgetting.

Three rows of the literature are options of it: plain cross-entropy over all classes seen so far; `masked`: only the
current task's classes compete (CODA-Prompt's FT++, the "local CE" trick); and a slow backbone
(`backbone_lr_scale` < 1; SLCA, Zhang et al., ICCV 2023, without its classifier alignment).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveFloat
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cl_bench.adapters.heads import Classifier
from cl_bench.method import GradientMethod, Phase, Task, masked_cross_entropy


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetune(GradientMethod):
    """Hyper-parameters.

    Attributes:
        masked: cross-entropy over the current task's classes only.
        backbone_lr_scale: learning rate of the backbone relative to the head's.
    """

    paper: ClassVar[str] = "sequential fine-tuning (floor)"

    masked: bool = False
    backbone_lr_scale: PositiveFloat = 1.0

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        return Classifier(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        groups = task.model.parameter_groups(self.lr, self.backbone_lr_scale)
        competing = task.classes if self.masked else task.seen
        return [self.phase(groups, masked_cross_entropy(competing, task.num_classes))]
