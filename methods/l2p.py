"""L2P: learning to prompt (Wang et al., CVPR 2022, arXiv 2112.08654).

Checked against google-research/l2p @ dd8836e (prompt tuning) and GT-RIPL/CODA-Prompt @ 6417d4f (its prefix form, in
tables "L2P++"). A pool of M prompts P_j with keys k_j is shared by all tasks. Each sample takes the top N by the cosine
of k_j with its query q(x), the CLS feature of the frozen backbone (Eq. 3), and the loss pulls the keys taken towards it

    cross-entropy - lambda sum_{j taken} cos(q(x), k_j)      (Eq. 5)

`prompts=prepended`: the N prompts are tokens in front of the sequence (after the positional embedding, of which they
get none) and the head sees the mean of their outputs. `prompts=prefix`: the first half of a prompt's rows goes in front
of the first block's keys, the second in front of its values, and the head sees the CLS token.

Every sample is prompted by its own query alone. The released JAX code instead gives a whole batch, in training and at
test, the prompts that most of its samples want; the prefix form's key loss pulls each key taken by any sample towards
all queries of the batch. `as_published_leaky` reproduces both, to measure their effect. Where JAX's GELU is the tanh
approximation, here it is the backbone's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.errors import UserError
from cl_bench.experiment import Value
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import cosine
from cl_bench.models.prompts import PromptModel, attracting, check_blocks, majority, split, take

Prompts = Literal["prepended", "prefix"]


class L2PModel(PromptModel):
    """The frozen backbone with prompts from a pool: `pool` [M, length, d] and `keys` [M, d]."""

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        size: int = 10,
        length: int = 10,
        top: int = 4,
        prompts: Prompts = "prepended",
        leaky: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.top, self.prompts, self.leaky = top, prompts, leaky
        # Flax's uniform().
        self.pool = nn.Parameter(torch.rand(size, length, backbone.embed_dim) * 0.01)
        self.keys = nn.Parameter(torch.rand(size, backbone.embed_dim) * 0.01)
        self.zero_head()

    def chosen(self, similarity: Tensor) -> Tensor:
        """The prompts [B, N] that samples take, best first, from their cosines with all keys [B, M]."""
        best = similarity.topk(self.top).indices
        return majority(best, len(self.keys), self.top) if self.leaky and self.prompts == "prepended" else best

    def prompted(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Features [B, d] with these prompts [B, N]."""
        taken = take(self.pool, chosen)
        if self.prompts == "prefix":
            keys, values = split(taken)
            return self.vit.features(images, prefixes={0: (keys.flatten(1, 2), values.flatten(1, 2))})
        rows = taken.flatten(1, 2)
        return self.vit.tokens(images, prompts=rows)[:, : rows.shape[1]].mean(dim=1)

    def answer(self, images: Tensor, query: Tensor) -> Tensor:
        return self.prompted(images, self.chosen(cosine(query, self.keys)))

    def attraction(self, similarity: Tensor, chosen: Tensor) -> Tensor:
        """Sum of the cosines [B] of each sample's query with the keys that it takes; where `leaky`, each query's with
        the keys that all samples of the batch take."""
        if self.leaky and self.prompts == "prefix":
            return similarity @ torch.bincount(chosen.flatten(), minlength=len(self.keys)).to(similarity)
        return similarity.gather(1, chosen).sum(dim=1)

    def training_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C], and the attraction of each sample."""
        similarity = cosine(self.query(images), self.keys)
        chosen = self.chosen(similarity)
        return self.head(self.prompted(images, chosen)), self.attraction(similarity, chosen)


# JAX: 0.03 B / 256 with B = 8 x 16.
_JAX: Mapping[str, Value] = {"optimizer": "adam", "schedule": "constant", "clip_norm": 1.0, "batch_size": 128}
_PREFIX: Mapping[str, Value] = {
    "prompts": "prefix", "pool": 30, "length": 20, "top": 5, "key_loss": "sum", "optimizer": "adam", "lr": 1e-3,
    "schedule": "coda", "batch_size": 128, "clip_norm": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class L2P(GradientMethod):
    """Hyper-parameters; the defaults are the released ones for CIFAR-100, except for the vote of a batch.

    Attributes:
        pool: number M of prompts in the pool.
        length: rows of a prompt; in the prefix form, half of them are for the keys and half for the values.
        top: number N of prompts for each sample.
        prompts: `prepended` to the sequence, or a `prefix` of the first block's keys and values.
        key_weight: lambda, the weight of the keys' part of the loss.
        key_loss: that part as a `mean` over the batch (L2P), or a `sum` (CODA-Prompt's code).
        as_published_leaky: predictions (prepended) or gradients (prefix) that depend on the rest of the batch.
    """

    paper: ClassVar[str] = "L2P (CVPR 2022, arXiv 2112.08654)"
    citations: ClassVar[tuple[str, ...]] = ("wang2022l2p",)
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"prompts=prefix": ("smith2023coda",)}
    forward_passes: ClassVar[int] = 2
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {**_JAX, "lr": 0.015, "epochs": 5},
        "cifar100.paper": {**_JAX, "lr": 0.015, "epochs": 5, "length": 5, "top": 5, "key_weight": 0.5},
        "cifar100.prefix": {**_PREFIX, "epochs": 20},
        "imagenet-r.prefix": {**_PREFIX, "epochs": 50},
        "domainnet.prefix": {**_PREFIX, "epochs": 5},
    }
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}

    pool: PositiveInt = 10
    length: PositiveInt = 10
    top: PositiveInt = 4
    prompts: Prompts = "prepended"
    key_weight: NonNegativeFloat = 1.0
    key_loss: Literal["mean", "sum"] = "mean"
    as_published_leaky: bool = False
    epochs: PositiveInt = 5
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 0.015
    clip_norm: PositiveFloat | None = 1.0

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        if self.top > self.pool:
            raise UserError(f"l2p.top = {self.top} prompts cannot be taken from a pool of {self.pool}; choose fewer")
        if self.prompts == "prefix":
            if self.length % 2:
                raise UserError(f"l2p.length = {self.length} cannot be split over keys and values; choose an even one")
            check_blocks(backbone, [0], "l2p's block")
        shape = self.pool, self.length, self.top
        return L2PModel(backbone, num_classes, *shape, self.prompts, self.as_published_leaky)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim = int(backbone.embed_dim)
        return {"prompts": self.pool * self.length * dim, "keys": self.pool * dim, "head": num_classes * (dim + 1)}

    def phases(self, task: Task) -> list[Phase]:
        model = task.model
        loss = attracting(self.cross_entropy(task), self.key_weight, self.key_loss)
        parameters = [model.pool, model.keys, *model.head.parameters()]
        return [self.phase([{"params": parameters}], loss, model.training_outputs)]
