"""Pre-trained Vision Transformers, named by timm tag or file.

What needs torch is imported when it is first used: listings and completion only need the names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_bench.backbones.backbone import VIT_B16, Backbone
from cl_bench.backbones.embedded import card, names
from cl_bench.backbones.tags import timm_tags

if TYPE_CHECKING:
    from cl_bench.backbones.loading import build_backbone, skeleton, verify, weights, weights_hash
    from cl_bench.backbones.lookup import find

_LAZY = {
    **dict.fromkeys(("build_backbone", "skeleton", "verify", "weights", "weights_hash"), "cl_bench.backbones.loading"),
    "find": "cl_bench.backbones.lookup",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


__all__ = [
    "VIT_B16", "Backbone", "build_backbone", "card", "find", "names", "skeleton", "timm_tags", "verify", "weights",
    "weights_hash",
]  # fmt: skip
