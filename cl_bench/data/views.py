"""From stored pixels to network input, a whole batch at a time on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cl_bench.experiment import Transforms
from cl_bench.randomness import Key, uniform

if TYPE_CHECKING:
    from cl_bench.data.images import Images

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601, as in PIL)."""


def test_view(images: Images, transforms: Transforms) -> Tensor:
    """The deterministic view: the shorter side is resized (antialiased bicubic) to `size * resize`, the centre is taken
    and normalised.

    Returns:
        float32 [B, C, size, size], C that of the network.
    """
    if isinstance(images, Tensor):
        return _normalise(_centre(images, transforms), transforms)
    return _normalise(torch.cat([_centre(image[None], transforms) for image in images]), transforms)


def training_view(images: Images, ids: NDArray[np.int64], key: Key, transforms: Transforms) -> Tensor:
    """Random resized crop and horizontal flip, drawn per sample from (key, id), then normalise.

    The crop's area is uniform in `crop_scale` and its aspect ratio log-uniform in `crop_ratio`, as in torchvision's
    `RandomResizedCrop`. Files are cropped exactly like that (bilinear, antialiased). Images of one size, which are
    small and square, are sampled all at once (bilinear), and a crop that would leave the image is shortened to it,
    where torchvision draws again.

    Args:
        images: [B] images.
        ids: [B] sample identities.

    Returns:
        float32 [B, C, size, size], C that of the network.
    """
    if isinstance(images, Tensor):
        u = uniform(key, ids, 5).to(images.device)
        return _normalise(_sampled(images, u, transforms), transforms)
    draws = uniform(key, ids, 2 * TRIES + 3).numpy()
    crops = [_cropped(image, row, transforms) for image, row in zip(images, draws, strict=True)]
    return _normalise(torch.cat(crops), transforms)


def _centre(images: Tensor, transforms: Transforms) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size] on the [0, 1] scale."""
    pixels = images.float() / 255
    size, short = transforms.size, round(transforms.size * transforms.resize)
    height, width = pixels.shape[-2:]
    if (height, width) != (short, short):
        scale = short / min(height, width)
        shape = [short if side == min(height, width) else int(side * scale) for side in (height, width)]
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (round((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _sampled(images: Tensor, u: Tensor, transforms: Transforms) -> Tensor:
    """Crops [B, C, size, size] of square images of one size, all at once, from u [B, 5]."""
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
    return F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)


TRIES = 10


def crop_box(u: NDArray[np.float32], height: int, width: int, transforms: Transforms) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop as torchvision's `RandomResizedCrop` draws it.

    Args:
        u: [2 * TRIES + 2] uniform numbers: area and ratio of each try, position.
    """
    for share, power in u[: 2 * TRIES].reshape(TRIES, 2).tolist():
        area = height * width * float(np.interp(share, (0, 1), transforms.crop_scale))
        ratio = float(np.exp(np.interp(power, (0, 1), np.log(transforms.crop_ratio))))
        rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            top, left = (
                int(v * (n + 1)) for v, n in zip(u[2 * TRIES :].tolist(), (height - rows, width - columns), strict=True)
            )
            return top, left, rows, columns
    low, high = transforms.crop_ratio
    rows, columns = min(height, round(width / low)), min(width, round(height * high))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _cropped(image: Tensor, u: NDArray[np.float32], transforms: Transforms) -> Tensor:
    """A crop [1, C, size, size] of one image [C, H, W]; the first of u decides about the flip."""
    top, left, rows, columns = crop_box(u[1:], image.shape[1], image.shape[2], transforms)
    crop = image[None, :, top : top + rows, left : left + columns].float() / 255
    side = (transforms.size, transforms.size)
    resized = F.interpolate(crop, side, mode="bilinear", antialias=True, align_corners=False)
    return resized.flip(3) if u[0] < transforms.flip else resized


def _normalise(pixels: Tensor, transforms: Transforms) -> Tensor:
    """Scale to the network's range; for a colour network grey images are repeated, for a grey one colours are mixed."""
    if pixels.shape[1] == 3 and len(transforms.mean) == 1:
        pixels = (pixels * pixels.new_tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    mean = pixels.new_tensor(transforms.mean).view(1, -1, 1, 1)
    std = pixels.new_tensor(transforms.std).view(1, -1, 1, 1)
    return (pixels - mean) / std
