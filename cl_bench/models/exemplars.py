"""Memory of exemplars: images of past tasks that a method keeps, within a budget in bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_bench.models.growing import Growing

MEGABYTE = 10**6
"""Bytes in a megabyte."""
_ROW = 5 * 4
"""Bytes of an exemplar's row in `Exemplars.table`."""
_CHUNK = 64
"""Number of images read at a time, since their sizes may be unknown until they are read."""


class Exemplars(Growing):
    """Images of past tasks within a budget that counts every stored byte, pixels and table alike.

    The memory always holds what a choice from all images offered so far would hold: every image has a random priority,
    the images of a class are ranked by it, and the memory takes images by rank, then by priority, until the next one
    does not fit. So classes have equally many exemplars, give or take one, and those of a class are a uniform sample of
    its images (reservoir sampling by random keys; Vitter 1985).

    Args:
        megabytes: budget in MB of 10^6 bytes.

    Attributes:
        pixels: uint8 pixels of all exemplars, one after the other, each [H, W, C].
        table: int32 [n, 5], one row per exemplar: label, height, width, channels, priority.
    """

    pixels: Tensor
    table: Tensor

    def __init__(self, megabytes: float) -> None:
        super().__init__()
        self.capacity = int(megabytes * MEGABYTE)
        self.register_buffer("pixels", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("table", torch.zeros(0, 5, dtype=torch.int32))

    def __len__(self) -> int:
        """Number of exemplars."""
        return len(self.table)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each exemplar, int64 [n]."""
        return self.table[:, 0].cpu().numpy().astype(np.int64)

    def images(self) -> list[NDArray[np.uint8]]:
        """Pixels [H, W, C] of each exemplar."""
        shapes = self.table[:, 1:4].cpu().numpy().astype(np.int64)
        parts = np.split(self.pixels.cpu().numpy(), shapes.prod(axis=1).cumsum()[:-1]) if len(self) else []
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    @torch.no_grad()
    def offer(
        self,
        labels: NDArray[np.int64],
        priorities: NDArray[np.int64],
        read: Callable[[NDArray[np.int64]], list[NDArray[np.uint8]]],
    ) -> None:
        """Offer the images of a task, of which the memory takes what fits; kept images make room for them.

        Args:
            labels: label of each image, [n].
            priorities: random number of each image, [n], below 2^31; the smallest ones are kept.
            read: returns the pixels [H, W, C] of the images at some positions.
        """
        kept, table = self.images(), self.table.cpu().numpy()
        everyone = np.concatenate([self.labels, labels])
        priority = np.concatenate([table[:, 4].astype(np.int64), priorities])
        order = np.lexsort((priority, _ranks(everyone, priority)))
        images: list[NDArray[np.uint8]] = []
        chosen: list[int] = []
        left = self.capacity
        for chunk in np.split(order, range(_CHUNK, len(order), _CHUNK)):
            new = chunk[chunk >= len(kept)]
            found = dict(zip(new.tolist(), read(new - len(kept)) if len(new) else [], strict=True))
            for number in chunk.tolist():
                image = kept[number] if number < len(kept) else found[number]
                left -= image.size + _ROW
                if left < 0:
                    break
                images.append(image)
                chosen.append(number)
            if left < 0:
                break
        rows = [(everyone[n], *image.shape, priority[n]) for n, image in zip(chosen, images, strict=True)]
        device = self.pixels.device
        flat = np.concatenate([image.ravel() for image in images]) if images else np.zeros(0, dtype=np.uint8)
        self.pixels = torch.from_numpy(flat).to(device)
        self.table = torch.from_numpy(np.array(rows, dtype=np.int32).reshape(-1, 5)).to(device)


def _ranks(labels: NDArray[np.int64], priority: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each image [n] among those of its label, by priority, from 0."""
    order = np.lexsort((priority, labels))
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return ranks
