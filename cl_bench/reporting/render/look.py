"""What decides how the rows and sequences of a chart are drawn on a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cl_bench.reporting import charts
from cl_bench.reporting.charts import Chart, Dots, Line, Lines, Panel, Scatter
from cl_bench.reporting.render import styles
from cl_bench.reporting.render.styles import Style
from cl_bench.reporting.render.text_layout import Page


@dataclass(frozen=True)
class Look:
    """Styles of a chart's rows, and the page that it is drawn for.

    Attributes:
        rows: style of each row, whether in colour or not.
    """

    chart: Chart
    rows: Mapping[str, Style]
    page: Page

    @classmethod
    def of(cls, chart: Chart, ceilings: Iterable[str], page: Page) -> Look:
        """The look of a chart; rows that it does not draw count as well, so that it is the same in every chart."""
        levels = {label for panel in chart.panels if isinstance(panel, Lines) for label, _ in panel.levels}
        return cls(chart, styles.by_label([*_labels(chart), *sorted(levels)], {*ceilings, *levels}), page)

    def coloured(self, panel: Panel) -> frozenset[str]:
        """Labels in colour, see `charts.coloured`."""
        return charts.coloured(self.chart, panel)

    def line(self, panel: Lines, line: Line) -> Style:
        """Style of a line in colour."""
        style = self.rows[line.label] if line.order is None else styles.sequential(line.order)
        # A line that the title names needs no marker and no dash.
        return Style(style.colour, "", ()) if named_by_title(panel) else style


def named_by_title(panel: Lines) -> bool:
    """Whether a panel has one line, of the row that its title names."""
    return len(panel.lines) == 1 and panel.lines[0].label in re.split(r"[\s,]+(?![^\[]*\])", panel.title)


def dash(style: Style) -> Any:
    """The dash as a matplotlib line style."""
    return (0, style.dash) if style.dash else "-"


def _labels(chart: Chart) -> list[str]:
    """Labels whose style depends on their name."""
    found = []
    for panel in chart.panels:
        if isinstance(panel, Lines):
            found += [line.label for line in panel.lines if line.order is None]
        elif isinstance(panel, Scatter):
            found += [point.label for point in panel.points]
        elif isinstance(panel, Dots):
            found += panel.labels
    return found
