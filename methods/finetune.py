"""Sequential fine-tuning: train the whole model on one task after the other, without any protection from forgetting.

Its options give three baselines of the literature: plain cross-entropy over all classes seen so far; `loss=masked`,
where only the current task's classes compete (CODA-Prompt's FT++, the "local CE" trick); and the masked loss with a
slow backbone (`backbone_lr_scale` < 1; SLCA, Zhang et al., ICCV 2023, without its classifier alignment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveFloat
from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.experiment import Value
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier

# The slow learner of SLCA (GengDavid/SLCA @ 169d4e6), without its alignment.
_SLCA: Mapping[str, Value] = {
    "loss": "masked", "backbone_lr_scale": 0.01, "lr": 0.01, "weight_decay": 5e-4, "batch_size": 128,
    "schedule": "steps", "decay": 0.1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetune(GradientMethod):
    """Hyper-parameters.

    Attributes:
        backbone_lr_scale: learning rate of the backbone relative to the head's.
    """

    revision: ClassVar[int] = 2
    paper: ClassVar[str] = "sequential fine-tuning (floor)"
    citations: ClassVar[tuple[str, ...]] = ()
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss=masked": ("smith2023coda",),
        "backbone_lr_scale!=1": ("zhang2023slca",),
    }
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {**_SLCA, "epochs": 20, "milestones": [18]},
        "imagenet-r": {**_SLCA, "epochs": 50, "milestones": [40]},
        "cub200": {**_SLCA, "epochs": 50, "milestones": [40]},
    }

    loss: Literal["masked", "all"] = "all"
    backbone_lr_scale: PositiveFloat = 1.0

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Classifier(backbone, num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"model": sum(p.numel() for p in backbone.parameters()) + num_classes * (int(backbone.num_features) + 1)}

    def phases(self, task: Task) -> list[Phase]:
        groups = task.model.parameter_groups(self.lr, self.backbone_lr_scale)
        return [self.phase(groups, self.cross_entropy(task))]
