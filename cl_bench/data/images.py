"""Image stores: uint8 pixels and labels, addressed by index and gathered in batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cl_bench.data.decoding import decode


class ImageFiles:
    """Image files as an array of images of different sizes, decoded on every access and never stored.

    Attributes:
        paths: paths of the files.
        jpeg: int8 [N], used by loaders that decode on a GPU: 1 for a JPEG file that a GPU can decode, -1 for another
            file, 0 for a file that has not been checked.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shape = (len(self.paths),)
        self.jpeg = np.zeros(len(self.paths), dtype=np.int8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """RGB pixels [H, W, 3] of the images with these indices.

        Raises:
            BadImage: a file is missing or cannot be decoded.
        """
        # Pillow decodes without holding the interpreter's lock. A permanent pool would not survive a fork.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda i: decode(self.paths[i]), ids.tolist()))


def flat_pixels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of an image [H, W, 3] as stored in `RaggedImages`: flat, lying on the longer side, channels first."""
    height, width, _ = image.shape
    return image.transpose(2, 1, 0).ravel() if height > width else image.transpose(2, 0, 1).ravel()


def window_bytes(sizes: NDArray[np.int64]) -> int:
    """Bytes of the largest of RGB images with these sizes [N, 2], plus one line."""
    return int(3 * sizes.prod(axis=1).max() + sizes.max())


@dataclass(frozen=True, eq=False)
class RaggedImages:
    """RGB images of different sizes as an array of images, with all pixels in one flat array (memory-mapped).

    Attributes:
        flat: uint8 pixels, channels first. Each image lies on its longer side: images higher than wide are transposed.
            At least `window` bytes follow the beginning of every image, so that equally many can be read of each.
        sizes: int64 [N, 2], height and width of each image.
    """

    flat: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    dtype = np.dtype(np.uint8)

    @classmethod
    def of(cls, images: Sequence[NDArray[np.uint8]]) -> RaggedImages:
        """An array in memory of these images [H, W, 3]."""
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
        return cls(np.concatenate([*map(flat_pixels, images), np.zeros(window_bytes(sizes), dtype=np.uint8)]), sizes)

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Position in `flat` at which each image begins, int64 [N]."""
        return np.cumsum([0, *3 * self.sizes.prod(axis=1)[:-1]])

    @cached_property
    def window(self) -> int:
        """Bytes of the largest image, plus one line."""
        return window_bytes(self.sizes)

    @cached_property
    def sides(self) -> tuple[int, int]:
        """Largest shorter side and largest longer side of all images, in pixels."""
        return int(self.sizes.min(axis=1).max()), int(self.sizes.max(axis=1).max())

    def of_one_size(self) -> NDArray[np.uint8]:
        """All images as one array [N, H, W, 3]; they must have the same size."""
        (height, width), count = self.sizes[0], len(self)
        pixels = self.flat[: 3 * count * height * width].reshape(count, 3, min(height, width), max(height, width))
        return pixels.transpose(0, 3, 2, 1) if height > width else pixels.transpose(0, 2, 3, 1)

    def __getitem__(self, ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Pixels [H, W, 3] of the images with these indices."""
        return [self._image(i) for i in ids.tolist()]

    def _image(self, i: int) -> NDArray[np.uint8]:
        height, width = self.sizes[i]
        start = self.offsets[i]
        pixels = self.flat[start : start + 3 * height * width].reshape(3, min(height, width), max(height, width))
        return pixels.transpose(2, 1, 0) if height > width else pixels.transpose(1, 2, 0)


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Images of one part (train or test) of a data set.

    Attributes:
        images: uint8 [N, H, W, C] in memory or memory-mapped, images of different sizes, or image files.
        targets: int64 [N], indices into the class names of the data set.
        names: [N] identities `class/file`, part of the split hash.
        groups: [N] origin of each image (such as its designer or photographer); None if unknown.
        domains: [N] domain of each image; None for data sets without domains.
    """

    images: NDArray[np.uint8] | RaggedImages | ImageFiles
    targets: NDArray[np.int64]
    names: tuple[str, ...]
    groups: NDArray[np.str_] | None = None
    domains: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def one_size(self) -> bool:
        """Whether all images have the same size, so that batches are single tensors."""
        return len(self.images.shape) == 4
