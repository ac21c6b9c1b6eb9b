"""Decoding of image files to 8-bit RGB, and diagnosis of files that cannot be decoded."""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cl_bench.errors import UserError, printable, reason

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "AVIF")
"""Pillow formats that are read, whatever the file name; others are documents or run programs (EPS, PDF)."""
LIMIT_VARIABLE = "CL_BENCH_MAX_PIXELS"
_LIMIT = 178_956_970
"""Default limit on the pixels of an image: the number at which Pillow itself refuses (half a GB of RGB)."""
_FEWEST_LEVELS = 16
"""An image of more than 8 bits is refused if at most this many of the 256 levels would be left."""
KINDS = ("missing", "zero-byte", "truncated", "unreadable", "of unknown range", "too large")
"""Kinds of faults of an image."""
_WAYS_OUT = {
    "of unknown range": "convert it to 8 bits per channel",
    "too large": f"raise the limit with the environment variable {LIMIT_VARIABLE}",
}

# The remark on images of half the size at which Pillow refuses; `max_pixels` decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(UserError):
    """An image that cannot be read.

    Attributes:
        path: path of the file.
        kind: one of `KINDS`.
        detail: explanation, for the message; may be empty.
    """

    def __init__(self, path: Path, kind: str, detail: str = "") -> None:
        self.path, self.kind, self.detail = path, kind, detail
        super().__init__(
            f"image '{printable(str(path))}' is {kind}{f' ({detail})' if detail else ''}; "
            f"{_WAYS_OUT.get(kind, 'restore it')}, or leave it out with --skip-bad"
        )

    def __reduce__(self) -> tuple[type[BadImage], tuple[Path, str, str]]:
        # Lets the exception be pickled and sent between processes.
        return BadImage, (self.path, self.kind, self.detail)


def max_pixels() -> int:
    """Largest allowed number of pixels of an image: the environment variable CL_BENCH_MAX_PIXELS, else 178,956,970.

    Raises:
        UserError: the variable is not a positive whole number.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return _LIMIT
    if not re.fullmatch("0*[1-9][0-9]{0,17}", given):
        raise UserError(
            f"{LIMIT_VARIABLE} is '{printable(given[:40])}'; expected the largest number of pixels that an image may "
            f"have, for example {2 * _LIMIT}"
        )
    return int(given)


def decode(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file as uint8 RGB [H, W, 3], equal to those of torchvision's loader (no transparency).

    An animation yields its first frame. Colours of 16 bits per channel keep their high byte (PPM is rounded), as in
    Pillow. Grey of more than 8 bits, which Pillow would clip at 255, is scaled by `255 / white` and rounded; white is
    the largest value that its bits can hold (or that a PGM file states).

    Raises:
        BadImage: the file is missing, empty, truncated, or not an image of `FORMATS`; it has too many pixels; its
            pixels are signed, 32-bit or floating-point numbers, whose value for white is unknown; or it has more than 8
            bits and uses so little of their range that almost no levels would remain.
    """
    try:
        with _opened(path) as image:
            return _rgb(image, path)
    except UserError:
        raise
    except Exception as error:
        # Pillow raises what its decoders raise.
        raise _diagnosed(path, error) from error


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises:
        BadImage: the file is missing, empty, or not an image, or has too many pixels.
    """
    try:
        with _opened(path) as image:
            return image.height, image.width
    except UserError:
        raise
    except Exception as error:
        raise _diagnosed(path, error) from error


def _opened(path: Path) -> Image.Image:
    limit = max_pixels()
    if limit > _LIMIT:
        Image.MAX_IMAGE_PIXELS = limit
    if not stat.S_ISREG(path.stat().st_mode):
        # Reading a pipe would wait for ever.
        raise BadImage(path, "unreadable", "not a file")
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        (pixels, *_) = re.findall("[0-9]+", str(error))
        raise _too_large(path, int(pixels), limit) from error
    if image.width * image.height > limit:
        image.close()
        raise _too_large(path, image.width * image.height, limit)
    return image


def _too_large(path: Path, pixels: int, limit: int) -> BadImage:
    return BadImage(path, "too large", f"{pixels:,} pixels, the limit is {limit:,}")


# --- more than 8 bits ------------------------------------------------------------------------------------------

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""TIFF tags."""
_WHITE_IS_ZERO, _UNSIGNED, _UNDEFINED = 0, 1, 4


def _rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    tags = getattr(image, "tag_v2", {})
    if not {*tags.get(_SAMPLE_FORMAT, ())} <= {_UNSIGNED, _UNDEFINED}:
        raise _no_white(path, "signed or floating-point pixels")
    if image.mode == "F":
        raise _no_white(path, "floating-point pixels")
    # Pillow scales PGM files of more than 8 bits to 16 bits.
    if image.mode == "I" and image.format != "PPM":
        raise _no_white(path, "32-bit pixels")
    if not image.mode.startswith("I"):
        deep = _is_deep(image)
        pixels = np.array(image.convert("RGB"))
        if deep and 0 < pixels.max() < _FEWEST_LEVELS:
            raise _dark(path)
        return pixels
    white = 2 ** int(tags.get(_BITS, (16,))[0]) - 1
    values = np.asarray(image).astype(np.uint32)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    if 0 < values.max() < (white + 1) / 256 * _FEWEST_LEVELS:
        raise _dark(path)
    grey = ((255 * values + white // 2) // white).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _is_deep(image: Image.Image) -> bool:
    """Whether a colour image has 16 bits per channel in its file; only known before the image is loaded."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ()
    raw, *more = (arguments or ("",)) if isinstance(arguments, tuple) else (arguments,)
    return ";16" in str(raw) or (image.format == "PPM" and bool(more) and more[0] > 255)


def _no_white(path: Path, what: str) -> BadImage:
    return BadImage(path, "of unknown range", f"{what}, whose value for white is unknown")


def _dark(path: Path) -> BadImage:
    return BadImage(
        path,
        "of unknown range",
        f"more than 8 bits, but under a sixteenth of their range is used: at most {_FEWEST_LEVELS} levels as 8 bits",
    )


# --- what is wrong ---------------------------------------------------------------------------------------------


def _diagnosed(path: Path, error: Exception) -> BadImage:
    if isinstance(error, FileNotFoundError):
        return BadImage(path, "missing")
    if path.is_file() and not path.stat().st_size:
        return BadImage(path, "zero-byte")
    if isinstance(error, UnidentifiedImageError):
        return BadImage(path, "unreadable", _what_it_is(path))
    text = reason(error)
    kind = "truncated" if "truncated" in text.lower() else "unreadable"
    return BadImage(path, kind, text)


def _what_it_is(path: Path) -> str:
    """Description of a file that Pillow does not open, from its first bytes."""
    Image.init()
    with path.open("rb") as file:
        start = file.read(16)
    for name, (_, accepts) in Image.OPEN.items():
        if accepts is not None and accepts(start):
            return (
                f"{name} of an unsupported kind, or damaged" if name in FORMATS else f"{name}, which is not supported"
            )
    return "not an image"


def shrunk(pixels: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """An image [H, W, 3] resized (antialiased bicubic, as in the test view) and rounded so that its shorter side has
    `short` pixels, with the same aspect ratio; an image that is not larger is returned unchanged."""
    height, width = pixels.shape[:2]
    if min(height, width) <= short:
        return pixels
    scale = short / min(height, width)
    rows, columns = (short if side == min(height, width) else int(side * scale) for side in (height, width))
    out = np.empty((rows, columns, 3), dtype=np.uint8)
    # In floating point, channel by channel, because Pillow would round colour images after each axis.
    for i in range(3):
        channel = Image.fromarray(pixels[..., i].astype(np.float32))
        resized = channel.resize((columns, rows), Image.Resampling.BICUBIC)
        out[..., i] = np.asarray(resized).round().clip(0, 255)
    return out
