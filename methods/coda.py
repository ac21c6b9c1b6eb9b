"""CODA-Prompt: prompts composed from components by attention (Smith et al., CVPR 2023, arXiv 2211.13218).

Checked against GT-RIPL/CODA-Prompt @ 6417d4f. In each of the first blocks, with the query q(x) (CLS feature of the
frozen backbone), prompt components P_m, keys K_m and attention vectors A_m:

    p(x) = sum_m cos(q(x) * A_m, K_m) P_m        (Eq. 4-6; no softmax)

split into the prefix of the keys and that of the values. Each task owns its share of the components: earlier ones
are frozen, later ones do not exist yet. New components are made orthogonal to all earlier ones at the start of their
task; this follows the released code, while the paper initialises the whole pool at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract import schedules
from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.schedules import Schedule
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.experiment import Value
from cl_bench.models.base import FeatureModel
from cl_bench.models.prompts import PromptModel, check_blocks, split
from cl_bench.models.vit import Prefix


def orthogonal_to(old: Tensor, raw: Tensor) -> Tensor:
    """One-pass classical Gram-Schmidt as released: old rows [m, d], raw rows [n, d] -> new unit rows [n, d].

    The projections of each raw row on all earlier rows are subtracted at once, without re-orthogonalising. Trained old
    rows are not mutually orthogonal, so a small overlap with them remains.
    """
    rows = list(old)
    new = []
    for v in raw:
        basis = torch.stack(rows) if rows else raw[:0]
        v = v - (basis @ v / basis.square().sum(dim=1)) @ basis
        rows.append(v)
        new.append(v)
    return nn.functional.normalize(torch.stack(new), dim=1)


def orthonormal_to(old: Tensor, raw: Tensor) -> Tensor:
    """Exact counterpart of `orthogonal_to`: unit rows [n, d], orthogonal to each other and to all old rows [m, d], by
    QR decompositions in float64. If the old rows span the space, the new rows are only orthogonal to each other."""
    U, S, _ = torch.linalg.svd(old.double().T, full_matrices=False)
    basis = U[:, 1e-9 * S.max().clamp_min(1e-300) < S] if len(old) else U
    outside = raw.double() - raw.double() @ basis @ basis.T
    return torch.linalg.qr(outside.T)[0].T.to(raw.dtype)


class CODAModel(PromptModel):
    """The frozen backbone with composed prefix prompts in its first blocks, and a linear head.

    `P[t]` [E, m, length, d], `K[t]`, `A[t]` [E, m, d] are task t's components for E prompted blocks.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        blocks: Sequence[int],
        head_start: Literal["pilot", "torch"] = "pilot",
    ) -> None:
        super().__init__(backbone, num_classes)
        if head_start == "torch":
            self.head = nn.Linear(backbone.num_features, num_classes)
        self.blocks = tuple(blocks)
        self.P, self.K, self.A = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def grow(self, components: int, length: int, generator: torch.Generator, exact: bool = False) -> None:
        """Freeze all components and add new, trainable ones, orthogonal to them: as released, or `exact`."""
        start = orthonormal_to if exact else orthogonal_to
        dim = self.backbone.embed_dim
        for bank, shape in ((self.P, (length, dim)), (self.K, (dim,)), (self.A, (dim,))):
            bank.requires_grad_(False)
            width = torch.Size(shape).numel()
            raw = torch.randn(len(self.blocks), components, width, generator=generator)
            old = torch.cat([part.flatten(2).cpu() for part in bank], dim=1) if len(bank) else raw[:, :0]
            new = torch.stack([start(o, r) for o, r in zip(old, raw, strict=True)])
            bank.append(nn.Parameter(new.unflatten(2, shape).to(self.device)))

    def prefixes(self, query: Tensor) -> dict[int, Prefix]:
        """Key and value prefixes [B, length / 2, d] of each prompted block, from queries [B, d]."""
        if not len(self.P):
            return {}
        P, K, A = (torch.cat(list(bank), dim=1) for bank in (self.P, self.K, self.A))
        # cos(q * A_m, K_m) for all samples and components as two matrix products.
        dots = query @ (A * nn.functional.normalize(K, dim=2)).transpose(1, 2)
        norms = (query.square() @ A.square().transpose(1, 2)).sqrt().clamp_min(1e-12)
        prompts = torch.einsum("ebm,emld->ebld", dots / norms, P)
        return dict(zip(self.blocks, map(split, prompts), strict=True))

    def orthogonality(self) -> Tensor:
        """Sum over blocks and over K, A and flattened P of mean((X X^T - I)^2) (Eq. 7)."""
        penalty = self.head.weight.new_zeros(())
        for bank in (self.P, self.K, self.A):
            rows = torch.cat(list(bank), dim=1).flatten(2)
            gram = rows @ rows.transpose(1, 2)
            penalty = penalty + (gram - torch.eye(gram.shape[1], device=gram.device)).square().mean((1, 2)).sum()
        return penalty

    def answer(self, images: Tensor, query: Tensor) -> Tensor:
        return self.vit.features(images, prefixes=self.prefixes(query))


@schedules.register("coda")
def coda(method: Any, epoch: int, epochs: int) -> float:
    """cos(99 pi e / (200 (E - 1))): from 1 to about 0.016, by epoch (the formula in CODA-Prompt's scheduler)."""
    return schedules.cos(99 * torch.pi * epoch / (200 * max(epochs - 1, 1)))


# The released scheduler, the same file as InfLoRA's, sets itself back by one epoch: hence `inflora`.
_RELEASED: Mapping[str, Value] = {
    "batch_size": 128,
    "optimizer": "adam",
    "lr": 1e-3,
    "schedule": "inflora",
    "head_start": "torch",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class CODAPrompt(GradientMethod):
    """Hyper-parameters; the defaults are the released ones for CIFAR-100, except the head's initialisation and the
    schedule.

    The released code also drops the last partial batch of every epoch; here it is trained on.

    Attributes:
        components: number of components of all tasks; each task owns an equal share.
        length: prompt rows per component, half for the keys and half for the values.
        blocks: number of first blocks that have prompts.
        orthogonality: weight of the penalty (0.1 in the paper, 0 in the code since it starts with Gram-Schmidt).
        start: initialisation of new components: the released one-pass `gram-schmidt`, or `qr` without any overlap.
        head_start: initialisation of the head: `torch` for that of a linear layer (released: weights and biases
            U(-1/sqrt(d), 1/sqrt(d))), or `pilot` for weights larger by sqrt(3) and biases 0.
    """

    paper: ClassVar[str] = "CODA-Prompt (CVPR 2023, arXiv 2211.13218)"
    citations: ClassVar[tuple[str, ...]] = ("smith2023coda",)
    needs_num_tasks: ClassVar[bool] = True
    forward_passes: ClassVar[int] = 2
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {**_RELEASED, "epochs": 20},
        "imagenet-r": {**_RELEASED, "epochs": 50},
        "domainnet": {**_RELEASED, "epochs": 5},
    }
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}

    components: PositiveInt = 100
    length: PositiveInt = 8
    blocks: PositiveInt = 5
    orthogonality: NonNegativeFloat = 0.0
    start: Literal["gram-schmidt", "qr"] = "gram-schmidt"
    head_start: Literal["pilot", "torch"] = "pilot"
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 1e-3
    schedule: Schedule = "coda"

    def check(self, num_tasks: int) -> None:
        if self.components < num_tasks:
            raise UserError(
                f"coda.components = {self.components} gives none to each of {num_tasks} tasks; set at least {num_tasks}"
            )

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        check_blocks(backbone, range(self.blocks), "coda's blocks")
        return CODAModel(backbone, num_classes, range(self.blocks), self.head_start)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim = int(backbone.embed_dim)
        return {
            "components": self.blocks * self.components * (self.length + 2) * dim,
            "head": num_classes * (dim + 1),
        }

    def before_task(self, task: Task, images: TaskSamples) -> None:
        assert task.num_tasks is not None
        share, exact = self.components // task.num_tasks, self.start == "qr"
        task.model.grow(share, self.length, task.generator("components"), exact)

    def phases(self, task: Task) -> list[Phase]:
        model = task.model
        parameters = [bank[-1] for bank in (model.P, model.K, model.A)] + list(model.head.parameters())
        cross_entropy = self.cross_entropy(task)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            if self.orthogonality == 0:
                return cross_entropy(logits, labels)
            return cross_entropy(logits, labels) + self.orthogonality * model.orthogonality()

        return [self.phase([{"params": parameters}], loss)]
