"""From a backbone to a timm network without weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from cl_bench.backbones.backbone import Backbone


def build_on_meta(backbone: Backbone, **options: Any) -> VisionTransformer:
    """The architecture as the weights were trained, but for `options`, on the meta device."""
    with torch.device("meta"):
        return with_random_weights(backbone, weight_init="skip", **options)


def with_random_weights(backbone: Backbone, **options: Any) -> VisionTransformer:
    arguments = {**backbone.options, **options}
    return timm.create_model(backbone.architecture, pretrained=False, num_classes=0, **arguments)
