"""DualPrompt: general and expert prompts (Wang et al., ECCV 2022, arXiv 2204.04799).

Checked against google-research/l2p @ dd8836e and GT-RIPL/CODA-Prompt @ 6417d4f. Chosen blocks have prefix prompts in
front of their keys and values: a general prompt g in the first blocks, shared by all tasks, and in the next blocks
an expert prompt e_t of each task, with a key k_t. A task trains g, its own e_t and k_t, and the head with

    cross-entropy - lambda cos(q(x), k_t)      (Eq. 6)

where q(x) is the CLS feature of the frozen backbone. A test image takes the expert whose key is nearest to its query
(Eq. 7). e_t starts from e_{t-1}.

`keys=shared`: one key per task for all blocks (JAX); `per-block`: one for each block, which may then choose different
experts (CODA-Prompt's code). Of the loss, 1 - cos and -cos differ by a constant.

A widely used port writes and reads the experts' prefixes of a batch in different layouts, which mixes up keys and
values of neighbouring samples; for CIFAR-100, it also gives a whole test batch the expert that most of its samples
select. `as_published_leaky` reproduces both, to measure their effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.experiment import Value
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import cosine
from cl_bench.models.prompts import PromptModel, attracting, check_blocks, majority, mixed, take, uniform
from cl_bench.models.vit import Prefix

Keys = Literal["shared", "per-block"]
Blocks = tuple[NonNegativeInt, ...]


class DualPromptModel(PromptModel):
    """`G` [blocks, 2, length, d]; per task t `E[t]` [blocks, 2, length, d] and `K[t]` [1 or blocks, d]."""

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        g_blocks: Sequence[int] = (0, 1),
        e_blocks: Sequence[int] = (2, 3, 4),
        g_length: int = 5,
        e_length: int = 5,
        keys: Keys = "shared",
        leaky: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.g_blocks, self.e_blocks, self.e_length = tuple(g_blocks), tuple(e_blocks), e_length
        self.num_keys = 1 if keys == "shared" else len(e_blocks)
        self.leaky = leaky
        # Flax's uniform().
        self.G = nn.Parameter(torch.rand(len(g_blocks), 2, g_length, backbone.embed_dim) * 0.01)
        self.E, self.K = nn.ParameterList(), nn.ParameterList()
        self.zero_head()

    def grow(self, generator: torch.Generator) -> None:
        """Add a task's expert, a copy of the last one, and its key; the first of all and the keys are U[0, 0.01)."""
        dim = self.backbone.embed_dim
        shape = (len(self.e_blocks), 2, self.e_length, dim)
        start = self.E[-1].clone() if len(self.E) else uniform(shape, 0, 0.01, generator, self.G)
        self.E.append(nn.Parameter(start))
        self.K.append(nn.Parameter(uniform((self.num_keys, dim), 0, 0.01, generator, self.G)))

    def similarity(self, query: Tensor) -> Tensor:
        """Cosines of queries [B, d] with the keys of all T tasks: [1 or blocks, B, T]."""
        return cosine(query, torch.stack(list(self.K), dim=1))

    def prefixes(self, experts: Tensor) -> dict[int, Prefix]:
        """Key and value prefixes [B, length, d] of every prompted block, from the experts [1 or blocks, B] taken."""
        bank = torch.stack(list(self.E))
        taken = experts.expand(len(self.e_blocks), -1)
        found = {block: self.G[i].expand(taken.shape[1], -1, -1, -1) for i, block in enumerate(self.g_blocks)}
        for i, block in enumerate(self.e_blocks):
            prompts = take(bank[:, i], taken[i])
            found[block] = mixed(prompts) if self.leaky else prompts
        return {block: (prompts[:, 0], prompts[:, 1]) for block, prompts in found.items()}

    def answer(self, images: Tensor, query: Tensor) -> Tensor:
        if not len(self.E):
            return self.vit.features(images)
        experts = self.similarity(query).argmax(dim=2)
        if self.leaky:
            experts = torch.stack([majority(row[:, None], len(self.E), 1)[:, 0] for row in experts])
        return self.vit.features(images, prefixes=self.prefixes(experts))

    def training_outputs(self, images: Tensor, expert: int = -1) -> tuple[Tensor, Tensor]:
        """Logits [B, C] with a task's expert, and each query's cosine with its keys, summed over these, [B]."""
        expert %= len(self.E)
        taken = torch.full((1, len(images)), expert, device=images.device)
        attraction = cosine(self.query(images), self.K[expert]).sum(dim=1)
        return self.head(self.vit.features(images, prefixes=self.prefixes(taken))), attraction


# JAX: lr 0.03 or 0.005 times B / 256 with B = 8 x 24.
_JAX: Mapping[str, Value] = {"optimizer": "adam", "schedule": "constant", "clip_norm": 1.0, "batch_size": 192}
_CODA: Mapping[str, Value] = {
    "g_length": 3, "e_length": 10, "keys": "per-block", "key_loss": "sum", "optimizer": "adam", "lr": 1e-3,
    "schedule": "coda", "batch_size": 128, "clip_norm": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class DualPrompt(GradientMethod):
    """Hyper-parameters; the defaults are the released ones for CIFAR-100, except for the vote of a batch.

    Attributes:
        g_length, e_length: prompt rows in front of the keys, and as many in front of the values.
        g_blocks, e_blocks: indices, from 0, of blocks with general and with expert prompts.
        keys: one key per task (`shared`), or one per task and block (`per-block`).
        key_weight: lambda, the weight of the keys' part of the loss.
        key_loss: that part as a `mean` over the batch (JAX), or a `sum` (CODA-Prompt's code).
        as_published_leaky: mix up the prompts of neighbouring samples, and let a test batch vote for one expert.
    """

    paper: ClassVar[str] = "DualPrompt (ECCV 2022, arXiv 2204.04799)"
    citations: ClassVar[tuple[str, ...]] = ("wang2022dualprompt",)
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"keys=per-block": ("smith2023coda",)}
    forward_passes: ClassVar[int] = 2
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {**_JAX, "lr": 0.0225, "epochs": 5},
        "imagenet-r": {**_JAX, "lr": 0.00375, "epochs": 50, "e_length": 20},
        "cifar100.coda": {**_CODA, "epochs": 20},
        "imagenet-r.coda": {**_CODA, "epochs": 50},
        "domainnet.coda": {**_CODA, "epochs": 5},
    }
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}

    g_length: PositiveInt = 5
    e_length: PositiveInt = 5
    g_blocks: Blocks = (0, 1)
    e_blocks: Blocks = (2, 3, 4)
    keys: Keys = "shared"
    key_weight: NonNegativeFloat = 1.0
    key_loss: Literal["mean", "sum"] = "mean"
    as_published_leaky: bool = False
    epochs: PositiveInt = 5
    batch_size: PositiveInt = 192
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 0.0225
    clip_norm: PositiveFloat | None = 1.0

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        blocks = (*self.g_blocks, *self.e_blocks)
        check_blocks(backbone, blocks, "dualprompt's g_blocks and e_blocks")
        if len(set(blocks)) < len(blocks) or not self.e_blocks:
            raise UserError(
                f"dualprompt.g_blocks = {list(self.g_blocks)}, e_blocks = {list(self.e_blocks)}: "
                "name each block once, and at least one for the experts"
            )
        lengths = self.g_length, self.e_length
        return DualPromptModel(
            backbone, num_classes, self.g_blocks, self.e_blocks, *lengths, self.keys, self.as_published_leaky
        )

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim, blocks = int(backbone.embed_dim), len(self.e_blocks)
        return {
            "general prompts": len(self.g_blocks) * 2 * self.g_length * dim,
            "expert prompts": len(classes) * blocks * 2 * self.e_length * dim,
            "keys": len(classes) * (1 if self.keys == "shared" else blocks) * dim,
            "head": num_classes * (dim + 1),
        }

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.grow(task.generator("expert"))

    def phases(self, task: Task) -> list[Phase]:
        model = task.model
        loss = attracting(self.cross_entropy(task), self.key_weight, self.key_loss)
        parameters = [model.G, model.E[-1], model.K[-1], *model.head.parameters()]
        return [self.phase([{"params": parameters}], loss, model.training_outputs)]
