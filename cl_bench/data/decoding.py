"""Image files, how their pixels become 8-bit RGB, and what can be wrong with them."""

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
"""Those of Pillow that are read, whatever a file's name ends with: others are documents or run programs (EPS, PDF)."""
LIMIT_VARIABLE = "CL_BENCH_MAX_PIXELS"
_LIMIT = 178_956_970
"""Pixels of an image, at most, unless the user says otherwise: where Pillow itself refuses (half a GB of RGB)."""
_FEWEST_LEVELS = 16
"""An image of more than 8 bits is refused if no more than these of the 256 levels would be left of it."""
KINDS = ("missing", "zero-byte", "truncated", "unreadable", "of unknown range", "too large")
"""What can be wrong with an image."""
_WAYS_OUT = {
    "of unknown range": "convert it to 8 bits per channel",
    "too large": f"raise the limit with the environment variable {LIMIT_VARIABLE}",
}

# The remark on images of half the size at which Pillow refuses; `max_pixels` decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(UserError):
    """An image that cannot be read.

    Attributes:
        path: of the file.
        kind: one of `KINDS`.
    """

    def __init__(self, path: Path, kind: str, detail: str = "") -> None:
        self.path, self.kind, self.detail = path, kind, detail
        super().__init__(
            f"image '{printable(str(path))}' is {kind}{f' ({detail})' if detail else ''}; "
            f"{_WAYS_OUT.get(kind, 'restore it')}, or leave it out with --skip-bad"
        )

    def __reduce__(self) -> tuple[type[BadImage], tuple[Path, str, str]]:
        # Between processes, an exception is made again from what its class takes.
        return BadImage, (self.path, self.kind, self.detail)


def max_pixels() -> int:
    """Pixels that an image may have: those of the environment variable CL_BENCH_MAX_PIXELS, else 178,956,970.

    Raises:
        UserError: the variable holds no positive number.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return _LIMIT
    if not re.fullmatch("0*[1-9][0-9]{0,17}", given):
        raise UserError(
            f"{LIMIT_VARIABLE} is '{printable(given[:40])}'; expected the number of pixels that an image may have at "
            f"most, for example {2 * _LIMIT}"
        )
    return int(given)


def decode(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file as RGB [H, W, 3], as torchvision's loader gives them, which drops transparency.

    Of an animation, the first frame. Colour of 16 bits per channel is read by its high byte (PPM is rounded), as
    Pillow does; grey of more than 8 bits, which Pillow would cut off at 255, is scaled by `255 / white` and rounded,
    where white is the largest value that its bits can hold (or that a PGM file states).

    Raises:
        BadImage: it is missing, empty, truncated, or no image of `FORMATS`; it has too many pixels; its pixels are
            signed, 32-bit or floating-point numbers, of which none is known to be white; or it has more than 8 bits
            and uses so little of them that hardly anything would be left.
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
    """Height and width of an image file, from its first bytes.

    Raises:
        BadImage: it is missing, empty, or no image; it has too many pixels.
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
"""Tags of TIFF."""
_WHITE_IS_ZERO, _UNSIGNED, _UNDEFINED = 0, 1, 4


def _rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    tags = getattr(image, "tag_v2", {})
    if not {*tags.get(_SAMPLE_FORMAT, ())} <= {_UNSIGNED, _UNDEFINED}:
        raise _no_white(path, "signed or floating-point pixels")
    if image.mode == "F":
        raise _no_white(path, "floating-point pixels")
    # Of PGM files with more than 8 bits, Pillow makes 16.
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
    """Whether a colour image has 16 bits per channel in its file, before it is loaded."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ()
    raw, *more = (arguments or ("",)) if isinstance(arguments, tuple) else (arguments,)
    return ";16" in str(raw) or (image.format == "PPM" and bool(more) and more[0] > 255)


def _no_white(path: Path, what: str) -> BadImage:
    return BadImage(path, "of unknown range", f"{what}, of which no value is known to be white")


def _dark(path: Path) -> BadImage:
    return BadImage(
        path,
        "of unknown range",
        f"more than 8 bits, of whose range less than a sixteenth is used: as 8 bits, {_FEWEST_LEVELS} levels at most",
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
    """What a file is that Pillow does not open, by its first bytes."""
    Image.init()
    with path.open("rb") as file:
        start = file.read(16)
    for name, (_, accepts) in Image.OPEN.items():
        if accepts is not None and accepts(start):
            return f"{name} in a kind that is not read, or damaged" if name in FORMATS else f"{name}, which is not read"
    return "not an image"


def shrunk(pixels: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """An image [H, W, 3] whose shorter side is at most `short` pixels: resized (antialiased bicubic) with its aspect
    kept, as the test view does it, and rounded; a smaller one as it is."""
    height, width = pixels.shape[:2]
    if min(height, width) <= short:
        return pixels
    scale = short / min(height, width)
    rows, columns = (short if side == min(height, width) else int(side * scale) for side in (height, width))
    out = np.empty((rows, columns, 3), dtype=np.uint8)
    # In floating point, channel by channel: Pillow would round colour images after each of both axes.
    for i in range(3):
        channel = Image.fromarray(pixels[..., i].astype(np.float32))
        resized = channel.resize((columns, rows), Image.Resampling.BICUBIC)
        out[..., i] = np.asarray(resized).round().clip(0, 255)
    return out
