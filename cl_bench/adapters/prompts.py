"""Prompts for a ViT's attention: prefix rows in front of keys and values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

Prefix = tuple[Tensor, Tensor]


def prefix_features(backbone: VisionTransformer, images: Tensor, prefixes: Mapping[int, Prefix]) -> Tensor:
    """CLS features of a ViT with prefix prompts (prefix tuning; Li & Liang 2021, DualPrompt, CODA-Prompt).

    Args:
        images: [B, C, H, W].
        prefixes: per block number a pair (key rows, value rows), each [B, length, d], put in front of the block's
            keys and values after the qkv projection and split over the heads like these. Queries are not extended.

    Returns:
        [B, d], after the final norm.
    """
    x = backbone.patch_embed(images)
    x = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(x)))
    for number, block in enumerate(backbone.blocks):
        if number in prefixes:
            x = x + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), prefixes[number])))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        else:
            x = block(x)
    return backbone.forward_head(backbone.norm(x), pre_logits=True)


def _attend(attention: Attention, x: Tensor, prefix: Prefix) -> Tensor:
    """timm's `Attention` with extra key and value rows."""

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    q, k, v = map(heads, attention.qkv(x).chunk(3, dim=2))
    k = torch.cat([heads(prefix[0]), attention.k_norm(k)], dim=2)
    v = torch.cat([heads(prefix[1]), v], dim=2)
    out = torch.nn.functional.scaled_dot_product_attention(attention.q_norm(q), k, v)
    return attention.proj(out.transpose(1, 2).flatten(2))
