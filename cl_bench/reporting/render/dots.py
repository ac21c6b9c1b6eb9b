"""Panels with a value per row, one row below the other, with names at the left of the first panel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cl_bench.reporting.charts import Dots, Panel
from cl_bench.reporting.render import scatter, styles
from cl_bench.reporting.render.look import Look
from cl_bench.reporting.render.text_layout import FAINT, Page

_NARROWEST = 0.8
"""Width in inches of a panel without names, below which fewer stand side by side."""
_LINE = 0.15
"""Height in inches of a line of a name, for letters of the usual size."""


def draw(axes: Axes, panel: Dots, look: Look) -> None:
    """Draw values with intervals; rows without emphasis are grey, but have their names like all others."""
    places, names = _places(panel, look.page), _names(panel, look.page)
    chosen = look.coloured(panel)
    for place, (label, value) in zip(places, panel.values, strict=True):
        if value is None:
            continue
        style = look.rows[label]
        own = label in chosen
        axes.errorbar(
            value.mean, place, xerr=value.half_width, color=style.colour if own else styles.CONTEXT_NAME,
            marker=(style.marker or "*") if own else "o", markersize=5 if own else 3.5, markeredgecolor="white",
            markeredgewidth=0.4, elinewidth=0.9, zorder=3, linestyle="none",
        )  # fmt: skip
    axes.set_yticks(places, names)
    for text, label in zip(axes.get_yticklabels(), panel.labels, strict=True):
        text.set(color=styles.readable(look.rows[label].colour) if label in chosen else FAINT, linespacing=1.0)
    axes.set_ylim(sum(_lines(name) for name in names), 0)
    axes.set_xlabel(panel.x)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    if low < 0 < high:
        axes.axvline(0, color=FAINT, linewidth=0.6, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    if panel.logarithmic:
        scatter.log_axis(axes, [value.mean for _, value in panel.values if value is not None], look.page)
    axes.tick_params(axis="y", length=0)


def height(panel: Dots, page: Page) -> float:
    """Height in inches of a panel, with its title and axis."""
    return page.scale * (_LINE * sum(_lines(name) for name in _names(panel, page)) + 0.75)


def columns(panels: Sequence[Dots], page: Page) -> int:
    """Number of panels side by side on a page, beside the names: as many in every line, as far as possible."""
    room = page.text - names_width(panels, page)
    most = max(1, min(len(panels), int(room / (_NARROWEST * page.scale))))
    return math.ceil(len(panels) / math.ceil(len(panels) / most))


def names_width(panels: Sequence[Dots], page: Page) -> float:
    """Width in inches of the longest line of a name."""
    lines = [line for panel in panels for name in _names(panel, page) for line in name.split("\n")]
    return max((page.width_of(line, page.small) for line in lines), default=0.0)


def share_names(drawn: Sequence[tuple[Axes, Panel]], columns: int) -> None:
    """Write names once per line of panels, where neighbours have the same rows."""
    for number, (axes, panel) in enumerate(drawn):
        before = drawn[number - 1][1] if number % columns else None
        if isinstance(panel, Dots) and isinstance(before, Dots) and before.labels == panel.labels:
            axes.tick_params(labelleft=False)


def _names(panel: Dots, page: Page) -> list[str]:
    return [page.wrapped(label, 0.3 * page.text, page.small) for label in panel.labels]


def _lines(name: str) -> int:
    return name.count("\n") + 1


def _places(panel: Dots, page: Page) -> list[float]:
    """Height of each row in lines from the top: one with a name of several lines takes as many."""
    places, top = [], 0
    for name in _names(panel, page):
        places.append(top + _lines(name) / 2)
        top += _lines(name)
    return places
