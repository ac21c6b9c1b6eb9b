"""Networks in a checkpoint file, found by the names of their patch embeddings, and the choice of one."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cl_bench.backbones.layouts import LAYOUTS, TIMM, Layout
from cl_bench.errors import UserError, printable, reason

SEPARATOR = "::"
"""Separates a file and the name of a network in it: `FILE::NAME`."""

TOP = "."
"""Name of a network whose weights are at the top level, without a prefix."""

_DEEPEST = 4
_WRAPPERS = ("module", "_orig_mod", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class Network:
    """A network in a checkpoint.

    Attributes:
        keys: keys of the nested dictionaries that lead to the network.
        root: prefix of the names of its weights, such as "module.backbone.".
        layout: layout of the names after the prefix.
        weights: weights by their names after the prefix.
        others: names of the other entries of its dictionary.
    """

    keys: tuple[str, ...]
    root: str
    layout: Layout
    weights: Mapping[str, Any]
    others: Sequence[str] = ()

    @property
    def path(self) -> tuple[str, ...]:
        """Keys and parts of the prefix, one name each."""
        return (*self.keys, *filter(None, self.root.split(".")))


def split_choice(given: Path) -> tuple[Path, str]:
    """Split `FILE::NAME` into file and name; an existing file with `::` in its own name is taken as it is."""
    file, separator, name = str(given).rpartition(SEPARATOR)
    return (given, "") if not separator or _is_file(given) else (Path(file), name)


def check_file(path: Path) -> None:
    """Raise an error if there is no file at `path`.

    Raises:
        UserError: the path does not exist, or is not a file.
    """
    if not _is_file(path):
        raise UserError(f"--checkpoint '{path}' is no file; expected safetensors, a torch state dict or Google's .npz")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # The name is too long, or a folder may not be entered.
        return False


def read(path: Path, choice: str) -> Network:
    """The chosen network in a safetensors or torch file, or the only one if `choice` is empty.

    Raises:
        UserError: the file cannot be read, or only by running code in it; it has several networks and none is chosen,
            or the chosen one is not in it.
    """
    checkpoint = _load(path)
    networks = list(_networks(checkpoint))
    if not networks and not choice:
        return _unknown_network(path, checkpoint)
    names = _names(networks)
    listed = ", ".join(map(printable, names))
    if choice:
        found = [network for network, name in zip(networks, names, strict=True) if choice in (name, _dotted(network))]
        found = found or [network for network in networks if choice in network.path]
        if len(found) != 1:
            which = f"{len(found)} networks" if found else "no network"
            named = f"expected one of: {listed}" if listed not in ("", TOP) else f"leave out '{SEPARATOR}{choice}'"
            raise UserError(f"--checkpoint '{path}' holds {which} '{printable(choice)}'; {named}")
        return found[0]
    if len(networks) > 1:
        raise UserError(
            f"--checkpoint '{path}' holds the weights of {len(networks)} networks: {listed}; "
            f"choose one, such as --checkpoint {path}{SEPARATOR}{printable(names[0])}"
        )
    return networks[0]


def _load(path: Path) -> Any:
    """The content of the file, read without running any code in it."""
    try:
        with path.open("rb") as file:
            # A safetensors file begins with the length of its header in eight bytes, and the header in JSON.
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors or path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts store their arguments with the weights, in this class, which has no code. Kinds of tensors
        # that torch warns about are refused by name later.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise unreadable(path, _unloaded(error)) from error


def _unloaded(error: Exception) -> str:
    """Why a file was not loaded, in one sentence instead of torch's explanation of several pages."""
    alone = "if you trust it, load it in Python and save only its state dict"
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"besides tensors it holds an object of '{refused[1]}', and code from a file is never run; {alone}"
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, which is not run; {alone}"
    if isinstance(error, pickle.UnpicklingError | EOFError):
        return "torch did not write it, or it was cut off"
    return reason(error)


def _networks(node: Any, keys: tuple[str, ...] = ()) -> Iterator[Network]:
    if not isinstance(node, Mapping) or len(keys) > _DEEPEST:
        return
    named = {key: value for key, value in node.items() if isinstance(key, str)}
    roots = {root: layout for layout in LAYOUTS for root in layout.roots(named)}
    for root, layout in roots.items():
        # A network may be inside another one, such as a momentum encoder among the weights that it averages.
        inner = tuple(other for other in roots if other != root and other.startswith(root))
        own = {key for key in named if key.startswith(root) and not key.startswith(inner)}
        weights = {key.removeprefix(root): value for key, value in named.items() if key in own}
        yield Network(keys, root, layout, weights, [key for key in named if key not in own])
    for key, value in named.items():
        yield from _networks(value, (*keys, key))


def _unknown_network(path: Path, checkpoint: Any) -> Network:
    """A network for weights without a patch embedding; comparing its names with timm's yields the error message."""
    tensors = checkpoint
    while isinstance(tensors, Mapping):
        inner = next((key for key in ("state_dict", "model", "encoder") if key in tensors), None)
        if inner is None:
            return Network((), "", TIMM, {str(key): value for key, value in tensors.items()})
        tensors = tensors[inner]
    raise unreadable(path, f"it holds {type(tensors).__name__} instead of weights by name")


def _names(networks: Sequence[Network]) -> list[str]:
    """A short name of each network: the first part of its path that no other network has, else the whole path."""
    found = []
    for network in networks:
        others = {part for other in networks if other is not network for part in other.path}
        own = (part for part in network.path if part not in others | {*_WRAPPERS} and not part.isdigit())
        found.append(next(own, _dotted(network)))
    return found


def _dotted(network: Network) -> str:
    return ".".join(network.path) or TOP


def unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"--checkpoint '{path}' cannot be read ({why}); "
        "expected safetensors, a torch state dict (.pth, .pt, .bin) or Google's .npz"
    )
