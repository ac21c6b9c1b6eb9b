"""Task optima: every task is fine-tuned from the pre-trained weights, and distances between the results are measured.

An analysis, not a learner: Figures 2a and 7 of SD-LoRA (Wu et al., ICLR 2025, arXiv 2501.13198) compare the weights
W_i* that are best for each task. The prediction is that of the last task's model, which has forgotten all others.
The paper gives no formula; recorded are all that one can be made of, over the backbone's weights as one vector:

    distance = ||W_i* - W_j*||,   norm = ||W_j* - W_0||,   pretrained = ||W_0||
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cl_bench.contract.method import Traces
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Scalar
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier

from .finetune import Finetune


class OptimaModel(Classifier):
    """`pretrained` [n] is W_0, and `changes` [tasks, n] are W_i* - W_0."""

    pretrained: Tensor
    changes: Tensor

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        start = parameters_to_vector(backbone.parameters()).detach().clone()
        self.register_buffer("pretrained", start)
        self.register_buffer("changes", start.new_zeros(0, len(start)))

    def restart(self) -> None:
        """Put the pre-trained weights back."""
        vector_to_parameters(self.pretrained.clone(), self.backbone.parameters())

    def remember(self) -> None:
        """Keep the weights of the task that has just been learned."""
        change = parameters_to_vector(self.backbone.parameters()) - self.pretrained
        self.changes = torch.cat([self.changes, change[None]])


@dataclass(frozen=True, kw_only=True, eq=False)
class Optima(Finetune):
    """Hyper-parameters of fine-tuning, with the masked loss by default: only the current task's classes compete."""

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = "task optima (analysis; SD-LoRA, ICLR 2025, arXiv 2501.13198, Fig. 2a)"
    citations: ClassVar[tuple[str, ...]] = ("wu2025sdlora",)
    stores: ClassVar[str] = "one model per task"

    loss: Literal["masked", "all"] = "masked"

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return OptimaModel(backbone, num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        weights = sum(p.numel() for p in backbone.parameters())
        numbers = {"pretrained": weights, "optima": len(classes) * weights}
        return super().storage(backbone, num_classes, classes) | numbers

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.restart()

    def after_task(self, task: Task, images: TaskSamples) -> None:
        task.model.remember()

    def traces(self, task: Task) -> Traces:
        """Norm of this task's change, and its distance to those before."""
        changes = task.model.changes
        shared: dict[str, Scalar] = {"stage": task.index, "pretrained": float(task.model.pretrained.norm())}
        norms, distances = changes.norm(dim=1).tolist(), (changes - changes[-1]).norm(dim=1).tolist()
        pairs = enumerate(zip(distances, norms, strict=True))
        return {"optima": [shared | {"task": j, "distance": distance, "norm": norm} for j, (distance, norm) in pairs]}
