"""The description of a backbone: everything needed to build it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VIT_B16 = {
    "vit_base_patch16_224.orig_in21k": "ImageNet-21k (Google's ViT-B_16.npz of 2020): L2P, DualPrompt, HiDe-Prompt",
    "vit_base_patch16_224.augreg_in21k": "ImageNet-21k, more augmented: InfLoRA, SLCA, RanPAC (CIFAR-100), EASE, MOS",
    "vit_base_patch16_224.augreg_in21k_ft_in1k": "augreg_in21k, then ImageNet-1k: CODA-Prompt, PILOT, RanPAC (others)",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": "augreg_in21k, then ImageNet-1k anew: SD-LoRA, CODA's code today",
}
"""The four sets of weights that papers call ViT-B/16, with their training data and the papers that use them."""


@dataclass(frozen=True)
class Backbone:
    """Everything needed to build a backbone; part of a planned run.

    Weights come from `asset`, else from `checkpoint`, else, if `pretrained`, from timm; otherwise they are random.

    Attributes:
        name: name in records: that of the embedded backbone, a timm tag, `NAME:FILE` or `NAME:FILE::NETWORK` for a
            checkpoint, or a timm architecture without tag for random weights.
        description: one line.
        architecture, options: timm's model name and arguments with which the weights were trained.
        size: side of the square input, in pixels; if the weights had another, timm resamples position embeddings.
        channels, mean, std: channels of the input, and its normalisation per channel.
        asset: name of an embedded file.
        checkpoint: the user's file.
        network: name of the network in a checkpoint with several, such as "teacher"; empty if there is only one.
        weights: SHA-256 of the weights (see `weights_hash`); empty until `verify` has read them.
        tuned_as: name of another backbone whose tuned recipes also apply to this one.
        citations: bibliography keys of the data on which an embedded backbone was trained.
    """

    name: str
    description: str
    architecture: str
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    asset: str | None = None
    checkpoint: Path | None = None
    network: str = ""
    pretrained: bool = True
    weights: str = field(default="", compare=False)
    tuned_as: str = field(default="", compare=False)
    citations: tuple[str, ...] = field(default=(), compare=False)
