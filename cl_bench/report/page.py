"""The static page of a report: one HTML file that holds its figures and needs nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cl_bench import __version__
from cl_bench.experiment import Value
from cl_bench.report.frame import Section
from cl_bench.report.tables import HEADER, Row, Table, cells

FIGURES = {
    "accuracy": "Accuracy over the classes seen so far. Bands are 95 % intervals of the mean; a grey dashed "
    "line is training on all tasks at once.",
    "forgetting": "Forgetting of the tasks learned before: best minus current accuracy, averaged over tasks. "
    "Bands are 95 % intervals of the mean.",
    "matrix": "Accuracy on every task (columns) after each task learned (rows), in percent, mean over runs.",
}


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        name: `accuracy`, `forgetting` or `matrix`.
        source: the PNG as a data URI.
        pdf: path of the PDF relative to the page.
    """

    name: str
    caption: str
    source: str
    pdf: str


def render(
    sections: Sequence[Section],
    tables: Sequence[Table],
    files: Sequence[Sequence[Path]],
    damaged: Sequence[str],
    command: str,
) -> str:
    """The page as HTML.

    Args:
        sections, tables, files: per protocol, in the same order; `files` are those written for it.
        damaged: one sentence per result file that was skipped.
        command: the command line that makes this report.
    """
    environment = Environment(
        loader=PackageLoader("cl_bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.globals |= {"cells": cells, "settings": _settings, "text": _text}
    protocols = [
        {
            "table": table,
            "protocol": table.protocol,
            "pictures": _pictures(table.slug, paths),
            "environment": _environment(section),
            "transforms": table.protocol.transforms.model_dump(),
        }
        for section, table, paths in zip(sections, tables, files, strict=True)
    ]
    return environment.get_template("index.html.j2").render(
        protocols=protocols, damaged=damaged, command=command, version=__version__, header=HEADER
    )


def _pictures(slug: str, paths: Sequence[Path]) -> list[Picture]:
    by_name = {path.name: path for path in paths}
    return [
        Picture(
            name,
            caption,
            f"data:image/png;base64,{base64.b64encode(by_name[f'{slug}-{name}.png'].read_bytes()).decode()}",
            f"figures/{slug}-{name}.pdf",
        )
        for name, caption in FIGURES.items()
        if f"{slug}-{name}.png" in by_name
    ]


def _breakable(label: str) -> Markup:
    """A label that a narrow page may break between its options."""
    return Markup(re.sub(r"([\[,])", r"\1<wbr>", str(escape(label))))


def _settings(row: Row) -> str:
    """Hyper-parameters in one line: `epochs=5, rank=4`."""
    return ", ".join(f"{name}={_text(value)}" for name, value in sorted(row.hyperparameters.items()))


def _text(value: Value) -> str:
    """A value as the command line spells it."""
    if isinstance(value, list):
        return f"({', '.join(map(_text, value))})"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _environment(section: Section) -> dict[str, str]:
    """Versions and hardware of the runs; where they differ, all values."""
    found: dict[str, set[str]] = {}
    for run in section.runs:
        for name, value in run.record.environment.items():
            found.setdefault(name, set()).add(_text(value))
    return {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}
