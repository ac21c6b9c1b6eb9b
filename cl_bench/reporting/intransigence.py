"""Intransigence of stored runs: how much worse each task is learned than by joint training on the tasks up to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from cl_bench import metrics
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.runs import Run, Section

StreamKey = tuple[Protocol, str, int, str]
"""A protocol without its cut to the first tasks, a precision, a seed and a class order."""
References = Mapping[StreamKey, Mapping[str, Mapping[int, float]]]
"""Accuracies on task k of joint training on the first k tasks, by stream, label of the joint row, and k - 1."""


def references(runs: Iterable[Run]) -> dict[StreamKey, dict[str, dict[int, float]]]:
    """Accuracies on task k of joint training on the first k tasks of a stream (suite `intransigence`).

    Returns:
        Fractions by stream, label of the joint row, and task k - 1 (from 0).
    """
    runs = list(runs)
    # On the first task alone joint training has the counts of any other run: it is recognised by its label.
    joint = {run.record.label for run in runs if not run.sequential}
    found: defaultdict[StreamKey, dict[str, dict[int, float]]] = defaultdict(dict)
    for run in runs:
        if run.record.label in joint:
            record, last = run.record, len(run.record.total) - 1
            accuracy = (record.correct[0][last] or 0) / record.total[last]
            found[_stream(run, None)].setdefault(record.label, {}).setdefault(last, accuracy)
    return dict(found)


def intransigence(run: Run, known: References) -> dict[str, list[float]]:
    """Intransigence per task (see `metrics`), as fractions: accuracy of joint training minus that of the run.

    Args:
        known: result of `references`.

    Returns:
        One value per task, by label of the joint row; joint rows without a run for each number of tasks are left out.
    """
    correct, total = run.record.correct, run.record.total
    by_row = known.get(_stream(run, run.protocol.limits.tasks), {}) if run.sequential else {}
    return {
        label: metrics.intransigence_per_task(correct, total, [by_task[k] for k in range(len(total))]).tolist()
        for label, by_task in sorted(by_row.items())
        if label != run.record.label and all(k in by_task for k in range(len(total)))
    }


def _stream(run: Run, tasks: int | None) -> StreamKey:
    """The stream of a run, cut to its first `tasks` tasks (None: whole)."""
    limits = run.protocol.limits.model_copy(update={"tasks": tasks})
    experiment = run.record.experiment
    return replace(run.protocol, limits=limits), run.precision, experiment.seed, experiment.class_order


def is_reference(section: Section, joint: Collection[str]) -> bool:
    """Whether a section only holds references: joint training on a cut-down stream, which gets no table of its own."""
    return section.protocol.limits.tasks is not None and all(label in joint for label in section.rows)
