"""Pre-trained Vision Transformers, named by timm tag or file."""

from cl_bench.backbones.backbones import (
    VIT_B16,
    Backbone,
    card,
    create,
    find,
    names,
    skeleton,
    verify,
    weights,
    weights_hash,
)

__all__ = [
    "VIT_B16", "Backbone", "card", "create", "find", "names", "skeleton", "verify", "weights", "weights_hash",
]  # fmt: skip
