"""From stored pixels to network input, a whole batch at a time on its device."""

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
"""How often a crop is drawn before the centre is taken, as in torchvision."""


_LONGEST = 32
"""How many times as long as its short side an image may be to be resized as a whole."""
_PART = 16
"""How many images a CPU crops at a time: what their crops are computed from then stays in its cache."""


def draws(one_size: bool, transforms: ImageTransforms) -> int:
    """How many uniform numbers the training view of an image takes.

    Args:
        one_size: whether the images come as tensors, all of one size.
    """
    return 5 if one_size and transforms.crop == "continuous" else 2 * TRIES + 3


def test_view(images: Images, transforms: ImageTransforms) -> Tensor:
    """The deterministic view: the shorter side is resized (antialiased bicubic) to `size * resize`, the centre is taken
    and normalised.

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
    `RandomResizedCrop`; what happens to it then, `ImageTransforms.crop` says. Images of several sizes are always
    cropped in whole `pixels`.

    Args:
        images: [B] images.
        u: [B, draws] uniform numbers, on the device of the images; for single images on the CPU.
        precision: in which batches are cropped in whole pixels. None: half precision on a GPU, whose matrix units take
            it, and which holds the pixels exactly and all that is made of them to a quarter of a level out of 255.

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
        # Resized as a whole, an image of 1 x 3000 pixels would take gigabytes.
        return torch.cat([_packed_centre(Packed.of(image), transforms) for image in images])
    pixels = images.float() / 255
    if (height, width) != (short, short):
        scale = short / min(height, width)
        shape = [short if side == min(height, width) else int(side * scale) for side in (height, width)]
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (round((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _packed_centre(images: Packed, transforms: ImageTransforms) -> Tensor:
    """The same of packed images, each by its own factor."""
    size, short = transforms.size, transforms.short
    sides = torch.stack(images.lying_sides()).double()
    # A number divided by a tensor would be multiplied by its inverse, and rounded once more than Python does.
    scale = torch.full_like(sides[0], short) / sides[0]
    targets = torch.stack([torch.full_like(scale, short), torch.where(sides[0] == sides[1], short, sides[1] * scale)])
    targets = targets.trunc()
    step = sides / targets
    starts = ((targets - size) / 2).round()
    places = starts[..., None] + torch.arange(size, dtype=torch.float64, device=scale.device)
    # Of the long side, what the centre is computed from, whatever its length: the kernel reaches 2 pixels to each side.
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


# --- crops of whole pixels -------------------------------------------------------------------------------------


def crop_boxes(
    u: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Random crops as torchvision's `RandomResizedCrop` draws them.

    Args:
        u: [B, 2 * TRIES + 2] uniform numbers: area and ratio of each try, position.
        heights, widths: [B] of the images.
        scale, ratio: ranges of the area, as a fraction of the image's, and of the aspect ratio.

    Returns:
        int64 [B, 4]: top, left, height and width of each.
    """
    # In double precision, as Python computes: a height that is rounded the other way is another box.
    u, height, width = u.double(), heights.double()[:, None], widths.double()[:, None]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, 0 : 2 * TRIES : 2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * u[:, 1 : 2 * TRIES : 2])
    rows, columns = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1, keepdim=True)
    # Where no try fits: the centre, as much of the image as the range of ratios allows.
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
    """The training view with crops of whole pixels: shapes are fixed and nothing is read back, so that it compiles.

    Args:
        source: uint8 [B, C, H, W]; or the flat pixels of packed images, with their offsets, heights and widths [B].
        sides: of the images, or the longest short and long side of the packed ones.
        u: [B, 2 * TRIES + 3]: flip, then as `crop_boxes` takes them.
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
    # Of an image that lies on its side, the first axis of what is stored is the horizontal one.
    starts, extents = (torch.where(turned, a, b) for a, b in ((left, top), (columns, rows)))
    first = _weights(
        torch.where(turned[:, None], mirrored_places, places), extents / size, starts, extents, sides[0], _linear
    )
    starts, extents = (torch.where(turned, a, b) for a, b in ((top, left), (rows, columns)))
    if packed is None:
        pixels, length = source.transpose(1, 2), sides[1]
    else:
        # A crop is hardly longer than the short side, however long the long one is.
        length = min(sides[1], math.ceil((sides[0] + 0.5) * max(ratio[1], 1 / ratio[0]) + 0.5))
        pixels, starts = packed.pixels(starts.long(), length), torch.zeros_like(starts)
    second = _weights(
        torch.where(turned[:, None], places, mirrored_places), extents / size, starts, extents, length, _linear
    )
    out = _resample(pixels.to(precision), first.to(precision), second.to(precision)).float()
    return _normalise(_upright(out, turned) / 255, mean, std)


@cache
def _compiled_view() -> Callable[..., Tensor]:
    """`_pixels_view` as one graph, or as it is where the graph cannot be compiled (no C compiler, say)."""
    compiled = torch.compile(_pixels_view, dynamic=False)
    broken = False

    def view(*arguments: Any) -> Tensor:
        nonlocal broken
        if not broken:
            try:
                with torch.no_grad():
                    return compiled(*arguments)
            except Exception as error:
                # Whatever it was: if it is not the compiler's fault, it is raised again below.
                broken = True
                warnings.warn(f"training views are computed without a compiled graph: {error}", stacklevel=2)
        return _pixels_view(*arguments)

    return view


def _linear(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).clamp_(min=0)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' kernel with the parameter of PIL, and of torch where it smooths."""
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
    """What each pixel of a line weighs in each pixel of the line that it is resized to, as torch's antialiased
    `interpolate` has it: the kernel is stretched where the line shrinks, and cut off at the ends.

    Args:
        places: float64 [B, size] of the pixels of the new line.
        step: [B] pixels of the old line for each of the new one.
        start, extent: [B] of the part that is resized.
        length: of the old line, with what lies outside that part.
        kernel: of the distance, which it may write over.

    Returns:
        float32 [B, size, length], whose rows sum to one.
    """
    centre = (step[:, None] * (places + 0.5) + start[:, None]).float()[..., None]
    first, last = start.float()[:, None, None], (start + extent).float()[:, None, None]
    pixel = torch.arange(length, dtype=torch.float32, device=places.device) + 0.5
    # In place: on a CPU, new memory takes longer than the arithmetic.
    distance = (pixel - centre).abs_().div_(step.clamp(min=1).float()[:, None, None])
    weights = kernel(distance).mul_((pixel > first) & (pixel < last))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _resample(pixels: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """[B, S, C, L] -> [B, C, size, size] by the weights [B, size, S] and [B, size, L] of both axes."""
    batch, short, channels, long = pixels.shape
    size = first.shape[1]
    # The longer axis first, and channels beside the other one: two matrix products per image, nothing copied.
    lines = pixels.reshape(batch, short * channels, long) @ second.transpose(1, 2)
    out = first @ lines.view(batch, short, channels * size)
    return out.view(batch, size, channels, size).transpose(1, 2)


def _upright(pixels: Tensor, turned: Tensor) -> Tensor:
    """Squares [B, C, n, n], those of images that lie on their side set up again."""
    return torch.where(turned[:, None, None, None], pixels.transpose(2, 3), pixels).contiguous()


# --- normalisation ---------------------------------------------------------------------------------------------


@cache
def _moments(transforms: ImageTransforms, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1], put on the device once: copying them would make it wait."""
    # Kept for training as well, whoever asks first.
    with torch.inference_mode(False):
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (transforms.mean, transforms.std)
        )
    return mean, std


def _normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale to the network's range; for a colour network grey images are repeated, for a grey one colours are mixed."""
    if pixels.shape[1] == 3 and mean.shape[1] == 1:
        red, green, blue = (pixels[:, i : i + 1] * weight for i, weight in enumerate(_LUMINANCE))
        pixels = red + green + blue
    return (pixels - mean) / std
