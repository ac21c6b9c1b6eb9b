"""From stored pixels to network input, a whole batch at a time on its device."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cl_bench.experiment import Transforms
from cl_bench.randomness import Key, uniform


def test_view(images: Tensor, transforms: Transforms) -> Tensor:
    """The deterministic view: resize to the input size (antialiased bicubic) if needed, then normalise.

    Args:
        images: uint8 [B, C, H, W].

    Returns:
        float32 [B, C, size, size].
    """
    pixels = images.float() / 255
    if pixels.shape[-2:] != (transforms.size, transforms.size):
        side = (transforms.size, transforms.size)
        pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return _normalise(pixels, transforms)


def training_view(images: Tensor, ids: NDArray[np.int64], key: Key, transforms: Transforms) -> Tensor:
    """Random resized crop (bilinear) and horizontal flip, drawn per sample from (key, id), then normalise.

    The crop's area is uniform in `crop_scale` and its aspect ratio log-uniform in `crop_ratio`, as in torchvision's
    `RandomResizedCrop`; a crop that would leave the image is shortened to it, where torchvision draws again.

    Args:
        images: uint8 [B, C, H, W].
        ids: [B] sample identities.

    Returns:
        float32 [B, C, size, size].
    """
    u = uniform(key, ids, 5).to(images.device)
    low, high = transforms.crop_scale
    area = low + (high - low) * u[:, 0]
    log_low, log_high = np.log(transforms.crop_ratio[0]), np.log(transforms.crop_ratio[1])
    ratio = torch.exp(log_low + (log_high - log_low) * u[:, 1])
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # Crop centres in grid coordinates: the crop [-w, w] may move by 1 - w to either side.
    x, y = (2 * u[:, 2] - 1) * (1 - width), (2 * u[:, 3] - 1) * (1 - height)
    mirror = torch.where(u[:, 4] < transforms.flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    theta = torch.stack([width * mirror, zero, x, zero, height, y], dim=1).view(-1, 2, 3)
    size = [images.shape[0], images.shape[1], transforms.size, transforms.size]
    grid = F.affine_grid(theta, size, align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    return _normalise(pixels, transforms)


def _normalise(pixels: Tensor, transforms: Transforms) -> Tensor:
    """Scale to the network's range; grey images are repeated for a colour network."""
    mean = pixels.new_tensor(transforms.mean).view(1, -1, 1, 1)
    std = pixels.new_tensor(transforms.std).view(1, -1, 1, 1)
    return (pixels - mean) / std
