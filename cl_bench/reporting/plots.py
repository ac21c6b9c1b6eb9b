"""The standard charts of one protocol, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cl_bench import metrics
from cl_bench.reporting.charts import Chart, Heat, Line, Lines, Panel, Point, Scatter
from cl_bench.reporting.runs import Run, Section
from cl_bench.stats import Summary, summarise, summarise_curves

MAX_DRAWN = 12
"""Limit of the rows in a chart that cannot show all of them; those with the best final accuracy are drawn."""
_BANDS = "Means over runs; bands and bars are 95 % Student-t intervals of the mean."
NAMES = {
    "accuracy": "accuracy over the classes seen so far",
    "forgetting": "average forgetting after each task",
    "retention": "accuracy lost since a task was learned",
    "tasks": "accuracy on each task, as more are learned",
    "matrix": "accuracy on every task after each task",
    "stability": "stability against plasticity",
    "loss": "training loss along the stream",
    "cost": "accuracy against seconds, parameters, memory and FLOPs",
}
"""The charts of `standard`, with a title for lists of figures."""
RunsByRow = Mapping[str, Sequence[Run]]


def standard(section: Section) -> dict[str, Chart]:
    """All charts that the runs of a protocol allow, by name (see `NAMES`); none if no row learns task by task.

    Rows are sorted by final accuracy, best first, unless the user chose them.
    """
    by_accuracy = sorted(section.rows, key=lambda label: (-_final(section.rows[label]), label))
    best = list(section.rows) if section.chosen else by_accuracy
    at_once = section.ceilings
    sequential = {label: section.rows[label] for label in best if label not in at_once}
    ceilings = {label: section.rows[label] for label in best if label in at_once}
    if not sequential:
        return {}
    made = [
        _accuracy(sequential, ceilings),
        _forgetting(sequential),
        _retention(sequential),
        _tasks(sequential),
        _matrix(sequential),
        _stability(sequential),
        _loss(sequential),
        _cost({**sequential, **ceilings}),
    ]
    return {chart.name: replace(chart, highlight=section.highlight) for chart in made if chart is not None}


def _final(runs: Sequence[Run]) -> float:
    return summarise([_acc(run) for run in runs]).mean


def _matrix_of(run: Run) -> NDArray[np.float64]:
    return metrics.accuracy_matrix(run.record.correct, run.record.total)


def _note(rows: RunsByRow) -> str:
    """A sentence on the rows that are not drawn; empty if all are."""
    left = len(rows) - MAX_DRAWN
    return f" Only the {MAX_DRAWN} rows with the best final accuracy are drawn; {left} are not." if left > 0 else ""


# --- curves ----------------------------------------------------------------------------------------------------


def _accuracy(sequential: RunsByRow, ceilings: RunsByRow) -> Chart:
    levels = tuple((label, summarise([_acc(run) for run in runs])) for label, runs in ceilings.items())
    panel = Lines("", "tasks learned", "top-1 accuracy, %", _lines(sequential, metrics.accuracy_curve), levels)
    ceiling = " Dashed lines without markers: training on all tasks at once." if levels else ""
    caption = f"Accuracy over the classes seen so far.{ceiling} {_BANDS}{_note(sequential)}"
    return Chart("accuracy", "Accuracy so far", caption, (panel,), MAX_DRAWN)


def _forgetting(rows: RunsByRow) -> Chart | None:
    """Average forgetting after each task, from the second on; None if only one task is learned."""
    lines = _lines(rows, metrics.forgetting_curve, first=2)
    if not lines[0].x:
        return None
    caption = f"Best minus current accuracy, averaged over the tasks learned before. {_BANDS}{_note(rows)}"
    panel = Lines("", "tasks learned", "forgetting, points", lines)
    return Chart("forgetting", "Forgetting along the stream", caption, (panel,), MAX_DRAWN)


def _lines(rows: RunsByRow, curve: Callable[..., NDArray[np.float64]], first: int = 1) -> tuple[Line, ...]:
    """A curve in percent against tasks learned, for each row, starting at `first` tasks."""
    lines = []
    for label, runs in rows.items():
        values = [100 * curve(run.record.correct, run.record.total)[first - 1 :] for run in runs]
        points = summarise_curves(values)
        lines.append(Line(label, tuple(range(first, first + len(points))), tuple(points)))
    return tuple(lines)


def _retention(rows: RunsByRow) -> Chart | None:
    """Accuracy change k tasks after a task was learned, averaged over all tasks of that age."""

    def curve(run: Run) -> NDArray[np.float64]:
        accuracy = _matrix_of(run)
        tasks = len(accuracy)
        since = [[accuracy[j + k, j] - accuracy[j, j] for j in range(tasks - k)] for k in range(tasks)]
        return 100 * np.array([np.mean(changes) for changes in since])

    lines = []
    for label, runs in rows.items():
        points = summarise_curves([curve(run) for run in runs])
        lines.append(Line(label, tuple(range(len(points))), tuple(points)))
    if len(lines[0].x) < 2:
        return None
    caption = "Change of the accuracy on a task since it was learned, averaged over all tasks of that age."
    panel = Lines("", "tasks learned since", "change of accuracy, points", tuple(lines))
    return Chart("retention", "Retention", f"{caption} {_BANDS}{_note(rows)}", (panel,), MAX_DRAWN)


def _tasks(rows: RunsByRow, tasks: int = 10) -> Chart:
    """Small multiples: the accuracy on each task after every later stage."""
    panels: list[Panel] = []
    length = 0
    for label, runs in rows.items():
        curves = summarise_matrices([100 * _matrix_of(run) for run in runs])
        length = len(curves)
        lines = tuple(
            Line(f"task {j + 1}", tuple(range(j + 1, length + 1)), tuple(curves[t][j] for t in range(j, length)),
                 order=j / max(1, min(tasks, length) - 1))
            for j in range(min(tasks, length))
        )  # fmt: skip
        panels.append(Lines(label, "tasks learned", "accuracy on the task, %", lines))
    first = f" Only the first {tasks} of {length} tasks are shown." if length > tasks else ""
    caption = "Accuracy on each task from the stage that learned it; the first task is darkest, the last lightest."
    text = f"{caption}{first} Means over runs.{_note(rows)}"
    return Chart("tasks", "Forgetting, task by task", text, tuple(panels), MAX_DRAWN)


def summarise_matrices(matrices: Sequence[NDArray[np.float64]]) -> list[list[Summary]]:
    """Means over runs of every entry [stage][task] of the lower triangle, without intervals."""
    mean = np.mean(matrices, axis=0)
    return [[Summary(len(matrices), float(mean[t, j]), None) for j in range(t + 1)] for t in range(len(mean))]


def _matrix(rows: RunsByRow) -> Chart:
    means = {label: 100 * np.mean([_matrix_of(run) for run in runs], axis=0) for label, runs in rows.items()}
    low = 10.0 * int(min(np.nanmin(mean) for mean in list(means.values())[:MAX_DRAWN]) / 10)
    panels = []
    for label, mean in means.items():
        names = tuple(str(task + 1) for task in range(len(mean)))
        values = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in mean)
        panels.append(
            Heat(label, "tested on task", "after learning task", names, names, values, "top-1 accuracy, %", low, 100.0)
        )
    caption = "Accuracy on every task (columns) after each task learned (rows), in percent, means over runs."
    return Chart("matrix", "Accuracy matrices", f"{caption}{_note(rows)}", tuple(panels), MAX_DRAWN)


def _loss(rows: RunsByRow) -> Chart | None:
    """Mean training loss of every epoch along the stream, a panel per row with a recorded loss."""
    panels = []
    for label, runs in rows.items():
        traces = [trace for run in runs if (trace := _trace(run))]
        places = {tuple(stage for stage, _ in trace) for trace in traces}
        # No mean is defined over runs with different numbers of epochs.
        if len(places) == 1:
            points = summarise_curves([[loss for _, loss in trace] for trace in traces])
            panels.append(Lines(label, "tasks", "training loss", (Line(label, _places(places.pop()), tuple(points)),)))
    if not panels:
        return None
    caption = (
        "Mean training loss of every epoch; the epochs of task t are spread evenly between t − 1 and t, and "
        "the loss rises where a new task begins. Losses of methods differ in the terms added to the cross-entropy."
    )
    note = _note({panel.title: [] for panel in panels})
    return Chart("loss", "Learning curves", f"{caption} {_BANDS}{note}", tuple(panels), MAX_DRAWN)


def _trace(run: Run) -> list[tuple[int, float]]:
    """Stage and loss of every epoch; empty if a loss was not finite, or if the method itself traces a `loss` table."""
    rows = [(row.get("stage"), row.get("loss")) for row in run.record.traces.get("loss", [])]
    found = [
        (stage, float(loss))
        for stage, loss in rows
        if isinstance(stage, int) and 0 <= stage < len(run.record.stages) and isinstance(loss, int | float)
    ]
    return found if len(found) == len(rows) else []


def _places(stages: Sequence[int]) -> tuple[float, ...]:
    """Position of each epoch on the x axis: the epochs of stage t (from 0) lie evenly between t and t + 1."""
    counts, done = Counter(stages), Counter[int]()
    places = []
    for stage in stages:
        done[stage] += 1
        places.append(stage + done[stage] / counts[stage])
    return tuple(places)


# --- points ----------------------------------------------------------------------------------------------------


def _stability(rows: RunsByRow) -> Chart | None:
    if any(len(run.record.total) < 2 for runs in rows.values() for run in runs):
        return None
    points = []
    for label, runs in rows.items():
        diagonals = [100 * float(np.diag(_matrix_of(run)).mean()) for run in runs]
        stabilities = [100 - 100 * metrics.forgetting(run.record.correct, run.record.total) for run in runs]
        points.append(Point(label, summarise(diagonals), summarise(stabilities)))
    caption = (
        "Plasticity: accuracy on a task right after it was learned, averaged over tasks. Stability: 100 minus "
        "forgetting (best minus last accuracy, averaged over all tasks but the last)."
    )
    panel = Scatter("", "plasticity, %", "stability, %", tuple(points))
    return Chart("stability", "Stability against plasticity", f"{caption} {_BANDS}", (panel,))


_COSTS: tuple[tuple[str, Callable[[Run], float], bool], ...] = (
    ("seconds", lambda run: run.record.seconds, True),
    ("parameters trained", lambda run: float(max(run.record.trainable, default=0)), False),
    ("peak memory, MiB", lambda run: run.record.peak_memory_bytes / 2**20, True),
    ("GFLOPs per prediction", lambda run: run.record.flops_per_image / 1e9, False),
)
"""Costs of a run: unit, value, and whether it depends on the hardware."""


def _cost(rows: RunsByRow) -> Chart:
    """Final accuracy against each cost; rows of cost 0 (no trained parameter) cannot be on the logarithmic axis."""
    accuracies = {label: summarise([_acc(run) for run in runs]) for label, runs in rows.items()}
    eligible = {label for label, runs in rows.items() if runs[0].sequential and not runs[0].record.experiment.leaky}
    hardware, comparable = _hardware(rows)
    panels = []
    for unit, cost, measured in _COSTS:
        shown = {label: runs for label, runs in rows.items() if label in comparable or not measured}
        costs = {label: summarise([cost(run) for run in runs]) for label, runs in shown.items()}
        points = tuple(Point(label, x, accuracies[label]) for label, x in costs.items() if x.mean > 0)
        if points:
            front = _front([point for point in points if point.label in eligible])
            panels.append(Scatter("", unit, "final accuracy, %", points, log=True, front=front))
    caption = (
        "Final accuracy against wall-clock seconds of training and evaluation of one run, the largest number of "
        "parameters trained in any stage, peak memory of the device (of the process on a CPU), and floating-point "
        "operations of one prediction. The line is the Pareto front: rows more accurate than all rows of equal or "
        "lower cost"
    )
    if left := sorted(rows.keys() - eligible):
        caption += f", not counting rows that see all tasks at once or other samples of a batch: {', '.join(left)}"
    caption += f". Seconds and memory were measured on {hardware}"
    if left := sorted(rows.keys() - comparable):
        caption += f", without rows that have runs on other hardware: {', '.join(left)}"
    return Chart("cost", "Accuracy against cost", f"{caption}. {_BANDS}", tuple(panels))


def _hardware(rows: RunsByRow) -> tuple[str, set[str]]:
    """The device with the most runs, and the rows all of whose runs were made on it."""
    used = {label: [run.hardware for run in runs] for label, runs in rows.items()}
    count = Counter(device for devices in used.values() for device in devices)
    most = min(count, key=lambda device: (-count[device], device))
    return most, {label for label, devices in used.items() if set(devices) == {most}}


def _acc(run: Run) -> float:
    return 100 * metrics.acc(run.record.correct, run.record.total)


def _front(points: Sequence[Point]) -> tuple[str, ...]:
    """Labels of the points with a higher y than every point of equal or lower x, sorted by x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x.mean, -point.y.mean)):
        if not front or point.y.mean > front[-1].y.mean:
            front.append(point)
    return tuple(point.label for point in front)
