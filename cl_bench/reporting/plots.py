"""The standard charts of one protocol, as data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cl_bench import metrics
from cl_bench.reporting import emphasis, learned_updates
from cl_bench.reporting.charts import Chart, Heat, Line, Lines, Panel, Point, Scatter
from cl_bench.reporting.emphasis import Emphasis
from cl_bench.reporting.runs import Run, Section
from cl_bench.stats import Summary, summarise, summarise_curves
from cl_bench.store import RunRecord

_BANDS = "Means over runs; bands and bars, where drawn, are 95 % Student-t intervals of the mean."
NAMES = {
    "accuracy": "accuracy over the classes seen so far",
    "forgetting": "average forgetting after each task",
    "retention": "accuracy lost since a task was learned",
    "tasks": "accuracy on each task, as more are learned",
    "matrix": "accuracy on every task after each task",
    "stability": "stability against plasticity",
    "updates": "which rows forget least, and how each task changes their weights",
    "loss": "training loss along the stream, by phase",
    "cost": "accuracy against parameters, stored numbers and FLOPs",
}
"""The charts of `standard`, with a title for lists of figures."""
RunsByRow = Mapping[str, Sequence[Run]]


def standard(section: Section) -> dict[str, Chart]:
    """All charts that the runs of a protocol allow, by name (see `NAMES`); none if no row learns task by task.

    Rows in colour come first (`emphasis.choose`), then the others by final accuracy; rows that the user chose keep
    their order.
    """
    at_once = section.ceilings
    finals = {label: _final(runs) for label, runs in section.rows.items() if label not in at_once}
    if not finals:
        return {}
    first = emphasis.in_section(section, finals)
    others = [label for label in finals if label not in first.labels]
    if not section.chosen:
        others.sort(key=lambda label: (-finals[label], label))
    best = [*first.labels, *others]
    sequential = {label: section.rows[label] for label in best}
    ceilings = {label: section.rows[label] for label in at_once}

    def choose(labels: Iterable[str]) -> Emphasis:
        return emphasis.in_section(section, {label: finals[label] for label in labels})

    made = [
        _accuracy(sequential, ceilings, first),
        _forgetting(sequential, first),
        _retention(sequential, first),
        _tasks(sequential, first),
        _matrix(sequential, first),
        _stability(sequential, first),
        learned_updates.chart({label: section.rows[label] for label in finals}, choose, ordered=section.chosen),
        _loss(sequential, choose),
        _cost({**sequential, **ceilings}, first),
    ]
    return {chart.name: chart for chart in made if chart is not None}


def _final(runs: Sequence[Run]) -> float:
    return summarise([_acc(run) for run in runs]).mean


def _matrix_of(run: Run) -> NDArray[np.float64]:
    return metrics.accuracy_matrix(run.record.correct, run.record.total)


# --- curves ----------------------------------------------------------------------------------------------------


def _accuracy(sequential: RunsByRow, ceilings: RunsByRow, chosen: Emphasis) -> Chart:
    levels = tuple((label, summarise([_acc(run) for run in runs])) for label, runs in ceilings.items())
    panel = Lines("", "tasks learned", "top-1 accuracy, %", _lines(sequential, metrics.accuracy_curve), levels)
    ceiling = " Dashed lines without markers: training on all tasks at once." if levels else ""
    return _curves("accuracy", "Accuracy so far", f"Accuracy over the classes seen so far.{ceiling}", panel, chosen)


def _forgetting(rows: RunsByRow, chosen: Emphasis) -> Chart | None:
    """Average forgetting after each task, from the second on; None if only one task is learned."""
    lines = _lines(rows, metrics.forgetting_curve, first=2)
    if not lines[0].x:
        return None
    panel = Lines("", "tasks learned", "forgetting, points", lines)
    caption = "Best minus current accuracy, averaged over the tasks learned before."
    return _curves("forgetting", "Forgetting along the stream", caption, panel, chosen, high=True)


def _curves(name: str, title: str, caption: str, panel: Lines, chosen: Emphasis, *, high: bool = False) -> Chart:
    """A chart of one panel of curves; a row whose curve ends far from all others is left out of pictures."""
    ends = {line.label: line.y[-1].mean for line in panel.lines}
    omitted = emphasis.outlying(ends, chosen.labels, high=high)
    said = emphasis.sentence(chosen, ends, {label: ends[label] for label in omitted})
    text = f"{caption} {_BANDS}{said}"
    return Chart(name, title, text, (panel,), len(chosen.labels), chosen.labels, omitted=omitted)


def _lines(rows: RunsByRow, curve: Callable[..., NDArray[np.float64]], first: int = 1) -> tuple[Line, ...]:
    """A curve in percent against tasks learned, for each row, starting at `first` tasks."""
    lines = []
    for label, runs in rows.items():
        values = [100 * curve(run.record.correct, run.record.total)[first - 1 :] for run in runs]
        points = summarise_curves(values)
        lines.append(Line(label, tuple(range(first, first + len(points))), tuple(points)))
    return tuple(lines)


def _retention(rows: RunsByRow, chosen: Emphasis) -> Chart | None:
    """Accuracy change k tasks after a task was learned, averaged over all tasks of that age."""

    def curve(run: Run) -> NDArray[np.float64]:
        accuracy = _matrix_of(run)
        learned, tasks = np.diag(accuracy), len(accuracy)
        return 100 * np.array([np.mean(np.diag(accuracy, -k) - learned[: tasks - k]) for k in range(tasks)])

    lines = []
    for label, runs in rows.items():
        points = summarise_curves([curve(run) for run in runs])
        lines.append(Line(label, tuple(range(len(points))), tuple(points)))
    if len(lines[0].x) < 2:
        return None
    caption = "Change of the accuracy on a task since it was learned, averaged over all tasks of that age."
    panel = Lines("", "tasks learned since", "change of accuracy, points", tuple(lines))
    return _curves("retention", "Retention", caption, panel, chosen)


def _tasks(rows: RunsByRow, chosen: Emphasis) -> Chart:
    """Small multiples: the accuracy on each task after every later stage."""
    panels: list[Panel] = []
    length = 0
    for label, runs in rows.items():
        curves = summarise_matrices([100 * _matrix_of(run) for run in runs])
        length = len(curves)
        lines = tuple(
            Line(f"task {j + 1}", tuple(range(j + 1, length + 1)), tuple(curves[t][j] for t in range(j, length)),
                 order=j / max(1, length - 1))
            for j in range(length)
        )  # fmt: skip
        panels.append(Lines(label, "tasks learned", "accuracy on the task, %", lines))
    caption = "Accuracy on each task from the stage that learned it; the first task is darkest, the last lightest"
    grey = f", and all but {emphasis.MAX_COLOURED} of the {length} tasks are grey"
    caption += grey if length > emphasis.MAX_COLOURED else ""
    text = f"{caption}. Means over runs.{emphasis.sentence(chosen, rows, {}, panels=True)}"
    return Chart("tasks", "Forgetting, task by task", text, tuple(panels), len(chosen.labels), chosen.labels)


def summarise_matrices(matrices: Sequence[NDArray[np.float64]]) -> list[list[Summary]]:
    """Means over runs of every entry [stage][task] of the lower triangle, without intervals."""
    mean = np.mean(matrices, axis=0)
    return [[Summary(len(matrices), float(mean[t, j]), None) for j in range(t + 1)] for t in range(len(mean))]


def _matrix(rows: RunsByRow, chosen: Emphasis) -> Chart:
    means = {label: 100 * np.mean([_matrix_of(run) for run in runs], axis=0) for label, runs in rows.items()}
    drawn = [means[label] for label in chosen.labels]
    low = 10.0 * math.floor(min(np.nanmin(mean) for mean in drawn) / 10)
    high = max(low + 10, 10.0 * math.ceil(max(np.nanmax(mean) for mean in drawn) / 10))
    panels = []
    for label, mean in means.items():
        names = tuple(str(task + 1) for task in range(len(mean)))
        values = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in mean)
        panels.append(
            Heat(label, "tested on task", "after learning task", names, names, values, "top-1 accuracy, %", low, high)
        )
    caption = "Accuracy on every task (columns) after each task learned (rows), in percent, means over runs."
    text = f"{caption}{emphasis.sentence(chosen, rows, {}, panels=True)}"
    return Chart("matrix", "Accuracy matrices", text, tuple(panels), len(chosen.labels), chosen.labels)


def _loss(rows: RunsByRow, choose: Callable[[Iterable[str]], Emphasis]) -> Chart | None:
    """Mean training loss of every epoch along the stream: a panel per row with a recorded loss, a line per phase.

    Args:
        choose: chooses the rows in colour among those with a panel.
    """
    panels = {}
    traces = {label: [trace for run in runs if (trace := _trace(run))] for label, runs in rows.items()}
    most = max((len({phase for _, phase, _ in trace}) for found in traces.values() for trace in found), default=0)
    for label, found in traces.items():
        places = {tuple((stage, phase) for stage, phase, _ in trace) for trace in found}
        # No mean is defined over runs with different numbers of epochs.
        if len(places) == 1:
            points = summarise_curves([[loss for _, _, loss in trace] for trace in found])
            panels[label] = Lines(label, "tasks", "training loss", _phases(label, places.pop(), points, most))
    if not panels:
        return None
    caption = (
        "Mean training loss of every epoch; the epochs of task t are spread evenly between t − 1 and t, and a new "
        "line begins with every task. Losses of methods differ in the terms added to the cross-entropy"
    )
    caption += "; phases of a task minimise different losses, one colour each." if most > 1 else "."
    chosen = choose(panels)
    ordered = (*chosen.labels, *(label for label in panels if label not in chosen.labels))
    text = f"{caption} {_BANDS}{emphasis.sentence(chosen, panels, {}, panels=True)}"
    drawn = tuple(panels[label] for label in ordered)
    return Chart("loss", "Learning curves", text, drawn, len(chosen.labels), chosen.labels)


def _phases(label: str, places: Sequence[tuple[int, int]], points: Sequence[Summary], most: int) -> tuple[Line, ...]:
    """A line for each phase, or one with the row's label if all epochs are of one phase.

    Args:
        places: stage and phase of each epoch.
        most: number of phases of the row with most phases, which decides their colours.
    """
    x = _places([stage for stage, _ in places])
    lines = []
    phases = sorted({phase for _, phase in places})
    for number, phase in enumerate(phases):
        chosen = [i for i, (_, other) in enumerate(places) if other == phase]
        breaks = [i for i in range(1, len(chosen)) if places[chosen[i]][0] != places[chosen[i - 1]][0]]
        name, order = (label, None) if len(phases) == 1 else (f"phase {number + 1}", number / max(1, most - 1))
        lines.append(Line(name, tuple(x[i] for i in chosen), tuple(points[i] for i in chosen), order, tuple(breaks)))
    return tuple(lines)


def _trace(run: Run) -> list[tuple[int, int, float]]:
    """Stage, phase and loss of every epoch.

    Empty if a loss was not finite, or if the method itself traces a `loss` table of another kind.
    """
    rows = [(row.get("stage"), row.get("phase", 0), row.get("loss")) for row in run.record.traces.get("loss", [])]
    found = [
        (stage, phase, float(loss))
        for stage, phase, loss in rows
        if isinstance(stage, int)
        and 0 <= stage < len(run.record.stages)
        and isinstance(phase, int)
        and isinstance(loss, int | float)
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


def _stability(rows: RunsByRow, chosen: Emphasis) -> Chart | None:
    if any(len(run.record.total) < 2 for runs in rows.values() for run in runs):
        return None
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
    stabilities = {point.label: point.y.mean for point in points}
    omitted = emphasis.outlying(stabilities, chosen.labels)
    said = emphasis.sentence(chosen, stabilities, {label: stabilities[label] for label in omitted})
    text = f"{caption} {_BANDS}{said}"
    name, title = "stability", "Stability against plasticity"
    return Chart(name, title, text, (panel,), highlight=chosen.labels, omitted=omitted)


_COSTS: tuple[tuple[str, Callable[[Run], float], bool], ...] = (
    ("parameters trained", lambda run: float(max(run.record.trainable, default=0)), True),
    ("stored after the last task, MB", lambda run: _stored_mb(run.record), True),
    ("GFLOPs per prediction", lambda run: run.record.flops_per_image / 1e9, False),
)
"""Costs of a run that no hardware changes: unit, value, and whether they span orders of magnitude."""


def _stored_mb(record: RunRecord) -> float:
    """Size after the last task: numbers as 32-bit floats, and exemplars."""
    return 4 * (record.stored or [0])[-1] / 1e6 + record.exemplar_mb


def _cost(rows: RunsByRow, chosen: Emphasis) -> Chart:
    """Final accuracy against each cost; rows of cost 0 (no trained parameter) cannot be on a logarithmic axis."""
    accuracies = {label: summarise([_acc(run) for run in runs]) for label, runs in rows.items()}
    eligible = {label for label, runs in rows.items() if runs[0].sequential and not runs[0].record.experiment.leaky}
    panels, free = [], []
    for unit, cost, log in _COSTS:
        costs = {label: summarise([cost(run) for run in runs]) for label, runs in rows.items()}
        points = tuple(Point(label, x, accuracies[label]) for label, x in costs.items() if x.mean > 0 or not log)
        if any(point.x.mean for point in points):
            front = _front([point for point in points if point.label in eligible])
            panels.append(Scatter("", unit, "final accuracy, %", points, log=log, front=front))
            if none := sorted(label for label, x in costs.items() if not x.mean and log):
                free.append(f" No place on a logarithmic axis, because it is 0: {unit.partition(',')[0]} of "
                            f"{', '.join(none)}.")  # fmt: skip
    caption = (
        "Final accuracy against the largest number of parameters trained in any stage, the size of all numbers stored "
        "in addition to the frozen backbone (as 32-bit floats) with any exemplars, and the floating-point operations "
        "of one prediction. "
        "The line is the Pareto front: rows more accurate than all rows of equal or lower cost"
    )
    at_once = sorted(label for label, runs in rows.items() if not runs[0].sequential)
    if left := sorted(rows.keys() - eligible):
        caption += f", not counting rows that see all tasks at once or other samples of a batch: {', '.join(left)}"
    named = Emphasis((*chosen.labels, *at_once), chosen.rule + (", and training on all tasks at once" * bool(at_once)))
    finals = {label: value.mean for label, value in accuracies.items()}
    omitted = emphasis.outlying(finals, named.labels)
    said = emphasis.sentence(named, rows, {label: finals[label] for label in omitted})
    text = f"{caption}.{''.join(free)} {_BANDS}{said}"
    return Chart("cost", "Accuracy against cost", text, tuple(panels), highlight=named.labels, omitted=omitted)


def _acc(run: Run) -> float:
    return 100 * run.acc


def _front(points: Sequence[Point]) -> tuple[str, ...]:
    """Labels of the points with a higher y than every point of equal or lower x, sorted by x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x.mean, -point.y.mean)):
        if not front or point.y.mean > front[-1].y.mean:
            front.append(point)
    return tuple(point.label for point in front)
