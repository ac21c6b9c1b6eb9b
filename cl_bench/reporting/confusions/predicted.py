"""The predictions of one run, checked against its counts and counted by class, by task and by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cl_bench.errors import UserError, reason
from cl_bench.experiment import number_of
from cl_bench.reporting.runs import Run
from cl_bench.store import Arrays, DamagedRecord, RunRecord, Store, predictions

Integers = NDArray[np.int64]
MAX_CLASSES = 4_000
"""Limit of the classes: a table of all pairs of more would not fit into the memory of a laptop."""
KINDS = ("right", "inside the task", "to older tasks", "to newer tasks")
"""Kinds of predictions, by the task of the predicted class; an error inside the task names another class of it."""


class NoPredictions(UserError):
    """The predictions of a run are not stored, or contradict its counts."""


@dataclass(frozen=True, eq=False)
class RunErrors:
    """Counts of the predictions of one run with S stages, on T tested tasks and n test images.

    Classes are numbered by label: their position in the order in which this run learned them. The whole stream has C
    classes in N tasks; N exceeds T only in a trial on the first tasks.

    Attributes:
        classes: names of the classes, [C].
        task_of_class: task of each class, int64 [C]; None in a domain-incremental stream, whose tasks share classes.
        flow: images by stage, true task and kind of prediction (`KINDS`), int64 [S, T, 4], 0 for tasks not evaluated;
            None where `task_of_class` is.
        by_task: images after the last stage by true task and task of the predicted class, int64 [T, N]; or None.
        class_right, class_tested: right and evaluated images by stage and class, int64 [S, C].
        learned: stage in which each task was learned, int64 [T].
        label, task: true class and task of each image, int64 [n].
        rank: number of earlier test images of the same class and task, int64 [n], which identifies an image in its
            class whatever the class order.
        final: predicted class after the last stage, int64 [n]; -1 if the image was not evaluated.
        was_right: whether the image was right after the stage that learned its task, bool [n].
        stages_wrong: number of stages from then on in which the image was wrong, int64 [n].
    """

    run: Run
    classes: tuple[str, ...]
    task_of_class: Integers | None
    flow: Integers | None
    by_task: Integers | None
    class_right: Integers
    class_tested: Integers
    learned: Integers
    label: Integers
    task: Integers
    rank: Integers
    final: Integers
    was_right: NDArray[np.bool_]
    stages_wrong: Integers

    @property
    def by_class(self) -> Integers:
        """Images after the last stage by true and predicted class, int64 [C, C]."""
        known = self.final >= 0
        return _table(self.label[known], self.final[known], len(self.classes), len(self.classes))

    @property
    def forgotten(self) -> NDArray[np.bool_]:
        """Images that were right when their task was learned and are wrong after the last stage, bool [n]."""
        return self.was_right & (self.final >= 0) & (self.final != self.label)


def read(run: Run, folders: Sequence[Path], task: int | None = None) -> RunErrors:
    """Read and count the predictions of a run, from the first folder that has them.

    Args:
        task: index of the only task whose images are counted; None: all.

    Raises:
        NoPredictions: they are stored in none of the folders, or contradict the counts of the run.
    """
    record, refused = run.record, ""
    for store in map(Store, folders):
        if not store.json_path(record.experiment).exists():
            continue
        try:
            return measure(run, store.arrays(record), task)
        except (DamagedRecord, NoPredictions) as error:
            refused = refused or reason(error)
    name = f"run {record.key} ({run.label}, seed {record.experiment.seed})"
    if refused:
        raise NoPredictions(
            f"the predictions of {name} cannot be used: {refused}; remove its files and make the run again"
        )
    where = ", ".join(f"'{folder}'" for folder in folders) or "no folder"
    raise NoPredictions(
        f"{name} has no stored predictions in {where}, only counts; name the folder with its npz file by --results, or "
        "make the run again"
    )


def measure(run: Run, arrays: Arrays, task: int | None = None) -> RunErrors:
    """Count the predictions of a run by class, by task and by image.

    Args:
        arrays: `label`, `task` [n] and `predicted`, `predicted_task_aware` [S, n], as `Store.arrays` reads them.
        task: index of the only task whose images are counted; None: all.

    Raises:
        NoPredictions: the arrays contradict the counts of the run, or the order of its classes.
    """
    record = run.record
    counts: dict[str, Sequence[Sequence[int | None]]] = {
        "predicted": record.correct,
        "predicted_task_aware": record.correct_task_aware,
    }
    if wrong := predictions.fault(arrays, record.total, len(record.classes), counts):
        raise NoPredictions(f"predictions and counts disagree ({wrong})")
    label, of, predicted = (arrays[name].astype(np.int64) for name in ("label", "task", "predicted"))
    tasks = _task_of_class(record)
    if tasks is not None and not np.array_equal(tasks[label], of):
        raise NoPredictions("the classes of its images lie in other tasks than its class order says")
    if len(record.classes) > MAX_CLASSES:
        raise NoPredictions(
            f"its {len(record.classes):,} classes are more than the {MAX_CLASSES:,} whose pairs are counted"
        )
    if len(set(record.classes)) < len(record.classes):
        raise NoPredictions("two of its classes have the same name")
    rank = _rank(label, of)
    if task is not None:
        chosen = of == task
        label, of, predicted, rank = label[chosen], of[chosen], predicted[:, chosen], rank[chosen]
    flow, by_task = (None, None) if tasks is None else _by_task(record, tasks, label, of, predicted)
    classes, tested = len(record.classes), predicted >= 0
    right = predicted == label
    learned = _learned(record)
    stage = np.arange(len(predicted))[:, None]
    return RunErrors(
        run=run,
        classes=tuple(record.classes),
        task_of_class=tasks,
        flow=flow,
        by_task=by_task,
        class_right=_by_stage(label, right, classes),
        class_tested=_by_stage(label, tested, classes),
        learned=learned,
        label=label,
        task=of,
        rank=rank,
        final=predicted[-1].copy(),
        was_right=right[learned[of], np.arange(len(of))],
        stages_wrong=(tested & ~right & (stage >= learned[of])).sum(axis=0),
    )


def _task_of_class(record: RunRecord) -> Integers | None:
    """The task of each class; None in a domain-incremental stream."""
    if record.experiment.scenario == "domain-incremental":
        return None
    tasks = record.experiment.tasks
    sizes = (len(record.classes) // tasks,) * tasks if isinstance(tasks, int) else tasks
    return np.repeat(np.arange(len(sizes)), sizes)


def _learned(record: RunRecord) -> Integers:
    """The stage in which each tested task was learned; the last one for a task that no stage names."""
    found = np.full(len(record.total), len(record.stages) - 1)
    for stage, tasks in reversed(list(enumerate(record.stages))):
        found[tasks] = stage
    return found


def _rank(label: Integers, task: Integers) -> Integers:
    """Number of earlier images of the same class and task."""
    group = task * (label.max() + 1) + label
    order = np.argsort(group, kind="stable")
    rank = np.empty_like(label)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank


def _by_task(
    record: RunRecord, tasks: Integers, label: Integers, of: Integers, predicted: Integers
) -> tuple[Integers, Integers]:
    """`flow` and `by_task` of `RunErrors`."""
    target = tasks[predicted]
    kind = np.select([predicted == label, target == of, target < of], [0, 1, 2], 3)
    tested, number = predicted >= 0, len(record.total)
    flow = _by_stage(of * len(KINDS) + kind, tested, number * len(KINDS)).reshape(-1, number, len(KINDS))
    last = tested[-1]
    return flow, _table(of[last], target[-1][last], number, number_of(record.experiment.tasks))


def _by_stage(values: Integers, chosen: NDArray[np.bool_], size: int) -> Integers:
    """How often each of the numbers below `size` occurs in every stage, among the chosen values; int64 [S, size].

    Args:
        values: [n], or [S, n] where they depend on the stage.
        chosen: [S, n].
    """
    stages = len(chosen)
    places = values + size * np.arange(stages)[:, None]
    return np.bincount(places[chosen], minlength=stages * size).reshape(stages, size)


def _table(rows: Integers, columns: Integers, height: int, width: int) -> Integers:
    """How often each pair of a row and a column occurs, int64 [height, width]."""
    return np.bincount(rows * width + columns, minlength=height * width).reshape(height, width)
