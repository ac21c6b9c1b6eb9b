"""Names at the ends of lines, instead of a legend: spread so that none covers another, each joined to its line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from numpy.typing import NDArray

from cl_bench.reporting.charts import Lines
from cl_bench.reporting.render import styles
from cl_bench.reporting.render.look import Look, named_by_title

_GAP = 10.0
"""Points between the axes and the names, for the lines that join them."""
_NARROWEST = 2.9
"""Width in inches below which a panel has no room for names next to it."""
_SHARE = 0.38
"""Largest share of a panel's width that names may take."""
_GREY_TOO = 8
"""Limit of the lines up to which those in grey have names too."""


class EndLabel(NamedTuple):
    """A name to be placed: where its line ends, in data coordinates, and its colours."""

    name: str
    y: float
    colour: str
    lines: int


def fit(panel: Lines, look: Look, width: float, height: float) -> bool:
    """Whether the names of a panel's rows have room next to it.

    Args:
        width, height: of the panel in inches, axes included.
    """
    if width < _NARROWEST or any(line.order is not None for line in panel.lines):
        return False
    if named_by_title(panel):
        return False
    found = labels(panel, look, width)
    page = look.page
    widest = max((page.width_of(part, page.small) for label in found for part in label.name.split("\n")), default=0)
    used = sum(page.height_of(label.name, page.small) for label in found)
    return widest <= (_SHARE + 0.02) * width and used <= height - 0.5 * page.scale


def labels(panel: Lines, look: Look, width: float) -> list[EndLabel]:
    """The names at the right of a panel, in the order of their lines' ends, highest first."""
    page = look.page
    chosen = look.coloured(panel)
    few = len(panel.lines) <= _GREY_TOO
    found = []
    for line in panel.lines:
        if line.label in chosen or few:
            colour = look.line(panel, line).colour if line.label in chosen else styles.CONTEXT_NAME
            name = page.wrapped(line.label, _SHARE * width, page.small)
            found.append(EndLabel(name, line.y[-1].mean, colour, name.count("\n") + 1))
    for label, level in panel.levels:
        name = page.wrapped(label, _SHARE * width, page.small)
        found.append(EndLabel(name, level.mean, look.rows[label].colour, name.count("\n") + 1))
    return sorted(found, key=lambda label: (-label.y, label.name))


def reserve(axes: Axes, found: Sequence[EndLabel], look: Look) -> list[Annotation]:
    """Write the names where the layout engine sees how wide they are; `place` moves them to their heights."""
    return [
        axes.annotate(
            label.name, (1, 0.5), xycoords="axes fraction", xytext=(_GAP + 2, 0), textcoords="offset points",
            va="center", ha="left", fontsize=look.page.small, color=styles.readable(label.colour), linespacing=1.0,
            annotation_clip=False,
        )
        for label in found
    ]  # fmt: skip


def place(axes: Axes, found: Sequence[EndLabel], written: Sequence[Annotation], look: Look) -> None:
    """Move the names next to the ends of their lines, apart from each other, and join the two."""
    scale = axes.figure.dpi / 72
    left, bottom, right, top = axes.bbox.extents
    ends = np.array([axes.transData.transform((0, label.y))[1] for label in found])
    heights = np.array([1.15 * look.page.small * scale * label.lines for label in found])
    at = spread(ends, heights, bottom, top)
    height = top - bottom
    edge = 1 + _GAP * scale / (right - left)
    for label, text, end, y in zip(found, written, ends, at, strict=True):
        text.set_y((y - (bottom + top) / 2) / scale)
        heights_of_ends = [(min(max(end, bottom), top) - bottom) / height, (y - bottom) / height]
        # A line of the figure, since it is no curve of the axes.
        axes.figure.add_artist(
            Line2D([1, edge], heights_of_ends, color=label.colour, transform=axes.transAxes, linewidth=0.6)
        )


def spread(wanted: NDArray[np.float64], heights: NDArray[np.float64], bottom: float, top: float) -> NDArray[np.float64]:
    """Centres of boxes stacked from the top down, as near as possible to where they are wanted, without overlap.

    Args:
        wanted: wanted centres, shape [n], highest first.
        heights: heights of the boxes, shape [n].
        bottom, top: limits that no box crosses, as far as all boxes fit between them.

    Returns:
        The centres, shape [n].
    """
    # Below its predecessors' heights, each box may be anywhere: the nearest decreasing sequence to shifted positions.
    above = np.concatenate([[0.0], np.cumsum((heights[:-1] + heights[1:]) / 2)]) if len(heights) else heights
    blocks: list[list[float]] = []
    for value in wanted + above:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            last = blocks.pop()
            count = blocks[-1][1] + last[1]
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + last[0] * last[1]) / count, count]
    fitted = np.array([mean for mean, count in blocks for _ in range(int(count))])
    if len(fitted):
        highest = top - heights[0] / 2
        lowest = bottom + above[-1] + heights[-1] / 2
        fitted = np.clip(fitted, min(lowest, highest), highest)
    return fitted - above
