"""The charts of one protocol that everyone asks for, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cl_bench import metrics
from cl_bench.experiment import Scalar
from cl_bench.report.charts import Chart, Heat, Line, Lines, Panel, Point, Scatter
from cl_bench.report.frame import Run, Section
from cl_bench.stats import Summary, summarise, summarise_curves

SHOWN = 12
"""So many rows at most in a chart that cannot hold all: those of the best final accuracy."""
_BANDS = "Means over runs; bands and bars are 95 % Student-t intervals of the mean."
Rows = Mapping[str, Sequence[Run]]


def standard(section: Section) -> dict[str, Chart]:
    """All charts by name that the runs of a protocol allow.

    `accuracy`, `forgetting`, `retention`, `tasks`, `matrix`, `stability`, `loss`, and `cost-seconds`,
    `cost-parameters`, `cost-memory`, `cost-flops`. Where nothing learns task by task there is none.
    """
    best = sorted(section.rows, key=lambda label: (-_final(section.rows[label]), label))
    turn = {label: section.rows[label] for label in best if section.rows[label][0].sequential}
    rest = {label: section.rows[label] for label in best if label not in turn}
    if not turn:
        return {}
    made = [
        _accuracy(turn, rest),
        _curves_chart(
            "forgetting",
            "Forgetting along the stream",
            "Best minus current accuracy, averaged over the tasks learned before.",
            "forgetting, points",
            turn,
            metrics.forgetting_curve,
        ),
        _retention(turn),
        _tasks(turn),
        _matrix(turn),
        _stability(turn),
        _loss(turn),
        *(_cost(name, {**turn, **rest}) for name in _COSTS),
    ]
    return {chart.name: chart for chart in made if chart is not None}


def _final(runs: Sequence[Run]) -> float:
    return summarise([metrics.acc(run.record.correct, run.record.total) for run in runs]).mean


def _matrix_of(run: Run) -> NDArray[np.float64]:
    return metrics.accuracy_matrix(run.record.correct, run.record.total)


def _cut(rows: Rows, most: int = SHOWN) -> tuple[dict[str, Sequence[Run]], str]:
    """The best rows, and a sentence if some are left out."""
    shown = dict(list(rows.items())[:most])
    left = len(rows) - len(shown)
    note = f" The {most} rows of the best final accuracy; {left} more are left out." if left else ""
    return shown, note


# --- curves ----------------------------------------------------------------------------------------------------


def _accuracy(turn: Rows, rest: Rows) -> Chart:
    shown, note = _cut(turn)
    levels = tuple(
        (label, summarise([100 * metrics.acc(run.record.correct, run.record.total) for run in runs]))
        for label, runs in rest.items()
    )
    panel = Lines("", "tasks learned", "top-1 accuracy, %", _lines(shown, metrics.accuracy_curve), levels)
    ceiling = " Dashed without markers: training on all tasks at once." if levels else ""
    return Chart(
        "accuracy", "Accuracy so far", f"Accuracy over the classes seen so far.{ceiling} {_BANDS}{note}", (panel,)
    )


def _curves_chart(
    name: str, title: str, caption: str, unit: str, rows: Rows, curve: Callable[..., NDArray[np.float64]]
) -> Chart:
    shown, note = _cut(rows)
    panel = Lines("", "tasks learned", unit, _lines(shown, curve))
    return Chart(name, title, f"{caption} {_BANDS}{note}", (panel,))


def _lines(rows: Rows, curve: Callable[..., NDArray[np.float64]]) -> tuple[Line, ...]:
    """A curve in percent against tasks learned, for each row."""
    lines = []
    for label, runs in rows.items():
        points = summarise_curves([100 * curve(run.record.correct, run.record.total) for run in runs])
        lines.append(Line(label, tuple(range(1, len(points) + 1)), tuple(points)))
    return tuple(lines)


def _retention(rows: Rows) -> Chart | None:
    """Accuracy lost k tasks after a task was learned, mean over all tasks that are so old."""

    def curve(run: Run) -> NDArray[np.float64]:
        accuracy = _matrix_of(run)
        tasks = len(accuracy)
        since = [[accuracy[j + k, j] - accuracy[j, j] for j in range(tasks - k)] for k in range(tasks)]
        return 100 * np.array([np.mean(changes) for changes in since])

    shown, note = _cut(rows)
    lines = []
    for label, runs in shown.items():
        points = summarise_curves([curve(run) for run in runs])
        lines.append(Line(label, tuple(range(len(points))), tuple(points)))
    if len(lines[0].x) < 2:
        return None
    caption = "Change of the accuracy on a task since it was learned, averaged over all tasks that are so old."
    panel = Lines("", "tasks learned since", "change of accuracy, points", tuple(lines))
    return Chart("retention", "Retention", f"{caption} {_BANDS}{note}", (panel,))


def _tasks(rows: Rows, tasks: int = 10) -> Chart:
    """Small multiples: how the accuracy on each task goes on."""
    shown, note = _cut(rows)
    panels: list[Panel] = []
    length = 0
    for label, runs in shown.items():
        curves = summarise_matrices([100 * _matrix_of(run) for run in runs])
        length = len(curves)
        lines = tuple(
            Line(f"task {j + 1}", tuple(range(j + 1, length + 1)), tuple(curves[t][j] for t in range(j, length)),
                 order=j / max(1, min(tasks, length) - 1))
            for j in range(min(tasks, length))
        )  # fmt: skip
        panels.append(Lines(label, "tasks learned", "accuracy on the task, %", lines))
    first = f" The first {tasks} of {length} tasks." if length > tasks else ""
    caption = "Accuracy on each task from when it was learned on, dark to light in the order of the tasks."
    return Chart("tasks", "Forgetting, task by task", f"{caption}{first} Means over runs.{note}", tuple(panels))


def summarise_matrices(matrices: Sequence[NDArray[np.float64]]) -> list[list[Summary]]:
    """Means over runs of every entry [stage][task] of the lower triangle, without intervals."""
    mean = np.mean(matrices, axis=0)
    return [[Summary(len(matrices), float(mean[t, j]), None) for j in range(t + 1)] for t in range(len(mean))]


def _matrix(rows: Rows) -> Chart:
    shown, note = _cut(rows)
    means = {label: 100 * np.mean([_matrix_of(run) for run in runs], axis=0) for label, runs in shown.items()}
    low = 10.0 * int(min(np.nanmin(mean) for mean in means.values()) / 10)
    panels = []
    for label, mean in means.items():
        names = tuple(str(task + 1) for task in range(len(mean)))
        values = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in mean)
        panels.append(
            Heat(label, "tested on task", "after learning task", names, names, values, "top-1 accuracy, %", low, 100.0)
        )
    caption = "Accuracy on every task (columns) after each task learned (rows), in percent, means over runs."
    return Chart("matrix", "Accuracy matrices", f"{caption}{note}", tuple(panels))


def _loss(rows: Rows) -> Chart | None:
    """Mean training loss of every epoch, over the whole stream."""
    lines = []
    for label, runs in rows.items():
        traces = [trace for run in runs if (trace := run.record.traces.get("loss"))]
        stages = {tuple(row["stage"] for row in trace) for trace in traces}
        losses = [np.array([row["loss"] for row in trace], dtype=np.float64) for trace in traces]
        if len(stages) == 1 and np.isfinite(losses).all():
            points = summarise_curves(losses)
            lines.append(Line(label, _places(stages.pop()), tuple(points)))
    if not lines:
        return None
    note = f" The {SHOWN} rows of the best final accuracy; {len(lines) - SHOWN} more are left out."
    caption = (
        "Mean training loss of every epoch, in the order of training, with the epochs of each task spread over its "
        "place; it rises where a new task begins. Losses of methods differ in what they add to the cross-entropy."
    )
    panel = Lines("", "tasks", "training loss", tuple(lines[:SHOWN]))
    return Chart("loss", "Learning curves", f"{caption} {_BANDS}{note if len(lines) > SHOWN else ''}", (panel,))


def _places(stages: Sequence[Scalar]) -> tuple[float, ...]:
    """Where each epoch lies: those of stage t evenly between t and t + 1."""
    counts, done = Counter(stages), Counter[Scalar]()
    places = []
    for stage in stages:
        done[stage] += 1
        places.append(float(stage or 0) + done[stage] / counts[stage])
    return tuple(places)


# --- points ----------------------------------------------------------------------------------------------------


def _stability(rows: Rows) -> Chart | None:
    points = []
    for label, runs in rows.items():
        diagonals = [100 * float(np.diag(_matrix_of(run)).mean()) for run in runs]
        kept = [100 - 100 * metrics.forgetting(run.record.correct, run.record.total) for run in runs]
        points.append(Point(label, summarise(diagonals), summarise(kept)))
    caption = (
        "Plasticity: accuracy on a task right after it was learned, averaged over tasks. Stability: 100 minus "
        "forgetting (best minus last accuracy, averaged over all tasks but the last)."
    )
    panel = Scatter("", "plasticity, %", "stability, %", tuple(points))
    return Chart("stability", "Stability against plasticity", f"{caption} {_BANDS}", (panel,))


_COSTS: Mapping[str, tuple[str, str, Callable[[Run], float]]] = {
    "cost-seconds": (
        "seconds of training and evaluation",
        "wall time of one run; comparable on the same hardware only",
        lambda run: sum(run.record.train_seconds) + sum(run.record.eval_seconds),
    ),
    "cost-parameters": (
        "numbers trained",
        "the most numbers trained in any stage",
        lambda run: float(max(run.record.trainable, default=0)),
    ),
    "cost-memory": (
        "peak memory, MiB",
        "peak memory of the device (of the process on a CPU)",
        lambda run: run.record.peak_memory_bytes / 2**20,
    ),
    "cost-flops": (
        "GFLOPs per prediction",
        "floating-point operations of one prediction, two per multiply-add",
        lambda run: run.record.flops_per_image / 1e9,
    ),
}


def _cost(name: str, rows: Rows) -> Chart | None:
    unit, words, cost = _COSTS[name]
    points = [
        Point(
            label,
            summarise([cost(run) for run in runs]),
            summarise([100 * metrics.acc(run.record.correct, run.record.total) for run in runs]),
        )
        for label, runs in rows.items()
    ]
    # What trains nothing has no place on a logarithmic axis.
    placed = tuple(point for point in points if point.x.mean > 0)
    left = [point.label for point in points if point.x.mean <= 0]
    if not placed:
        return None
    eligible = {label for label, runs in rows.items() if runs[0].sequential and not _leaky(runs[0])}
    front = _front([point for point in placed if point.label in eligible])
    note = f" Not shown, at zero: {', '.join(left)}." if left else ""
    caption = f"Final accuracy against {words}. The line joins what nothing beats at less cost (Pareto front)."
    panel = Scatter("", unit, "final accuracy, %", placed, log=True, front=front)
    return Chart(name, f"Accuracy against {unit}", f"{caption} {_BANDS}{note}", (panel,))


def _leaky(run: Run) -> bool:
    return run.record.experiment.hyperparameters.get("as_published_leaky") is True


def _front(points: Sequence[Point]) -> tuple[str, ...]:
    """Labels of the points that are better than all that cost no more, from cheap to dear."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x.mean, -point.y.mean)):
        if not front or point.y.mean > front[-1].y.mean:
            front.append(point)
    return tuple(point.label for point in front)
