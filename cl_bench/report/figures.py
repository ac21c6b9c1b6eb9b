"""The figures of one protocol: accuracy and forgetting along the stream, and the accuracy matrices.

Drawn at the width of a paper column with the Agg canvas, without pyplot's global state; the same runs give
the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cl_bench import metrics
from cl_bench.report.frame import Run, Section
from cl_bench.stats import Summary, summarise, summarise_curves

COLUMN = 3.5
"""Width of a paper column in inches."""
TEXT = 7.2
"""Width of a paper's text in inches."""
DPI = 220

# Seaborn's colour-blind-safe colours, the ones that are faint on white last.
_COLOURS = [to_hex(sns.color_palette("colorblind")[i]) for i in (0, 1, 2, 3, 4, 5, 9, 7, 6, 8)]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.2, 1.2, 1.2)), (0, (1.2, 1)), (0, (3, 1, 1, 1, 1, 1)))
_CEILING = (0, (7, 4))
_CEILING_COLOURS = ("#333333", "#8a8a8a")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.25,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "text.parse_math": False,
}


class Style(NamedTuple):
    """How a method is drawn in every figure of a report."""

    colour: str
    marker: str
    dashes: Any


Styles = dict[str, Style]


def styles(sections: Iterable[Section]) -> Styles:
    """A style per row label, the same in every figure of a report and unique for up to 90 methods.

    Ceilings (joint training) are grey and dashed; no method that learns the tasks in turn is.
    """
    sequential = {label: runs[0].sequential for section in sections for label, runs in section.rows.items()}
    methods = sorted(label for label, in_turn in sequential.items() if in_turn)
    ceilings = sorted(sequential.keys() - set(methods))
    look = {
        label: Style(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
        for i, label in enumerate(methods)
    }
    return look | {
        label: Style(_CEILING_COLOURS[i % len(_CEILING_COLOURS)], "", _CEILING) for i, label in enumerate(ceilings)
    }


def draw(section: Section, look: Styles) -> dict[str, Figure]:
    """Figures by name: `accuracy`; `forgetting` and `matrix` too if a method learned task by task."""
    sequential = {label: runs for label, runs in section.rows.items() if runs[0].sequential}
    figures = {"accuracy": accuracy(section, look)}
    if sequential:
        figures["forgetting"] = forgetting(sequential, look)
        figures["matrix"] = matrix(sequential)
    return figures


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.pdf without dates; returns both paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    with mpl.rc_context(_STYLE):
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def accuracy(section: Section, look: Styles) -> Figure:
    """Top-1 accuracy over the classes seen so far against tasks learned: mean and 95 % interval per method.

    Runs without a sequence of tasks (joint training) are a dashed ceiling.
    """
    curves = {
        label: _curves(runs, metrics.accuracy_curve) for label, runs in section.rows.items() if runs[0].sequential
    }
    ceilings = {
        label: summarise([metrics.acc(run.record.correct, run.record.total) for run in runs])
        for label, runs in section.rows.items()
        if not runs[0].sequential
    }
    return _lines(curves, ceilings, look, "top-1 accuracy, %", len(section.runs[0].record.total))


def forgetting(rows: dict[str, list[Run]], look: Styles) -> Figure:
    """Forgetting of the tasks learned before, after each task: mean and 95 % interval per method."""
    curves = {label: _curves(runs, metrics.forgetting_curve) for label, runs in rows.items()}
    return _lines(curves, {}, look, "forgetting, percentage points", len(next(iter(rows.values()))[0].record.total))


def matrix(rows: dict[str, list[Run]]) -> Figure:
    """Accuracy on each task (columns) after each task learned (rows), mean over runs; a panel per method."""
    means = {label: _mean_matrix(runs) for label, runs in rows.items()}
    order = sorted(means, key=lambda label: (-_final(means[label]), label))
    tasks = next(iter(means.values())).shape[0]
    annotated = tasks <= 20
    panel = max(2.1, 0.16 * tasks) if annotated else 2.1
    columns = max(1, min(len(order), 3, int(TEXT / panel)))
    lines = math.ceil(len(order) / columns)
    width = {1: COLUMN, 2: 4.9, 3: TEXT}[columns] if panel < 2.2 else columns * panel + 0.85
    with mpl.rc_context(_STYLE | {"axes.grid": False}), sns.axes_style(rc={"axes.grid": False}):
        figure = _figure(width, lines * ((width - 0.85) / columns + 0.12) + 0.22)
        grid = figure.subplots(lines, columns, squeeze=False)
        for position, axes in enumerate(grid.flat):
            if position >= len(order):
                axes.remove()
                continue
            _heat(axes, 100 * means[order[position]], annotated)
            axes.set_title(_wrapped(order[position], round(18 * panel)), pad=3)
        figure.supxlabel("tested on task", fontsize=8)
        figure.supylabel("after learning task", fontsize=8)
        shown = [axes for axes in grid.flat if axes.figure is not None]
        bar = figure.colorbar(shown[0].collections[0], ax=shown, shrink=min(1.0, 1.6 / lines), aspect=25, pad=0.015)
        bar.set_label("top-1 accuracy, %")
        bar.outline.set_visible(False)
    return figure


def _final(mean: NDArray[np.float64]) -> float:
    """Mean of the last row, by which the panels are ordered."""
    return float(mean[-1].mean())


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curves(runs: Sequence[Run], curve: Callable[..., NDArray[np.float64]]) -> list[Summary]:
    return summarise_curves([100 * curve(run.record.correct, run.record.total) for run in runs])


def _mean_matrix(runs: Sequence[Run]) -> NDArray[np.float64]:
    matrices = [metrics.accuracy_matrix(run.record.correct, run.record.total) for run in runs]
    return np.asarray(np.mean(matrices, axis=0))


def _lines(
    curves: dict[str, list[Summary]], ceilings: dict[str, Summary], look: Styles, unit: str, tasks: int
) -> Figure:
    """Lines with bands against tasks learned, in percent; the legend lists them by their last value."""
    ends = {label: points[-1].mean for label, points in curves.items()}
    ends |= {label: 100 * ceiling.mean for label, ceiling in ceilings.items()}
    order = sorted(ends, key=lambda label: (-ends[label], label))
    columns = 2 if len(order) > 1 and max(map(len, order)) <= 22 else 1
    legend = 0.155 * sum(_wrapped(label).count("\n") + 1 for label in order) / columns + 0.15
    with mpl.rc_context(_STYLE):
        figure = _figure(COLUMN, 2.35 + legend)
        axes = figure.subplots()
        for label, ceiling in ceilings.items():
            axes.axhline(100 * ceiling.mean, color=look[label].colour, linestyle=look[label].dashes)
        for label, points in curves.items():
            style, steps = look[label], np.arange(1, len(points) + 1)
            axes.plot(
                steps, [p.mean for p in points], color=style.colour, linestyle=style.dashes,
                marker=style.marker, markeredgecolor="white", markeredgewidth=0.5, clip_on=False, zorder=3,
            )  # fmt: skip
            if points[0].half_width is not None:
                low, high = np.array([(p.low, p.high) for p in points], dtype=np.float64).T
                axes.fill_between(steps, low, high, color=style.colour, alpha=0.14, linewidth=0)
        axes.set(xlabel="tasks learned", ylabel=unit, xlim=(0.7, tasks + 0.3))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100))
        figure.legend(
            handles=[_key(label, look[label]) for label in order],
            loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6,
            columnspacing=1.2, labelspacing=0.35, borderaxespad=0.1, borderpad=0,
        )  # fmt: skip
    return figure


def _key(label: str, style: Style) -> Line2D:
    """A line of the legend."""
    return Line2D(
        [], [], color=style.colour, linestyle=style.dashes, marker=style.marker,
        markeredgecolor="white", markeredgewidth=0.5, label=_wrapped(label),
    )  # fmt: skip


def _wrapped(label: str, width: int = 50) -> str:
    """A long label on several lines of at most `width` characters, broken between options where possible."""
    if len(label) <= width:
        return label
    return textwrap.fill(label.replace(",", ", "), width)


def _heat(axes: Axes, percent: NDArray[np.float64], annotated: bool) -> None:
    tasks = percent.shape[0]
    size = 7 if tasks <= 6 else 5.5 if tasks <= 12 else 4.6
    # Every tick where numbers are printed, otherwise about ten.
    step = 1 if annotated else math.ceil(tasks / 10)
    ticks: list[int | str] = [t + 1 if t % step == 0 else "" for t in range(tasks)]
    sns.heatmap(
        percent, ax=axes, mask=np.isnan(percent), vmin=0, vmax=100, cmap="YlGnBu", cbar=False, square=True,
        annot=annotated, fmt=".0f", annot_kws={"fontsize": size},
        linewidths=0.4 if annotated else 0, linecolor="white", xticklabels=ticks, yticklabels=ticks,
    )  # fmt: skip
    axes.tick_params(length=0, pad=1, labelsize=size, labelrotation=0)
