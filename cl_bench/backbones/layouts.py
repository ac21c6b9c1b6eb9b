"""Translation of weight names from other codes to those of timm's VisionTransformer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """The names that a code gives to the weights of its ViT.

    Attributes:
        name: name of the code.
        patches: name of the patch embedding's weight; its prefix in a file is the prefix of the whole network.
        also: name of another weight that must exist, if other networks have a weight named `patches`, too.
        rules: regular expressions for whole names, and timm's names for the matches; other names stay as they are.
    """

    name: str
    patches: str
    also: str | None = None
    rules: _Rules = ()

    def roots(self, tensors: Mapping[Any, Any]) -> list[str]:
        """The name prefix of each network with this layout among the tensors."""
        ends = [key for key in tensors if isinstance(key, str) and f".{key}".endswith(f".{self.patches}")]
        roots = [key.removesuffix(self.patches) for key in ends if isinstance(tensors[key], Tensor)]
        return [root for root in roots if self.also is None or f"{root}{self.also}" in tensors]

    def rename(self, key: str) -> str:
        """timm's name of a weight; separate query, key and value weights become `attn.q`, `attn.k`, `attn.v`."""
        for pattern, new in self.rules:
            if match := re.fullmatch(pattern, key):
                return match.expand(new)
        return key


def _attention(theirs: str) -> _Rules:
    """Rules for separate queries, keys and values, which are named by a letter or a whole word."""
    return tuple((theirs.format(part=f"{part[0]}(?:{part[1:]})?"), rf"blocks.\1.attn.{part[0]}.\2") for part in _PARTS)


_PARTS = ("query", "key", "value")

TIMM = Layout(
    "timm",
    "patch_embed.proj.weight",
    # DINOv2 is trained in chunks of blocks: blocks.CHUNK.NUMBER, where each number occurs once.
    rules=(
        (r"blocks\.(?:\d+\.)?(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
        (r"blocks\.(?:\d+\.)?(\d+)\.mlp\.w12\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        (r"blocks\.(?:\d+\.)?(\d+)\.mlp\.w3\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (r"blocks\.\d+\.(\d+)\.(.+)", r"blocks.\1.\2"),
    ),
)
LAYOUTS = (
    TIMM,
    Layout(
        "torchvision",
        "conv_proj.weight",
        rules=(
            (r"conv_proj\.(.+)", r"patch_embed.proj.\1"),
            (r"class_token", "cls_token"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (r"encoder\.ln\.(.+)", r"norm.\1"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        ),
    ),
    Layout(
        # ViTModel, DeiTModel and Dinov2Model.
        "Hugging Face",
        "embeddings.patch_embeddings.projection.weight",
        rules=(
            (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.distillation_token", "dist_token"),
            (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
            (r"layernorm\.(.+)", r"norm.\1"),
            *_attention(r"encoder\.layer\.(\d+)\.attention\.attention\.{part}\.(.+)"),
            (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
            (r"encoder\.layer\.(\d+)\.layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
            (r"encoder\.layer\.(\d+)\.layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
            (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.weights_in)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.weights_out)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (r"encoder\.layer\.(\d+)\.((?:norm[12]|mlp\.fc[12])\..+)", r"blocks.\1.\2"),
        ),
    ),
    Layout(
        "CLIP",
        "conv1.weight",
        also="class_embedding",
        rules=(
            (r"conv1\.(.+)", r"patch_embed.proj.\1"),
            (r"class_embedding", "cls_token"),
            (r"positional_embedding", "pos_embed"),
            (r"ln_pre\.(.+)", r"norm_pre.\1"),
            (r"ln_post\.(.+)", r"norm.\1"),
            (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
            (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
            (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
            (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            (r"transformer\.resblocks\.(\d+)\.ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
        ),
    ),
    Layout(
        "Hugging Face CLIP",
        "embeddings.patch_embedding.weight",
        rules=(
            (r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
            (r"embeddings\.class_embedding", "cls_token"),
            (r"embeddings\.position_embedding\.weight", "pos_embed"),
            (r"embeddings\.position_ids", "position_ids"),
            # Spelt like this in their code.
            (r"pre_layrnorm\.(.+)", r"norm_pre.\1"),
            (r"post_layernorm\.(.+)", r"norm.\1"),
            *_attention(r"encoder\.layers\.(\d+)\.self_attn\.{part}_proj\.(.+)"),
            (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
            (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
            (r"encoder\.layers\.(\d+)\.(mlp\.fc[12]\..+)", r"blocks.\1.\2"),
        ),
    ),
)
"""All layouts, recognised by the name of the patch embedding."""

NO_FEATURES = re.compile(
    r"(head|head_dist|heads|fc|classifier|pre_logits|pooler|proj|projection|dino_head|ibot_head|contrastive_head"
    r"|predictor|mask_token|masked_embed|position_ids|decoder_\w+)(\..+)?"
)
"""Names, in timm and other codes, of weights that do not contribute to a network's features."""


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in timm's shapes: separate q, k and v are joined, and tokens and positions get a batch dimension.

    Source: `_convert_dinov2` of timm 1.0.31 for register tokens, which have no position embedding.
    """
    state = dict(tensors)
    for key in tensors:
        if (match := re.fullmatch(r"(blocks\.\d+\.attn\.)q\.(weight|bias)", key)) is None:
            continue
        parts = [f"{match[1]}{part[0]}.{match[2]}" for part in _PARTS]
        if all(part in state for part in parts):
            state[f"{match[1]}qkv.{match[2]}"] = torch.cat([state.pop(part) for part in parts])
    if "cls_token" in state and state["cls_token"].dim() == 1:
        state["cls_token"] = state["cls_token"][None, None]
    if "pos_embed" in state and state["pos_embed"].dim() == 2:
        state["pos_embed"] = state["pos_embed"][None]
    if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():
        positions = state["pos_embed"]
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state
