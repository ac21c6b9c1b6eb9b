"""Linear probe: the frozen backbone with a linear head, trained task after task.

The floor of every method that adapts features. The masked loss is the default, as in those methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe(GradientMethod):
    """Hyper-parameters of the optimiser only."""

    paper: ClassVar[str] = "linear probe (floor)"
    citations: ClassVar[tuple[str, ...]] = ()
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(3e-3, 3.0), "schedule": Choice("constant", "cosine")}

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Classifier(backbone.requires_grad_(False), num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"head": num_classes * (int(backbone.num_features) + 1)}

    def phases(self, task: Task) -> list[Phase]:
        return [self.phase([{"params": list(task.model.head.parameters())}], self.cross_entropy(task))]
