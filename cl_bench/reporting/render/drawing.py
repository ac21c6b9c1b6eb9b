"""Charts drawn with matplotlib for papers, as wide as a column or the text, without pyplot's global state.

The same chart always gives the same bytes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cl_bench.reporting import charts
from cl_bench.reporting.charts import Chart, Dots, Heat, Lines, Ranks, Scatter
from cl_bench.reporting.render import direct_labels, dots, legend, scatter
from cl_bench.reporting.render.look import Look
from cl_bench.reporting.render.panels import DRAW, place_lines
from cl_bench.reporting.render.text_layout import SCREEN, Page

FORMATS = ("png", "pdf", "svg")
DPI = 200
_SMALL = 4
"""From this number of panels on they are small multiples, which share the titles of axes and the ticks."""


_NARROWEST_PANEL = 1.6
"""Width in inches below which panels stand one below the other."""


def _settings(page: Page, grid: bool) -> dict[Any, Any]:
    """matplotlib's settings for a page."""
    return {
        "font.family": list(page.families),
        "mathtext.fontset": page.mathtext,
        "font.size": page.label,
        "axes.labelsize": page.label,
        "axes.titlesize": page.label,
        "xtick.labelsize": page.small,
        "ytick.labelsize": page.small,
        "legend.fontsize": page.small,
        "axes.linewidth": 0.6,
        "axes.edgecolor": "#444444",
        "axes.grid": grid,
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
        "svg.fonttype": "path",
        # A fixed salt instead of a random one for the ids in SVG files.
        "svg.hashsalt": "cl-bench",
        "text.parse_math": False,
    }


def save(
    chart: Chart, stem: Path, formats: Sequence[str] = FORMATS, ceilings: Iterable[str] = (), page: Page = SCREEN
) -> list[Path]:
    """Write the numbers of a chart to `stem`.csv, and its picture in each of the formats; returns the paths.

    The caption is in the metadata of the pictures.

    Args:
        ceilings: labels of rows trained on all tasks at once.
        page: widths and letters.
    """
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("csv", *formats)]
    paths[0].write_text(charts.to_csv(chart), encoding="utf-8")
    if formats:
        figure = draw(chart, ceilings, page)
        with mpl.rc_context(_settings(page, grid=True)):
            for kind, path in zip(formats, paths[1:], strict=True):
                figure.savefig(path, dpi=DPI, metadata=_metadata(chart, kind))
    return paths


def _metadata(chart: Chart, kind: str) -> dict[str, Any]:
    """Title and caption under the names of a format, and no date, so that the same chart gives the same bytes."""
    if kind == "pdf":
        return {"Title": chart.title, "Subject": chart.caption, "CreationDate": None}
    return {"Title": chart.title, "Description": chart.caption} | ({"Date": None} if kind == "svg" else {})


def draw(chart: Chart, ceilings: Iterable[str] = (), page: Page = SCREEN) -> Figure:
    """Draw a chart: its panels, with names next to lines and points, or below them one legend for all panels."""
    # Styles are assigned to all rows, drawn or not, so that a row looks the same in every chart of a protocol.
    look = Look.of(chart, ceilings, page)
    chart = charts.drawn_part(chart)
    panels = chart.panels
    heat = isinstance(panels[0], Heat)
    by_row = [panel for panel in panels if isinstance(panel, Dots)]
    columns = dots.columns(by_row, page) if by_row else _columns(len(panels), page)
    lines = math.ceil(len(panels) / columns)
    width = page.text if len(panels) > 1 or _is_wide(panels[0]) else page.column
    each = (width - dots.names_width(by_row, page)) / columns
    shared = len(panels) >= _SMALL and len({_axes_of(panel) for panel in panels}) == 1
    height = max(_height(p, each, page) for p in panels) - (0.3 if heat and shared else 0)
    direct = all(isinstance(panel, Lines) and direct_labels.fit(panel, look, each, height) for panel in panels)
    keys = legend.entries(chart, look, direct, each)
    per_row = legend.entries_per_row([str(key.get_label()) for key in keys], width, page)
    below = page.scale * (0.155 * math.ceil(len(keys) / per_row) + 0.12) if keys else 0.0
    with mpl.rc_context(_settings(page, grid=not heat)), warnings.catch_warnings():
        # It has no minus, which another family supplies.
        warnings.filterwarnings("ignore", message="cmr10 font should ideally")
        # Hinted letters have other widths at another resolution: the layout must be made at that of the picture.
        figure = Figure(figsize=(width, lines * height + below), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.remove()
        drawn = list(zip(grid, panels, strict=False))
        for axes, panel in drawn:
            # Set here, so that it does not depend on the settings in effect when the picture is written.
            axes.tick_params(labelsize=page.small)
            DRAW[type(panel)](axes, panel, look)
            if getattr(panel, "title", ""):
                axes.set_title(page.wrapped(panel.title, 0.85 * each, page.label), pad=4)
        for group in [drawn] if shared or chart.same_scale else [[one] for one in drawn]:
            place_lines([(axes, panel) for axes, panel in group if isinstance(panel, Lines)], look)
        if shared:
            _share_axes(drawn, columns)
        dots.share_names(drawn, columns)
        for axes, _ in drawn:
            axes.set_xlabel(page.wrapped(axes.get_xlabel(), 0.75 * each, page.label), linespacing=1.0)
            axes.set_ylabel(page.wrapped(axes.get_ylabel(), 0.8 * height, page.label), linespacing=1.0)
        bar = _colour_bar(figure, drawn, lines, page) if heat else None
        if keys:
            figure.legend(
                handles=keys, loc="outside lower center", ncols=per_row, frameon=False, handlelength=2.6,
                columnspacing=1.2, labelspacing=0.35, borderaxespad=0.1, borderpad=0,
            )  # fmt: skip
        curves = [(axes, panel) for axes, panel in drawn if isinstance(panel, Lines) and direct]
        names = [(axes, direct_labels.labels(panel, look, each)) for axes, panel in curves]
        written = [direct_labels.reserve(axes, found, look) for axes, found in names]
        _choose_families(figure, page)
        # The layout is computed once for all formats; the places of names below depend on it.
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine(None)
        if bar:
            _as_high_as_maps(bar, [axes for axes, panel in drawn if isinstance(panel, Heat)])
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # Make the ticks now: a tick takes its style from the settings in effect when it is made.
                axis.get_major_ticks()
        for (axes, found), texts in zip(names, written, strict=True):
            direct_labels.place(axes, found, texts, look)
        for axes, panel in drawn:
            if isinstance(panel, Scatter):
                scatter.name_points(axes, panel, scatter.named(panel, look, each), look)
        _choose_families(figure, page)
    return figure


def _choose_families(figure: Figure, page: Page) -> None:
    """Give texts that the page's first font cannot write another one."""
    for text in figure.findobj(Text) if page.foreign else ():
        assert isinstance(text, Text)
        text.set_fontfamily(list(page.families_of(text.get_text())))


def _axes_of(panel: charts.Panel) -> tuple[type, str, str]:
    """Kind and axis titles of a panel; panels share titles of axes if these are equal."""
    return type(panel), getattr(panel, "x", ""), getattr(panel, "y", "")


def _columns(count: int, page: Page) -> int:
    """Number of panels side by side: fewer on a narrow page."""
    wanted = count if count <= 3 else 2 if count == 4 else 3 if count <= 9 else 4
    return max(1, min(wanted, int(page.text / _NARROWEST_PANEL)))


def _is_wide(panel: charts.Panel) -> bool:
    """Whether a single panel needs the width of the text."""
    return isinstance(panel, Ranks | Dots) or (isinstance(panel, Heat) and len(panel.columns) > 40)


def _height(panel: charts.Panel, width: float, page: Page) -> float:
    """Height in inches of a panel of this width, axes included."""
    extra = 0.6 * (page.scale - 1)
    if isinstance(panel, Heat):
        if _is_wide(panel):
            # The names of rows and the colour bar take much of the width, the names of columns of the height.
            names = 0.45 * page.small / 72 * max(map(len, panel.rows))
            return (width - 0.95 - names) * len(panel.rows) / len(panel.columns) + 0.55 + names + extra
        return (width - 0.35) * len(panel.rows) / len(panel.columns) + 0.55 + extra
    if isinstance(panel, Dots):
        return dots.height(panel, page)
    if isinstance(panel, Ranks):
        return page.scale * (0.75 + 0.17 * math.ceil(len(panel.ranks) / 2) + 0.1 * len(panel.groups))
    if isinstance(panel, Scatter):
        return (2.9 if width > 2.6 else 2.2) + extra
    return (2.35 if width > 2.6 else 1.9 if width > 2 else 1.6) + extra


def _share_axes(drawn: Sequence[tuple[Axes, charts.Panel]], columns: int) -> None:
    """Show titles of axes and equal ticks of small multiples only at the outer edges."""
    first = drawn[0][1]
    _, x, y = _axes_of(first)
    same = isinstance(first, Lines) or len({_cells_of(panel) for _, panel in drawn}) == 1
    for number, (axes, _) in enumerate(drawn):
        lowest = number + columns >= len(drawn)
        axes.set(xlabel=x if lowest else "", ylabel=y if number % columns == 0 else "")
        if same:
            axes.tick_params(labelleft=number % columns == 0, labelbottom=lowest)


def _cells_of(panel: charts.Panel) -> object:
    """A key that is equal for panels with the same ticks; unique for a panel that is no heat map."""
    return (panel.rows, panel.columns) if isinstance(panel, Heat) else id(panel)


def _colour_bar(figure: Figure, drawn: Sequence[tuple[Axes, charts.Panel]], lines: int, page: Page) -> Colorbar:
    """Add one colour bar for all heat maps, which share their scale."""
    heats = [axes for axes, panel in drawn if isinstance(panel, Heat)]
    first = drawn[0][1]
    assert isinstance(first, Heat)
    only = len(heats) == len(drawn)
    bar = figure.colorbar(
        heats[0].collections[0], ax=heats if only else heats[0], shrink=min(1.0, 1.6 / lines) if only else 0.8,
        aspect=25, pad=0.015 if only else 0.03, location="right" if only else "bottom",
    )  # fmt: skip
    bar.set_label(first.unit, size=page.small)
    bar.ax.tick_params(labelsize=page.small - 1)
    bar.outline.set_visible(False)
    return bar


def _as_high_as_maps(bar: Colorbar, maps: Sequence[Axes]) -> None:
    """Shorten a vertical colour bar that is higher than the maps, whose cells are square, after the layout."""
    if bar.orientation != "vertical":
        return
    for axes in maps:
        axes.apply_aspect()
    around, place = Bbox.union([axes.get_position() for axes in maps]), bar.ax.get_position(original=True)
    low, high = max(place.y0, around.y0), min(place.y1, around.y1)
    bar.ax.set_position((place.x0, low, place.width, high - low))
