"""Layout files of papers (`assets/papers`): which rows, streams and panels their tables and figures have."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from cl_bench.experiment import Scenario

PAPERS = files("cl_bench") / "assets" / "papers"
Kind = Literal[
    "accuracy", "distances", "magnitudes", "published-magnitudes", "residuals", "relative-residuals", "interpolation"
]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PanelLayout(_Strict):
    """What a panel shows: `rows` of one stream, of which the first `limit_tasks` tasks if that is given."""

    kind: Kind
    benchmark: str
    tasks: int
    rows: tuple[str, ...] = ()
    limit_tasks: int | None = None
    backbone: str | None = None


class FigureLayout(_Strict):
    """A figure: its panels, on `backbone` unless they say otherwise."""

    title: str
    panels: tuple[PanelLayout, ...]
    backbone: str = "vit_base_patch16_224.augreg2_in21k_ft_in1k"


class TableLayout(_Strict):
    """A table: its rows by label, its streams as pairs of benchmark and number of tasks, and a column per metric."""

    number: int
    title: str
    streams: tuple[tuple[str, int], ...]
    rows: tuple[str, ...]
    metrics: tuple[str, ...] = ("acc", "aaa")


class RowLayout(_Strict):
    """How the paper names a row, and the name it has in the file of published numbers (None: its label)."""

    name: str
    published: str | None = None


class Paper(_Strict):
    """The protocol of a paper.

    Attributes:
        numbers: file of the published numbers.
        transforms: fields of `ImageTransforms` as the paper has them; one number stands for all channels.
        epochs, test_images: by benchmark: the numbers of epochs that the paper uses, and the size of its test split.
    """

    numbers: str
    backbone: str
    scenario: Scenario
    transforms: dict[str, Any]
    epochs: dict[str, tuple[int, ...]]
    test_images: dict[str, int]


class TablesLayout(_Strict):
    """All tables of one paper; rows by label, tables by name."""

    paper: Paper
    rows: dict[str, RowLayout]
    tables: dict[str, TableLayout]


def table_names() -> dict[str, str]:
    """All tables, with their titles."""
    return {name: table.title for layout in table_layouts() for name, table in layout.tables.items()}


def table_benchmarks(name: str) -> set[str]:
    """Benchmarks of a table's columns."""
    return {stream for layout in table_layouts() if name in layout.tables for stream, _ in layout.tables[name].streams}


@cache
def table_layouts() -> tuple[TablesLayout, ...]:
    """The tables of all papers, a paper each."""
    found = sorted((file for file in PAPERS.iterdir() if file.name.endswith("-tables.toml")), key=lambda f: f.name)
    return tuple(TablesLayout.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))) for file in found)


def published_numbers(layout: TablesLayout, number: int) -> dict[tuple[str, int, str, str], tuple[float, float | None]]:
    """Mean and standard error by benchmark, tasks, row and metric."""
    table = pd.read_csv((PAPERS / layout.paper.numbers).open("r", encoding="utf-8"))
    labels = {row.published or label: label for label, row in layout.rows.items()}
    return {
        (row["benchmark"], row["tasks"], labels[row["method"]], row["metric"]): (
            row["mean"],
            None if math.isnan(row["stderr"]) else row["stderr"],
        )
        for row in table[table["table"] == number].to_dict("records")
    }


@cache
def figure_layouts() -> dict[str, FigureLayout]:
    """All figures by name."""
    found: dict[str, FigureLayout] = {}
    for file in sorted(PAPERS.iterdir(), key=lambda file: file.name):
        if file.name.endswith("-figures.toml"):
            for name, fields in tomllib.loads(file.read_text(encoding="utf-8")).items():
                found[name] = FigureLayout.model_validate(fields)
    return found
