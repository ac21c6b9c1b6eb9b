"""Charts of stored predictions, as data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cl_bench.errors import counted
from cl_bench.reporting import emphasis
from cl_bench.reporting.charts import Chart, Heat, Line, Lines, Panel
from cl_bench.reporting.confusions.measures import RowErrors, Shares
from cl_bench.reporting.confusions.predicted import KINDS, Integers
from cl_bench.reporting.emphasis import Emphasis
from cl_bench.reporting.runs import Section
from cl_bench.stats import Summary, summarise, summarise_curves

NAMES = {
    "errors": "where errors go along the stream: inside the task, to older or to newer tasks",
    "errors-by-task": "where the errors on each task go after the last one",
    "confusion": "confusion matrix of tasks",
    "confusion-classes": "confusion matrix of classes",
    "classes": "accuracy on the classes that were forgotten most, over time",
}
"""The charts of stored predictions, with a title for lists of figures."""
MAX_PANELS = 6
_MAX_CLASSES = 100
"""Limit of the classes in a confusion matrix of classes; those with most errors are shown."""
_CLASS_PANELS = 3
"""Limit of the rows in charts of classes."""
_FORGOTTEN = 12
"""Number of classes in a chart of forgotten classes: a heat map prints the numbers of up to 12 rows."""
_ON_MEANS = "Means over runs; bands and bars, where drawn, are 95 % Student-t intervals of the mean."
_KINDS = (
    "An error inside the task names another class of the image's own task; older and newer are tasks learned before "
    "and after it."
)


def charts(section: Section, rows: Mapping[str, RowErrors], names: Collection[str] = tuple(NAMES)) -> dict[str, Chart]:
    """The charts with these names that the rows of one protocol allow.

    Rows in colour come first (`emphasis.choose`), then the others by final accuracy; rows that the user chose keep
    their order. A domain-incremental stream has only the confusion matrix of classes: its tasks
    share all classes, so that a predicted class names no task.

    Args:
        rows: rows of the section with predictions, see `rows_of`.
    """
    chosen = _in_colour(section, rows)
    learners = {label: rows[label] for label in learners_of(section, rows)}
    ceilings = {label: row for label, row in rows.items() if label not in learners}
    by_task = {label: row for label, row in learners.items() if not row.by_domain and len(row.runs[0].learned) > 1}
    made: dict[str, Chart | None] = {}
    for name in names:
        if name == "errors" and by_task:
            made[name] = _errors(by_task, ceilings, chosen)
        elif name == "errors-by-task" and by_task:
            made[name] = _errors_by_task(by_task, chosen)
        elif name == "confusion":
            made[name] = _confusion(
                {label: row for label, row in {**learners, **ceilings}.items() if not row.by_domain}
            )
        elif name == "confusion-classes":
            made[name] = _confusion_of_classes(learners or ceilings)
        elif name == "classes":
            made[name] = _classes(by_task)
    return {name: chart for name, chart in made.items() if chart is not None}


def learners_of(section: Section, rows: Mapping[str, RowErrors]) -> list[str]:
    """Labels of the rows that learn task by task: first those in colour, then the others by final accuracy."""
    first = _in_colour(section, rows).labels
    others = [label for label in rows if label not in {*first, *section.ceilings}]
    if not section.chosen:
        others.sort(key=lambda label: (-rows[label].accuracy, label))
    return [*first, *others]


def _in_colour(section: Section, rows: Mapping[str, RowErrors]) -> Emphasis:
    finals = {label: row.accuracy for label, row in rows.items() if label not in section.ceilings}
    return emphasis.in_section(section, finals)


def _left_out(rows: Collection[str], limit: int) -> str:
    """A sentence on the rows without a panel; empty if all have one."""
    left = len(rows) - limit
    drawn = ", ".join(list(rows)[:limit])
    return f" Drawn: {drawn}. Not drawn: {counted(left, 'other row')}." if left > 0 else ""


def _outlying(rows: Mapping[str, RowErrors], chosen: Emphasis) -> dict[str, float]:
    """Rows that err so much more often to newer tasks than all others that they would compress the scale for them."""
    newer = {label: float(row.shares()[:, -1, 3].mean()) for label, row in rows.items()}
    return {label: newer[label] for label in emphasis.outlying(newer, chosen.labels, high=True)}


def _errors(rows: Mapping[str, RowErrors], ceilings: Mapping[str, RowErrors], chosen: Emphasis) -> Chart:
    """The share of each kind of error after each stage."""
    panels: list[Panel] = []
    for kind, title in enumerate(KINDS[1:], start=1):
        lines = tuple(_line(label, row.shares()[:, :, kind]) for label, row in rows.items())
        levels = tuple((label, summarise(row.shares()[:, -1, kind])) for label, row in ceilings.items())
        panels.append(Lines(title, "tasks learned", "% of the images so far", lines, levels))
    omitted = _outlying(rows, chosen)
    level = (
        " Dashed lines: training on all tasks at once, for which older and newer are only places in the order, so that "
        "both are equally likely."
        if ceilings
        else ""
    )
    caption = (
        f"Wrong predictions as a share of the test images of all tasks so far. {_KINDS} With tasks of equal size, a "
        f"method without preference would err equally often to both sides.{level} {_ON_MEANS}"
        f"{emphasis.sentence(chosen, rows, omitted)}"
    )
    shares = {label: row.shares()[:, -1].mean(axis=0) for label, row in rows.items()}
    best = next(iter(rows))
    _, inside, older, newer = shares[best]
    seen = (
        f"After the last task, {best} errs inside the task on {inside:.1f} % of the images, to older tasks on "
        f"{older:.1f} % and to newer ones on {newer:.1f} %."
    )
    leans = {label: summarise(row.shares()[:, -1, 3] - row.shares()[:, -1, 2]) for label, row in rows.items()}
    certain = [label for label, lean in leans.items() if lean.half_width and abs(lean.mean) > lean.half_width]
    if certain:
        one = max(certain, key=lambda label: abs(leans[label].mean))
        seen += f" Most one-sided is {one}: {shares[one][2]:.1f} % to older and {shares[one][3]:.1f} % to newer tasks."
    elif any(lean.half_width for lean in leans.values()):
        seen += " No row errs to one side more often than chance may explain."
    return _curves("errors", "Where errors go", caption, panels, chosen, omitted, seen)


def _curves(
    name: str, title: str, caption: str, panels: Sequence[Panel], chosen: Emphasis, omitted: Collection[str], seen: str
) -> Chart:
    """A chart of panels of curves on one scale, which are compared with each other."""
    count, labels = max(len(panels), len(chosen.labels)), chosen.labels
    return Chart(name, title, caption, tuple(panels), count, labels, seen, same_scale=True, omitted=tuple(omitted))


def _errors_by_task(rows: Mapping[str, RowErrors], chosen: Emphasis) -> Chart:
    panels: list[Panel] = []
    for kind, title in enumerate(KINDS[1:], start=1):
        lines = tuple(_line(label, row.shares_by_task()[:, :, kind]) for label, row in rows.items())
        panels.append(Lines(title, "true task", "% of the task's images", lines))
    omitted = _outlying(rows, chosen)
    caption = (
        f"Wrong predictions after the last task, as a share of the test images of each task. {_KINDS} The first task "
        f"has no older one, the last no newer one. {_ON_MEANS}{emphasis.sentence(chosen, rows, omitted)}"
    )
    best, row = next(iter(rows.items()))
    shares = row.shares_by_task().mean(axis=0)
    seen = (
        f"After the last task, {best} takes {shares[0, 3]:.1f} % of the images of the first task for classes of newer "
        f"tasks, and {shares[-1, 2]:.1f} % of the images of the last for classes of older ones."
    )
    return _curves("errors-by-task", "Where the errors on each task go", caption, panels, chosen, omitted, seen)


def _line(label: str, values: Shares) -> Line:
    """A curve over the stages or tasks where all runs have a value; values [runs, places]."""
    known = np.flatnonzero(np.isfinite(values).all(axis=0))
    points: Sequence[Summary] = summarise_curves(values[:, known])
    return Line(label, tuple(float(place + 1) for place in known), tuple(points))


def _confusion(rows: Mapping[str, RowErrors]) -> Chart | None:
    """Confusion of tasks, a panel per row; None without rows of several tasks."""
    drawn = {label: row.by_task for label, row in rows.items() if len(row.by_task) > 1}
    if not drawn:
        return None
    shares = {label: _row_shares(counts) for label, counts in drawn.items()}
    visible = dict(list(shares.items())[:MAX_PANELS])
    high = _end_of_scale(visible)
    panels = []
    for label, values in shares.items():
        # Only a trial on the first tasks, made outside cl-bench, can predict a class of a task that was not tested.
        width = values.shape[1] if np.nansum(values[:, len(values) :]) else len(values)
        columns, names = (tuple(str(task + 1) for task in range(size)) for size in (width, len(values)))
        panels.append(_heat(label, "task of the predicted class", "true task", columns, names, values[:, :width], high))
    caption = (
        "Predictions after the last task: rows are the tasks of the images, columns the tasks of the predicted "
        "classes, in percent of the images of a task, summed over runs. The diagonal holds right predictions and "
        f"errors inside the task; the colours end at {high:g} %, so that errors are told apart."
        f"{_left_out(drawn, MAX_PANELS)}"
    )
    label, i, j, share = _worst(visible)
    seen = f"Most confused: {label} takes {share:.1f} % of the images of task {i + 1} for classes of task {j + 1}."
    return Chart("confusion", "Confusion of tasks", caption, tuple(panels), MAX_PANELS, seen=seen)


def _confusion_of_classes(rows: Mapping[str, RowErrors]) -> Chart | None:
    if not rows:
        return None
    limit = _CLASS_PANELS if len(rows) <= _CLASS_PANELS else 1
    chosen = dict(list(rows.items())[:limit])
    total = np.sum([_row_shares(row.by_class, 0.0) for row in chosen.values()], axis=0)
    order = _neighbours(total)
    names = tuple(next(iter(chosen.values())).classes[i] for i in order)
    shares = {label: _row_shares(row.by_class)[np.ix_(order, order)] for label, row in chosen.items()}
    high = _end_of_scale(shares)
    panels = [
        _heat(label, "predicted class", "true class", names, names, values, high) for label, values in shares.items()
    ]
    shown = len(next(iter(chosen.values())).classes)
    some = f" The {len(order)} of {shown} classes with most errors are shown." if shown > len(order) else ""
    tasks = (
        " Tasks share all classes of this stream, so that there is no confusion of tasks."
        if next(iter(chosen.values())).by_domain
        else ""
    )
    caption = (
        "Predictions after the last task in percent of the images of a class (rows), summed over runs. Classes that "
        f"are confused with each other are neighbours; the colours end at {high:g} %.{some}{tasks}"
        f"{_left_out(rows, limit)}"
    )
    label, i, j, share = _worst(shares)
    seen = f"Most confused: {label} takes {share:.1f} % of the images of {names[i]} for {names[j]}."
    return Chart("confusion-classes", "Confusion of classes", caption, tuple(panels), _CLASS_PANELS, seen=seen)


def _classes(rows: Mapping[str, RowErrors]) -> Chart | None:
    """Accuracy on the most forgotten classes by tasks learned since; None if nothing was forgotten."""
    panels, seen = [], []
    for label, row in list(rows.items())[:_CLASS_PANELS]:
        lost = row.forgotten_classes(_FORGOTTEN)
        forgotten = [item.name for item in lost]
        if lost:
            seen.append(f"{label} forgot {lost[0].name} most, from {lost[0].learned:.1f} to {lost[0].final:.1f} %")
            values = row.curves()[[row.classes.index(name) for name in forgotten]]
            ages = tuple(map(str, range(values.shape[1])))
            panels.append(
                Heat(
                    label,
                    "tasks learned since",
                    "",
                    ages,
                    tuple(forgotten),
                    _cells(values),
                    "% of its images right",
                    0,
                    100,
                )
            )
    if not panels:
        return None
    caption = (
        f"Accuracy on the {counted(_FORGOTTEN, 'class')} that lost most since they were learned, most first, by the "
        "number of tasks learned since. Runs learn a class at different times, so that fewer runs reach a higher age; "
        f"all that do are pooled.{_left_out(rows, _CLASS_PANELS)}"
    )
    title = "The classes forgotten most"
    return Chart("classes", title, caption, tuple(panels), _CLASS_PANELS, seen=f"{'; '.join(seen)}.")


def _row_shares(counts: Integers, undefined: float = math.nan) -> Shares:
    """Percent of each row of counts; `undefined` in a row without images."""
    whole = counts.sum(axis=1, keepdims=True)
    return np.where(whole > 0, 100 * counts / np.maximum(whole, 1), undefined)


def _end_of_scale(matrices: Mapping[str, Shares]) -> float:
    """The largest share of errors in matrices of confusion, rounded up to whole fives: at least 5."""
    return max(5.0, 5.0 * math.ceil(_worst(matrices)[-1] / 5))


def _worst(matrices: Mapping[str, Shares]) -> tuple[str, int, int, float]:
    """The label, row, column and value of the largest share of errors."""
    found = []
    for label, values in matrices.items():
        wrong = np.nan_to_num(values)
        np.fill_diagonal(wrong, 0)
        row, column = map(int, np.unravel_index(int(wrong.argmax()), wrong.shape))
        found.append((label, row, column, float(wrong[row, column])))
    return max(found, key=lambda each: each[-1])


def _neighbours(shares: Shares) -> NDArray[np.intp]:
    """Classes in an order in which those that are confused with each other stand together.

    The leaves of average linkage with optimal order (Bar-Joseph et al. 2001), where two classes are the nearer the more
    often one is taken for the other; at most `_MAX_CLASSES`, those with most errors.
    """
    # Imported here, since the table at the end of a run, which has no chart, would wait for it.
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    confused = shares + shares.T
    np.fill_diagonal(confused, 0)
    chosen = np.sort(np.argsort(-confused.sum(axis=0), kind="stable")[:_MAX_CLASSES])
    if len(chosen) < 3:
        return chosen
    near = confused[np.ix_(chosen, chosen)]
    distance = squareform(1 / (1 + near), checks=False)
    return np.asarray(chosen[leaves_list(optimal_leaf_ordering(linkage(distance, "average"), distance))])


def _heat(
    title: str, x: str, y: str, columns: tuple[str, ...], rows: tuple[str, ...], values: Shares, high: float
) -> Heat:
    return Heat(title, x, y, columns, rows, _cells(values), f"% of the images, {high:g} or more", 0.0, high)


def _cells(values: Shares) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if math.isnan(value) else float(value) for value in row) for row in values)
