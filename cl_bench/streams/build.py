"""From a benchmark to Avalanche streams. Split, class order and label mapping are ours: they are the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from numpy.typing import NDArray

from cl_bench.data.images import ImageStore
from cl_bench.data.samples import ImageDataset
from cl_bench.experiment import Limits, Transforms
from cl_bench.randomness import permutation
from cl_bench.streams import Source
from cl_bench.streams.datasets import parts_hash


@dataclass(frozen=True)
class TaskStream:
    """A class-incremental stream.

    Attributes:
        train, test: Avalanche streams with one experience per task. Labels are positions in the class order, so that
            task j owns a run of consecutive labels.
        joint: a stream with one experience that holds the training images of all tasks.
        classes: class names in label order.
        tasks: labels of each task.
    """

    train: Any
    test: Any
    joint: Any
    classes: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]


def split_hash(source: Source) -> str:
    """SHA-256 over the sorted `class/file` names of the training and the test part."""
    return parts_hash(source.train.names, source.test.names)


def order_classes(class_order: str, num_classes: int) -> NDArray[np.int64]:
    """Class indices in the order in which they are learned: `natural`, `permutation:K` or `order:2,0,1`.

    Permutations come from numpy's legacy `RandomState`, as in PILOT, SD-LoRA and their kin, so that orders agree.
    """
    if class_order == "natural":
        return np.arange(num_classes)
    if class_order.startswith("order:"):
        return np.array([int(index) for index in class_order.removeprefix("order:").split(",")])
    return np.random.RandomState(int(class_order.removeprefix("permutation:"))).permutation(num_classes)


def held_out(store: ImageStore, share: float) -> NDArray[np.bool_]:
    """Which images form the validation part, [N]: the same for every run.

    Whole groups where they are known (validation then asks for what testing asks for: other designers), otherwise the
    same share of every class.
    """
    if store.groups is not None:
        _, group = np.unique(store.groups, return_inverse=True)
        order = permutation(("validation",), int(group.max()) + 1)
        size = np.bincount(group)[order].cumsum()
        return np.isin(group, order[size <= share * len(store)])
    order = permutation(("validation",), len(store))
    chosen = np.zeros(len(store), dtype=bool)
    for label in np.unique(store.targets):
        mine = order[store.targets[order] == label]
        chosen[mine[: min(max(round(share * len(mine)), 1), len(mine) - 1)]] = True
    return chosen


def build(source: Source, tasks: int, class_order: str, transforms: Transforms, limits: Limits) -> TaskStream:
    """Cut a data set into tasks.

    Args:
        tasks: number of tasks; must divide the number of classes.
        limits: cuts, the first images of each class being kept; or a validation part in place of the test images.

    Raises:
        ValueError: `tasks` does not divide the number of classes.
    """
    num_classes = len(source.classes)
    if num_classes % tasks:
        raise ValueError(f"{num_classes} classes cannot be cut into {tasks} equal tasks")
    order = order_classes(class_order, num_classes)
    label_of_class = np.empty(num_classes, dtype=np.int64)
    label_of_class[order] = np.arange(num_classes)
    kept = tuple(
        tuple(int(label) for label in labels) for labels in np.split(np.arange(num_classes), tasks)[: limits.tasks]
    )

    def part(store: ImageStore, per_class: int | None, chosen: NDArray[np.bool_] | None) -> tuple[Any, list[list[int]]]:
        dataset = ImageDataset(store, label_of_class, transforms)
        labels = np.array(dataset.targets) if chosen is None else np.where(chosen, dataset.targets, -1)
        ids = [[int(i) for label in task for i in np.flatnonzero(labels == label)[:per_class]] for task in kept]
        return as_classification_dataset(dataset), ids

    if limits.validation is None:
        train, train_ids = part(source.train, limits.train_per_class, None)
        test, test_ids = part(source.test, limits.test_per_class, None)
    else:
        validation = held_out(source.train, limits.validation)
        train, train_ids = part(source.train, limits.train_per_class, ~validation)
        test, test_ids = part(source.train, limits.test_per_class, validation)
    everything = [int(i) for ids in train_ids for i in ids]
    scenario = with_classes_timeline(
        benchmark_from_datasets(
            train=[train.subset(ids) for ids in train_ids],
            test=[test.subset(ids) for ids in test_ids],
            joint=[train.subset(everything)],
        )
    )
    streams = scenario.streams
    return TaskStream(
        streams["train"], streams["test"], streams["joint"], tuple(source.classes[c] for c in order), kept
    )
