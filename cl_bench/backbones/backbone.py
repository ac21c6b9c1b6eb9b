"""What a backbone is: all that is needed to create it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VIT_B16 = {
    "vit_base_patch16_224.orig_in21k": "ImageNet-21k (Google's ViT-B_16.npz of 2020): L2P, DualPrompt, HiDe-Prompt",
    "vit_base_patch16_224.augreg_in21k": "ImageNet-21k, more augmented: InfLoRA, SLCA, RanPAC (CIFAR-100), EASE, MOS",
    "vit_base_patch16_224.augreg_in21k_ft_in1k": "the same, then ImageNet-1k: CODA-Prompt, PILOT, RanPAC (other data)",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": "the same, then ImageNet-1k anew: SD-LoRA, CODA-Prompt's code today",
}
"""The four weights that papers call ViT-B/16: what they were trained on, and which papers use them."""


@dataclass(frozen=True)
class Backbone:
    """A backbone with all that is needed to create it: what a plan hands to its runs.

    Weights come from `asset`, else from `checkpoint`, else, if `pretrained`, from timm; else they are random.

    Attributes:
        name: as in records: of the embedded backbone, a timm tag, `NAME:FILE` or `NAME:FILE::NETWORK` for a
            checkpoint, or a timm architecture without tag for random weights.
        description: one line.
        architecture, options: timm's model name and its arguments, as the weights were trained.
        size: side of the square input, in pixels; where the weights had another, timm resamples position embeddings.
        channels, mean, std: of the input.
        asset: an embedded file.
        checkpoint: a file of the user's.
        network: which of the networks in that file, such as "teacher"; empty: it holds one.
        weights: SHA-256 of the weights (see `weights_hash`); empty until `verify` has read them.
        tuned_as: another backbone, whose tuned recipes hold for this one.
        citations: keys of the bibliography, of the data that an embedded backbone was trained on.
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
