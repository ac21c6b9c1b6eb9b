"""Batches of an experience: gathered from an image store, or item by item from any other Avalanche data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import _aliases
from cl_bench.data.images import ImageStore
from cl_bench.data.loading import batches, gather, to_device
from cl_bench.data.views import draws, test_view, training_view
from cl_bench.experiment import ImageTransforms
from cl_bench.randomness import Key, permutation, uniform


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """An image store as a torch data set (test view), with labels in the stream's class order.

    Attributes:
        store: the images.
        transforms: settings of the test view.
        targets: label of each image, i.e. the position of its class in the class order.
    """

    def __init__(self, store: ImageStore, label_of_class: NDArray[np.int64], transforms: ImageTransforms) -> None:
        self.store = store
        self.transforms = transforms
        self.targets: list[int] = label_of_class[store.targets].tolist()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return test_view(gather(self.store, np.array([index])), self.transforms)[0], self.targets[index]


class Samples(ABC):
    """The images of one or several experiences.

    Attributes:
        labels: int64 [n].
    """

    labels: Tensor

    @abstractmethod
    def views(
        self, positions: NDArray[np.int64], key: Key | None, device: torch.device, batch_size: int
    ) -> Iterator[Tensor]:
        """Network inputs [b, C, H, W] of these samples in batches of `batch_size`: training views drawn with `key`, or
        test views if `key` is None. All that they need besides pixels is copied to the device before the first."""

    def view(self, positions: NDArray[np.int64], key: Key | None, device: torch.device) -> Tensor:
        """Network inputs of these samples in one batch, [len(positions), C, H, W]; see `views`."""
        return next(self.views(positions, key, device, len(positions)))


@dataclass
class StoreSamples(Samples):
    """Samples gathered from an image store; `ids` [n] are indices into it, and key the random draws of each image."""

    dataset: ImageDataset
    ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.labels = torch.tensor(self.dataset.targets)[torch.from_numpy(self.ids)]

    def views(
        self, positions: NDArray[np.int64], key: Key | None, device: torch.device, batch_size: int
    ) -> Iterator[Tensor]:
        ids = self.ids[positions]
        store, transforms = self.dataset.store, self.dataset.transforms
        if key is None:
            for images in batches(store, ids, batch_size, device):
                yield test_view(images, transforms)
            return
        # A graph is compiled for one shape: the last batch is filled up, and its result cut.
        whole = np.resize(ids, -(-len(ids) // batch_size) * batch_size) if device.type == "cuda" else ids
        drawn = uniform(key, whole, draws(store.one_size, transforms))
        on_device = to_device(drawn, device).split(batch_size)
        on_host = drawn.split(batch_size)
        left = len(ids)
        for images, u, u_host in zip(batches(store, whole, batch_size, device), on_device, on_host, strict=True):
            yield training_view(images, u_host if isinstance(images, list) else u, transforms)[:left]
            left -= batch_size


@dataclass
class DatasetSamples(Samples):
    """Samples of a foreign Avalanche data set, read item by item with the data set's own transforms.

    Its random transforms draw from the global generators, so such a run does not resume bit by bit.
    """

    dataset: Any

    def __post_init__(self) -> None:
        self.labels = torch.tensor([int(target) for target in self.dataset.targets])

    def views(
        self, positions: NDArray[np.int64], key: Key | None, device: torch.device, batch_size: int
    ) -> Iterator[Tensor]:
        dataset = self.dataset.eval() if key is None else self.dataset.train()
        for chunk in _chunks(positions, batch_size):
            yield to_device(torch.stack([torch.as_tensor(dataset[int(p)][0]) for p in chunk]), device)


class Concatenated(Samples):
    """The samples of several experiences, one after the other."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.labels = torch.cat([part.labels for part in parts])
        sources = {id(part.dataset) if isinstance(part, StoreSamples) else None for part in parts}
        if len(sources) == 1 and isinstance(parts[0], StoreSamples):
            # Tasks of the same data set: gather their images together.
            ids = np.concatenate([part.ids for part in parts if isinstance(part, StoreSamples)])
            parts = [StoreSamples(parts[0].dataset, ids)]
        self.parts = parts
        self._starts = np.cumsum([0, *(len(part.labels) for part in parts)])

    def views(
        self, positions: NDArray[np.int64], key: Key | None, device: torch.device, batch_size: int
    ) -> Iterator[Tensor]:
        if len(self.parts) == 1:
            yield from self.parts[0].views(positions, key, device, batch_size)
            return
        for chunk in _chunks(positions, batch_size):
            part_of = np.searchsorted(self._starts, chunk, side="right") - 1
            rows = [np.flatnonzero(part_of == part) for part in np.unique(part_of)]
            views = [
                self.parts[part].view(chunk[chosen] - self._starts[part], key, device)
                for part, chosen in zip(np.unique(part_of), rows, strict=True)
            ]
            yield torch.cat(views)[to_device(torch.from_numpy(np.argsort(np.concatenate(rows))), device)]


@dataclass
class Selected(Samples):
    """A selection of samples, at the positions [m]."""

    samples: Samples
    positions: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.labels = self.samples.labels[torch.from_numpy(self.positions)]

    def views(
        self, positions: NDArray[np.int64], key: Key | None, device: torch.device, batch_size: int
    ) -> Iterator[Tensor]:
        yield from self.samples.views(self.positions[positions], key, device, batch_size)


def _chunks(positions: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def samples_of(dataset: Any) -> Samples:
    """The samples of an Avalanche data set; gathered from the image store if it is a plain selection from one."""
    flat = dataset._flat_data  # Avalanche has no public access to the source of a subset.
    if len(flat._datasets) == 1 and isinstance(flat._datasets[0], ImageDataset):
        source = flat._datasets[0]
        ids = np.arange(len(source)) if flat._indices is None else np.array(flat._indices, dtype=np.int64)
        return StoreSamples(source, ids)
    return DatasetSamples(dataset)


@dataclass
class TrainingBatches:
    """One epoch of shuffled training views in batches of a fixed shape.

    Yields `(images [b, C, H, W], labels [b], valid)`. The last batch is filled up with repeated samples, so that a
    compiled graph always sees the same shape; only the first `valid` samples of a batch count.

    Attributes:
        skipped: number of batches at the beginning of the epoch that are left out, for resuming inside an epoch.
    """

    samples: Samples
    batch_size: int
    key: Key
    device: torch.device
    skipped: int = 0

    def __len__(self) -> int:
        return -(-len(self.samples.labels) // self.batch_size) - self.skipped

    def samples_in(self, steps: int) -> int:
        """Number of samples in the first steps of the epoch."""
        return min(steps * self.batch_size, len(self.samples.labels))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        order = permutation((*self.key, "order"), len(self.samples.labels))[self.skipped * self.batch_size :]
        if not len(order):
            return
        chunks = list(_chunks(order, self.batch_size))
        chunks[-1] = np.resize(chunks[-1], self.batch_size)
        positions = np.concatenate(chunks)
        labels = to_device(self.samples.labels[torch.from_numpy(positions)], self.device).split(self.batch_size)
        views = self.samples.views(positions, (*self.key, "view"), self.device, self.batch_size)
        left = len(order)
        for images, label in zip(views, labels, strict=True):
            yield images, label, min(left, self.batch_size)
            left -= self.batch_size


@dataclass
class TaskSamples:
    """Samples in a fixed order, for passes over all of them: those of the current task, or of an evaluation.

    Attributes:
        kind: kind of the inputs.
    """

    samples: Samples
    key: Key
    device: torch.device
    batch_size: int = 256
    kind: Literal["image"] = "image"

    def __len__(self) -> int:
        return len(self.samples.labels)

    def of_class(self, label: int) -> TaskSamples:
        """The samples of one class, in the same order."""
        chosen = np.flatnonzero(self.samples.labels.numpy() == label)
        return replace(self, samples=Selected(self.samples, chosen))

    def batches(self, augmented: bool = False, shuffled: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all samples in batches `(images [b, C, H, W], labels [b])`.

        Args:
            augmented: one training view of each image instead of the test view.
            shuffled: a random order, the same in each pass, for decisions that need batches of mixed classes.
        """
        if not len(self):
            return
        key = (*self.key, "pass") if augmented else None
        order = permutation((*self.key, "pass", "order"), len(self)) if shuffled else np.arange(len(self))
        labels = to_device(self.samples.labels[torch.from_numpy(order)], self.device).split(self.batch_size)
        views = self.samples.views(order, key, self.device, self.batch_size)
        yield from zip(views, labels, strict=True)

    def collect(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The values of a function for all images in the test view, [n, ...], and the labels [n]."""
        outputs, labels = zip(*((function(x), y) for x, y in self.batches()), strict=True)
        return torch.cat(outputs), torch.cat(labels)


@dataclass
class EvaluationBatches:
    """The test views of an evaluation as a loader with a length, which Avalanche's progress bars need."""

    images: TaskSamples

    def __len__(self) -> int:
        return -(-len(self.images) // self.images.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.batches()


__getattr__ = _aliases.renamed(__name__, {"TaskImages": TaskSamples})
