"""Checkpoint files: safetensors, torch state dicts and Google's npz, as weights of a timm network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from cl_bench.backbones.backbone import Backbone
from cl_bench.backbones.networks import build
from cl_bench.errors import UserError

_HEADS = ("head", "head_dist")


def check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--checkpoint '{path}' is no file; expected safetensors, a torch state dict or Google's .npz")


def from_file(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    vit = build(backbone)
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
        raise _misfit(backbone, path, f"timm cannot convert it ({reason(error)})") from error


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
        what = f"timm cannot convert it{' into ' + unset[0] if unset else ''} ({reason(error)})"
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
        f"--checkpoint '{path}' cannot be read ({reason(error)}); "
        "expected safetensors, a torch state dict (.pth, .pt, .bin) or Google's .npz"
    )


def reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
