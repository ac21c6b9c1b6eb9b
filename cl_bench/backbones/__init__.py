"""Pre-trained Vision Transformers, named by timm tag or file."""

from cl_bench.backbones.backbone import VIT_B16, Backbone
from cl_bench.backbones.embedded import card, names
from cl_bench.backbones.loading import create, skeleton, verify, weights, weights_hash
from cl_bench.backbones.lookup import find

__all__ = [
    "VIT_B16", "Backbone", "card", "create", "find", "names", "skeleton", "verify", "weights", "weights_hash",
]  # fmt: skip
