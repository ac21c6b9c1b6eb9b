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
    except FileNotFoundError as error:
        raise BadImage(path, "missing") from error
    except Exception as error:
        # Pillow raises what its decoders raise.
        if path.is_file() and not path.stat().st_size:
            raise BadImage(path, "zero-byte") from error
        if isinstance(error, UnidentifiedImageError):
            raise BadImage(path, "unreadable", "not an image") from error
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        raise BadImage(path, kind, str(error) or type(error).__name__) from error
