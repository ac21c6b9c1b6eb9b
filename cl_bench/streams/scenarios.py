"""Avalanche streams of a benchmark; split, class order and labels are set here, as parts of the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute, TaskAwareSupervisedClassificationDataset
from numpy.typing import NDArray

from cl_bench.data.images import ImageStore
from cl_bench.data.samples import ImageDataset
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms, Limits, Scenario, Tasks
from cl_bench.randomness import permutation
from cl_bench.streams import Source


@dataclass(frozen=True)
class TaskStream:
    """A stream of tasks.

    Attributes:
        train, test: Avalanche streams with one experience per task. In a class-incremental stream, labels are positions
            in the class order, so that the labels of a task are consecutive.
        joint: a stream with one experience that holds the training images of all tasks.
        classes: class names in label order.
        tasks: labels of each task.
        domains: the domain of each task, in a domain-incremental stream; otherwise empty.
    """

    train: Any
    test: Any
    joint: Any
    classes: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]
    domains: tuple[str, ...] = ()


def order_classes(class_order: str, num_classes: int) -> NDArray[np.int64]:
    """Indices of classes (or domains) in learning order, from `Experiment.class_order`.

    Permutations come from numpy's legacy `RandomState`, as in PILOT, SD-LoRA and related code, so that orders agree.
    """
    if class_order == "natural":
        return np.arange(num_classes)
    if class_order.startswith("order:"):
        return np.array([int(index) for index in class_order.removeprefix("order:").split(",")])
    return np.random.RandomState(int(class_order.removeprefix("permutation:"))).permutation(num_classes)


def held_out(store: ImageStore, share: float) -> NDArray[np.bool_]:
    """Mask [N] of the images held out for validation, the same for every run.

    If groups are known, whole groups are held out, so that validation measures what testing does (unseen designers).
    Otherwise the same share of every class is held out; none of a class with one image.
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


def sizes_of(tasks: Tasks, num_classes: int) -> tuple[int, ...]:
    """Number of classes of each class-incremental task.

    Raises:
        ValueError: the number of tasks does not divide the number of classes, or the sizes do not add up to it.
    """
    if isinstance(tasks, int):
        if num_classes % tasks:
            raise ValueError(f"{num_classes} classes cannot be cut into {tasks} equal tasks")
        return (num_classes // tasks,) * tasks
    if sum(tasks) != num_classes:
        raise ValueError(f"tasks of {', '.join(map(str, tasks))} classes have {sum(tasks)} in all, not {num_classes}")
    return tasks


def build(
    source: Source,
    tasks: Tasks,
    class_order: str,
    transforms: ImageTransforms,
    limits: Limits,
    scenario: Scenario = "class-incremental",
) -> TaskStream:
    """Cut a data set into tasks: by class, or by domain.

    Args:
        tasks: as in `Experiment`; for a domain-incremental stream, the number of domains.
        class_order: order of the classes, or of the domains.
        limits: reduce the number of tasks and of images (the first images of each class in each task are used), or
            replace the test images by held-out training images.

    Raises:
        UserError: a task has no validation image.
        ValueError: the classes or domains cannot be cut into these tasks.
    """
    num_classes = len(source.classes)
    label_of_class = np.arange(num_classes)
    if scenario == "domain-incremental":
        if tasks != len(source.domains):
            raise ValueError(f"{len(source.domains)} domains make {len(source.domains)} tasks, not {tasks}")
        classes = source.classes
        domains = tuple(source.domains[d] for d in order_classes(class_order, len(source.domains)))
    else:
        sizes = sizes_of(tasks, num_classes)
        order = order_classes(class_order, num_classes)
        classes, domains = tuple(source.classes[c] for c in order), ()
        label_of_class[order] = np.arange(num_classes)
        task_of_label = np.repeat(np.arange(len(sizes)), sizes)
    length = limits.tasks or (len(domains) or len(sizes))

    def part(store: ImageStore, per_class: int | None, chosen: NDArray[np.bool_] | None) -> tuple[Any, list[list[int]]]:
        dataset = ImageDataset(store, label_of_class, transforms)
        labels = np.array(dataset.targets)
        if domains:
            assert store.domains is not None
            task = np.array([domains.index(domain) for domain in store.domains])
        else:
            task = task_of_label[labels]
        ids = []
        for index in range(length):
            rows = np.flatnonzero(task == index if chosen is None else (task == index) & chosen)
            rows = rows[np.argsort(labels[rows], kind="stable")]
            # Number of earlier images of the same class.
            rank = np.arange(len(rows)) - np.searchsorted(labels[rows], labels[rows])
            ids.append([int(i) for i in rows[rank < (per_class or len(rows))]])
        return _avalanche_dataset(dataset), ids

    if limits.validation is None:
        train, train_ids = part(source.train, limits.train_per_class, None)
        test, test_ids = part(source.test, limits.test_per_class, None)
    else:
        validation = held_out(source.train, limits.validation)
        train, train_ids = part(source.train, limits.train_per_class, ~validation)
        test, test_ids = part(source.train, limits.test_per_class, validation)
        for index in (index for index, ids in enumerate(test_ids) if not ids):
            own = np.unique(np.array(source.train.targets)[train_ids[index]])
            names = ", ".join(f"'{source.classes[label]}'" for label in own[:3]) + (", ..." if len(own) > 3 else "")
            raise UserError(
                f"task {index} ({names}) has no image for validation: no image is held out of a class with only one "
                "training image; add images of these classes, or leave them out"
            )
    everything = [i for ids in train_ids for i in ids]
    avalanche = with_classes_timeline(
        benchmark_from_datasets(
            train=[train.subset(ids) for ids in train_ids],
            test=[test.subset(ids) for ids in test_ids],
            joint=[train.subset(everything)],
        )
    )
    streams = avalanche.streams
    for stream in streams.values():
        for experience in stream:
            # As in Avalanche's own benchmarks; its confusion matrix asks for it.
            experience.benchmark = avalanche
    labels = label_of_class[source.train.targets]
    task_labels = tuple(tuple(int(label) for label in np.unique(labels[ids])) for ids in train_ids)
    return TaskStream(streams["train"], streams["test"], streams["joint"], classes, task_labels, domains[:length])


def _avalanche_dataset(dataset: ImageDataset) -> Any:
    """An Avalanche data set of items (image, label, task label); all task labels are 0, so they do not tell the task.

    Plugins read task labels from the data set (`targets_task_labels`, `task_set`) and from its items.
    """
    attributes = [
        DataAttribute(dataset.targets, "targets"),
        DataAttribute(ConstantSequence(0, len(dataset)), "targets_task_labels", use_in_getitem=True),
    ]
    return TaskAwareSupervisedClassificationDataset([dataset], data_attributes=attributes)
