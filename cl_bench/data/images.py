"""The image store: uint8 pixels and labels, addressed by index, gathered a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageStore:
    """Decoded images of one part (train or test) of a data set.

    Attributes:
        images: uint8 [N, H, W, C], in memory or memory-mapped.
        targets: int64 [N], indices into the class names of the data set.
        names: [N] identities `class/file`, as they enter the split hash.
        groups: [N] images of one origin (a designer, a photographer) share a group; None where that is unknown.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    names: tuple[str, ...]
    groups: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """The images with these indices, uint8 [n, C, H, W]."""
        return torch.from_numpy(self.images[ids]).permute(0, 3, 1, 2)
