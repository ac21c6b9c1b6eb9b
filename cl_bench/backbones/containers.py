"""The networks in a checkpoint file: found by the names of their patch embeddings, one of them chosen."""

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
"""Between a file and the network in it, where it holds several."""

TOP = "."
"""Names a network whose weights lie in no dictionary and behind no prefix."""

_DEEPEST = 4
_WRAPPERS = ("module", "_orig_mod", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class Network:
    """A network in a checkpoint.

    Attributes:
        keys: of the dictionaries that lead to it.
        root: what precedes its names: "module.backbone.".
        layout: of the names that follow.
        weights: by their names after the root.
        others: names of what lies beside it in its dictionary.
    """

    keys: tuple[str, ...]
    root: str
    layout: Layout
    weights: Mapping[str, Any]
    others: Sequence[str] = ()

    @property
    def path(self) -> tuple[str, ...]:
        """All that leads to it, one name each."""
        return (*self.keys, *filter(None, self.root.split(".")))


def split_choice(given: Path) -> tuple[Path, str]:
    """`FILE::NAME` as file and name; a file that has `::` in its own name is that file."""
    file, separator, name = str(given).rpartition(SEPARATOR)
    return (given, "") if not separator or _is_file(given) else (Path(file), name)


def check_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        UserError: it is not.
    """
    if not _is_file(path):
        raise UserError(f"--checkpoint '{path}' is no file; expected safetensors, a torch state dict or Google's .npz")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A name that is too long, a folder that may not be entered.
        return False


def read(path: Path, choice: str) -> Network:
    """The one network in a safetensors or torch file, or the one that is chosen.

    Raises:
        UserError: a file that cannot be read, or only by running code in it; several networks and no choice among them;
            a choice that is not there.
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
    """What the file holds; nothing in it is run."""
    try:
        with path.open("rb") as file:
            # A safetensors file is the length of its header in eight bytes, and that header in JSON.
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors or path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts keep their arguments beside the weights, in this class without code. Kinds of tensors that
        # torch warns of are refused by name later.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise unreadable(path, _unloaded(error)) from error


def _unloaded(error: Exception) -> str:
    """Why a file was not loaded; torch's own explanation fills pages."""
    alone = "where you trust it, load it in Python and save its state dict alone"
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"besides tensors it holds an object of '{refused[1]}', and no code that a file asks for is run; {alone}"
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, and no program is run; {alone}"
    if isinstance(error, pickle.UnpicklingError | EOFError):
        return "torch did not write it, or it was cut off"
    return reason(error)


def _networks(node: Any, keys: tuple[str, ...] = ()) -> Iterator[Network]:
    if not isinstance(node, Mapping) or len(keys) > _DEEPEST:
        return
    named = {key: value for key, value in node.items() if isinstance(key, str)}
    roots = {root: layout for layout in LAYOUTS for root in layout.roots(named)}
    for root, layout in roots.items():
        # A network may lie inside another one: a momentum encoder among the weights that it follows.
        inner = tuple(other for other in roots if other != root and other.startswith(root))
        own = {key for key in named if key.startswith(root) and not key.startswith(inner)}
        weights = {key.removeprefix(root): value for key, value in named.items() if key in own}
        yield Network(keys, root, layout, weights, [key for key in named if key not in own])
    for key, value in named.items():
        yield from _networks(value, (*keys, key))


def _unknown_network(path: Path, checkpoint: Any) -> Network:
    """Weights among which no patch embedding is: what is wrong with them is said where they are compared."""
    tensors = checkpoint
    while isinstance(tensors, Mapping):
        inner = next((key for key in ("state_dict", "model", "encoder") if key in tensors), None)
        if inner is None:
            return Network((), "", TIMM, {str(key): value for key, value in tensors.items()})
        tensors = tensors[inner]
    raise unreadable(path, f"it holds {type(tensors).__name__} instead of weights by name")


def _names(networks: Sequence[Network]) -> list[str]:
    """The shortest name of each network: the first part of its path that no other's has, else the whole path."""
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
