"""The backbones embedded in the package."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

from cl_bench.backbones.backbone import Backbone

_PHOTOGRAPHS = Backbone(
    name="vit_tiny_patch4_32.tinyimagenet156",
    description="ViT-Ti/4 at 32 px, pre-trained on 156 classes of Tiny ImageNet, none of CIFAR-100; embedded",
    architecture="vit_tiny_patch16_224",
    options={"img_size": 32, "patch_size": 4},
    size=32,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    asset="vit_tiny_patch4_32.tinyimagenet156.safetensors",
    weights="07f07ea4f3cb580e43b8784c2f27273c4378837eab4c28055ff6fa69c2cc6401",
    citations=("le2015tinyimagenet", "russakovsky2015imagenet"),
)


EMBEDDED = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="vit_tiny_patch8_32.icons",
            description="ViT-Ti/8 at 32 px, grey, pre-trained on icon classes outside every icons stream; embedded",
            architecture="vit_tiny_patch16_224",
            options={"img_size": 32, "patch_size": 8, "in_chans": 1},
            size=32,
            channels=1,
            mean=(0.5,),
            std=(0.5,),
            asset="vit_tiny_patch8_32.icons.safetensors",
            weights="98be114ee73155033131610ba261fb184dd95c48ac7176ddb3b1b151c9c2aeca",
            citations=("iconify",),
        ),
        _PHOTOGRAPHS,
        replace(
            _PHOTOGRAPHS,
            name=f"{_PHOTOGRAPHS.name}.s1",
            description="ViT-Ti/4 at 32 px, pre-trained as tinyimagenet156 but with another seed; embedded",
            asset=f"{_PHOTOGRAPHS.name}.s1.safetensors",
            weights="2a3d5e4a967561a6c914f3f1d8f28feb6839b556b604ecd4b0d7e83be8f3d7ff",
            tuned_as=_PHOTOGRAPHS.name,
        ),
    )
}


def names() -> list[str]:
    """Names of the embedded backbones, in alphabetical order."""
    return sorted(EMBEDDED)


def card(name: str) -> dict[str, Any] | None:
    """The model card of an embedded backbone, as written by `tools/pretrain_backbone.py`; None for other backbones."""
    if name not in EMBEDDED:
        return None
    found: dict[str, Any] = json.loads((files("cl_bench") / "assets" / f"{name}.json").read_text(encoding="utf-8"))
    return found
