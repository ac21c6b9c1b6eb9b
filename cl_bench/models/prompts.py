"""Prompts for a frozen ViT: the model that chooses them by a query, and functions that prompt methods share."""

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
    """Check that all of these blocks of a backbone accept prefixes and parallel branches.

    Args:
        backbone: the ViT.
        blocks: block numbers, from 0.
        name: hyper-parameter that the message names.

    Raises:
        UserError: the backbone has no such block, or a block has no standard attention.
    """
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
    """Split prompts [..., 2 length, d] into a prefix: the first half for the keys, the second half for the values."""
    keys, values = prompts.chunk(2, dim=-2)
    return keys, values


def take(bank: Tensor, chosen: Tensor) -> Tensor:
    """Prompts `bank[chosen]`, with a gradient that is the same on any number of threads.

    The gradient of plain indexing adds its terms in an order that depends on the threads.

    Args:
        bank: [M, ...].
        chosen: indices into the bank, of any shape [...].
    """
    return nn.functional.embedding(chosen, bank.flatten(1)).unflatten(-1, bank.shape[1:])


def majority(chosen: Tensor, pool: int, top: int) -> Tensor:
    """Give every sample the prompts that its whole batch chooses most often: [B, k] -> [B, top].

    Released code of L2P and DualPrompt does this at test time. It makes a prediction depend on the other samples of the
    batch; use it only to demonstrate this leak.

    Args:
        chosen: indices of the chosen prompts of each sample, [B, k].
        pool: number of prompts in the pool.
        top: number of prompts to return.
    """
    counts = torch.bincount(chosen.flatten(), minlength=pool)
    return counts.topk(top).indices.expand(len(chosen), -1)


def mixed(prompts: Tensor) -> Tensor:
    """Mix up the prefixes [B, 2, length, d] of a batch as a well-known port of DualPrompt does.

    The port gathers them as [2, B, ...] and reshapes them to [B, 2, ...] without permuting the axes, so samples get
    their neighbours' prompts; use it only to demonstrate this leak.
    """
    return prompts.transpose(0, 1).reshape(prompts.shape)


class PromptModel(FeatureModel):
    """A frozen backbone with prompts chosen by a query, and a linear head: images [B, C, H, W] -> logits.

    Subclasses define `answer`.

    Args:
        backbone: ViT without head; it is frozen in place.
        num_classes: size of the head.
    """

    head: nn.Linear

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone.requires_grad_(False), linear_head(backbone.num_features, num_classes))

    @torch.no_grad()
    def zero_head(self) -> None:
        """Set all weights of the head to 0, the start of Flax's implementations."""
        for parameter in self.head.parameters():
            parameter.zero_()

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """Queries q(x) [B, d]: CLS features of the frozen backbone without prompts."""
        return self.vit.features(images)

    def answer(self, images: Tensor, query: Tensor) -> Tensor:
        """Features [B, d] of images [B, C, H, W] with the prompts that their queries [B, d] choose."""
        raise NotImplementedError

    def features(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return self.answer(images, self.query(images) if query is None else query)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return self.classify(self.features(images, query))


def attracting(
    cross_entropy: Callable[[Tensor, Tensor], Tensor], weight: float, reduction: Literal["mean", "sum"]
) -> Callable[[tuple[Tensor, Tensor], Tensor], Tensor]:
    """Make a loss that also attracts the chosen keys to their queries (L2P, Eq. 5).

    Args:
        cross_entropy: maps (logits [B, C], labels [B]) to per-sample losses [B].
        weight: factor on the attractions.
        reduction: whether the batch's mean loss contains the `mean` or the `sum` of the attractions.

    Returns:
        A loss that maps ((logits [B, C], attraction to its keys [B]), labels [B]) to per-sample losses [B].
    """

    def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        logits, attraction = outputs
        return cross_entropy(logits, labels) - weight * (len(labels) if reduction == "sum" else 1) * attraction

    return loss


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform random numbers in [low, high), drawn on the CPU and moved to the device and dtype of `like`."""
    return (torch.rand(*shape, generator=generator) * (high - low) + low).to(like)
