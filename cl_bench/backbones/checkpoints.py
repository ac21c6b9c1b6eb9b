"""Checkpoint files (safetensors, torch state dicts, Google's npz) converted to weights of a timm network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from timm.models import clean_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from cl_bench.backbones.backbone import Backbone
from cl_bench.backbones.containers import SEPARATOR, Network, read, unreadable
from cl_bench.backbones.layouts import NO_FEATURES, TIMM, converted
from cl_bench.backbones.networks import build_on_meta
from cl_bench.errors import UserError, printable, reason

_HEADS = ("head", "head_dist", "pre_logits")
_PLAIN = {"model", "state_dict", "module", "_orig_mod"}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_GOOGLE = re.compile(r"(?:opt/target/|params/|params/img/)?(?:cls|embedding/|pos_embedding|Transformer/|MAPHead_0/)")


@dataclass(frozen=True)
class Weights:
    """Weights of a network.

    Attributes:
        state: fp32 tensors by timm's names.
        size: side of the input, in pixels, that the position embedding fits; None: that of the architecture.
        note: what was chosen, left out and will be resampled; empty if the file holds just these weights.
    """

    state: dict[str, Tensor]
    size: int | None = None
    note: str = ""


def from_file(backbone: Backbone, path: Path) -> Weights:
    """The weights of a backbone from the user's file.

    Raises:
        UserError: the file cannot be read, holds several networks or none that fits, or holds weights that are not
            finite floating-point numbers.
    """
    if path.suffix == ".npz":
        if backbone.network:
            raise UserError(f"--checkpoint '{path}' holds one network; leave out '{SEPARATOR}{backbone.network}'")
        return _google(backbone, path)
    network = read(path, backbone.network)
    own = network.weights if network.path else clean_state_dict(dict(network.weights))
    names = {key: network.layout.rename(key) for key in own}
    unused = [key for key, name in names.items() if NO_FEATURES.fullmatch(name)]
    tensors = {names[key]: tensor for key, tensor in own.items() if key not in unused}
    in_file = {name: f"{network.root}{key}" for key, name in names.items()}
    vit = build_on_meta(backbone)
    expected = vit.state_dict()
    _check_kind(backbone, path, tensors, expected, in_file)
    # DINOv2 with registers has a position embedding for its class token; the conversion adds it to the token.
    extra = int("register_tokens" in tensors)
    kernel, positions = (
        (in_file.get(name, name), _shape(tensors.get(name))) for name in ("patch_embed.proj.weight", "pos_embed")
    )
    vit, size = _of_grid(backbone, path, vit, kernel, positions, extra)
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            _check_numbers(path, in_file[name], tensor)
    try:
        state = checkpoint_filter_fn(converted(tensors), vit, adapt_layer_scale=True)
    except Exception as error:
        raise _misfit(backbone, path, f"timm cannot convert it ({reason(error)})") from error
    _check_names(backbone, path, state, vit.state_dict(), in_file)
    note = _note(network, [f"{network.root}{key}" for key in unused], len(names) - len(unused))
    return Weights({key: state[key].float() for key in expected}, size, _with_grid(note, backbone, vit, size))


def _check_kind(
    backbone: Backbone,
    path: Path,
    tensors: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    in_file: Mapping[str, str],
) -> None:
    """Refuse networks that resemble a VisionTransformer but compute something else, recognised by their tensors."""
    relative = next((name for name in tensors if "relative_position" in name or "rel_pos" in name), None)
    if relative is not None:
        raise UserError(
            f"--checkpoint '{path}' is of another network: '{printable(in_file[relative])}' holds relative positions "
            "inside attention, as in BEiT, and timm's VisionTransformer, which methods adapt, has none; take weights "
            "of a plain ViT, such as DINO, MAE, DeiT or CLIP"
        )
    if "norm_pre.weight" in tensors and "norm_pre.weight" not in expected:
        raise _misfit(
            backbone,
            path,
            f"'{in_file['norm_pre.weight']}' is a norm before the first block, as in CLIP's architectures",
        )
    if "fc_norm.weight" in tensors and "fc_norm.weight" not in expected:
        raise UserError(
            f"--checkpoint '{path}' does not fit {backbone.architecture}: '{in_file['fc_norm.weight']}' normalises the "
            "mean of the patch tokens (MAE's fine-tuning), while this architecture normalises the class token, which "
            "was not trained then; take the checkpoint before fine-tuning, which has 'norm.weight'"
        )


def _check_numbers(path: Path, key: str, tensor: Tensor) -> None:
    """Refuse everything but dense tensors of finite floating-point numbers."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        what = f"is quantised ({dtype})"
    elif tensor.layout is not torch.strided or tensor.is_nested:
        what = f"is {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')}, not a dense tensor"
    elif tensor.device.type == "meta":
        what = "is on torch's meta device: it has a shape and no numbers"
    elif tensor.dtype not in _FLOATS:
        what = f"is of type {dtype}"
    else:
        _check_finite(path, key, tensor)
        return
    _refuse_numbers(path, key, what)


def _check_finite(path: Path, key: str, tensor: Tensor) -> None:
    if not tensor.float().isfinite().all():
        beyond = "is beyond fp32" if tensor.isfinite().all() else "holds NaN" if tensor.isnan().any() else "holds Inf"
        _refuse_numbers(path, key, beyond)


def _refuse_numbers(path: Path, key: str, what: str) -> NoReturn:
    raise UserError(
        f"--checkpoint '{path}' cannot be used: '{printable(key)}' {what}; weights must be finite numbers of type "
        "float32, float64, float16 or bfloat16; get another copy of the file, or convert it with the code that wrote it"
    )


def _of_grid(
    backbone: Backbone,
    path: Path,
    vit: VisionTransformer,
    kernel: tuple[str, tuple[int, ...]],
    positions: tuple[str, tuple[int, ...]],
    extra: int = 0,
) -> tuple[VisionTransformer, int | None]:
    """The network for the input size that a file's position embedding fits, which timm would resample silently.

    Args:
        vit: the network with the architecture's input size.
        kernel, positions: name and shape of the patch kernel and the position embedding in the file; an empty shape if
            the tensor is missing.
        extra: number of positions in the file for tokens that have no position in the network.

    Returns:
        The network and its input size in pixels; `vit` and None if the size is the architecture's.

    Raises:
        UserError: the patches have another size, or the positions are not a square grid.
    """
    if len(kernel[1]) == 4:
        _compare(backbone, path, *kernel, tuple(vit.patch_embed.proj.weight.shape))
    if vit.pos_embed is None or len(positions[1]) < 2:
        return vit, None
    found = positions[1][-2]
    others = extra + (0 if vit.no_embed_class else vit.num_prefix_tokens)
    side = math.isqrt(max(found - others, 0))
    if not side or side * side + others != found:
        expected = f"a square grid of them{f' and {others} for other tokens' if others else ''}"
        raise _misfit(backbone, path, f"'{positions[0]}' has {found} positions, expected {expected}")
    if (side, side) == vit.patch_embed.grid_size:
        return vit, None
    size = side * vit.patch_embed.patch_size[0]
    return build_on_meta(backbone, img_size=size), size


def _with_grid(note: str, backbone: Backbone, vit: VisionTransformer, size: int | None) -> str:
    """`note`, extended if the position grid will be resampled: if `size` is not the input size of the backbone."""
    if size is None or size == backbone.size:
        return note
    patch = vit.patch_embed.patch_size[0]
    old, new = size // patch, backbone.size // patch
    resampled = f"position grid resampled from {old} x {old} to {new} x {new}"
    return f"{note}; {resampled}" if note else resampled


def _check_names(
    backbone: Backbone,
    path: Path,
    state: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    in_file: Mapping[str, str],
) -> None:
    unexpected = next((key for key in state if key not in expected), None)
    theirs = unexpected and in_file.get(unexpected, unexpected)
    for key, tensor in expected.items():
        if key not in state:
            instead = f" (it holds '{theirs}' instead)" if theirs else ""
            raise _misfit(backbone, path, f"'{key}' is missing{instead}")
        if not isinstance(state[key], Tensor):
            raise _misfit(backbone, path, f"'{key}' is no tensor but {type(state[key]).__name__}")
        _compare(backbone, path, in_file.get(key, key), _shape(state[key]), _shape(tensor))
    if theirs:
        raise _misfit(backbone, path, f"'{theirs}' is unexpected")


def _note(network: Network, unused: list[str], used: int) -> str:
    """Note on what was taken and left out; empty for a plain state dict, with or without a classifier."""
    said = []
    if not {*network.path} <= _PLAIN:
        said.append(f"{used} tensors of '{printable('.'.join(network.path))}'")
    if network.layout is not TIMM:
        said.append(f"named as in {network.layout.name}")
    beside = {key.removeprefix("module.").split(".")[0] for key in network.others}
    inside = {key.removeprefix(network.root).split(".")[0] for key in unused}
    left_out = sorted(beside | (inside if said or not inside <= {*_HEADS} else set()))
    if left_out:
        said.append(f"left out {', '.join(map(printable, left_out[:8]))}{', ...' if len(left_out) > 8 else ''}")
    return "; ".join(said)


def _google(backbone: Backbone, path: Path) -> Weights:
    """Weights from an npz file of Google's JAX code, read by timm; faults that timm silently ignores are refused."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # Not the text tower of an image-text model, nor the optimiser's state.
            found = {key: arrays[key] for key in arrays.files if _GOOGLE.match(key)}
    except Exception as error:
        raise unreadable(path, reason(error)) from error
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"embedding/kernel": ("", ()), "pos_embedding": ("", ())}
    for key, array in found.items():
        # A kernel has height, width, channels, features; positions are in torch's order.
        shape = array.transpose(3, 2, 0, 1).shape if array.ndim == 4 else array.shape
        shapes |= {end: (key, shape) for end in shapes if key.endswith(end)}
    vit, size = _of_grid(backbone, path, build_on_meta(backbone), shapes["embedding/kernel"], shapes["pos_embedding"])
    for key, array in found.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            _refuse_numbers(path, key, f"is of type {array.dtype}")
        _check_finite(path, key, torch.from_numpy(np.ascontiguousarray(array)))
    depth = len({match[0] for key in found if (match := re.search(r"encoderblock_\d+/", key))})
    stacked = (array.shape[0] for key, array in found.items() if "encoderblock/LayerNorm_0/scale" in key)
    depth = depth or max(stacked, default=0)
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
    return Weights(state, size, _with_grid("", backbone, vit, size))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _compare(backbone: Backbone, path: Path, key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise _misfit(backbone, path, f"'{key}' has shape {found}, expected {expected}")


def _misfit(backbone: Backbone, path: Path, what: str) -> UserError:
    return UserError(
        f"--checkpoint '{path}' does not fit {backbone.architecture}: {printable(what)}; "
        "name the architecture that it was saved from with --backbone"
    )
