"""Pre-trained Vision Transformers, named by timm tag or read from a file, known by the hash of their weights."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load
from timm.models import get_deprecated_models, get_pretrained_cfg, load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from cl_bench.errors import UserError
from cl_bench.randomness import seeded

NORMALISE = ("checkpoint", "none")
"""Input normalisation: what the weights were trained with, or pixels in [0, 1] as most published codes feed them."""

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
        name: as in records: of the embedded backbone, a timm tag, `NAME:FILE` for a checkpoint, or a timm architecture
            without tag for random weights.
        description: one line.
        architecture, options: timm's model name and its arguments, as the weights were trained.
        size: side of the square input, in pixels; where the weights had another, timm resamples position embeddings.
        channels, mean, std: of the input.
        asset: an embedded file.
        checkpoint: a file of the user's.
        weights: SHA-256 of the weights (see `weights_hash`); empty until `verify` has read them.
        tuned_as: another backbone, whose tuned recipes hold for this one.
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
    pretrained: bool = True
    weights: str = field(default="", compare=False)
    tuned_as: str = field(default="", compare=False)


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
)

_EMBEDDED = {
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
        ),
        _PHOTOGRAPHS,
        replace(
            _PHOTOGRAPHS,
            name=f"{_PHOTOGRAPHS.name}.s1",
            description="the same pre-training from another seed; embedded",
            asset=f"{_PHOTOGRAPHS.name}.s1.safetensors",
            weights="2a3d5e4a967561a6c914f3f1d8f28feb6839b556b604ecd4b0d7e83be8f3d7ff",
            tuned_as=_PHOTOGRAPHS.name,
        ),
    )
}


# --- from names to backbones -----------------------------------------------------------------------------------


def names() -> list[str]:
    """Names of the embedded backbones; all others are timm's."""
    return sorted(_EMBEDDED)


def card(name: str) -> dict[str, Any] | None:
    """The model card of an embedded backbone, as `tools/pretrain_backbone.py` writes it; None: of another one."""
    if name not in _EMBEDDED:
        return None
    found: dict[str, Any] = json.loads((files("cl_bench") / "assets" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def find(
    name: str,
    *,
    checkpoint: Path | None = None,
    pretrained: bool = True,
    normalise: str = "checkpoint",
    size: int | None = None,
) -> Backbone:
    """The backbone that the user asks for; weights are not read yet, unless they are embedded (see `verify`).

    Args:
        name: of an embedded backbone, or of a timm VisionTransformer with its tag; without tag only if the weights come
            from elsewhere.
        checkpoint: a file with the weights: safetensors, a torch state dict, or Google's npz.
        pretrained: False: random weights, the same in every run.
        normalise: one of `NORMALISE`.
        size: side of the input in pixels, if not that of the weights.

    Raises:
        UserError: anything unknown, ambiguous or contradictory.
    """
    if normalise not in NORMALISE:
        raise UserError(f"--normalise '{normalise}' is unknown; expected {' or '.join(NORMALISE)}")
    if checkpoint is not None and not pretrained:
        raise UserError("--checkpoint and --pretrained no ask for different weights; leave one of them out")
    base, colon, file = name.partition(":")
    if colon and (base in _EMBEDDED or timm.is_model(base)):
        raise UserError(
            f"'{name}' is what records call weights from a file; write --backbone {base} --checkpoint .../{file}"
        )
    if name in _EMBEDDED and not pretrained:
        raise UserError(
            f"--pretrained no: '{name}' names trained weights; name an architecture, "
            f"e.g. --backbone {_EMBEDDED[name].architecture}"
        )
    found = _EMBEDDED[name] if name in _EMBEDDED else _of_timm(name, checkpoint is not None, pretrained, normalise)
    if checkpoint is not None:
        _check_file(checkpoint)
        found = replace(
            found,
            name=f"{name}:{checkpoint.name}",
            description=f"{found.architecture}, weights from {checkpoint}",
            asset=None,
            checkpoint=checkpoint.absolute(),
            weights="",
        )
    if normalise == "none":
        found = replace(found, mean=(0.0,) * found.channels, std=(1.0,) * found.channels)
    if size is not None and size != found.size:
        patch = _build(found).patch_embed.patch_size[0]
        if size < patch or size % patch:
            raise UserError(
                f"'{name}' sees patches of {patch} pixels; an input of {size} pixels is no multiple of that"
            )
        found = replace(found, size=size, weights="")
    return found


def _of_timm(name: str, own_file: bool, pretrained: bool, normalise: str) -> Backbone:
    architecture, _, tag = name.partition(".")
    current = get_deprecated_models().get(name)
    if current:
        raise UserError(f"'{name}' is timm's old name of '{current}'; write that")
    if not timm.is_model(architecture):
        raise _unknown(name)
    with torch.device("meta"):
        vit = timm.create_model(architecture, pretrained=False, num_classes=0)
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"backbone '{name}' is timm's {type(vit).__name__}, but methods adapt its VisionTransformer only; "
            "name one, such as vit_base_patch16_224.augreg_in21k"
        )
    tags = timm.list_pretrained(f"{architecture}.*")
    listed = ", ".join(tags)
    if tag and name not in tags:
        there = (
            f"there are {listed}" if tags else "it has none of this architecture; give --checkpoint, or --pretrained no"
        )
        raise UserError(f"timm has no weights '{name}'; {there}")
    if tag and not pretrained:
        raise UserError(f"--pretrained no: '{name}' names trained weights; write --backbone {architecture}")
    if not tag and pretrained and not own_file:
        if not tags:
            raise UserError(f"timm has no weights for '{name}'; give a file with --checkpoint, or --pretrained no")
        raise UserError(
            f"'{name}' is an architecture, not weights: papers mean different weights by one such name (four by "
            f"ViT-B/16, see 'cl-bench ls backbones'), and results on them cannot be compared; name one of {listed}; "
            "or start from random weights with --pretrained no"
        )
    if not tag and own_file and normalise == "checkpoint":
        _check_normalisation(architecture, tags)
    cfg = get_pretrained_cfg(name)
    return Backbone(
        name=name,
        description=f"{architecture}, {f'weights {tag} of timm' if tag else 'random weights'}",
        architecture=name,
        size=cfg.input_size[-1],
        channels=cfg.input_size[0],
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        pretrained=pretrained,
    )


def _unknown(name: str) -> UserError:
    modules = ("vision_transformer", "deit")
    vits = [vit for module in modules for vit in timm.list_models(module=module, pretrained=True, include_tags=True)]
    close = difflib.get_close_matches(name, [*names(), *vits], n=3, cutoff=0.4)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    guess += f" Close to it, too: {', '.join(close[1:])}." if close[1:] else ""
    return UserError(f"unknown backbone '{name}'.{guess} 'cl-bench ls backbones' says how to name one.")


def _check_normalisation(architecture: str, tags: Iterable[str]) -> None:
    """A file does not say how its inputs were normalised: all weights that timm knows must agree."""
    known: dict[Any, str] = {}
    for tag in tags:
        cfg = get_pretrained_cfg(tag)
        known.setdefault((cfg.mean, cfg.std), f"{tag} (mean {', '.join(f'{value:.3g}' for value in cfg.mean)})")
    if len(known) > 1:
        raise UserError(
            f"weights of '{architecture}' differ in the input normalisation that they expect, and a file does not say "
            f"its own; give as --backbone a tag with the same, such as {' or '.join(known.values())}, or feed pixels "
            "in [0, 1] with --normalise none"
        )


# --- from backbones to networks --------------------------------------------------------------------------------


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
    return _build(found, img_size=found.size)


def _build(backbone: Backbone, **options: Any) -> VisionTransformer:
    """The architecture as the weights were trained, but for `options`, on the meta device."""
    with torch.device("meta"):
        return _random(backbone, weight_init="skip", **options)


def _random(backbone: Backbone, **options: Any) -> VisionTransformer:
    arguments = {**backbone.options, **options}
    return timm.create_model(backbone.architecture, pretrained=False, num_classes=0, **arguments)


def _weights(backbone: Backbone) -> tuple[dict[str, Tensor], str]:
    """All weights by timm's names, and their hash; not to be changed in place."""
    changed = None
    if backbone.checkpoint is not None:
        _check_file(backbone.checkpoint)
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
        state = _embedded(backbone.asset, _EMBEDDED[backbone.name].weights)
    elif backbone.checkpoint is not None:
        state = _from_file(backbone, backbone.checkpoint)
    elif backbone.pretrained:
        state = _from_timm(backbone)
    else:
        with seeded(("random backbone",)):
            state = _random(backbone, img_size=backbone.size).state_dict()
    native = _build(backbone)
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
                f"the weights of '{backbone.name}' in '{cached}' are damaged ({_reason(error)}); remove the file and "
                "run again with a network"
            ) from error
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        why, where, source = _reason(cause), f"in '{torch.hub.get_dir()}/checkpoints'", cfg.url
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


# --- checkpoint files ------------------------------------------------------------------------------------------

_HEADS = ("head", "head_dist")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--checkpoint '{path}' is no file; expected safetensors, a torch state dict or Google's .npz")


def _from_file(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    vit = _build(backbone)
    state = (_google if path.suffix == ".npz" else _torch)(backbone, path, vit)
    state = {key: tensor for key, tensor in state.items() if key.split(".")[0] not in _HEADS}
    expected = vit.state_dict()
    unexpected = next((key for key in state if key not in expected), None)
    for key, tensor in expected.items():
        if key not in state:
            instead = f" (it holds '{unexpected}' instead)" if unexpected else ""
            raise _misfit(backbone, path, f"'{key}' is missing{instead}")
        if not isinstance(state[key], Tensor):
            raise _misfit(backbone, path, f"'{key}' is no tensor but {type(state[key]).__name__}")
        _compare(backbone, path, key, tuple(state[key].shape), tuple(tensor.shape))
    if unexpected:
        raise _misfit(backbone, path, f"'{unexpected}' is unexpected")
    return {key: state[key].float() if state[key].is_floating_point() else state[key] for key in expected}


def _torch(backbone: Backbone, path: Path, vit: VisionTransformer) -> dict[str, Any]:
    """A safetensors file or torch state dict, unwrapped and renamed as timm does."""
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    _check_input(backbone, path, vit, {key: tuple(getattr(value, "shape", ())) for key, value in state.items()})
    try:
        return checkpoint_filter_fn(state, vit, adapt_layer_scale=True)
    except Exception as error:
        raise _misfit(backbone, path, f"timm cannot convert it ({_reason(error)})") from error


def _google(backbone: Backbone, path: Path, vit: VisionTransformer) -> dict[str, Any]:
    """An npz file of Google's JAX code, as timm reads it; what timm would pass over in silence is refused."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # The text tower of an image-text model is no concern of ours.
            keys = [key for key in arrays.files if "txt/" not in key]
            shapes = {key: arrays[key].shape for key in keys if key.endswith(("pos_embedding", "LayerNorm_0/scale"))}
            kernels = {key: arrays[key].shape for key in keys if key.endswith("embedding/kernel")}
    except Exception as error:
        raise _unreadable(path, error) from error
    shapes |= {key: (shape[3], shape[2], *shape[:2]) for key, shape in kernels.items() if len(shape) == 4}
    _check_input(backbone, path, vit, shapes)
    depth = len({match[0] for key in keys if (match := re.search(r"encoderblock_\d+/", key))})
    depth = depth or max((shape[0] for key, shape in shapes.items() if "encoderblock/LayerNorm_0" in key), default=0)
    if depth != len(vit.blocks):
        raise _misfit(backbone, path, f"'encoderblock' is there {depth} times, expected {len(vit.blocks)}")
    vit.to_empty(device="cpu")
    state = vit.state_dict()
    for tensor in state.values():
        tensor.fill_(float("nan"))
    try:
        vit.load_pretrained(str(path))
    except KeyError as error:
        key = str(error.args[0]).removesuffix(" is not a file in the archive")
        raise _misfit(backbone, path, f"'{key}' is missing") from error
    except Exception as error:
        unset = [f"'{key}' of shape {tuple(tensor.shape)}" for key, tensor in state.items() if tensor.isnan().any()]
        what = f"timm cannot convert it{' into ' + unset[0] if unset else ''} ({_reason(error)})"
        raise _misfit(backbone, path, what) from error
    for key, tensor in state.items():
        if tensor.isnan().any():
            raise _misfit(backbone, path, f"'{key}' is missing or not a number")
    return state


def _check_input(backbone: Backbone, path: Path, vit: VisionTransformer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """timm would resample a checkpoint of another resolution or patch size without being asked to."""
    kernels = ("patch_embed.proj.weight", "visual.conv1.weight", "embedding/kernel")
    for key, shape in shapes.items():
        if key.endswith(kernels) and len(shape) == 4:
            _compare(backbone, path, key, shape, tuple(vit.patch_embed.proj.weight.shape))
    positions = ("pos_embed", "visual.positional_embedding", "pos_embedding")
    patches, others = vit.patch_embed.num_patches, vit.num_prefix_tokens
    for key, shape in shapes.items():
        if key.endswith(positions) and len(shape) > 1 and not patches <= shape[-2] <= patches + others:
            expected = f"{patches} (and up to {others} for other tokens)"
            raise _misfit(backbone, path, f"'{key}' has {shape[-2]} positions, expected {expected}")


def _compare(backbone: Backbone, path: Path, key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise _misfit(backbone, path, f"'{key}' has shape {found}, expected {expected}")


def _misfit(backbone: Backbone, path: Path, what: str) -> UserError:
    return UserError(
        f"--checkpoint '{path}' does not fit {backbone.architecture}: {what}; "
        "name the architecture that it was saved from with --backbone"
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"--checkpoint '{path}' cannot be read ({_reason(error)}); "
        "expected safetensors, a torch state dict (.pth, .pt, .bin) or Google's .npz"
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
