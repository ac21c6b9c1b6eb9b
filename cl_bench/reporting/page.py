"""The page of a report: one self-contained HTML file that needs no network.

The tables are plain HTML, readable without JavaScript. One block of JSON (`page_data`) holds the data for sorting,
details and plots, which the scripts (`templates/page.js`, `templates/plots.js`) build from it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cl_bench import __version__, metrics
from cl_bench.reporting import page_data, result_table, text_tables
from cl_bench.reporting.cells import TABLE_METRICS
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.confusions.on_page import ErrorsOnPage
from cl_bench.reporting.descriptions import describe
from cl_bench.reporting.result_table import ResultTable
from cl_bench.reporting.runs import Run, Section
from cl_bench.reporting.text_tables import LatexOptions, TextTable
from cl_bench.reporting.under_way import UnderWay
from cl_bench.store import REFERENCE

SCRIPTS = ("page.js", "plots.js")
"""Scripts of a page in `templates/`, in the order in which they run."""


def render(
    sections: Sequence[Section],
    built: Sequence[ResultTable],
    charts: Mapping[str, Mapping[str, Chart]],
    errors: Mapping[str, ErrorsOnPage],
    papers: Sequence[TextTable],
    figures: Sequence[Chart],
    damaged: Sequence[str],
    command: str,
    places: Mapping[str, str],
    runs: Sequence[Run],
    latex: LatexOptions,
    under_way: UnderWay | None = None,
) -> str:
    """Render the page as HTML; without any section, it says what to type.

    Args:
        sections, built: per protocol, in the same order. On the page, protocols with runs of the user's own come
            before those with reference runs alone, and cut-down trials come last among either.
        charts: by slug of the protocol and name of the chart.
        errors: what stored predictions show, by slug of the protocols that have any.
        papers: tables of papers.
        figures: figures of papers, and figures over all protocols.
        damaged: one sentence per result file that was skipped.
        command: command line that makes this report.
        places: path of the results folder by origin, for the command that repeats a run.
        runs: all runs, including those that are not shown and those that only serve as references (see
            `intransigence.references`).
        latex: how the LaTeX tables are written.
        under_way: unfinished runs, and how often the page reloads; None: it shows none and stays.
    """
    order = sorted(range(len(sections)), key=lambda number: (_place(sections[number]), number))
    sections, built = [sections[i] for i in order], [built[i] for i in order]
    tables = [*map(result_table.text_table, built), *papers]
    drawn = {slug: {**some, **(errors[slug].charts if slug in errors else {})} for slug, some in charts.items()}
    data = page_data.build(sections, built, drawn, figures, places, runs)
    data["files"] = page_data.files(sections, tables, drawn, figures, latex)
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            protocols=[
                protocol_parts(section, table, charts[section.slug], errors.get(section.slug))
                for section, table in zip(sections, built, strict=True)
            ],
            papers=papers,
            overall=figures,
            damaged=damaged,
            command=command,
            under_way=under_way,
            places=list(places.values()),
            runs=sum(len(section.runs) for section in sections),
            rows=sum(len(section.rows) for section in sections),
            data=to_json(data),
            plotly=base64.b64encode(plotly()).decode(),
            style=Markup(source("page.css")),
            scripts=[Markup(source(name)) for name in SCRIPTS],
        )
    )


def is_own(section: Section) -> bool:
    """Whether a protocol has runs that are not from the reference results."""
    return any(run.origin != REFERENCE.name for run in section.runs)


def _place(section: Section) -> tuple[bool, bool, int]:
    """Sorting key of a protocol: first the user's own, the whole streams and the most rows."""
    return not is_own(section), bool(section.protocol.limits_text()), -len(section.rows)


def protocol_parts(
    section: Section, table: ResultTable, charts: Mapping[str, Chart], errors: ErrorsOnPage | None = None
) -> dict[str, Any]:
    """What the template `protocol.html.j2` shows of one protocol."""
    return {
        "table": table,
        "protocol": table.protocol,
        "own": is_own(section),
        "charts": charts,
        "errors": errors,
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
        "describe": describe,
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
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Lone surrogates, which occur in damaged file names, cannot be encoded as UTF-8.
    return Markup(text.encode("utf-8", "backslashreplace").decode())


def _published_cell(value: tuple[float, float | None] | None) -> str:
    """A published mean with its standard error in parentheses."""
    if value is None:
        return text_tables.DASH
    mean, error = value
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ({error:.2f})"


def _breakable(label: str) -> Markup:
    """A label with optional line breaks between its options, for narrow screens."""
    return Markup(re.sub(r"([\[,])", r"\1<wbr>", str(escape(label))))
