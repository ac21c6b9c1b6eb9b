"""SLCA: slow learner with classifier alignment (Zhang et al., ICCV 2023, arXiv 2303.05118).

Checked against GengDavid/SLCA @ 169d4e6. The whole network is fine-tuned on one task after the other, the backbone at
a hundredth of the head's learning rate, by the masked loss; after each task the head is aligned on Gaussians of all
classes' features. Both halves are options that other methods take as well: this is `finetune` with them switched on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from cl_bench.contract.schedules import Schedule
from cl_bench.experiment import Value

from .finetune import Finetune


@dataclass(frozen=True, kw_only=True, eq=False)
class SLCA(Finetune):
    """Hyper-parameters of fine-tuning; the defaults are the released ones for CIFAR-100."""

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = "SLCA (ICCV 2023, arXiv 2303.05118)"
    citations: ClassVar[tuple[str, ...]] = ("zhang2023slca",)
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"loss=masked": ()}
    stores: ClassVar[str] = "one mean and covariance per class"
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {"epochs": 20, "milestones": [18]},
        "imagenet-r": {"epochs": 50, "milestones": [40]},
        "cub200": {"epochs": 50, "milestones": [40]},
    }

    loss: Literal["masked", "all"] = "masked"
    backbone_lr_scale: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Schedule = "steps"
    milestones: tuple[NonNegativeInt, ...] | None = (18,)
    align: bool = True
