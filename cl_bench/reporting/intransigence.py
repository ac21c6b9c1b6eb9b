"""Intransigence of stored runs: what each task is learned worse than by joint training on a prefix of the stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from cl_bench import metrics
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.runs import Run, Section

StreamKey = tuple[Protocol, int, str]
"""A protocol without its cut to the first tasks, a seed and a class order."""


def references(runs: Iterable[Run]) -> dict[StreamKey, dict[str, dict[int, float]]]:
    """Joint training on the first k tasks of a stream (suite `intransigence`): accuracies on the last of them.

    Returns:
        By stream, then by row and task k - 1: a fraction.
    """
    runs = list(runs)
    # Of the first task alone, joint training looks like any other: its label tells.
    joint = {run.record.label for run in runs if not run.sequential}
    found: defaultdict[StreamKey, dict[str, dict[int, float]]] = defaultdict(dict)
    for run in runs:
        if run.record.label in joint:
            record, last = run.record, len(run.record.total) - 1
            accuracy = (record.correct[0][last] or 0) / record.total[last]
            found[_stream(run, None)].setdefault(record.label, {}).setdefault(last, accuracy)
    return dict(found)


def intransigence(run: Run, known: Mapping[StreamKey, Mapping[str, Mapping[int, float]]]) -> dict[str, list[float]]:
    """What each task is learned worse than by joint training on it and all tasks before (`metrics`), as fractions.

    Args:
        known: `references`.

    Returns:
        One value per task, by the row that is the reference; rows that lack a prefix are left out.
    """
    correct, total = run.record.correct, run.record.total
    by_row = known.get(_stream(run, run.protocol.limits.tasks), {}) if run.sequential else {}
    return {
        label: metrics.intransigence_per_task(correct, total, [by_task[k] for k in range(len(total))]).tolist()
        for label, by_task in sorted(by_row.items())
        if label != run.record.label and all(k in by_task for k in range(len(total)))
    }


def _stream(run: Run, tasks: int | None) -> StreamKey:
    """The stream of a run, cut to so many tasks."""
    limits = run.protocol.limits.model_copy(update={"tasks": tasks})
    return replace(run.protocol, limits=limits), run.record.experiment.seed, run.record.experiment.class_order


def is_reference(section: Section, joint: Collection[str]) -> bool:
    """Whether a cut-down stream has runs of joint training only: what `references` is made of, no table of its own."""
    return section.protocol.limits.tasks is not None and all(label in joint for label in section.rows)
