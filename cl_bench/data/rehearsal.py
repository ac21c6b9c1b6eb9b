"""Batches of a task's samples with exemplars of past tasks mixed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_bench.data.images import ImageStore, RaggedImages
from cl_bench.data.loading import to_device
from cl_bench.data.samples import ImageDataset, Samples, StoreSamples, TrainingBatches
from cl_bench.randomness import Key, permutation


def stored_images(samples: Samples, positions: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """The images of some samples in the form in which a memory keeps them.

    Returns:
        Stored pixels [H, W, C], before any transform. A foreign Avalanche data set only gives network inputs: of these
            the bytes of the test view, [C, H, 4 W].
    """
    if isinstance(samples, StoreSamples):
        return list(samples.dataset.store.images[samples.ids[positions]])
    views = samples.view(positions, None, torch.device("cpu")).float().contiguous()
    return list(views.numpy().view(np.uint8))


def exemplar_samples(images: Sequence[NDArray[np.uint8]], labels: NDArray[np.int64], own: Samples) -> Samples:
    """The images of a memory as samples, with the transforms of the current task; test views are given as they are.

    Args:
        images: images in the form of `stored_images`.
        labels: label of each image, [n].
        own: samples of the current task.
    """
    if not isinstance(own, StoreSamples):
        return FixedViews(torch.from_numpy(np.stack(images).view(np.float32)), torch.from_numpy(labels))
    pixels = np.stack(images) if own.dataset.store.one_size else RaggedImages.of(images)
    dataset = ImageDataset(
        ImageStore(pixels, labels, names=()), np.arange(int(labels.max()) + 1), own.dataset.transforms
    )
    return StoreSamples(dataset, np.arange(len(labels)))


@dataclass
class FixedViews(Samples):
    """Network inputs [n, C, H, W] that no transform changes."""

    inputs: Tensor
    labels: Tensor

    def views(
        self, positions: NDArray[np.int64], key: Key | None, device: torch.device, batch_size: int
    ) -> Iterator[Tensor]:
        for chosen in torch.from_numpy(positions).split(batch_size):
            yield to_device(self.inputs[chosen], device)


@dataclass
class RehearsalBatches:
    """One epoch of a task's batches, each preceded by exemplars.

    Yields `(images [size + b, C, H, W], labels [size + b], valid)` as `TrainingBatches` does. All exemplars are drawn
    before one is drawn again.

    Attributes:
        own: batches of the current task.
        exemplars: the memory.
        size: exemplars per batch; a smaller memory is drawn as a whole.
    """

    own: TrainingBatches
    exemplars: Samples
    size: int

    def __post_init__(self) -> None:
        self.size = min(self.size, len(self.exemplars.labels))

    def __len__(self) -> int:
        return len(self.own)

    def samples_in(self, steps: int) -> int:
        """Number of samples in the first steps of the epoch."""
        return self.own.samples_in(steps) + self.size * steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        key, skipped, device = self.own.key, self.own.skipped, self.own.device
        count = len(self.exemplars.labels)
        passes = -(-(skipped + len(self)) * self.size // count)
        order = np.concatenate([permutation((*key, "exemplars", each), count) for each in range(passes)])
        for step, (images, labels, valid) in enumerate(self.own, start=skipped):
            chosen = order[step * self.size : (step + 1) * self.size]
            views = self.exemplars.view(chosen, (*key, "exemplars", "view", step), device)
            old = to_device(self.exemplars.labels[torch.from_numpy(chosen)], device)
            yield torch.cat([views, images]), torch.cat([old, labels]), self.size + valid
