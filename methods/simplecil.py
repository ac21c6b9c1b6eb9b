"""SimpleCIL: nearest class mean of frozen features, the floor that every method must beat.

Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models" (IJCV 2024, arXiv 2303.07338); checked
against LAMDA-CL/LAMDA-PILOT @ 5240714.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.method import Method
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import CosinePrototypes


@dataclass(frozen=True, kw_only=True, eq=False)
class SimpleCIL(Method):
    """No hyper-parameters."""

    paper: ClassVar[str] = "SimpleCIL (IJCV 2024, arXiv 2303.07338)"
    citations: ClassVar[tuple[str, ...]] = ("zhou2025simplecil",)
    stores: ClassVar[str] = "one mean per class"

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return FeatureModel(backbone.requires_grad_(False), CosinePrototypes(backbone.num_features, num_classes))

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"prototypes": num_classes * (int(backbone.num_features) + 1)}

    def after_task(self, task: Task, images: TaskSamples) -> None:
        """mu_c = mean of the features of class c in the test view, not normalised before averaging."""
        task.model.head.update(*images.collect(task.model.features))
