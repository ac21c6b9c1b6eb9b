"""The page of a report: one self-contained HTML file that needs no network.

The tables are plain HTML, readable without JavaScript. One block of JSON holds the data for sorting, details and plots,
which the script (`templates/page.js`) builds from it.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cl_bench import __version__, metrics
from cl_bench.experiment import Value, value_text
from cl_bench.reporting import charts as chart_data
from cl_bench.reporting import comparison, precision, result_table, text_tables
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.frames import EXTRA_METRICS, run_frame
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.render import interactive
from cl_bench.reporting.result_table import COST_COLUMNS, HEADER, TABLE_METRICS, ResultRow, ResultTable, cells
from cl_bench.reporting.runs import Run, Section
from cl_bench.reporting.text_tables import TextTable
from cl_bench.stats import summarise

_MAX_ROWS_IN_PAIRS = 45
"""Largest number of rows for which the page shows all pairs."""


def render(
    sections: Sequence[Section],
    built: Sequence[ResultTable],
    charts: Mapping[str, Mapping[str, Chart]],
    papers: Sequence[TextTable],
    figures: Sequence[Chart],
    damaged: Sequence[str],
    command: str,
    places: Mapping[str, str],
    runs: Sequence[Run],
) -> str:
    """Render the page as HTML.

    Args:
        sections, built: per protocol, in the same order; cut-down trials come last on the page.
        charts: by slug of the protocol and name of the chart.
        papers: tables of papers.
        figures: figures of papers, and figures over all protocols.
        damaged: one sentence per result file that was skipped.
        command: command line that makes this report.
        places: path of the results folder by origin, for the command that repeats a run.
        runs: all runs, including those that only serve as references (see `intransigence.references`).
    """
    environment = Environment(
        loader=PackageLoader("cl_bench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.globals |= {"cells": cells, "settings": settings, "table_html": _table_html}
    order = sorted(
        range(len(sections)), key=lambda i: (bool(sections[i].protocol.limits_text()), -len(sections[i].rows), i)
    )
    sections, built = [sections[i] for i in order], [built[i] for i in order]
    numbers = run_frame(runs).set_index("key")
    data: dict[str, Any] = {
        "metrics": {
            name: {"title": title, "description": description, "higher": higher}
            for name, (title, description, higher) in _METRICS.items()
        },
        "columns": TABLE_METRICS,
        "costs": COST_COLUMNS,
        "protocols": [_protocol(section, table, numbers) for section, table in zip(sections, built, strict=True)],
        **_runs(sections, places),
        "charts": {
            f"{section.slug}/{name}": interactive.figure(chart, section.ceilings)
            for section in sections
            for name, chart in charts[section.slug].items()
        }
        | {f"paper/{chart.name}": interactive.figure(chart) for chart in figures},
        "files": {
            f"tables/{table.name}.{form}": text_tables.write(table, form)
            for table in (*map(result_table.text_table, built), *papers)
            for form in ("csv", "md", "tex")
        }
        | {
            f"figures/{section.slug}-{name}.csv": chart_data.to_csv(chart)
            for section in sections
            for name, chart in charts[section.slug].items()
        }
        | {f"figures/{chart.name}.csv": chart_data.to_csv(chart) for chart in figures},
    }
    return environment.get_template("index.html.j2").render(
        protocols=[
            {"table": table, "protocol": table.protocol, "charts": charts[section.slug], "details": _details(section)}
            for section, table in zip(sections, built, strict=True)
        ],
        papers=papers,
        overall=figures,
        damaged=damaged,
        command=command,
        version=__version__,
        header=HEADER,
        runs=len(runs),
        rows=sum(len(section.rows) for section in sections),
        metrics=_METRICS,
        max_rows_in_pairs=_MAX_ROWS_IN_PAIRS,
        data=_json(data),
        plotly=Markup(_plotly()),
        style=Markup(_source("page.css")),
        script=Markup(_source("page.js")),
    )


def _table_html(table: TextTable) -> Markup:
    return Markup(text_tables.html(table))


def _source(name: str) -> str:
    from importlib.resources import files

    return (files("cl_bench.reporting") / "templates" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The script plotly.js as base64 of gzip, which is a third of its size; `page.js` unpacks it."""
    from importlib.resources import files

    return base64.b64encode((files("cl_bench") / "assets" / "plotly-cartesian.min.js.gz").read_bytes()).decode()


def _json(data: object) -> Markup:
    """JSON for a script element, escaped so that no text from a result file can end the element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Lone surrogates, which occur in damaged file names, cannot be encoded as UTF-8.
    return Markup(text.encode("utf-8", "backslashreplace").decode())


_METRICS = {name: (m.title, m.description, m.higher) for name, m in metrics.METRICS.items()} | dict(EXTRA_METRICS)


def _protocol(section: Section, table: ResultTable, numbers: pd.DataFrame) -> dict[str, Any]:
    """The data of a protocol for the script."""
    protocol = section.protocol
    return {
        "slug": section.slug,
        "benchmark": protocol.benchmark,
        "backbone": protocol.backbone,
        "digest": protocol.digest,
        "rows": [_row(row, section.rows[row.label], numbers) for row in table.rows],
        "pairs": _pairs(section, [row.label for row in table.rows]),
    }


def _row(row: ResultRow, runs: Sequence[Run], numbers: pd.DataFrame) -> dict[str, Any]:
    mine = numbers.loc[[run.record.key for run in runs], list(_METRICS)].to_numpy(dtype=np.float64)
    found: dict[str, list[float | int | None]] = {}
    for name, column in zip(_METRICS, mine.T, strict=True):
        values = column[np.isfinite(column)]
        if len(values):
            summary = summarise(100 * values)
            found[name] = [_rounded(summary.mean), _rounded(summary.half_width), summary.n]
    return {
        "label": row.label,
        "name": row.name,
        "method": row.method,
        "settings": settings(row),
        "origins": list(row.origins),
        "about": f"method {row.method}, revision {row.revision}; recipe {', '.join(row.recipes)}; "
        f"{row.seeds_and_orders}",
        "ceiling": not row.sequential,
        "mixed": " | ".join(row.mixed),
        "metrics": found,
        "cells": list(cells(row)[-len(COST_COLUMNS) :]),
        "sort": [len(set(row.seeds)), _rounded(row.minutes.mean), row.trainable, _rounded(row.tuning_minutes)],
        "runs": [run.record.key for run in runs],
    }


def _pairs(section: Section, labels: Sequence[str]) -> list[list[float | int | str | None]] | None:
    """All pairs of rows: indices of both, difference in final accuracy, half-width, p, p (Holm), wins, ties, losses.

    None if there are more than `_MAX_ROWS_IN_PAIRS` rows; the page then says so.
    """
    if len(labels) > _MAX_ROWS_IN_PAIRS:
        return None
    place = {label: number for number, label in enumerate(labels)}
    return [
        [place[pair.row], place[pair.other], _rounded(pair.result.difference.mean),
         _rounded(pair.result.difference.half_width), _rounded(pair.result.p), _rounded(pair.holm), pair.result.wins,
         pair.result.ties, pair.result.losses]
        for pair in comparison.pairwise(section)
    ]  # fmt: skip


def _runs(sections: Sequence[Section], places: Mapping[str, str]) -> dict[str, Any]:
    """All runs by key; settings common to many runs (experiment, hyper-parameters, environment) are stored once."""
    shared: dict[str, int] = {}
    texts: list[dict[str, str]] = []

    def number(fields: Mapping[str, Value]) -> int:
        shown = {name: value_text(value) for name, value in sorted(fields.items())}
        key = json.dumps(shown)
        if key not in shared:
            shared[key] = len(texts)
            texts.append(shown)
        return shared[key]

    runs = {}
    for section in sections:
        for run in section.runs:
            record, experiment = run.record, run.record.experiment
            runs[record.key] = {
                "label": run.label,
                "seed": experiment.seed,
                "order": experiment.class_order if len(experiment.class_order) < 60 else "explicit list",
                "acc": _rounded(100 * metrics.acc(record.correct, record.total)),
                "minutes": _rounded(record.seconds / 60),
                "finished": f"{record.finished:%Y-%m-%d %H:%M} UTC" if record.finished else "",
                "correct": record.correct,
                "total": record.total,
                "settings": number(experiment.hyperparameters),
                "experiment": number(_experiment(run)),
                "environment": number(record.environment),
                "mixed": run.mixed,
                "command": _repeat_command(run, places.get(run.origin, run.origin)),
            }
    return {"runs": runs, "shared": texts}


def _repeat_command(run: Run, folder: str) -> str:
    """Command line that repeats a run stored in this folder; a method file is named without its folder."""
    file = run.record.experiment.method_file
    command = f"cl-bench repeat {run.record.key} --results {_quoted(folder)}"
    return f"{command} --method-file {_quoted(file)}" if file else command


def _quoted(path: str) -> str:
    """Quote a path for a shell."""
    return path if re.fullmatch(r"[\w./~+-]+", path) else "'" + path.replace("'", "'\\''") + "'"


def _experiment(run: Run) -> dict[str, Value]:
    """The experiment of a run without seed, class order and hyper-parameters."""
    experiment = run.record.experiment
    return {
        "method": experiment.method,
        "revision": experiment.revision,
        "recipe": run.record.recipe,
        "precision": experiment.precision,
        "storage of images": experiment.storage,
        "probe": experiment.probe,
        **_conditions(run.protocol),
    }


def _conditions(protocol: Protocol) -> dict[str, str]:
    """All fields of a protocol, in words."""
    return {
        "benchmark": f"{protocol.benchmark}, {protocol.scenario}, {protocol.shape}",
        "split": protocol.split,
        "backbone": protocol.backbone,
        "weights": protocol.weights,
        "limits": protocol.limits_text() or "none",
        **{name: value_text(value) for name, value in protocol.transforms.model_dump(mode="json").items()},
    }


def _details(section: Section) -> dict[str, str]:
    """All fields of the protocol, and versions and hardware of its runs; all values where runs differ."""
    found: dict[str, set[str]] = {}
    for run in section.runs:
        for name, value in run.record.environment.items():
            found.setdefault(name, set()).add(value_text(value))
    values = {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}
    return {**_conditions(section.protocol), "precision": precision.text(section), **values}


def _breakable(label: str) -> Markup:
    """A label with optional line breaks between its options, for narrow screens."""
    return Markup(re.sub(r"([\[,])", r"\1<wbr>", str(escape(label))))


def settings(row: ResultRow) -> str:
    """Hyper-parameters in one line: `epochs=5, rank=4`."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in sorted(row.hyperparameters.items()))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
