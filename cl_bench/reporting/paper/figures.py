"""The figures of a paper from stored runs, as `Chart`s: a layout file lists the panels, traces of runs fill them.

Kinds of panels:

- `accuracy`: accuracy over the classes seen so far against tasks learned, a line per row;
- `distances`: ||W_i* - W_j*|| / ||W_i* - W_0|| between the optima of tasks (SD-LoRA gives no formula; this one is ours:
  0 on the diagonal, sqrt(2) for orthogonal changes of equal norm);
- `magnitudes`: learned magnitude of each direction, a line per training stage; `published-magnitudes`: the magnitudes
  in the released logs;
- `residuals`, `relative-residuals`: residual of the direction being learned after a least-squares fit by the earlier
  directions, against iteration: its norm, and its norm divided by the norm of the direction;
- `interpolation`: accuracy on the first two tasks along the straight line between the weights after the first task and
  the weights after the second, as the paired change from the former.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cl_bench import metrics
from cl_bench.errors import counted, unknown_name
from cl_bench.reporting import emphasis
from cl_bench.reporting.charts import Chart, Heat, Line, Lines, Panel
from cl_bench.reporting.paper.layouts import PAPERS, FigureLayout, Kind, PanelLayout, figure_layouts
from cl_bench.reporting.protocol import Protocol, file_name
from cl_bench.reporting.runs import Run, choose_backbone
from cl_bench.reporting.selection import Selection, matching
from cl_bench.stats import Summary, summarise, summarise_curves


@dataclass(frozen=True)
class Figure:
    """A figure with the panels for which there are runs.

    Attributes:
        chart: None if no panel can be drawn.
        filled: number of panels drawn from our runs.
        notes: sentences on panels that are left out and on runs of other protocols.
        command: command line that makes the missing runs; empty if none is missing.
    """

    chart: Chart | None
    filled: int
    notes: tuple[str, ...]
    command: str


def build(
    name: str,
    runs: Sequence[Run],
    benchmark: str | None = None,
    backbone: str | None = None,
    selection: Selection | None = None,
) -> Figure:
    """Build a figure of a paper from stored runs.

    Args:
        benchmark, backbone: replace the paper's in every panel; panels that become equal are merged, and published
            values are left out. If only `benchmark` is given, the backbone is the one with most runs on it.
        selection: the rows to show, of those that the figure has; panels without any are left out. By default all, and
            the best six in colour (`emphasis.choose`).

    Raises:
        UserError: unknown name of a figure, or no row of it is selected by some pattern.
    """
    if name not in figure_layouts():
        raise unknown_name("figure", name, figure_layouts())
    layout = figure_layouts()[name]
    panels: list[Panel] = []
    vit, others = choose_backbone(runs, benchmark, backbone)
    notes = list(others)
    missing = False
    filled = 0
    counts: set[int] = set()
    selection = selection or Selection()
    rows = dict.fromkeys((row for panel in layout.panels for row in panel.rows), "")
    selection.check(rows)
    for panel in _with_rows(_panels(layout, benchmark, vit), selection):
        chosen, note = _choose(panel, runs)
        notes += note
        drawn = _BUILDERS[panel.kind](panel, chosen)
        lacking = [row for row in panel.rows if not any(_has(panel.kind, run) for run in chosen.get(row, []))]
        if lacking:
            missing = True
            notes.append(f"No runs of {', '.join(lacking)} on {_stream(panel)}.")
        if drawn is not None:
            panels.append(drawn)
            counts |= {len(found) for found in chosen.values() if found}
            filled += bool(chosen)
    command = f"cl-bench run --suite {name}" if missing else ""
    for option, value in (("--benchmark", benchmark), ("--backbone", vit)):
        command += f" {option} {value}" if value and command else ""
    slug = file_name(name, benchmark, backbone)
    chart = _chart(slug, layout, panels, counts, selection, matching(selection.highlight, rows)) if panels else None
    return Figure(chart, filled, tuple(dict.fromkeys(notes)), command)


def _panels(layout: FigureLayout, benchmark: str | None, backbone: str | None) -> list[PanelLayout]:
    """The panels of a layout, with the user's benchmark and backbone in place of the paper's where given."""
    changed = []
    for panel in layout.panels:
        if panel.kind.startswith("published") and (benchmark or backbone):
            continue
        # The paper's backbone applies to its own benchmarks only, as in suites.
        own = None if benchmark else panel.backbone or layout.backbone
        update = {"backbone": backbone or own, "benchmark": benchmark or panel.benchmark}
        changed.append(panel.model_copy(update=update))
    return list(dict.fromkeys(changed))


def _with_rows(panels: Iterable[PanelLayout], selection: Selection) -> list[PanelLayout]:
    """The panels with the selected rows only; those that lose all their rows are left out."""
    chosen = [panel.model_copy(update={"rows": tuple(selection.shown(panel.rows))}) for panel in panels]
    return [panel for panel in chosen if panel.rows or not selection.rows]


def _choose(panel: PanelLayout, runs: Iterable[Run]) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs of a panel by row, of the protocol and precision with the most runs; and a note on the other runs."""
    fitting: defaultdict[tuple[Protocol, str], list[Run]] = defaultdict(list)
    limits = {"tasks": panel.limit_tasks} if panel.limit_tasks else {}
    for run in runs:
        protocol = run.protocol
        if (
            protocol.benchmark == panel.benchmark
            and protocol.num_tasks == panel.tasks
            and panel.backbone in (None, protocol.backbone)
            and run.record.label in panel.rows
            and protocol.limits.model_dump(exclude_none=True) == limits
            and _has(panel.kind, run)
        ):
            fitting[protocol, run.precision].append(run)
    if not fitting:
        return {}, []
    main = max(fitting, key=lambda one: (len(fitting[one]), one[0].digest, one[1]))
    by_row: defaultdict[str, list[Run]] = defaultdict(list)
    for run in fitting[main]:
        by_row[run.record.label].append(run)
    protocol, precision = main
    elsewhere = sum(len(found) for (other, _), found in fitting.items() if other != protocol)
    computed = sum(len(found) for one, found in fitting.items() if one[0] == protocol and one != main)
    notes = []
    if elsewhere:
        where = f"{counted(elsewhere, 'run')} on {_stream(panel)}"
        notes.append(f"Left out: {where} with a protocol other than {protocol.digest}.")
    if computed:
        where = f"{counted(computed, 'run')} on {_stream(panel)}"
        notes.append(f"Left out: {where} with a precision other than {precision}, that of most runs.")
    return dict(by_row), notes


def _has(kind: Kind, run: Run) -> bool:
    """Whether a run can fill a panel of this kind."""
    trace = _TRACES.get(kind)
    if trace is None:
        return run.sequential
    name, columns = trace
    rows = run.record.traces.get(name, ())
    # A method may use this name for a table of its own, and numbers that were not finite are stored as None.
    return bool(rows) and all(isinstance(row.get(column), int | float) for row in rows for column in columns)


def _stream(panel: PanelLayout) -> str:
    return f"{panel.benchmark} in {counted(panel.tasks, 'task')}"


def _chart(
    slug: str,
    layout: FigureLayout,
    panels: Sequence[Panel],
    counts: set[int],
    selection: Selection,
    highlight: Sequence[str],
) -> Chart:
    """The chart of a figure: panels have letters if there are several, and at most six rows are in colour."""
    if len(panels) > 1:
        panels = [replace(panel, title=f"{chr(ord('a') + i)}  {panel.title}") for i, panel in enumerate(panels)]
    curves = [panel for panel in panels if isinstance(panel, Lines)]
    ends: defaultdict[str, list[float]] = defaultdict(list)
    for panel in curves:
        for line in panel.lines:
            if line.order is None:
                ends[line.label].append(line.y[-1].mean)
    finals = {label: float(np.mean(values)) for label, values in ends.items()}
    chosen = emphasis.choose(finals, (), highlight, ordered=bool(selection.rows))
    said = emphasis.sentence(chosen, ends, {})
    if any(sum(line.order is not None for line in panel.lines) > emphasis.MAX_COLOURED for panel in curves):
        said += f" Of more than {emphasis.MAX_COLOURED} lines of a sequence, {emphasis.MAX_COLOURED} are in colour."
    caption = f"{_caption(panels, counts, layout)}{said}"
    # Changes are compared between panels; other values of different streams are not.
    changes = all(panel.y.endswith("points") for panel in curves)
    return Chart(slug, layout.title, caption, tuple(panels), highlight=chosen.labels, same_scale=changes)


def _caption(panels: Sequence[Panel], counts: set[int], layout: FigureLayout) -> str:
    """Title and, unless all values are published ones, the number of runs and the meaning of bands."""
    if not counts:
        return f"{layout.title}."
    several = counts - {1}
    bands = any(isinstance(panel, Lines) for panel in panels) and several
    runs = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    spread = "; bands and bars, where drawn, are 95 % Student-t intervals of the mean" if bands else ""
    return f"{layout.title}. Means over {runs} run{'' if counts == {1} else 's'} per row{spread}."


# --- panels ----------------------------------------------------------------------------------------------------


def _accuracy(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    lines = [
        Line(row, tuple(range(1, panel.tasks + 1)), tuple(_curves(rows[row]))) for row in panel.rows if rows.get(row)
    ]
    if not lines:
        return None
    return Lines(_stream(panel), "tasks learned", "top-1 accuracy, %", tuple(lines))


def _curves(runs: Sequence[Run]) -> list[Summary]:
    return summarise_curves([100 * metrics.accuracy_curve(run.record.correct, run.record.total) for run in runs])


def _distances(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    tables = [_relative(run) for found in rows.values() for run in found]
    if not tables:
        return None
    mean = np.mean(tables, axis=0)
    names = tuple(str(task + 1) for task in range(len(mean)))
    values = tuple(tuple(float(value) for value in row) for row in mean)
    high = max(1.5, float(mean.max()))
    return Heat(_stream(panel), "task j", "task i", names, names, values, "‖Wᵢ − Wⱼ‖ / ‖Wᵢ − W₀‖", 0.0, high, 2)


def _relative(run: Run) -> Any:
    trace = pd.DataFrame(run.record.traces["optima"])
    distance = trace.pivot(index="stage", columns="task", values="distance").to_numpy()
    lower = np.nan_to_num(distance)
    norms = trace[trace["stage"] == trace["task"]].sort_values("task")["norm"].to_numpy()
    return (lower + lower.T) / norms[:, None]


def _magnitudes(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    traces = [pd.DataFrame(run.record.traces["magnitudes"]) for found in rows.values() for run in found]
    return _magnitude_lines(f"{', '.join(rows)}, {_stream(panel)}", traces) if traces else None


def _published_magnitudes(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    table = pd.read_csv((PAPERS / "sdlora-magnitudes.csv").open("r", encoding="utf-8"), comment="#")
    found = table[(table["benchmark"] == panel.benchmark) & (table["tasks"] == panel.tasks)]
    return _magnitude_lines(f"released log, {_stream(panel)}", [found]) if len(found) else None


def _magnitude_lines(title: str, traces: Sequence[pd.DataFrame]) -> Panel:
    """A line per stage, from the second on: a single direction has nothing to be compared with."""
    values = pd.concat(traces)
    stages = sorted(stage for stage in values["stage"].unique() if stage)
    lines = []
    for stage in stages:
        by_direction = values[values["stage"] == stage].groupby("direction")["value"]
        x, y = zip(*((int(k) + 1, summarise(found)) for k, found in by_direction), strict=True)
        lines.append(Line(f"after task {stage + 1}", x, y, order=float((stage - 1) / max(1, len(stages) - 1))))
    return Lines(title, "direction", "magnitude", tuple(lines))


def _residuals(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    return _residual_lines(panel, rows, "frobenius", "residual norm")


def _relative_residuals(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    return _residual_lines(panel, rows, "relative", "relative residual")


def _residual_lines(panel: PanelLayout, rows: Mapping[str, Sequence[Run]], column: str, unit: str) -> Panel | None:
    """Curves of residuals at the iterations that every task reaches: averaged over tasks, then over runs."""
    lines = []
    for row, runs in rows.items():
        stages = [stage for run in runs for _, stage in pd.DataFrame(run.record.traces["residuals"]).groupby("stage")]
        grid = np.array(sorted({int(step) for step in stages[0]["step"]}))
        grid = grid[grid <= min(int(stage["step"].max()) for stage in stages)]
        curves = []
        for run in runs:
            by_stage = pd.DataFrame(run.record.traces["residuals"]).groupby("stage")
            curves.append(np.mean([np.interp(grid, s["step"], s[column]) for _, s in by_stage], axis=0))
        lines.append(Line(row, tuple(map(float, grid)), tuple(summarise_curves(curves))))
    return Lines(f"{', '.join(rows)}, {_stream(panel)}", "iteration", unit, tuple(lines)) if lines else None


def _interpolation(panel: PanelLayout, rows: Mapping[str, Sequence[Run]]) -> Panel | None:
    traces = [
        pd.DataFrame(run.record.traces["interpolation"]).query("stage == 1") for found in rows.values() for run in found
    ]
    if not traces:
        return None
    lines = []
    for task in (0, 1):
        # Each run is compared with itself: how accurate it is at W1 differs more between runs than along the path.
        changes = []
        for trace in traces:
            found = trace[trace["task"] == task].sort_values("x")
            accuracy = 100 * found["correct"].to_numpy() / found["total"].to_numpy()
            changes.append(pd.Series(accuracy - accuracy[0], index=found["x"]))
        x = sorted(set().union(*(change.index for change in changes)))
        y = tuple(summarise([change[place] for change in changes if place in change.index]) for place in x)
        lines.append(Line(f"task {task + 1}", tuple(x), y, order=float(task)))
    row = ", ".join(rows)
    unit = "change from W₁, points"
    return Lines(f"{row}, {_stream(panel)}", "from W₁ (0) to W₂ (1)", unit, tuple(lines), whole=False)


_BUILDERS: Mapping[Kind, Callable[[PanelLayout, Mapping[str, Sequence[Run]]], Panel | None]] = {
    "accuracy": _accuracy,
    "distances": _distances,
    "magnitudes": _magnitudes,
    "published-magnitudes": _published_magnitudes,
    "residuals": _residuals,
    "relative-residuals": _relative_residuals,
    "interpolation": _interpolation,
}
_TRACES: Mapping[Kind, tuple[str, tuple[str, ...]]] = {
    "distances": ("optima", ("stage", "task", "distance", "norm")),
    "magnitudes": ("magnitudes", ("stage", "direction", "value")),
    "residuals": ("residuals", ("stage", "step", "frobenius")),
    "relative-residuals": ("residuals", ("stage", "step", "relative")),
    "interpolation": ("interpolation", ("stage", "task", "x", "correct", "total")),
}
"""The trace that a kind of panel shows, and the columns that it needs."""
