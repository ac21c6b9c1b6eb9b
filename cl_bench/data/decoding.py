"""Image files and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cl_bench.errors import UserError


class BadImage(UserError):
    """An image that cannot be read.

    Attributes:
        path: of the file.
        kind: `missing`, `zero-byte`, `truncated` or `unreadable`.
    """

    def __init__(self, path: Path, kind: str, detail: str = "") -> None:
        self.path, self.kind, self.detail = path, kind, detail
        super().__init__(
            f"image '{path}' is {kind}{f' ({detail})' if detail else ''}; restore it, or leave it out with --skip-bad"
        )


def decode(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file as RGB [H, W, 3], as torchvision's loader gives them.

    Raises:
        BadImage: it is missing, empty, truncated, or no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:
        # Pillow raises what its decoders raise.
        raise _diagnosed(path, error) from error


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its first bytes.

    Raises:
        BadImage: it is missing, empty, or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise _diagnosed(path, error) from error


def _diagnosed(path: Path, error: Exception) -> BadImage:
    if isinstance(error, FileNotFoundError):
        return BadImage(path, "missing")
    if path.is_file() and not path.stat().st_size:
        return BadImage(path, "zero-byte")
    if isinstance(error, UnidentifiedImageError):
        return BadImage(path, "unreadable", "not an image")
    kind = "truncated" if "truncated" in str(error) else "unreadable"
    return BadImage(path, kind, str(error) or type(error).__name__)


def shrunk(pixels: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """An image [H, W, 3] whose shorter side is at most `short` pixels: resized (antialiased bicubic) with its aspect
    kept, as the test view does it, and rounded; a smaller one as it is."""
    height, width = pixels.shape[:2]
    if min(height, width) <= short:
        return pixels
    scale = short / min(height, width)
    rows, columns = (short if side == min(height, width) else int(side * scale) for side in (height, width))
    # In floating point, channel by channel: Pillow would round colour images after each of both axes.
    channels = [Image.fromarray(pixels[..., i].astype(np.float32)) for i in range(3)]
    resized = [np.asarray(channel.resize((columns, rows), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, axis=2).round().clip(0, 255).astype(np.uint8)
