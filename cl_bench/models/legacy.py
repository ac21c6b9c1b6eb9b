"""Names of `cl_bench.adapters.network` in version 0.1.0: functions of a bare backbone, for older method files."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.models.vit import ViT
from cl_bench.models.vit_pass import BottleneckWeights as Bottleneck
from cl_bench.models.vit_pass import apply_bottleneck_adapter as bottleneck

__all__ = ["Bottleneck", "attention_inputs", "bottleneck", "cls_features", "tokens"]


def cls_features(backbone: VisionTransformer, images: Tensor, **into: Any) -> Tensor:
    """CLS features of a backbone; see `ViT.features`."""
    return ViT.of(backbone).features(images, **into)


def tokens(backbone: VisionTransformer, images: Tensor, **into: Any) -> Tensor:
    """All output tokens of a backbone; see `ViT.tokens`."""
    return ViT.of(backbone).tokens(images, **into)


def attention_inputs(backbone: VisionTransformer, images: Tensor, **into: Any) -> list[Tensor]:
    """Inputs of the attention of every block of a backbone; see `ViT.attention_inputs`."""
    return ViT.of(backbone).attention_inputs(images, **into)
