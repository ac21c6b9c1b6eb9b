"""From backbones to networks with weights, which are known by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files

import timm
import torch
from safetensors.torch import load
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.backbones.backbone import Backbone
from cl_bench.backbones.checkpoints import check_file, from_file, reason
from cl_bench.backbones.embedded import EMBEDDED
from cl_bench.backbones.lookup import find
from cl_bench.backbones.networks import build, with_random_weights
from cl_bench.errors import UserError
from cl_bench.randomness import seeded


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
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def verify(backbone: str | Backbone) -> Backbone:
    """Read the weights now; the returned backbone is pinned to their hash.

    Raises:
        UserError: weights that are not there, damaged, do not fit, or are not those that `backbone` is pinned to.
    """
    found = find(backbone) if isinstance(backbone, str) else backbone
    return replace(found, weights=_weights(found)[1])


def weights(backbone: Backbone) -> Mapping[str, Tensor]:
    """The pre-trained weights themselves, shared: not to be changed.

    Raises:
        UserError: as `verify`.
    """
    return _weights(backbone)[0]


def create(backbone: str | Backbone) -> VisionTransformer:
    """A fresh timm ViT without head, in fp32, with its weights, all of them trainable.

    Raises:
        UserError: as `find` and `verify`.
    """
    found = find(backbone) if isinstance(backbone, str) else backbone
    vit = skeleton(found)
    vit.load_state_dict({key: tensor.clone() for key, tensor in _weights(found)[0].items()}, assign=True)
    return vit


def skeleton(backbone: str | Backbone) -> VisionTransformer:
    """The ViT without storage, on torch's meta device: enough to build a method's model and see whether it fits."""
    found = find(backbone) if isinstance(backbone, str) else backbone
    return build(found, img_size=found.size)


def _weights(backbone: Backbone) -> tuple[dict[str, Tensor], str]:
    """All weights by timm's names, and their hash; not to be changed in place."""
    changed = None
    if backbone.checkpoint is not None:
        check_file(backbone.checkpoint)
        stat = backbone.checkpoint.stat()
        changed = (stat.st_mtime_ns, stat.st_size)
    state, found = _read(backbone, changed)
    if backbone.weights not in ("", found):
        raise UserError(
            f"the weights of '{backbone.name}' are not those that the run was planned with: SHA-256 {found[:16]}..., "
            f"expected {backbone.weights[:16]}...; bring the file back, or plan the run anew"
        )
    return state, found


@lru_cache(maxsize=2)
def _read(backbone: Backbone, changed: tuple[int, int] | None) -> tuple[dict[str, Tensor], str]:
    """Kept for the next run; `changed` tells two states of one file apart."""
    if backbone.asset is not None:
        state = _embedded(backbone.asset, EMBEDDED[backbone.name].weights)
    elif backbone.checkpoint is not None:
        state = from_file(backbone, backbone.checkpoint)
    elif backbone.pretrained:
        state = _from_timm(backbone)
    else:
        with seeded(("random backbone",)):
            state = with_random_weights(backbone, img_size=backbone.size).state_dict()
    native = build(backbone)
    if backbone.pretrained and native.patch_embed.img_size != (backbone.size, backbone.size):
        native.load_state_dict(state, assign=True)
        native.set_input_size((backbone.size, backbone.size))
        state = native.state_dict()
    state = {key: tensor.detach().contiguous() for key, tensor in state.items()}
    return state, weights_hash(state)


def _embedded(asset: str, expected: str) -> dict[str, Tensor]:
    try:
        state = load((files("cl_bench") / "assets" / asset).read_bytes())
        found = weights_hash(state)
    except Exception as error:
        found = f"unreadable ({type(error).__name__})"
    if found != expected:
        raise UserError(
            f"the embedded backbone ({asset}) is damaged: SHA-256 {found[:16]}..., expected {expected[:16]}...; "
            "reinstall cl-bench or restore the file"
        )
    return {key: tensor.float() for key, tensor in state.items()}


def _from_timm(backbone: Backbone) -> dict[str, Tensor]:
    """The weights of a tag: from the cache if they are there, which needs no network, else downloaded by timm."""
    from huggingface_hub import constants, try_to_load_from_cache

    cfg = get_pretrained_cfg(backbone.architecture)
    cached = None
    if cfg.hf_hub_id:
        found = (try_to_load_from_cache(cfg.hf_hub_id, file) for file in ("model.safetensors", "pytorch_model.bin"))
        cached = next((path for path in found if isinstance(path, str)), None)
    overlay = {"file": cached} if cached else {}
    try:
        with torch.random.fork_rng(devices=[]):
            # With the head, as timm is strict about missing weights only then.
            vit = timm.create_model(
                backbone.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **backbone.options
            )
    except Exception as error:
        if cached:
            raise UserError(
                f"the weights of '{backbone.name}' in '{cached}' are damaged ({reason(error)}); remove the file and "
                "run again with a network"
            ) from error
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        why, where, source = reason(cause), f"in '{torch.hub.get_dir()}/checkpoints'", cfg.url
        if cfg.hf_hub_id:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else why
            where = f"for '{cfg.hf_hub_id}' in '{constants.HF_HUB_CACHE}'"
            source = f"model.safetensors from https://huggingface.co/{cfg.hf_hub_id}"
        raise UserError(
            f"the weights of '{backbone.name}' are not on this machine and cannot be fetched ({why}): timm looks "
            f"{where}; on another machine get {source}, then name the file with --backbone {backbone.name} "
            "--checkpoint FILE"
        ) from error
    vit.reset_classifier(0)
    return vit.state_dict()
