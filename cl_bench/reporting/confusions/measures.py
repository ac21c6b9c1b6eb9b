"""Predictions of all runs of a row together: shares of errors, confused pairs, forgotten classes and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cl_bench.reporting.confusions.predicted import Integers, NoPredictions, RunErrors, read
from cl_bench.reporting.runs import Run

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes of which one is taken for the other.

    Attributes:
        true, predicted: names of the classes.
        images: images of `true` that were predicted as `predicted` after the last stage, summed over runs.
        share, reverse: percent of the images of `true` predicted as `predicted`, and the other way round; NaN if no
            image of `predicted` was tested.
        tasks: tasks of both classes, from 1; None if runs learned them in different tasks, or tasks share classes.
    """

    true: str
    predicted: str
    images: int
    share: float
    reverse: float
    tasks: tuple[int, int] | None


@dataclass(frozen=True)
class ForgottenClass:
    """A class with the accuracy that it lost since its task was learned.

    Attributes:
        images: test images, summed over runs.
        learned, final: percent of them that are right after the stage that learned them, and after the last stage.
        forgotten: images right then and wrong now; at least as many as `learned - final` says.
        taken_for: class as which most of its images are now wrongly predicted.
        share: percent of its images predicted as `taken_for`.
        task: task of the class, from 1; None if runs learned it in different tasks, or tasks share classes.
    """

    name: str
    images: int
    learned: float
    final: float
    forgotten: int
    taken_for: str
    share: float
    task: int | None


@dataclass(frozen=True)
class ForgottenImage:
    """A test image that was right when its task was learned, and is wrong after the last stage.

    Attributes:
        name: its class.
        domain: its domain; empty in a class-incremental stream.
        rank: number of earlier test images of the same class (and domain) in the order of the data set.
        forgotten: number of runs that forgot it.
        tested: number of runs with this image.
        stages_wrong: stages in which it was wrong since it was learned, summed over all runs.
        taken_for: class as which it is most often wrongly predicted after the last stage.
    """

    name: str
    domain: str
    rank: int
    forgotten: int
    tested: int
    stages_wrong: int
    taken_for: str


@dataclass(frozen=True, eq=False)
class RowErrors:
    """The counted predictions of the runs of one row; counts are summed over runs, and shares are means over runs.

    Classes are in alphabetical order, since each run may learn them in another one.

    Raises:
        NoPredictions: the runs have different classes, tasks or stages.
    """

    label: str
    runs: tuple[RunErrors, ...]

    def __post_init__(self) -> None:
        for run in self.runs:
            if sorted(run.classes) != list(self.classes):
                raise NoPredictions(f"runs of {self.label} have different classes")
            if run.class_right.shape != self.runs[0].class_right.shape or len(run.learned) != len(self.runs[0].learned):
                raise NoPredictions(f"runs of {self.label} have different stages")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of all C classes, sorted."""
        return tuple(sorted(self.runs[0].classes))

    @property
    def by_domain(self) -> bool:
        """Whether tasks share all classes, so that no error lies between tasks."""
        return self.runs[0].task_of_class is None

    @property
    def sequential(self) -> bool:
        """Whether tasks were learned one after the other."""
        return all(run.run.sequential for run in self.runs)

    @cached_property
    def accuracy(self) -> float:
        """Share of the images that are right after the last stage, mean over runs."""
        finals = [(run.final, run.label) for run in self.runs]
        return float(np.mean([np.mean(final[final >= 0] == label[final >= 0]) for final, label in finals]))

    @cached_property
    def one_order(self) -> bool:
        """Whether all runs learn the classes in the same order."""
        return len({run.classes for run in self.runs}) == 1

    @cached_property
    def by_class(self) -> Integers:
        """Images after the last stage by true and predicted class, summed over runs, int64 [C, C]."""
        total = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        for run, place in zip(self.runs, self._places, strict=True):
            total[np.ix_(place, place)] += run.by_class
        return total

    @cached_property
    def by_task(self) -> Integers:
        """Images after the last stage by true task and task of the predicted class, summed over runs, int64 [T, N].

        Raises:
            NoPredictions: the stream is domain-incremental.
        """
        return np.sum([_defined(run.by_task) for run in self.runs], axis=0)

    def shares(self) -> Shares:
        """Percent of the images evaluated after each stage, by run, stage and kind (`KINDS`), float64 [runs, S, 4].

        Raises:
            NoPredictions: the stream is domain-incremental.
        """
        flow = np.stack([_defined(run.flow) for run in self.runs]).sum(axis=2)
        return _percent(flow, flow.sum(axis=2, keepdims=True))

    def shares_by_task(self) -> Shares:
        """Percent of the images of each task after the last stage, by run, true task and kind, float64 [runs, T, 4].

        NaN for a task that was not evaluated.

        Raises:
            NoPredictions: the stream is domain-incremental.
        """
        flow = np.stack([_defined(run.flow)[-1] for run in self.runs])
        return _percent(flow, flow.sum(axis=2, keepdims=True))

    def curves(self) -> Shares:
        """Percent of the images of a class that are right k tasks after its task was learned, float64 [C, S].

        Pooled over the runs in which a class has that age; NaN if there is none.

        Raises:
            NoPredictions: the stream is domain-incremental, so that a class is learned in every task.
        """
        right, tested = np.zeros((2, len(self.classes), len(self.runs[0].class_right)))
        for run, place in zip(self.runs, self._places, strict=True):
            tasks = _defined(run.task_of_class)
            for label in np.flatnonzero(run.class_tested.any(axis=0)):
                start = run.learned[tasks[label]]
                right[place[label], : len(right[0]) - start] += run.class_right[start:, label]
                tested[place[label], : len(right[0]) - start] += run.class_tested[start:, label]
        return _percent(right, tested)

    def pairs(self, top: int) -> list[ConfusedPair]:
        """The most confused pairs: by images, then by name."""
        wrong = self.by_class - np.diag(np.diag(self.by_class))
        share = _percent(self.by_class, self.by_class.sum(axis=1, keepdims=True))
        tasks = self._tasks()
        order = np.argsort(-wrong, axis=None, kind="stable")[:top]
        return [
            ConfusedPair(
                true=self.classes[i],
                predicted=self.classes[j],
                images=int(wrong[i, j]),
                share=float(share[i, j]),
                reverse=float(share[j, i]),
                tasks=None if tasks is None else (int(tasks[i]) + 1, int(tasks[j]) + 1),
            )
            for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
            if wrong[i, j]
        ]

    def forgotten_classes(self, top: int) -> list[ForgottenClass]:
        """The classes that lost most accuracy since they were learned; only those that lost some.

        The accuracy when learned is that on the images of each task right after the stage that learned it.
        """
        size, (images, then, now, lost) = len(self.classes), np.zeros((4, len(self.classes)), dtype=np.int64)
        for run, place in zip(self.runs, self._places, strict=True):
            tested = run.final >= 0
            for total, chosen in (
                (images, tested), (then, run.was_right & tested), (now, run.final == run.label), (lost, run.forgotten)
            ):  # fmt: skip
                total += np.bincount(place[run.label[chosen]], minlength=size)
        wrong = self.by_class - np.diag(np.diag(self.by_class))
        tasks, change = self._tasks(), _percent(then - now, images)
        found = []
        for i in np.argsort(-np.nan_to_num(change), kind="stable")[:top]:
            if images[i] and then[i] > now[i]:
                j = int(wrong[i].argmax())
                found.append(
                    ForgottenClass(
                        name=self.classes[i],
                        images=int(images[i]),
                        learned=float(100 * then[i] / images[i]),
                        final=float(100 * now[i] / images[i]),
                        forgotten=int(lost[i]),
                        taken_for=self.classes[j],
                        share=float(100 * wrong[i, j] / images[i]),
                        task=None if tasks is None else int(tasks[i]) + 1,
                    )
                )
        return found

    def forgotten_images(self, top: int) -> list[ForgottenImage]:
        """The images that most runs have forgotten, and among these, those wrong in most stages.

        An image is the same in two runs if its class, its place in the class and its domain are.
        """
        seen: Counter[tuple[str, str, int]] = Counter()
        for run in self.runs:
            for i in map(int, np.flatnonzero(run.forgotten)):
                seen[_image(run, i)] += 1
        # Only images that could be among the first are counted in all runs.
        fewest = min((count for _, count in seen.most_common(top)), default=0)
        taken = {image: Counter[str]() for image, count in seen.items() if count >= fewest}
        tested, stages = dict.fromkeys(taken, 0), dict.fromkeys(taken, 0)
        for run in self.runs:
            for i in range(len(run.label)):
                image = _image(run, i)
                if image in taken and run.final[i] >= 0:
                    tested[image] += 1
                    stages[image] += int(run.stages_wrong[i])
                    if run.final[i] != run.label[i]:
                        taken[image][run.classes[run.final[i]]] += 1
        ordered = sorted(taken, key=lambda image: (-seen[image], -stages[image], image))
        return [
            ForgottenImage(*image, seen[image], tested[image], stages[image], _most_frequent(taken[image]))
            for image in ordered[:top]
        ]

    @cached_property
    def _places(self) -> list[Integers]:
        """For each run, the place of each of its labels among the sorted names, int64 [C]."""
        place = {name: number for number, name in enumerate(self.classes)}
        return [np.array([place[name] for name in run.classes], dtype=np.int64) for run in self.runs]

    def _tasks(self) -> Integers | None:
        """The task of each class, sorted by name; None if there is not one for all runs."""
        own = self.runs[0].task_of_class
        if own is None or not self.one_order:
            return None
        tasks = np.empty_like(own)
        tasks[self._places[0]] = own
        return tasks


def rows_of(
    rows: Mapping[str, Sequence[Run]], folders: Sequence[Path], task: int | None = None
) -> tuple[dict[str, RowErrors], list[str]]:
    """The counted predictions of rows, without the runs whose predictions are not stored or cannot be used.

    Returns:
        Rows with at least one run, by label; and a sentence for each run that was left out.
    """
    found, left = {}, []
    for label, runs in rows.items():
        read_runs = []
        for run in runs:
            try:
                read_runs.append(read(run, folders, task))
            except NoPredictions as error:
                left.append(str(error))
        if read_runs:
            found[label] = RowErrors(label, tuple(read_runs))
    return found, left


def _most_frequent(names: Counter[str]) -> str:
    return min(names, key=lambda name: (-names[name], name))


def _image(run: RunErrors, i: int) -> tuple[str, str, int]:
    """Identity of an image in every run: class, domain, place among the test images of that class and domain."""
    domains = run.run.record.domains
    domain = domains[run.task[i]] if run.task_of_class is None and domains else ""
    return run.classes[run.label[i]], domain, int(run.rank[i])


def _defined(values: Integers | None) -> Integers:
    if values is None:
        raise NoPredictions(
            "in a domain-incremental stream all tasks share their classes: a predicted class names no task, so errors "
            "cannot be told apart by the task that they go to"
        )
    return values


def _percent(part: NDArray[np.int64] | Shares, whole: NDArray[np.int64] | Shares) -> Shares:
    """100 part / whole; NaN where whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(100 * part / whole, dtype=np.float64)
