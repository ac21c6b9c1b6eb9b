"""Pre-trained Vision Transformers, named by timm tag and pinned by the hash of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.errors import UserError, unknown_name


@dataclass(frozen=True)
class Backbone:
    """A backbone as the user names it.

    Attributes:
        name: as in `--backbone`.
        description: one line for `cl-bench ls backbones`.
        architecture, options: timm's model name and its arguments.
        size, channels, mean, std: the input that the weights were trained on.
        weights: SHA-256 of the weights (see `weights_hash`).
        asset: the embedded file that holds them.
    """

    name: str
    description: str
    architecture: str
    options: Mapping[str, Any]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    asset: str


_BACKBONES = {
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
            weights="98be114ee73155033131610ba261fb184dd95c48ac7176ddb3b1b151c9c2aeca",
            asset="vit_tiny_patch8_32.icons.safetensors",
        ),
    )
}


def names() -> list[str]:
    """Names of all backbones."""
    return sorted(_BACKBONES)


def find(name: str) -> Backbone:
    """The backbone with this name.

    Raises:
        UserError: there is none; the closest name is suggested.
    """
    if name not in _BACKBONES:
        raise unknown_name("backbone", name, _BACKBONES, "'cl-bench ls backbones' describes them.")
    return _BACKBONES[name]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (name, shape, little-endian fp32 bytes) without the head.

    Taken after timm's conversion, so that npz, pth and safetensors files of the same weights agree.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.startswith("head."):
            continue
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(name.encode())
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def verify(name: str) -> None:
    """Raise `UserError` now if the weights are not the published ones (see `create`)."""
    _weights(name)


def create(name: str) -> VisionTransformer:
    """A fresh timm ViT without head, in fp32, with the pre-trained weights, all of them trainable.

    Raises:
        UserError: unknown name, or weights that are not the published ones.
    """
    backbone = find(name)
    with torch.random.fork_rng(devices=[]):
        vit = timm.create_model(backbone.architecture, pretrained=False, num_classes=0, **backbone.options)
    vit.load_state_dict(_weights(name))
    return vit


def skeleton(name: str) -> VisionTransformer:
    """The ViT without storage, on torch's meta device: enough to build a method's model and see whether it fits."""
    backbone = find(name)
    with torch.device("meta"):
        return timm.create_model(backbone.architecture, pretrained=False, num_classes=0, **backbone.options)


@cache
def _weights(name: str) -> dict[str, Tensor]:
    backbone = find(name)
    try:
        state = load((files("cl_bench") / "assets" / backbone.asset).read_bytes())
        found = weights_hash(state)
    except Exception as error:
        found = f"unreadable ({type(error).__name__})"
    if found != backbone.weights:
        raise UserError(
            f"the embedded backbone ({backbone.asset}) is damaged: SHA-256 {found[:16]}..., "
            f"expected {backbone.weights[:16]}...; reinstall cl-bench or restore the file"
        )
    return {key: tensor.float() for key, tensor in state.items()}


def feature_dim(vit: VisionTransformer) -> int:
    """Width of the CLS feature."""
    return int(np.asarray(vit.num_features))
