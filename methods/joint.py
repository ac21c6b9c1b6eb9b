"""Joint training on all classes at once, the ceiling of what sequential training can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Value
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier
from cl_bench.models.lora import LoRABank, LoRAModel, Target

_RANPAC: Mapping[str, Value] = {"epochs": 30, "batch_size": 128, "lr": 0.01, "backbone_lr_scale": 0.01}


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint(GradientMethod):
    """Hyper-parameters.

    Attributes:
        train: trained parameters: the whole model (`full`), a low-rank update and the head (`lora`), or the head alone
            (`linear`).
        backbone_lr_scale: learning rate of the backbone relative to the head's (`full`).
        rank, targets: rank and updated projections of the low-rank update (`lora`).
    """

    revision: ClassVar[int] = 2
    paper: ClassVar[str] = "joint training (ceiling)"
    citations: ClassVar[tuple[str, ...]] = ()
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"train=lora": ("hu2022lora",)}
    stores: ClassVar[str] = "all images"
    trains_on: ClassVar[Literal["task", "stream"]] = "stream"
    # RanPAC's rows (McDonnell et al., NeurIPS 2023).
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = dict.fromkeys(
        ("cifar100", "imagenet-r", "imagenet-a", "cub200"), _RANPAC
    )

    train: Literal["full", "lora", "linear"] = "full"
    backbone_lr_scale: PositiveFloat = 1.0
    rank: PositiveInt = 10
    targets: tuple[Target, ...] = ("q", "v")

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        if self.train == "lora":
            return LoRAModel(backbone, num_classes, self.targets, self.rank)
        return Classifier(backbone.requires_grad_(self.train == "full"), num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        trained = {
            "full": sum(p.numel() for p in backbone.parameters()),
            "lora": LoRABank.numbers(backbone, self.targets, self.rank),
            "linear": 0,
        }[self.train]
        return {"model": trained, "head": num_classes * (int(backbone.num_features) + 1)}

    def before_task(self, task: Task, images: TaskSamples) -> None:
        if self.train == "lora":
            task.model.grow(self.rank, task.generator("direction"))

    def phases(self, task: Task) -> list[Phase]:
        groups = [{"params": list(task.model.head.parameters())}]
        if self.train == "full":
            groups = task.model.parameter_groups(self.lr, self.backbone_lr_scale)
        elif self.train == "lora":
            groups.append({"params": task.model.bank.direction(-1)})
        return [self.phase(groups, self.cross_entropy(task))]
