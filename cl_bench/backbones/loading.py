"""Weights of backbones, identified by their hash, and the networks built with them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import timm
import torch
from safetensors.torch import load
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.backbones import hub
from cl_bench.backbones.backbone import Backbone
from cl_bench.backbones.checkpoints import Weights, from_file
from cl_bench.backbones.containers import check_file
from cl_bench.backbones.embedded import EMBEDDED, names
from cl_bench.backbones.lookup import find
from cl_bench.backbones.networks import build_on_meta, with_random_weights
from cl_bench.errors import NotHere, UserError, printable, reason, root_cause
from cl_bench.randomness import seeded


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (name, shape, little-endian fp32 bytes) without the head.

    Computed after timm's conversion, so that npz, pth and safetensors files of the same weights agree.
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
    """Read the weights now, and return the backbone pinned to their hash.

    Raises:
        UserError: the weights are missing or damaged, do not fit, or are not those that `backbone` is pinned to.
    """
    found = find(backbone) if isinstance(backbone, str) else backbone
    read = _weights(found)
    if read.note and found.checkpoint is not None:
        print(f"weights from '{printable(found.checkpoint.name)}': {read.note}", file=sys.stderr)
    return replace(found, weights=read.hash)


def weights(backbone: Backbone) -> Mapping[str, Tensor]:
    """The pre-trained weights by timm's names, in fp32; the tensors are shared and must not be changed.

    Raises:
        UserError: as in `verify`.
    """
    return _weights(backbone).state


def build_backbone(backbone: str | Backbone) -> VisionTransformer:
    """A new timm ViT without head, in fp32, with its weights, all of which are trainable.

    Raises:
        UserError: as in `find` and `verify`.
    """
    found = find(backbone) if isinstance(backbone, str) else backbone
    vit = skeleton(found)
    vit.load_state_dict({key: tensor.clone() for key, tensor in _weights(found).state.items()}, assign=True)
    return vit


def skeleton(backbone: str | Backbone) -> VisionTransformer:
    """The ViT on torch's meta device, without storage: enough to build a method's model and check that it fits."""
    found = find(backbone) if isinstance(backbone, str) else backbone
    return build_on_meta(found, img_size=found.size)


@dataclass(frozen=True)
class _Read:
    """Weights by timm's names for the backbone's input size (shared, so never changed in place), with hash and note."""

    state: dict[str, Tensor]
    hash: str
    note: str


def _weights(backbone: Backbone) -> _Read:
    changed = None
    if backbone.checkpoint is not None:
        check_file(backbone.checkpoint)
        stat = backbone.checkpoint.stat()
        changed = (stat.st_mtime_ns, stat.st_size)
    read = _read(backbone, changed)
    if backbone.weights not in ("", read.hash):
        raise UserError(
            f"the weights of '{backbone.name}' are not those that the run was planned with: they have SHA-256 "
            f"{read.hash[:16]}..., expected {backbone.weights[:16]}...; restore the file, or plan the run again"
        )
    return read


@lru_cache(maxsize=2)
def _read(backbone: Backbone, changed: tuple[int, int] | None) -> _Read:
    """Read weights, cached for the next run; `changed` (time and size) distinguishes two states of one file."""
    if backbone.asset is not None:
        found = Weights(_embedded(backbone.asset, EMBEDDED[backbone.name].weights))
    elif backbone.checkpoint is not None:
        found = from_file(backbone, backbone.checkpoint)
    elif backbone.pretrained:
        found = Weights(_from_timm(backbone))
    else:
        with seeded(("random backbone",)):
            found = Weights(with_random_weights(backbone, img_size=backbone.size).state_dict())
    state = found.state
    native = build_on_meta(backbone, **({"img_size": found.size} if found.size else {}))
    if backbone.pretrained and native.patch_embed.img_size != (backbone.size, backbone.size):
        native.load_state_dict(state, assign=True)
        native.set_input_size((backbone.size, backbone.size))
        state = native.state_dict()
    state = {key: tensor.detach().contiguous() for key, tensor in state.items()}
    return _Read(state, weights_hash(state), found.note)


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
    """The weights of a timm tag: from the cache, which needs no network, or else downloaded."""
    cfg = get_pretrained_cfg(backbone.architecture)
    file = None
    try:
        if cfg.hf_hub_id:
            file = hub.cached(cfg.hf_hub_id) or hub.fetch(cfg.hf_hub_id, backbone.name)
        with torch.random.fork_rng(devices=[]):
            # With the head, because timm only then refuses missing weights. The file is never Google's npz.
            overlay = {"file": str(file), "custom_load": False} if file else {}
            vit = timm.create_model(
                backbone.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **backbone.options
            )
    except Exception as error:
        if file:
            raise _damaged(backbone, file, reason(error)) from error
        raise _not_here(backbone, error) from error
    vit.reset_classifier(0)
    state = vit.state_dict()
    if unusable := next((key for key, tensor in state.items() if not tensor.isfinite().all()), None):
        raise _damaged(backbone, file, f"'{unusable}' holds numbers that are not finite")
    return state


def _damaged(backbone: Backbone, file: Path | None, why: str) -> UserError:
    where = file or f"{torch.hub.get_dir()}/checkpoints"
    return UserError(
        f"the weights of '{backbone.name}' in '{where}' are damaged ({why}); remove the file and run again with a "
        "network connection"
    )


def _not_here(backbone: Backbone, error: Exception) -> NotHere:
    from huggingface_hub import constants

    cfg = get_pretrained_cfg(backbone.architecture)
    why = str(error) if isinstance(error, hub.NotFetched) else reason(root_cause(error))
    where, source = f"in '{torch.hub.get_dir()}/checkpoints'", cfg.url
    if cfg.hf_hub_id:
        where = f"for '{cfg.hf_hub_id}' in '{constants.HF_HUB_CACHE}'"
        source = f"model.safetensors from https://huggingface.co/{cfg.hf_hub_id}"
    return NotHere(
        f"the weights of '{backbone.name}' are not on this machine and cannot be fetched ({why}): timm looks "
        f"{where}; on another machine get {source}, then name the file with --backbone {backbone.name} "
        f"--checkpoint FILE; or take a backbone that comes with cl-bench and needs no network: {', '.join(names())}"
    )
