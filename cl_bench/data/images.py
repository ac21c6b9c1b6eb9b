"""The image store: uint8 pixels and labels, addressed by index, gathered a batch at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cl_bench.data.decoding import decode

if TYPE_CHECKING:
    import torch

    Images = torch.Tensor | list[torch.Tensor]
    """A batch, uint8: [n, C, H, W] where all images have one size, otherwise n times [C, H, W]."""


class ImageFiles:
    """Image files as an array of images, each in its own size: decoded when they are read, never kept."""

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shape = (len(self.paths),)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """RGB pixels [H, W, 3] of these images.

        Raises:
            BadImage: a file is missing or cannot be decoded.
        """
        # Pillow decodes without the interpreter's lock. A pool that stayed would not survive a fork.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda i: decode(self.paths[i]), ids.tolist()))


@dataclass(frozen=True)
class ImageStore:
    """Images of one part (train or test) of a data set.

    Attributes:
        images: uint8 [N, H, W, C], in memory or memory-mapped; or files.
        targets: int64 [N], indices into the class names of the data set.
        names: [N] identities `class/file`, as they enter the split hash.
        groups: [N] images of one origin (a designer, a photographer) share a group; None where that is unknown.
        domains: [N] the domain of each image; None for data sets that have none.
    """

    images: NDArray[np.uint8] | ImageFiles
    targets: NDArray[np.int64]
    names: tuple[str, ...]
    groups: NDArray[np.str_] | None = None
    domains: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, ids: NDArray[np.int64]) -> Images:
        """The images with these indices."""
        # Looking data sets up and checking them needs no torch.
        import torch

        found = self.images[ids]
        if isinstance(found, list):
            return [torch.from_numpy(image).permute(2, 0, 1) for image in found]
        return torch.from_numpy(found).permute(0, 3, 1, 2)
