"""Observation of a training run: records which images are read, and digests of tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_bench.data.images import ImageStore


class ReadRecordingImages:
    """An array of images that adds the index of every image read to a set."""

    def __init__(self, images: Any, read: set[int]) -> None:
        self._images, self._read = images, read
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        rows = np.arange(len(self))[index[0] if isinstance(index, tuple) else index]
        self._read.update(np.atleast_1d(rows).tolist())
        return self._images[index]

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        self._read.update(range(len(self)))
        return np.array(self._images, *arguments, **options)

    def __reduce__(self) -> Any:
        # Copying or pickling reads all images.
        return np.array, (np.asarray(self),)


def recording_reads(store: ImageStore, read: set[int]) -> ImageStore:
    """The same images; the index of each that is read is added to `read`."""
    images: Any = ReadRecordingImages(store.images, read)
    return replace(store, images=images)


@dataclass
class Reads:
    """Indices of the training and test images read since the last call of `take`."""

    train: set[int] = field(default_factory=set)
    test: set[int] = field(default_factory=set)

    def take(self) -> tuple[set[int], set[int]]:
        """Return the indices, and clear them."""
        taken = set(self.train), set(self.test)
        self.train.clear()
        self.test.clear()
        return taken


def digest(tensor: Tensor) -> bytes:
    """SHA-256 of shape, type and bits; equal tensors have equal digests, NaNs included."""
    result = hashlib.sha256(repr((tuple(tensor.shape), tensor.dtype)).encode())
    result.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.digest()


def fingerprint(model: nn.Module) -> dict[str, bytes]:
    """Digest of every parameter and buffer."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items()}
