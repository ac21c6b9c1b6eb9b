"""Prompts for a frozen ViT: rows in front of a block's keys and values, and tokens in front of the sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.adapters.heads import FeatureModel, linear_head
from cl_bench.errors import UserError

Prefix = tuple[Tensor, Tensor]


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


def tokens(
    backbone: VisionTransformer,
    images: Tensor,
    *,
    prefixes: Mapping[int, Prefix] | None = None,
    prompts: Tensor | None = None,
    parallel: Mapping[int, nn.Module] | None = None,
) -> Tensor:
    """All output tokens of a ViT into which something is put.

    Args:
        images: [B, C, H, W].
        prefixes: per block number a pair (key rows, value rows), each [B, length, d], put in front of the block's keys
            and values after the qkv projection and split over the heads like these. Queries are not extended (prefix
            tuning; Li & Liang 2021).
        prompts: [B, n, d], put in front of the sequence after the positional embedding, of which they get none (prompt
            tuning; Lester et al. 2021, L2P).
        parallel: per block number a module that works beside the block's MLP, on the MLP's input before its norm
            (AdaptFormer; Chen et al. 2022).

    Returns:
        [B, n + tokens, d], after the final norm.
    """
    prefixes, parallel = prefixes or {}, parallel or {}
    x = backbone.patch_embed(images)
    x = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(x)))
    if prompts is not None:
        x = torch.cat([prompts, x], dim=1)
    for number, block in enumerate(backbone.blocks):
        if number not in prefixes and number not in parallel:
            x = block(x)
            continue
        x = x + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), prefixes.get(number))))
        aside = parallel[number](x) if number in parallel else 0
        x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + aside
    return backbone.norm(x)


def cls_features(backbone: VisionTransformer, images: Tensor, prefixes: Mapping[int, Prefix]) -> Tensor:
    """CLS features [B, d] of a ViT with prefix prompts (DualPrompt, CODA-Prompt, HiDe-Prompt)."""
    return backbone.forward_head(tokens(backbone, images, prefixes=prefixes), pre_logits=True)


def _attend(attention: Attention, x: Tensor, prefix: Prefix | None) -> Tensor:
    """timm's `Attention` with extra key and value rows."""
    if prefix is None:
        return attention(x)

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    q, k, v = map(heads, attention.qkv(x).chunk(3, dim=2))
    k = torch.cat([heads(prefix[0]), attention.k_norm(k)], dim=2)
    v = torch.cat([heads(prefix[1]), v], dim=2)
    out = nn.functional.scaled_dot_product_attention(attention.q_norm(q), k, v)
    return attention.proj(out.transpose(1, 2).flatten(2))


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
        return self.backbone(images)

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
