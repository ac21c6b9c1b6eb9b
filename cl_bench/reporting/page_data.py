"""The data of a page for its script: rows, pairs of rows, and, packed, the runs, charts and files of each protocol."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cl_bench import metrics
from cl_bench.experiment import Value, value_text
from cl_bench.reporting import comparison, precision, text_tables
from cl_bench.reporting.cells import TABLE_METRICS
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.frames import EXTRA_METRICS, metric_values
from cl_bench.reporting.intransigence import References
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.render import interactive
from cl_bench.reporting.result_table import ResultRow, ResultTable
from cl_bench.reporting.runs import Run, Section
from cl_bench.reporting.text_tables import LatexOptions, TextTable
from cl_bench.stats import summarise

METRICS = {name: (m.title, m.description, m.higher) for name, m in metrics.METRICS.items()} | dict(EXTRA_METRICS)
"""All metrics of the page: title, description, whether more is better."""
MAX_ROWS_IN_PAIRS = 45
"""Largest number of rows for which the page shows all pairs."""
Numbers = Mapping[str, Mapping[str, float]]
"""Metrics of runs by key and name, as fractions."""

FORMS = ("csv", "md", "tex")
"""Formats of the tables that a page offers."""
_PAPERS = "papers"
_LEVEL = 6
"""Level of compression; higher ones take twice as long for 2 % less."""


@dataclass(frozen=True)
class ProtocolData:
    """The data of one protocol, which hold none of its charts: those of all protocols would not fit into memory.

    Attributes:
        columns: names of the metrics that tables show.
        chosen: whether the user chose the rows.
        protocol: what the script reads at once.
        outlines: what lays out the place of each chart, by `SLUG/NAME`.
        parts: see `PageData.parts`.
    """

    columns: Sequence[str]
    chosen: bool
    protocol: dict[str, Any]
    outlines: dict[str, dict[str, Any]]
    parts: dict[str, str]

    @classmethod
    def of(
        cls,
        section: Section,
        table: ResultTable,
        charts: Mapping[str, Chart],
        places: Mapping[str, str],
        references: References,
        files: Mapping[str, str] | None = None,
    ) -> ProtocolData:
        """The data of a section.

        Args:
            charts: by name.
            places: path of the results folder by origin, for the command that repeats a run.
            references: result of `intransigence.references` of all runs.
            files: texts by path, which a page that was moved alone still offers; None: the page links to its files.
        """
        slug = section.slug
        drawn = {f"{slug}/{name}": interactive.figure(chart, section.ceilings) for name, chart in charts.items()}
        parts = {f"runs/{slug}": packed(_runs(section, places))} | _packed_parts(slug, drawn, files)
        numbers = {run.record.key: metric_values(run, references) for run in section.runs}
        protocol = _protocol(section, table, numbers)
        return cls(table.metric_columns, section.chosen, protocol, _outlines(drawn), parts)


@dataclass(frozen=True)
class PageData:
    """The data of a page, which grows by one protocol after the other.

    The page reads at once what its tables show. Its `parts`, nearly all of the data, are seen on demand: the script of
    the page unpacks each when it is needed.

    Attributes:
        parts: texts of `packed` by name: `runs/SLUG`, the runs of a protocol by key, and the settings that they share;
            `charts/SLUG`, for plotly.js by `SLUG/NAME`; `files/SLUG`, texts of files by path. Charts and files of no
            single protocol have the slug `papers`.
    """

    parts: dict[str, str] = field(default_factory=dict)
    _protocols: list[ProtocolData] = field(default_factory=list)
    _charts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, protocol: ProtocolData) -> None:
        """Add a protocol."""
        self._protocols.append(protocol)
        self._charts.update(protocol.outlines)
        self.parts.update(protocol.parts)

    def add_papers(self, charts: Sequence[Chart], files: Mapping[str, str] | None = None) -> None:
        """Add charts of no single protocol; `files`, as for `ProtocolData.of`, include those of papers' tables."""
        drawn = {f"paper/{chart.name}": interactive.figure(chart) for chart in charts}
        self._charts.update(_outlines(drawn))
        self.parts.update(_packed_parts(_PAPERS, drawn, files))

    @property
    def at_once(self) -> dict[str, Any]:
        """What the page reads at once, as plain values for JSON; charts have only what lays out their place."""
        return {
            "metrics": {
                name: {"title": title, "description": description, "higher": higher}
                for name, (title, description, higher) in METRICS.items()
            },
            "columns": self._protocols[0].columns if self._protocols else TABLE_METRICS,
            "chosen": any(one.chosen for one in self._protocols),
            "protocols": [one.protocol for one in self._protocols],
            "charts": self._charts,
        }


def _outlines(drawn: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: interactive.outline(figure) for name, figure in drawn.items()}


def _packed_parts(slug: str, drawn: Mapping[str, dict[str, Any]], files: Mapping[str, str] | None) -> dict[str, str]:
    return {f"{kind}/{slug}": packed(part) for kind, part in (("charts", drawn), ("files", files)) if part}


def packed(value: object) -> str:
    """JSON of a value, compressed with gzip, as base64."""
    return base64.b64encode(gzip.compress(to_json(value).encode(), _LEVEL, mtime=0)).decode()


def to_json(value: object) -> str:
    """JSON of a value that can be encoded as UTF-8."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Lone surrogates, which occur in damaged file names, cannot be encoded as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def files_of_tables(tables: Sequence[TextTable], latex: LatexOptions | None = None) -> dict[str, str]:
    """Texts of the files of tables that a page offers, by path."""
    return {f"tables/{table.name}.{form}": text_tables.write(table, form, latex) for table in tables for form in FORMS}


def _protocol(section: Section, table: ResultTable, numbers: Numbers) -> dict[str, Any]:
    """The data of a protocol for the script."""
    protocol = section.protocol
    return {
        "slug": section.slug,
        "benchmark": protocol.benchmark,
        "backbone": protocol.backbone,
        "digest": protocol.digest,
        "costs": {table.title(name): text for name, text in table.other_columns.items()},
        "rows": [_row(table, row, section.rows[row.label], numbers) for row in table.rows],
        "pairs": _pairs(section, [row.label for row in table.rows]),
    }


def _row(table: ResultTable, row: ResultRow, runs: Sequence[Run], numbers: Numbers) -> dict[str, Any]:
    mine = np.array([[numbers[run.record.key][name] for name in METRICS] for run in runs])
    found: dict[str, list[float | int | None]] = {}
    for name, column in zip(METRICS, mine.T, strict=True):
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
        f"{row.seeds_and_orders}" + (f"; keeps exemplars, {row.exemplar_mb:g} MB" if row.exemplar_mb else ""),
        "ceiling": not row.sequential,
        "mixed": " | ".join(row.mixed),
        "metrics": found,
        "highlight": row.label in table.highlight,
        "cells": [table.cell(row, name) for name in table.other_columns],
        "sort": [_rounded(table.number(row, name)) for name in table.other_columns],
        "runs": [run.record.key for run in runs],
    }


def _pairs(section: Section, labels: Sequence[str]) -> list[list[float | int | str | None]] | None:
    """All pairs of rows: indices of both, difference in final accuracy, half-width, p, p (Holm), wins, ties, losses.

    None if there are more than `MAX_ROWS_IN_PAIRS` rows; the page then says so.
    """
    if len(labels) > MAX_ROWS_IN_PAIRS:
        return None
    place = {label: number for number, label in enumerate(labels)}
    return [
        [place[pair.row], place[pair.other], _rounded(pair.result.difference.mean),
         _rounded(pair.result.difference.half_width), _rounded(pair.result.p), _rounded(pair.holm), pair.result.wins,
         pair.result.ties, pair.result.losses]
        for pair in comparison.pairwise(section)
    ]  # fmt: skip


def _runs(section: Section, places: Mapping[str, str]) -> dict[str, Any]:
    """Runs by key; settings common to many of them (experiment, hyper-parameters, environment) are stored once."""
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
    for run in section.runs:
        record, experiment = run.record, run.record.experiment
        runs[record.key] = {
            "label": run.label,
            "seed": experiment.seed,
            "order": experiment.class_order if len(experiment.class_order) < 60 else "explicit list",
            "acc": _rounded(100 * run.acc),
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
    # The runs of the package are in no folder; `cl-bench repeat` finds them without one.
    command = f"cl-bench repeat {run.record.key}" + (f" --results {_quoted(folder)}" if folder else "")
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
        **conditions(run.protocol),
    }


def conditions(protocol: Protocol) -> dict[str, str]:
    """All fields of a protocol, in words."""
    return {
        "benchmark": f"{protocol.benchmark}, {protocol.scenario}, {protocol.shape}",
        "split": protocol.split,
        "backbone": protocol.backbone,
        "weights": protocol.weights,
        "limits": protocol.limits_text() or "none",
        **{name: value_text(value) for name, value in protocol.transforms.model_dump(mode="json").items()},
    }


def details(section: Section) -> dict[str, str]:
    """All fields of the protocol, and versions and hardware of its runs; all values where runs differ."""
    found: dict[str, set[str]] = {}
    for run in section.runs:
        for name, value in run.record.environment.items():
            found.setdefault(name, set()).add(value_text(value))
    values = {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}
    return {**conditions(section.protocol), "precision": precision.text(section), **values}


def settings(row: ResultRow) -> str:
    """Hyper-parameters in one line: `epochs=5, rank=4`."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in sorted(row.hyperparameters.items()))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
