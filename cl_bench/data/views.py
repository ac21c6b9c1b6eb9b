"""Network inputs from stored pixels, computed for a whole batch on its device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.data.packed import Images, Packed
from cl_bench.experiment import ImageTransforms

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601, as in PIL)."""
TRIES = 10
"""Number of attempts to draw a crop that fits, before the centre is used; as in torchvision."""


_LONGEST = 32
"""Largest ratio of longer to shorter side at which an image is resized as a whole."""
_PART = 16
"""Number of images that a CPU crops at a time, so that intermediate results stay in its cache."""


def draws(one_size: bool, transforms: ImageTransforms) -> int:
    """Number of uniform random numbers that the training view of an image uses.

    Args:
        one_size: whether all images have the same size.
    """
    return 5 if one_size and transforms.crop == "continuous" else 2 * TRIES + 3


def test_view(images: Images, transforms: ImageTransforms) -> Tensor:
    """The deterministic view: the shorter side is resized (antialiased bicubic) to `size * resize` pixels, and the
    centre is cropped and normalised.

    Returns:
        float32 [B, C, size, size], C that of the network.
    """
    if isinstance(images, Packed):
        pixels = _packed_centre(images, transforms)
    elif isinstance(images, Tensor):
        pixels = _centre(images, transforms)
    else:
        pixels = torch.cat([_centre(image[None], transforms) for image in images])
    return _normalise(pixels, *_moments(transforms, pixels.device))


def training_view(
    images: Images, u: Tensor, transforms: ImageTransforms, precision: torch.dtype | None = None
) -> Tensor:
    """Random resized crop and horizontal flip, drawn per sample, then normalise.

    The crop's area is uniform in `crop_scale` and its aspect ratio log-uniform in `crop_ratio`, as in torchvision's
    `RandomResizedCrop`; `ImageTransforms.crop` determines how it is resampled. Images of different sizes are always
    cropped in whole `pixels`.

    Args:
        images: [B] images.
        u: [B, draws] uniform random numbers, on the device of the images; on the CPU for a list of images.
        precision: precision of crops in whole pixels. None: half precision on a GPU (for its matrix units), which
            represents pixels exactly and crops to within a quarter of one of 255 levels; single precision on a CPU.

    Returns:
        float32 [B, C, size, size], C that of the network.
    """
    if isinstance(images, list):
        heights, widths = (torch.tensor([image.shape[side] for image in images]) for side in (1, 2))
        boxes = crop_boxes(u[:, 1:], heights, widths, transforms.crop_scale, transforms.crop_ratio).tolist()
        mirrored = (u[:, 0] < transforms.flip).tolist()
        crops = [_cropped(*each, transforms.size) for each in zip(images, boxes, mirrored, strict=True)]
        pixels = torch.cat(crops)
        return _normalise(pixels, *_moments(transforms, pixels.device))
    moments = _moments(transforms, u.device)
    if isinstance(images, Tensor) and transforms.crop == "continuous":
        return _normalise(_sampled(images, u, transforms), *moments)
    if not u.is_cuda and len(u) > _PART:
        parts = zip(images.split(_PART), u.split(_PART), strict=True)
        return torch.cat([training_view(part, drawn, transforms, precision) for part, drawn in parts])
    view: Callable[..., Tensor] = _compiled_view() if u.is_cuda else _pixels_view
    precision = precision or (torch.float16 if u.is_cuda else torch.float32)
    settings = (transforms.size, transforms.crop_scale, transforms.crop_ratio, transforms.flip, precision)
    if isinstance(images, Packed):
        source = (images.flat, images.offsets, images.heights, images.widths)
        return view(*source, (images.short, images.long), u, *moments, *settings)
    return view(images, None, None, None, images.shape[-2:], u, *moments, *settings)


def _centre(images: Tensor, transforms: ImageTransforms) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size] on the [0, 1] scale."""
    size, short = transforms.size, transforms.short
    height, width = images.shape[-2:]
    if images.shape[1] == 3 and max(height, width) > _LONGEST * min(height, width):
        # Resizing an image of 1 x 3000 pixels as a whole would need gigabytes.
        return torch.cat([_packed_centre(Packed.of(image), transforms) for image in images])
    pixels = images.float() / 255
    if (height, width) != (short, short):
        scale = short / min(height, width)
        shape = [short if side == min(height, width) else int(side * scale) for side in (height, width)]
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (round((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _packed_centre(images: Packed, transforms: ImageTransforms) -> Tensor:
    """The centre of packed images, each resized by its own factor: [B, C, size, size] on the [0, 1] scale."""
    size, short = transforms.size, transforms.short
    sides = torch.stack(images.lying_sides()).double()
    # Tensor by tensor: torch computes number / tensor with the inverse, which rounds once more than Python.
    scale = torch.full_like(sides[0], short) / sides[0]
    targets = torch.stack([torch.full_like(scale, short), torch.where(sides[0] == sides[1], short, sides[1] * scale)])
    targets = targets.trunc()
    step = sides / targets
    starts = ((targets - size) / 2).round()
    places = starts[..., None] + torch.arange(size, dtype=torch.float64, device=scale.device)
    # Only the columns of the longer side that the centre depends on; the kernel reaches 2 pixels to each side.
    first = (step[1] * starts[1] - 2 * step[1].clamp(min=1)).floor().clamp(min=0)
    largest = max(images.short / short, 1)
    columns = min(images.long, math.ceil((size + 4) * largest) + 2)
    weights = (
        _weights(places[0], step[0], torch.zeros_like(first), sides[0], images.short, _cubic),
        _weights(places[1], step[1], -first, sides[1], columns, _cubic),
    )
    pixels = images.pixels(first.long(), columns).float()
    return _upright(_resample(pixels, *weights), images.turned()).clamp(0, 255) / 255


def _sampled(images: Tensor, u: Tensor, transforms: ImageTransforms) -> Tensor:
    """Continuous crops [B, C, size, size] of images of one size, drawn with u [B, 5], on the [0, 1] scale."""
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


# --- crops of whole pixels -------------------------------------------------------------------------------------


def crop_boxes(
    u: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Random crops as torchvision's `RandomResizedCrop` draws them.

    Args:
        u: [B, 2 * TRIES + 2] uniform random numbers: area and ratio of each attempt, then the position.
        heights, widths: [B] sizes of the images.
        scale, ratio: range of the area, as a share of the image's area, and range of the aspect ratio.

    Returns:
        int64 [B, 4]: top, left, height and width of each crop.
    """
    # In double precision, as in Python: a height rounded the other way would be another crop.
    u, height, width = u.double(), heights.double()[:, None], widths.double()[:, None]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, 0 : 2 * TRIES : 2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * u[:, 1 : 2 * TRIES : 2])
    rows, columns = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1, keepdim=True)
    # If no attempt fits: the largest central crop that the range of ratios allows.
    rows = torch.where(found, rows.gather(1, first), torch.minimum(height, (width / ratio[0]).round()))
    columns = torch.where(found, columns.gather(1, first), torch.minimum(width, (height * ratio[1]).round()))
    top = torch.where(found, u[:, -2:-1] * (height - rows + 1), (height - rows) / 2).floor()
    left = torch.where(found, u[:, -1:] * (width - columns + 1), (width - columns) / 2).floor()
    return torch.cat([top, left, rows, columns], dim=1).long()


def _cropped(image: Tensor, box: list[int], mirrored: bool, size: int) -> Tensor:
    """A crop [1, C, size, size] of one image [C, H, W], on the [0, 1] scale."""
    top, left, rows, columns = box
    crop = image[None, :, top : top + rows, left : left + columns].float() / 255
    resized = F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.flip(3) if mirrored else resized


def _pixels_view(
    source: Tensor,
    offsets: Tensor | None,
    heights: Tensor | None,
    widths: Tensor | None,
    sides: tuple[int, int],
    u: Tensor,
    mean: Tensor,
    std: Tensor,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    precision: torch.dtype,
) -> Tensor:
    """The training view with crops of whole pixels; fixed shapes and no synchronisation, so that it can be compiled.

    Args:
        source: uint8 [B, C, H, W]; or the flat pixels of packed images, with their offsets, heights and widths [B].
        sides: height and width of the images; for packed images, the largest shorter and longer side.
        u: [B, 2 * TRIES + 3] uniform random numbers: one for the flip, then those of `crop_boxes`.
    """
    if offsets is None or heights is None or widths is None:
        packed = None
        heights, widths = (u.new_full((len(u),), side, dtype=torch.int64) for side in sides)
        turned = torch.zeros_like(heights, dtype=torch.bool)
    else:
        packed = Packed(source, offsets, heights, widths, *sides)
        turned = packed.turned()
    top, left, rows, columns = crop_boxes(u[:, 1:], heights, widths, scale, ratio).double().unbind(1)
    mirrored = u[:, 0] < flip
    places = torch.arange(size, dtype=torch.float64, device=u.device)
    mirrored_places = torch.where(mirrored[:, None], size - 1 - places, places)
    # The first stored axis of a transposed image is the horizontal one.
    starts, extents = (torch.where(turned, a, b) for a, b in ((left, top), (columns, rows)))
    first = _weights(
        torch.where(turned[:, None], mirrored_places, places), extents / size, starts, extents, sides[0], _linear
    )
    starts, extents = (torch.where(turned, a, b) for a, b in ((top, left), (rows, columns)))
    if packed is None:
        pixels, length = source.transpose(1, 2), sides[1]
    else:
        # The range of ratios bounds the length of a crop by the shorter side.
        length = min(sides[1], math.ceil((sides[0] + 0.5) * max(ratio[1], 1 / ratio[0]) + 0.5))
        pixels, starts = packed.pixels(starts.long(), length), torch.zeros_like(starts)
    second = _weights(
        torch.where(turned[:, None], places, mirrored_places), extents / size, starts, extents, length, _linear
    )
    out = _resample(pixels.to(precision), first.to(precision), second.to(precision)).float()
    return _normalise(_upright(out, turned) / 255, mean, std)


@cache
def _compiled_view() -> Callable[..., Tensor]:
    """`_pixels_view` as one compiled graph, or uncompiled if compilation fails (for example without a C compiler)."""
    compiled = torch.compile(_pixels_view, dynamic=False)
    broken = False

    def view(*arguments: Any) -> Tensor:
        nonlocal broken
        if not broken:
            try:
                with torch.no_grad():
                    return compiled(*arguments)
            except Exception as error:
                # An error that is not the compiler's fault is raised again below.
                broken = True
                warnings.warn(f"training views are computed without a compiled graph: {error}", stacklevel=2)
        return _pixels_view(*arguments)

    return view


def _linear(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).clamp_(min=0)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel with the parameter of PIL, and of torch's antialiased resizing."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def _weights(
    places: Tensor,
    step: Tensor,
    start: Tensor,
    extent: Tensor,
    length: int,
    kernel: Callable[[Tensor], Tensor],
) -> Tensor:
    """Weights of the source pixels of a line in each pixel of the resized line, as in torch's antialiased
    `interpolate`: the kernel is stretched if the line shrinks, and cut off at the ends.

    Args:
        places: float64 [B, size], indices of the pixels of the resized line.
        step: [B] source pixels per pixel of the resized line.
        start, extent: [B] beginning and length of the part of the source line that is resized.
        length: length of the whole source line.
        kernel: function of the distance, which it may overwrite.

    Returns:
        float32 [B, size, length]; each row sums to one.
    """
    centre = (step[:, None] * (places + 0.5) + start[:, None]).float()[..., None]
    first, last = start.float()[:, None, None], (start + extent).float()[:, None, None]
    pixel = torch.arange(length, dtype=torch.float32, device=places.device) + 0.5
    # In place, because allocation takes longer than the arithmetic on a CPU.
    distance = (pixel - centre).abs_().div_(step.clamp(min=1).float()[:, None, None])
    weights = kernel(distance).mul_((pixel > first) & (pixel < last))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _resample(pixels: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Resize [B, S, C, L] -> [B, C, size, size] with the weights [B, size, S] and [B, size, L] of the two axes."""
    batch, short, channels, long = pixels.shape
    size = first.shape[1]
    # The longer axis first, with channels next to the other axis: two matrix products per image without a copy.
    lines = pixels.reshape(batch, short * channels, long) @ second.transpose(1, 2)
    out = first @ lines.view(batch, short, channels * size)
    return out.view(batch, size, channels, size).transpose(1, 2)


def _upright(pixels: Tensor, turned: Tensor) -> Tensor:
    """Square images [B, C, n, n], with the `turned` [B] ones transposed back."""
    return torch.where(turned[:, None, None, None], pixels.transpose(2, 3), pixels).contiguous()


# --- normalisation ---------------------------------------------------------------------------------------------


@cache
def _moments(transforms: ImageTransforms, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1], copied to the device once, because each copy would make it wait."""
    # Also used in training, so never inference tensors, even if the first use is an evaluation.
    with torch.inference_mode(False):
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (transforms.mean, transforms.std)
        )
    return mean, std


def _normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise pixels; colours become luminance for a grey network, grey is repeated for a colour network."""
    if pixels.shape[1] == 3 and mean.shape[1] == 1:
        red, green, blue = (pixels[:, i : i + 1] * weight for i, weight in enumerate(_LUMINANCE))
        pixels = red + green + blue
    return (pixels - mean) / std
