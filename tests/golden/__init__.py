"""Numbers from the authors' released implementations (see README.md here), and the recipes to rebuild their inputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

FOLDER = Path(__file__).parent
Recipe = Callable[[str, tuple[int, ...], float, float], Tensor]


def normal(name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """shift + scale * standard normals, seeded by the CRC-32 of the name; all in fp32."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = rng.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.float32(shift) + np.float32(scale) * values)


def tiny_vit(dim: int, depth: int, heads: int, weight: Callable[[str, tuple[int, ...]], Tensor]) -> VisionTransformer:
    """A 32-pixel ViT with 4 patches whose parameters come from `weight(name, shape)`."""
    vit = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0
    ).eval()
    vit.load_state_dict({name: weight(name, tuple(value.shape)) for name, value in vit.state_dict().items()})
    return vit


def error(value: Tensor | np.ndarray, reference: np.ndarray) -> float:
    """Scaled maximum error: max|x - ref| / max|ref|; where the reference is all zero, the absolute one."""
    difference = float(np.abs(np.asarray(value, dtype=np.float64) - reference).max())
    return difference / (float(np.abs(reference).max()) or 1.0)
