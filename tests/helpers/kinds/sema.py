"""SEMA: adapters that are added during a task, in blocks where its images differ from those of earlier tasks.

From the paper "Self-Expansion of Pre-trained Models with Mixture of Adapters for Continual Learning" (CVPR 2025, arXiv
2403.18886), with the details of its code, huiyiwang01/SEMA-CL @ 5a45512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import FeatureModel, GradientMethod, GrowingModules, Phase, Task, TaskSamples
from cl_bench.contract.phase import ParameterGroup
from cl_bench.contract.schedules import Schedule
from cl_bench.models.adapters import BottleneckAdapter
from cl_bench.models.heads import linear_head


class Expert(nn.Module):
    """An adapter, its row of the router, and its descriptor: an autoencoder of the adapter's training inputs.

    `mean` and `std` are the statistics of the descriptor's errors during its training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, width: int, code: int) -> None:
        super().__init__()
        self.adapter = BottleneckAdapter(dim, width, scale=1.0)
        self.router = nn.Linear(dim, 1)
        self.descriptor = nn.Sequential(nn.Linear(dim, code), nn.Linear(code, dim))
        for layer in self.descriptor:
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def error(self, inputs: Tensor) -> Tensor:
        """Squared error of the descriptor on each image's mean token, [B, tokens, d] -> [B]."""
        token = inputs.mean(dim=1)
        return (self.descriptor(token) - token).square().mean(dim=1)

    def surprise(self, inputs: Tensor) -> Tensor:
        """Mean absolute z-score of the errors of a batch."""
        return ((self.error(inputs) - self.mean) / self.std).abs().mean()


class Mixture(GrowingModules):
    """A block's experts, [B, tokens, d] -> [B, tokens, d], weighted per image by a softmax over router rows."""

    def forward(self, x: Tensor) -> Tensor:
        token = x.mean(dim=1)
        weights = torch.cat([expert.router(token) for expert in self], dim=1).softmax(dim=1)
        outputs = torch.stack([expert.adapter(x) for expert in self], dim=1)
        return torch.einsum("bk,bktd->btd", weights, outputs)


class SEMAModel(FeatureModel):
    """Adapters in the first blocks, mixtures in the others, and a linear head.

    `grown` holds the indices of the blocks that have grown in this task, in order.
    """

    grown: Tensor

    def __init__(self, backbone: VisionTransformer, num_classes: int, first: int, width: int, code: int) -> None:
        super().__init__(backbone.requires_grad_(False), linear_head(backbone.num_features, num_classes))
        dim, depth = backbone.embed_dim, len(backbone.blocks)
        self.adapters = nn.ModuleList(BottleneckAdapter(dim, width, scale=1.0) for _ in range(min(first, depth)))
        self.mixtures = nn.ModuleList(Mixture(partial(Expert, dim, width, code)) for _ in range(first, depth))
        for mixture in self.mixtures:
            mixture.grow()
        self.register_buffer("grown", torch.zeros(0, dtype=torch.int64))

    @property
    def parallel(self) -> dict[int, nn.Module]:
        """Modules parallel to the MLP of each block, by index of the block."""
        return dict(enumerate([*self.adapters, *self.mixtures]))

    def mixture(self, block: int) -> Mixture:
        """The mixture of a block, by index of the block in the backbone."""
        return self.mixtures[block - len(self.adapters)]

    def features(self, images: Tensor) -> Tensor:
        return self.vit.features(images, parallel=self.parallel)

    def with_inputs(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits, and the inputs [B, tokens, d] of every block's adapters, by index of the block."""
        features, inputs = self.vit.features_and_inputs(images, parallel=self.parallel)
        return self.head(features), inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class SEMA(GradientMethod):
    """Hyper-parameters.

    Attributes:
        first: index of the first block (from 0) to which experts may be added.
        width: width of an adapter.
        code: width of a descriptor's code.
        descriptor_epochs, descriptor_lr: epochs and learning rate of the phases that train descriptors.
        threshold: a block grows if a batch surprises all its descriptors by more than this.
        scan_batch: images per batch in the scan for that decision.
        recent: number of the last training errors from which mean and standard deviation are computed.
    """

    paper: ClassVar[str] = "SEMA, CVPR 2025, arXiv 2403.18886"
    stores: ClassVar[str] = "an adapter and a descriptor per addition"

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 0.005
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Schedule = "cosine"
    first: NonNegativeInt = 9
    width: PositiveInt = 16
    code: PositiveInt = 128
    descriptor_epochs: PositiveInt = 20
    descriptor_lr: PositiveFloat = 0.01
    threshold: PositiveFloat = 2.0
    scan_batch: PositiveInt = 128
    recent: PositiveInt = 500

    def build(self, backbone: VisionTransformer, num_classes: int) -> SEMAModel:
        return SEMAModel(backbone, num_classes, self.first, self.width, self.code)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim, depth = int(backbone.embed_dim), len(backbone.blocks)
        shallow = min(self.first, depth)
        experts = (depth - shallow) * len(classes)
        adapter, descriptor = 2 * dim * self.width + self.width + dim, 2 * dim * self.code + self.code + dim
        return {
            "adapters": (shallow + experts) * adapter,
            "descriptors": experts * (descriptor + 2),
            "router": experts * (dim + 1),
            "head": num_classes * (dim + 1),
        }

    def before_task(self, task: Task, samples: TaskSamples) -> None:
        if task.index:
            self.expand(task, samples)

    def after_phase(self, task: Task, samples: TaskSamples, number: int) -> None:
        if number % 2 == 0:
            return
        for block, expert in self.new_experts(task)[number // 2].items():
            std, mean = torch.std_mean(task.scratch[f"errors {block}"])
            expert.mean.copy_(mean)
            expert.std.copy_(std)
        if task.index:
            self.expand(task, samples)

    def after_task(self, task: Task, samples: TaskSamples) -> None:
        task.model.grown = task.model.grown[:0]

    def expand(self, task: Task, samples: TaskSamples) -> None:
        """Add an expert to the first block whose descriptors are all surprised by a batch of the task, if there is one.

        After an addition the scan continues with the next batch up to the last one, and then makes another full pass. A
        block grows at most once per task.
        """
        model, batches = task.model, replace(samples, batch_size=self.scan_batch)
        start = int(task.scratch["scanned"]) if len(model.grown) else 0
        rest = islice(enumerate(batches.batches(shuffled=True)), start, None)
        again = enumerate(batches.batches(shuffled=True)) if start else ()
        for number, (images, _) in chain(rest, again):
            _, inputs = model.with_inputs(images)
            for block in range(self.first, len(inputs)):
                mixture = model.mixture(block)
                if block in model.grown or min(e.surprise(inputs[block]) for e in mixture) <= self.threshold:
                    continue
                mixture.grow()
                model.grown = torch.cat([model.grown, model.grown.new_tensor([block])])
                task.scratch["scanned"] = torch.tensor(number + 1)
                return

    def new_experts(self, task: Task) -> list[dict[int, Expert]]:
        """Groups of experts that are trained together, by block: all in the first task, then one at a time."""
        model = task.model
        if task.index == 0:
            return [{self.first + number: mixture[-1] for number, mixture in enumerate(model.mixtures)}]
        return [{block: model.mixture(block)[-1]} for block in model.grown.tolist()]

    def phases(self, task: Task) -> list[Phase]:
        head, phases = list(task.model.head.parameters()), []
        for experts in self.new_experts(task):
            adapters = nn.ModuleList(chain.from_iterable((e.adapter, e.router) for e in experts.values()))
            shared = [] if task.index else list(task.model.adapters.parameters())
            descriptors = nn.ModuleList(expert.descriptor for expert in experts.values())
            group = {"params": list(descriptors.parameters()), "lr": self.descriptor_lr}
            phases.append(self.training(task, experts, {"params": [*shared, *adapters.parameters(), *head]}))
            phases.append(self.training(task, experts, group, descriptors=True, epochs=self.descriptor_epochs))
        return phases or [self.training(task, {}, {"params": head})]

    def training(
        self, task: Task, experts: dict[int, Expert], group: ParameterGroup, descriptors: bool = False, **more: Any
    ) -> Phase:
        """A phase that trains new adapters, their rows of the router and the head, or the new `descriptors`."""
        cross_entropy = self.cross_entropy(task)

        def forward(images: Tensor) -> tuple[Tensor, Tensor]:
            logits, inputs = task.model.with_inputs(images)
            errors = [expert.error(inputs[block]) for block, expert in experts.items()]
            return logits, torch.stack(errors, dim=1) if errors else logits[:, :0]

        def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
            logits, errors = outputs
            self.record(task, experts, errors.detach())
            return errors.sum(dim=1) if descriptors else cross_entropy(logits, labels)

        return self.phase([group], loss, forward, **more)

    def record(self, task: Task, experts: dict[int, Expert], errors: Tensor) -> None:
        """Keep the last `recent` errors; a batch that first fills the list is cut to fit."""
        for block, new in zip(experts, errors.unbind(dim=1), strict=True):
            known = task.scratch.get(f"errors {block}", new[:0])
            both = torch.cat([known, new])
            task.scratch[f"errors {block}"] = both[: self.recent] if len(known) < self.recent else both[-self.recent :]
