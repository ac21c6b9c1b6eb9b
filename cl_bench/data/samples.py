"""Batches of an experience: by gather from our image store, or item by item from any other Avalanche data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench.data.images import ImageStore
from cl_bench.data.views import test_view, training_view
from cl_bench.experiment import Transforms
from cl_bench.randomness import Key, permutation


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """An image store as a torch data set (test view), with labels in the stream's class order.

    Attributes:
        store: the images.
        targets: label of each image: the position of its class in the class order.
    """

    def __init__(self, store: ImageStore, label_of_class: NDArray[np.int64], transforms: Transforms) -> None:
        self.store = store
        self.transforms = transforms
        self.targets: list[int] = label_of_class[store.targets].tolist()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return test_view(self.store.gather(np.array([index])), self.transforms)[0], self.targets[index]


class Samples(Protocol):
    """The images of one or several experiences.

    Attributes:
        labels: int64 [n].
    """

    labels: Tensor

    def view(self, positions: NDArray[np.int64], key: Key | None, device: torch.device) -> Tensor:
        """Network inputs [len(positions), C, H, W]: the training view for `key`, or the test view for None."""
        ...


@dataclass
class StoreSamples:
    """Samples gathered from an image store; `ids` [n] are indices into it, and the identities for random draws."""

    dataset: ImageDataset
    ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.labels = torch.tensor(self.dataset.targets)[torch.from_numpy(self.ids)]

    def view(self, positions: NDArray[np.int64], key: Key | None, device: torch.device) -> Tensor:
        ids = self.ids[positions]
        images = self.dataset.store.gather(ids)
        if isinstance(images, Tensor):
            images = images.to(device)
        transforms = self.dataset.transforms
        view = test_view(images, transforms) if key is None else training_view(images, ids, key, transforms)
        return view.to(device)


@dataclass
class DatasetSamples:
    """Samples of a foreign Avalanche data set, taken item by item with the transforms that it brings itself.

    Its random transforms draw from the global generators: such a run does not resume bit by bit.
    """

    dataset: Any

    def __post_init__(self) -> None:
        self.labels = torch.tensor([int(target) for target in self.dataset.targets])

    def view(self, positions: NDArray[np.int64], key: Key | None, device: torch.device) -> Tensor:
        dataset = self.dataset.eval() if key is None else self.dataset.train()
        return torch.stack([torch.as_tensor(dataset[int(p)][0]) for p in positions]).to(device)


class Concatenated:
    """Several experiences as one."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = parts
        self.labels = torch.cat([part.labels for part in parts])
        self._starts = np.cumsum([0, *(len(part.labels) for part in parts)])

    def view(self, positions: NDArray[np.int64], key: Key | None, device: torch.device) -> Tensor:
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        rows = [np.flatnonzero(part_of == part) for part in np.unique(part_of)]
        views = [
            self.parts[part].view(positions[chosen] - self._starts[part], key, device)
            for part, chosen in zip(np.unique(part_of), rows, strict=True)
        ]
        return torch.cat(views)[torch.from_numpy(np.argsort(np.concatenate(rows))).to(device)]


def samples_of(dataset: Any) -> Samples:
    """The samples of an Avalanche data set, by gather wherever it is a plain selection from one image store."""
    flat = dataset._flat_data  # Avalanche has no public way to see what a subset was made of.
    if len(flat._datasets) == 1 and isinstance(flat._datasets[0], ImageDataset):
        source = flat._datasets[0]
        ids = np.arange(len(source)) if flat._indices is None else np.array(flat._indices, dtype=np.int64)
        return StoreSamples(source, ids)
    return DatasetSamples(dataset)


@dataclass
class TrainingBatches:
    """One epoch of shuffled training views in batches of a fixed shape.

    Yields `(images, labels, valid)`. The last batch is filled up with repeated samples, of which only the first
    `valid` count: shapes that reach a compiled graph never change.
    """

    samples: Samples
    batch_size: int
    key: Key
    device: torch.device
    skipped: int = 0

    def __len__(self) -> int:
        return -(-len(self.samples.labels) // self.batch_size) - self.skipped

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        order = permutation((*self.key, "order"), len(self.samples.labels))
        for start in range(self.skipped * self.batch_size, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            positions = np.resize(chosen, self.batch_size)
            images = self.samples.view(positions, (*self.key, "view"), self.device)
            labels = self.samples.labels[torch.from_numpy(positions)]
            yield images, labels.to(self.device), len(chosen)


@dataclass
class TaskImages:
    """Images in their order, for passes without gradients: the current task's, or those of an evaluation."""

    samples: Samples
    key: Key
    device: torch.device
    batch_size: int = 256

    def __len__(self) -> int:
        return len(self.samples.labels)

    def batches(self, augmented: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """One ordered pass: `(images [b, C, H, W], labels [b])`, in the test view, or in one training view each."""
        key = (*self.key, "pass") if augmented else None
        for start in range(0, len(self), self.batch_size):
            positions = np.arange(start, min(start + self.batch_size, len(self)))
            labels = self.samples.labels[torch.from_numpy(positions)]
            yield self.samples.view(positions, key, self.device), labels.to(self.device)

    def collect(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """A function of every image in the test view, [n, ...], and the labels [n]."""
        outputs, labels = zip(*((function(x), y) for x, y in self.batches()), strict=True)
        return torch.cat(outputs), torch.cat(labels)


@dataclass
class EvaluationBatches:
    """The test views of an evaluation as a sized loader: Avalanche's progress bars ask for its length."""

    images: TaskImages

    def __len__(self) -> int:
        return -(-len(self.images) // self.images.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.batches()
