"""Layout files of papers (`assets/papers`): the rows, streams and panels of their tables and figures."""

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
    """A panel: `rows` on one stream, or on its first `limit_tasks` tasks if given."""

    kind: Kind
    benchmark: str
    tasks: int
    rows: tuple[str, ...] = ()
    limit_tasks: int | None = None
    backbone: str | None = None


class FigureLayout(_Strict):
    """A figure; `backbone` applies to panels without one of their own."""

    title: str
    panels: tuple[PanelLayout, ...]
    backbone: str = "vit_base_patch16_224.augreg2_in21k_ft_in1k"


class TableLayout(_Strict):
    """A table: labels of its rows, streams as pairs of benchmark and number of tasks, and metrics, a column each."""

    number: int
    title: str
    streams: tuple[tuple[str, int], ...]
    rows: tuple[str, ...]
    metrics: tuple[str, ...] = ("acc", "aaa")


class RowLayout(_Strict):
    """Name of a row in the paper, and its name in the file of published numbers (None: the label)."""

    name: str
    published: str | None = None


class Paper(_Strict):
    """The protocol of a paper.

    Attributes:
        numbers: name of the file of published numbers.
        transforms: the paper's values of fields of `ImageTransforms`; one number stands for all channels.
        epochs: numbers of epochs that the paper uses, by benchmark.
        test_images: size of the paper's test split, by benchmark.
    """

    numbers: str
    backbone: str
    scenario: Scenario
    transforms: dict[str, Any]
    epochs: dict[str, tuple[int, ...]]
    test_images: dict[str, int]


class TablesLayout(_Strict):
    """All tables of one paper: layouts of rows by label, of tables by name."""

    paper: Paper
    rows: dict[str, RowLayout]
    tables: dict[str, TableLayout]


def table_names() -> dict[str, str]:
    """Titles of all tables, by name."""
    return {name: table.title for layout in table_layouts() for name, table in layout.tables.items()}


def table_benchmarks(name: str) -> set[str]:
    """Benchmarks in the columns of a table."""
    return {stream for layout in table_layouts() if name in layout.tables for stream, _ in layout.tables[name].streams}


def table_rows(name: str) -> dict[str, str]:
    """Names of the rows of a table, by label."""
    return {
        label: layout.rows[label].name
        for layout in table_layouts()
        if name in layout.tables
        for label in layout.tables[name].rows
    }


@cache
def table_layouts() -> tuple[TablesLayout, ...]:
    """The table layouts of all papers, one entry per paper."""
    found = sorted((file for file in PAPERS.iterdir() if file.name.endswith("-tables.toml")), key=lambda f: f.name)
    return tuple(TablesLayout.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))) for file in found)


def published_numbers(layout: TablesLayout, number: int) -> dict[tuple[str, int, str, str], tuple[float, float | None]]:
    """Published mean and standard error (None: not published), by benchmark, tasks, row and metric."""
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
    """Layouts of all figures, by name."""
    found: dict[str, FigureLayout] = {}
    for file in sorted(PAPERS.iterdir(), key=lambda file: file.name):
        if file.name.endswith("-figures.toml"):
            for name, fields in tomllib.loads(file.read_text(encoding="utf-8")).items():
                found[name] = FigureLayout.model_validate(fields)
    return found
