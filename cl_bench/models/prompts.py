"""Prompts for a frozen ViT: the model that chooses them by a query, and what their banks have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import linear_head
from cl_bench.models.vit import Prefix


def check_blocks(backbone: VisionTransformer, blocks: Collection[int], name: str) -> None:
    """Raise `UserError` unless prefixes and parallel modules can be put into all of these blocks of the backbone."""
    depth = len(backbone.blocks)
    if any(number >= depth for number in blocks):
        raise UserError(
            f"{name} = {'+'.join(map(str, blocks))}, but the backbone has only {depth} blocks (0 to {depth - 1})"
        )
    for number in blocks:
        block = backbone.blocks[number]
        if not (hasattr(block, "drop_path1") and hasattr(getattr(block, "attn", None), "qkv")):
            raise UserError(
                f"{name}: nothing can be put into {type(block).__name__} (no attn.qkv); "
                "take a ViT with timm's standard attention"
            )


def split(prompts: Tensor) -> Prefix:
    """Prompts [..., 2 length, d] as a prefix: the first half in front of the keys, the second of the values."""
    keys, values = prompts.chunk(2, dim=-2)
    return keys, values


def take(bank: Tensor, chosen: Tensor) -> Tensor:
    """Prompts bank[chosen], from [M, ...] and any shape of indices. The gradient is the same on any number of threads;
    that of indexing adds up in an order of its own."""
    return nn.functional.embedding(chosen, bank.flatten(1)).unflatten(-1, bank.shape[1:])


def majority(chosen: Tensor, pool: int, top: int) -> Tensor:
    """The `top` most chosen of `pool` prompts in a whole batch, for every sample: [B, k] -> [B, top].

    What released code of L2P and DualPrompt does at test time. It tells every sample what its neighbours are: only for
    showing that effect.
    """
    counts = torch.bincount(chosen.flatten(), minlength=pool)
    return counts.topk(top).indices.expand(len(chosen), -1)


def mixed(prompts: Tensor) -> Tensor:
    """Prefixes [B, 2, length, d] as a well-known port of DualPrompt lays them out: gathered as [2, B, ...] and, not
    permuted but reshaped to [B, 2, ...], so that samples get their neighbours' prompts. Only for showing that effect.
    """
    return prompts.transpose(0, 1).reshape(prompts.shape)


class PromptModel(FeatureModel):
    """A frozen backbone with prompts that are chosen by a query, and a linear head.

    Subclasses define `answer(images, query)`, the features [B, d] for images and their queries.
    """

    head: nn.Linear

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone.requires_grad_(False), linear_head(backbone.num_features, num_classes))

    @torch.no_grad()
    def zero_head(self) -> None:
        """Start the head at 0, as Flax does."""
        for parameter in self.head.parameters():
            parameter.zero_()

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """q(x) [B, d]: the CLS feature of the frozen backbone without prompts."""
        return self.vit.features(images)

    def answer(self, images: Tensor, query: Tensor) -> Tensor:
        raise NotImplementedError

    def features(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return self.answer(images, self.query(images) if query is None else query)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return self.classify(self.features(images, query))


def attracting(
    cross_entropy: Callable[[Tensor, Tensor], Tensor], weight: float, reduction: Literal["mean", "sum"]
) -> Callable[[tuple[Tensor, Tensor], Tensor], Tensor]:
    """Cross-entropy of logits [B, C] minus `weight` times each sample's attraction [B] to its keys (L2P, Eq. 5); as
    per-sample losses, whose mean has the `mean` or the `sum` of the attractions in it."""

    def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        logits, attraction = outputs
        return cross_entropy(logits, labels) - weight * (len(labels) if reduction == "sum" else 1) * attraction

    return loss


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform numbers in [low, high), drawn on the CPU, on the device of `like`."""
    return (torch.rand(*shape, generator=generator) * (high - low) + low).to(like)
