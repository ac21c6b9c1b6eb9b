"""What a drawn figure holds: its texts, where they are, and which overlap or are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def texts(figure: Figure) -> list[str]:
    """All texts in a picture."""
    return [text for text, _ in boxes(figure)]


def boxes(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """Texts with their boxes in pixels: titles and ticks of axes, names of points, legend."""
    figure.draw_without_rendering()
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_major_ticks()
            found += [axis.label, *(tick.label1 for tick in ticks if low <= tick.get_loc() <= high)]
    for text in found:
        if text.get_visible() and text.get_text().strip():
            # The box of the name alone, without the line from the name to its point.
            yield text.get_text(), Text.get_window_extent(text)


def overlapping(found: Sequence[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    """Pairs of texts that overlap by more than a quarter of the smaller one."""
    corners = np.array([box.extents for _, box in found])
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    pairs = np.argwhere(np.triu(common > 0.25 * np.minimum.outer(areas, areas), k=1))
    return [(found[one][0], found[other][0]) for one, other in pairs]


def outside(figure: Figure, found: Sequence[tuple[str, Bbox]]) -> list[str]:
    """Texts that are cut off by the edge of the picture."""
    whole = figure.bbox
    return [text for text, b in found if b.x0 < -1 or b.y0 < -1 or b.x1 > whole.width + 1 or b.y1 > whole.height + 1]


def luminance(colour: str | Sequence[float]) -> float:
    """Relative luminance as defined by WCAG 2: 0 is black, 1 is white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(colour: str | Sequence[float], other: str | Sequence[float] = "white") -> float:
    dark, light = sorted((luminance(colour), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
