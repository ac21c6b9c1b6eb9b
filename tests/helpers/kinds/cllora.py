"""CL-LoRA: low-rank pairs shared by all tasks in the first half of the blocks, and new ones per task in the second.

He et al., "CL-LoRA: Continual Low-Rank Adaptation for Rehearsal-Free Class-Incremental Learning" (CVPR 2025, arXiv
2505.24816); checked against JiangpengHe/CL-LoRA @ df4e74e. Both gradients of a step are taken at the
parameters from before the step. (The released program mixes them with updated parameters under torch 2.0.1, and raises
an error under later versions.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from cl_bench import FeatureModel, GradientMethod, GrowingModules, Phase, StepBatch, Task, TaskSamples
from cl_bench.contract.schedules import Schedule
from cl_bench.experiment import Scenario
from cl_bench.models.heads import CosinePrototypes, cosine


class Pairs(nn.Module):
    """One low-rank pair on q and one on v of some consecutive blocks, weighted by block.

    Attributes:
        down: shape [blocks, 2, r, d], initialised with orthonormal rows.
        up: shape [blocks, 2, d, r], initialised with 0.
        block_weight: weights of q, k (without effect) and v, shape [3, blocks]; None: all 1.
    """

    def __init__(self, blocks: range, rank: int, dim: int, weighted: bool) -> None:
        super().__init__()
        self.blocks, self.dim = blocks, dim
        columns = torch.linalg.qr(torch.rand(len(blocks), 2, dim, rank))[0]
        self.down = nn.Parameter(columns.mT.contiguous())
        self.up = nn.Parameter(torch.zeros(len(blocks), 2, dim, rank))
        self.block_weight = nn.Parameter(torch.rand(3, len(blocks)) + 0.5) if weighted else None

    def forward(self, backbone: VisionTransformer) -> dict[str, Tensor]:
        """The changed weights of the backbone, by name."""
        changes = self.up @ self.down
        if self.block_weight is not None:
            changes = changes * self.block_weight[::2].T[..., None, None]
        weights = {}
        for number, (of_q, of_v) in zip(self.blocks, changes, strict=True):
            q, k, v = backbone.blocks[number].attn.qkv.weight.split(self.dim)
            weights[f"blocks.{number}.attn.qkv.weight"] = torch.cat([q + of_q, k, v + of_v])
        return weights


class CLLoRAModel(FeatureModel):
    """One feature per task, from the current shared pairs and the task's own pairs in the second half of the blocks.

    The logit of a class uses the feature of its task, `task_of` [num_classes].
    """

    task_of: Tensor

    def __init__(self, backbone: VisionTransformer, num_classes: int, rank: int) -> None:
        dim, depth = backbone.embed_dim, len(backbone.blocks)
        super().__init__(backbone.requires_grad_(False), CosinePrototypes(dim, num_classes))
        half = math.ceil(depth / 2)
        self.first, self.second = range(half), range(half, depth)
        self.shared = Pairs(self.first, rank, dim, weighted=False)
        self.specific = GrowingModules(lambda: Pairs(self.second, rank, dim, weighted=True))
        self.register_buffer("task_of", torch.zeros(num_classes, dtype=torch.int64))

    def early_features(self, images: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Features [B, d] at the exit after the shared blocks, with the given weights."""
        return self.vit.features(images, weights=weights, blocks=self.first)

    def own_features(self, images: Tensor) -> Tensor:
        """Features [B, d] with the pairs of the newest task."""
        weights = self.shared(self.backbone) | self.specific[-1](self.backbone)
        return self.vit.features(images, weights=weights)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, T, d] with the pairs of every task; the shared half of the blocks runs once."""
        stream = self.vit.residual_stream(images, self.first, weights=self.shared(self.backbone))
        of_tasks = [
            self.vit.features(stream, weights=pairs(self.backbone), blocks=self.second) for pairs in self.specific
        ]
        return torch.stack(of_tasks, dim=1)

    def classify(self, features: Tensor) -> Tensor:
        similarities = self.head(features)
        return similarities.gather(1, self.task_of.expand(len(features), 1, -1))[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class CLLoRA(GradientMethod):
    """Hyper-parameters.

    Attributes:
        rank: rank of every pair.
        distillation: weight of the distillation loss at the exit.
        temperature: temperature of the distillation loss.
        penalty: weight of the similarity between the block weights of tasks.
    """

    paper: ClassVar[str] = "CL-LoRA (CVPR 2025, arXiv 2505.24816)"
    stores: ClassVar[str] = "low-rank pairs per task, one mean per class"
    forward_passes: ClassVar[str] = "1/2 + tasks/2"
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental",)

    batch_size: PositiveInt = 64
    epochs: PositiveInt = 20
    lr: PositiveFloat = 0.03
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Schedule = "cosine"
    rank: PositiveInt = 10
    distillation: NonNegativeFloat = 5.0
    temperature: PositiveFloat = 2.0
    penalty: NonNegativeFloat = 1e-4

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return CLLoRAModel(backbone, num_classes, self.rank)

    def passes(self, tasks: int) -> int:
        return math.ceil((1 + tasks) / 2)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim, depth = int(backbone.embed_dim), len(backbone.blocks)
        first, pairs = math.ceil(depth / 2), 2 * 2 * self.rank * dim
        specific = len(classes) * (depth - first) * (pairs + 3)
        return {"shared": first * pairs, "specific": specific, "prototypes": num_classes * (dim + 2)}

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        """Add pairs, keep a teacher, and make a cosine head for this task only."""
        model, dim = task.model, task.model.shared.dim
        model.specific.grow()
        model.task_of[list(task.classes)] = task.index
        if task.index:
            task.scratch.keep("teacher", model.shared)
        bound = 1 / math.sqrt(dim)
        task.scratch["head"] = torch.empty(len(task.classes), dim).uniform_(-bound, bound).to(samples.device)
        task.scratch["scale"] = torch.ones(1, device=samples.device)

    def phases(self, task: Task) -> list[Phase]:
        model, shared, own = task.model, task.model.shared, task.model.specific[-1]
        head = [task.scratch.trainable("head"), task.scratch.trainable("scale")]
        trained = [shared.up, *own.parameters(), *head]
        if not task.index:
            trained.append(shared.down)
        classes = torch.tensor(task.classes, device=head[0].device)

        def step(batch: StepBatch) -> Tensor:
            logits = self.logits(task, model.own_features(batch.inputs))
            classification = self.classification(logits, torch.searchsorted(classes, batch.labels))
            if not task.index:
                batch.update(classification)
                return classification
            # Computed before the first update changes the parameters.
            gradients = torch.autograd.grad(classification, trained)
            distillation = self.distillation * self.distance(task, batch.inputs)
            batch.update(distillation, adjust=lambda: self.adjust(task))
            penalty = self.penalty * self.similarity(task)

            def add() -> None:
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

            batch.update(penalty, adjust=add)
            return classification + distillation + penalty

        return [self.phase([{"params": trained}], step=step)]

    def logits(self, task: Task, features: Tensor) -> Tensor:
        """Scaled cosines of features [B, d] with the rows of the task's head."""
        return task.scratch.trainable("scale") * cosine(features, task.scratch.trainable("head"))

    def classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the classes of the task."""
        return cross_entropy(logits, targets)

    def distance(self, task: Task, images: Tensor) -> Tensor:
        """Cross-entropy of student and teacher at the exit, both under the current head, which learns from both."""
        model = task.model
        old = model.early_features(images, task.scratch.call("teacher", model.shared, model.backbone))
        teacher = self.logits(task, old) / self.temperature
        student = self.logits(task, model.early_features(images, model.shared(model.backbone))) / self.temperature
        return cross_entropy(student, teacher.softmax(dim=1))

    def adjust(self, task: Task) -> None:
        """Scale each row of the shared pairs' gradients by the norm of the teacher's row, relative to the mean norm."""
        norms = task.scratch["teacher.up"].norm(dim=3, keepdim=True)
        task.model.shared.up.grad *= norms / norms.mean(dim=2, keepdim=True)

    def similarity(self, task: Task) -> Tensor:
        """Mean |cos| of the task's block weights with those of each earlier task."""
        *earlier, own = [pairs.block_weight.flatten() for pairs in task.model.specific]
        return cosine_similarity(torch.stack(earlier), own, dim=1).abs().mean()

    def after_task(self, task: Task, samples: TaskSamples) -> None:
        """Set mu_c = mean own feature of class c in the test view; it is not updated when the shared pairs change."""
        task.model.head.update(*samples.collect(task.model.own_features))
