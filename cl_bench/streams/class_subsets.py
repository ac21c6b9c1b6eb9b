"""Data sets that consist of some classes of another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cl_bench.streams import catalogue
from cl_bench.streams.overlaps import shared_classes
from cl_bench.streams.types import DataSet, Listing


@dataclass(frozen=True)
class ClassSubset:
    """A benchmark of some classes of a data set.

    Attributes:
        of: name of the data set; all its classes must have the same number of images.
        title: one-line description.
        num_classes, tasks: number of chosen classes, and default number of tasks.
        classes: returns the names of the chosen classes.
    """

    of: str
    title: str
    num_classes: int
    tasks: int
    classes: Callable[[], frozenset[str]]

    def dataset(self) -> DataSet:
        """The data set reduced to these classes."""
        whole = catalogue.find(self.of)

        def read(folder: Path, split: Path | None) -> Listing:
            return self.listing(whole.read(folder, split))

        return replace(
            whole,
            read=read,
            title=self.title,
            classes=self.num_classes,
            train=whole.train * self.num_classes // whole.classes,
            test=whole.test * self.num_classes // whole.classes,
            tasks=self.tasks,
            splits=(),
            split_hashes={},
            content_hash=None,
        )

    def listing(self, whole: Listing) -> Listing:
        """The images of these classes."""
        chosen = self.classes()
        train, test = (tuple(entry for entry in part if entry.label in chosen) for part in (whole.train, whole.test))
        return replace(whole, train=train, test=test, classes=tuple(name for name in whole.classes if name in chosen))


SUBSETS = {
    "tiny-imagenet-44": ClassSubset(
        "tiny-imagenet",
        "44 classes of Tiny ImageNet that are also in CIFAR-100, for choosing hyper-parameters of cifar100",
        44,
        11,
        shared_classes,
    )
}
"""By name of the benchmark."""
