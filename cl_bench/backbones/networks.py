"""timm networks of backbones, without pre-trained weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from cl_bench.backbones.backbone import Backbone


def build_on_meta(backbone: Backbone, **options: Any) -> VisionTransformer:
    """The network of a backbone on the meta device; `options` override the arguments its weights were trained with."""
    with torch.device("meta"):
        return with_random_weights(backbone, weight_init="skip", **options)


def with_random_weights(backbone: Backbone, **options: Any) -> VisionTransformer:
    """The network of a backbone without head, initialised by timm; `options` override its arguments."""
    arguments = {**backbone.options, **options}
    return timm.create_model(backbone.architecture, pretrained=False, num_classes=0, **arguments)
