"""The page of a report: one self-contained HTML file that needs no network.

The tables are plain HTML, readable without JavaScript. One block of JSON holds the data for sorting; other blocks,
compressed, hold those of details, plots and downloads (see `page_data`). The scripts `templates/page.js` and
`templates/plots.js` read them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cl_bench import __version__, metrics
from cl_bench.reporting import page_data, result_table, text_tables
from cl_bench.reporting.cells import TABLE_METRICS
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.confusions.on_page import ErrorsOnPage
from cl_bench.reporting.descriptions import describe
from cl_bench.reporting.page_data import PageData
from cl_bench.reporting.result_table import ResultTable
from cl_bench.reporting.runs import Section
from cl_bench.reporting.text_tables import TextTable
from cl_bench.reporting.under_way import UnderWay
from cl_bench.store import REFERENCE

SCRIPTS = ("page.js", "plots.js")
"""Scripts of a page in `templates/`, in the order in which they run."""


class FigureText(NamedTuple):
    """What a page says about a chart, without the chart itself.

    Attributes:
        name, title, caption: those of the chart.
        seen: what is seen on it, in words.
    """

    name: str
    title: str
    caption: str
    seen: str

    @classmethod
    def of(cls, chart: Chart) -> FigureText:
        return cls(chart.name, chart.title, chart.caption, describe(chart))


@dataclass(frozen=True)
class DataBlocks:
    """The data of a page as they stand in it.

    Attributes:
        json: what is read at once.
        parts: what is unpacked when it is needed (see `PageData.parts`).
    """

    json: Markup
    parts: Mapping[str, str]

    @classmethod
    def of(cls, data: PageData, **more: object) -> DataBlocks:
        """The blocks of some data, with further values to read at once."""
        return cls(to_json(data.at_once | more), data.parts)


def render(
    protocols: Sequence[Mapping[str, Any]],
    papers: Sequence[TextTable],
    figures: Sequence[FigureText],
    data: PageData,
    damaged: Sequence[str],
    command: str,
    places: Sequence[str],
    under_way: UnderWay | None = None,
) -> str:
    """Render the page as HTML; without any protocol, it says what to type.

    Args:
        protocols: `protocol_parts` of each, in the order of the page (see `in_order`).
        papers: tables of papers.
        figures: figures of papers, and figures over all protocols.
        data: of all these protocols and figures.
        damaged: one sentence per result file that was skipped.
        command: command line that makes this report.
        places: paths of the results folders.
        under_way: unfinished runs, and how often the page reloads; None: it shows none and stays.
    """
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            protocols=protocols,
            papers=papers,
            overall=figures,
            damaged=damaged,
            command=command,
            under_way=under_way,
            places=places,
            runs=sum(protocol["runs"] for protocol in protocols),
            rows=sum(len(protocol["table"].rows) for protocol in protocols),
            data=DataBlocks.of(data),
            plotly=base64.b64encode(plotly()).decode(),
            style=Markup(source("page.css")),
            scripts=[Markup(source(name)) for name in SCRIPTS],
        )
    )


def in_order(sections: Sequence[Section]) -> list[Section]:
    """Protocols in the order of the page: those with runs of the user's own come first, cut-down trials last of either.

    Among equals, those with most rows come first.
    """
    return sorted(sections, key=_place)


def is_own(section: Section) -> bool:
    """Whether a protocol has runs that are not from the reference results."""
    return any(run.origin != REFERENCE.name for run in section.runs)


def _place(section: Section) -> tuple[bool, bool, int]:
    """Sorting key of a protocol: first the user's own, the whole streams and the most rows."""
    return not is_own(section), bool(section.protocol.limits_text()), -len(section.rows)


def protocol_parts(
    section: Section, table: ResultTable, charts: Mapping[str, Chart], errors: ErrorsOnPage | None = None
) -> dict[str, Any]:
    """What the template `protocol.html.j2` shows of one protocol; holds none of the charts."""
    return {
        "table": table,
        "protocol": table.protocol,
        "own": is_own(section),
        "runs": len(section.runs),
        "charts": {name: FigureText.of(chart) for name, chart in charts.items()},
        "errors": replace(errors, charts={}) if errors else None,
        "error_charts": {name: FigureText.of(chart) for name, chart in errors.charts.items()} if errors else {},
        "details": page_data.details(section),
    }


@cache
def environment() -> Environment:
    """The templates with the functions and names that all of them use."""
    made = Environment(
        loader=PackageLoader("cl_bench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"breakable": _breakable, "published_cell": _published_cell}
    made.globals |= {
        "cell": result_table.cell,
        "main_columns": {**{name: metrics.METRICS[name].title for name in TABLE_METRICS}, "seeds": "seeds"},
        "max_rows_in_pairs": page_data.MAX_ROWS_IN_PAIRS,
        "metrics": page_data.METRICS,
        "settings": page_data.settings,
        "table_html": _table_html,
        "version": __version__,
    }
    return made


def _table_html(table: TextTable) -> Markup:
    return Markup(text_tables.html(table))


def source(name: str) -> str:
    """Text of a style sheet or script in `templates/`."""
    return (files("cl_bench.reporting") / "templates" / name).read_text(encoding="utf-8")


def plotly() -> bytes:
    """The script plotly.js, compressed with gzip to a third of its size; `plots.js` unpacks it."""
    return (files("cl_bench") / "assets" / "plotly-cartesian.min.js.gz").read_bytes()


def to_json(data: object) -> Markup:
    """JSON for a script element, escaped so that no text from a result file can end the element."""
    text = page_data.to_json(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _published_cell(value: tuple[float, float | None] | None) -> str:
    """A published mean with its standard error in parentheses."""
    if value is None:
        return text_tables.DASH
    mean, error = value
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ({error:.2f})"


def _breakable(label: str) -> Markup:
    """A label with optional line breaks between its options, for narrow screens."""
    return Markup(re.sub(r"([\[,])", r"\1<wbr>", str(escape(label))))
