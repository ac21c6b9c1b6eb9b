"""The columns of result tables, and the texts of their cells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_bench import metrics
from cl_bench.errors import unknown_name
from cl_bench.reporting.text_tables import DASH
from cl_bench.stats import Summary

TABLES = {"results": "every stored row, a table per protocol, as in the report"}
"""The tables that are no paper's, with a title for lists of tables."""
TABLE_METRICS = ("acc", "aaa", "forgetting")
"""The metrics (see `cl_bench.metrics.METRICS`) that have a column, after the method's and before `COST_COLUMNS`."""
COST_COLUMNS: Mapping[str, str] = {
    "seeds": "number of different seeds",
    "minutes": "wall time of training and evaluation of one run, comparable only on the same hardware",
    "trainable": "largest number of parameters trained in any stage",
    "tuning": "minutes of all runs of the hyper-parameter search",
}
"""The last columns of a table, with a description of each."""
COLUMNS = (*TABLE_METRICS, *COST_COLUMNS)
"""The columns of a table after that of the method, unless the user chooses others."""


@dataclass(frozen=True)
class ExtraColumn:
    """A column that needs several rows, such as the difference from a baseline.

    Attributes:
        name: name for `--columns`, unique in a table.
        title: head of the column.
        description: definition in one clause.
        texts: cells by label of the row; rows without one have a dash.
        numbers: by label, the numbers behind the cells by field of the CSV.
        fields: all fields of the CSV; the first is the one to sort by.
    """

    name: str
    title: str
    description: str
    texts: Mapping[str, str]
    numbers: Mapping[str, Mapping[str, object]]
    fields: tuple[str, ...]


def check_columns(columns: Sequence[str], extra: Sequence[str] = ()) -> None:
    """Raise `UserError` if a table has no column of some name.

    Args:
        extra: names of the columns that the user adds.
    """
    known = [*metrics.METRICS, *COST_COLUMNS, *extra]
    for name in columns:
        if name not in known:
            raise unknown_name("--columns", name, known)


def percent(summary: Summary | None) -> str:
    """Format a fraction as percent with the half-width of its interval, two decimals each."""
    if summary is None:
        return DASH
    mean = f"{100 * summary.mean:.2f}"
    return mean if summary.half_width is None else f"{mean} ± {100 * summary.half_width:.2f}"


def human_count(number: int) -> str:
    """Format a count with a unit prefix: `0.37 M`, `7.7 k`, `512`."""
    for unit, size, least, decimals in (
        ("G", 10**9, 10**9, 2),
        ("M", 10**6, 10**5, 2),
        ("k", 10**3, 10**3, 1),
    ):
        if number >= least:
            return f"{number / size:.{decimals}f} {unit}"
    return str(number)


def minutes(value: float) -> str:
    """Format minutes with three significant digits or so: `0.53`, `12.3`, `103`."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def order_text(class_order: str) -> str:
    """Short text of a class order; an explicit list of classes becomes `list` and the start of its hash."""
    listed = class_order.startswith("order:")
    return f"list {hashlib.sha256(class_order.encode()).hexdigest()[:8]}" if listed else class_order


def ranges(numbers: Sequence[int]) -> str:
    """Sorted distinct integers as ranges, e.g. `0-4, 7` with an en dash."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}{DASH}{run[-1]}" for run in runs)
