"""Which papers pre-trained weights come from, by the name of the backbone and without torch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import NotRequired, TypedDict

from cl_bench.backbones.embedded import EMBEDDED

ARCHITECTURE = ("dosovitskiy2021vit", "wightman2019timm")
"""Keys of every backbone: the Vision Transformer, and timm, which builds the network."""


@dataclass(frozen=True)
class WeightsCitations:
    """What is known of the origin of a backbone's weights.

    Attributes:
        keys: of entries of the bibliography, in the order in which they are printed.
        complete: whether the source of the weights is among them.
    """

    keys: tuple[str, ...]
    complete: bool


def citations_of(name: str) -> WeightsCitations:
    """Citation keys of a backbone, by its name as in records.

    Args:
        name: of an embedded backbone, a timm tag, a timm architecture (random weights), or `NAME:FILE`.
    """
    if name in EMBEDDED:
        return WeightsCitations((*ARCHITECTURE, *EMBEDDED[name].citations), True)
    fitting = [one for one in _patterns() if any(fnmatchcase(name, pattern) for pattern in one["names"])]
    keys = dict.fromkeys([*ARCHITECTURE, *(key for one in fitting for key in one["papers"])])
    random = "." not in name and ":" not in name
    return WeightsCitations(tuple(keys), random or any(one.get("complete", True) for one in fitting))


class _Pattern(TypedDict):
    """One entry of `assets/bibliography/backbones.toml`."""

    names: list[str]
    papers: list[str]
    complete: NotRequired[bool]


@cache
def _patterns() -> list[_Pattern]:
    text = (files("cl_bench") / "assets" / "bibliography" / "backbones.toml").read_text(encoding="utf-8")
    found: list[_Pattern] = tomllib.loads(text)["weights"]
    return found
