"""A small ViT with weights that tests write to all kinds of files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from cl_bench import backbones
from cl_bench.backbones import Backbone

TINY = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def trained(seed: int = 0, **options: Any) -> VisionTransformer:
    """A small ViT with a head; all its weights are random, so that no two are equal by construction."""
    vit: VisionTransformer = timm.create_model(TINY, **{**SMALL, "num_classes": 5, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return vit


@cache
def tiny() -> Backbone:
    return backbones.find(TINY, pretrained=False)


def small(path: Path, size: int = 32, network: str = "", **options: Any) -> Backbone:
    """The small architecture with weights from a file, or from one of several networks in the file."""
    options = {**SMALL, **options}
    return replace(tiny(), checkpoint=path, network=network, pretrained=True, options=options, size=size)
