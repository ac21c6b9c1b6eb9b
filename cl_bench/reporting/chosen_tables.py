"""Result tables with the rows and columns that the user chose, and paired differences from one row."""

from __future__ import annotations

from collections.abc import Sequence

from cl_bench import metrics
from cl_bench.errors import counted
from cl_bench.reporting import comparison, result_table
from cl_bench.reporting.cells import ExtraColumn, check_columns
from cl_bench.reporting.intransigence import is_reference
from cl_bench.reporting.result_table import ResultTable
from cl_bench.reporting.runs import Section
from cl_bench.reporting.selection import Selection

NAMES = ("difference", "holm")
"""Names of the columns of `differences`."""
_FIELDS = ("difference", "difference_low", "difference_high", "difference_n")


def presented(everything: Sequence[Section]) -> list[Section]:
    """The sections that reports show: those that only serve as references are left out, unless there are no others."""
    joint = {run.label for section in everything for run in section.runs if not run.sequential}
    return [section for section in everything if not is_reference(section, joint)] or list(everything)


def check(selection: Selection) -> None:
    """Check the names of the columns; first of all, since no difference can be taken of an unknown metric.

    Raises:
        UserError: unknown column.
    """
    check_columns(selection.columns, NAMES if selection.against else ())


def build(section: Section, selection: Selection) -> ResultTable:
    """The result table of a section with the columns that the user chose, and the differences asked for.

    Raises:
        UserError: unknown column.
    """
    check(selection)
    extra = differences(section, selection.columns) if section.against else []
    there = [column.name for column in extra]
    columns = [name for name in selection.columns if name not in NAMES or name in there]
    # Without the baseline there may be no column left, which would mean all of them.
    return result_table.build(section, columns or (["acc"] if selection.columns else []), extra)


def differences(section: Section, shown: Sequence[str]) -> list[ExtraColumn]:
    """The difference of each row from the section's baseline, and the p-value of its paired t test.

    Both are those of `comparison.against`, as `cl-bench compare` shows them. The metric is the first of the table's.
    Rows of another precision than the baseline have none.

    Args:
        shown: names of the table's columns.
    """
    metric = next((name for name in shown if name in metrics.METRICS), "acc")
    precisions = section.precisions
    alike = [label for label in section.rows if precisions[label] == precisions[section.against]]
    pairs = comparison.against(section, section.against, alike, metric)
    counts = sorted({len(pair.blocks) for pair in pairs})
    span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else ""
    runs = f"{span} pairs of runs" if span else counted(counts[0] if counts else 0, "pair of runs", "pairs of runs")
    tests = counted(sum(pair.holm is not None for pair in pairs), "test")
    title = metrics.METRICS[metric].title.removesuffix(", %")
    of = (
        f"{title} minus that of {section.against} in percentage points, mean over {runs} of the same seed and class "
        "order ± half-width of its 95 % Student-t interval"
    )
    numbers = {
        pair.row: {
            "difference": pair.result.difference.mean,
            "difference_low": pair.result.difference.low,
            "difference_high": pair.result.difference.high,
            "difference_n": len(pair.blocks),
            "p": pair.result.p,
            "p_holm": pair.holm,
        }
        for pair in pairs
    }
    texts = {pair.row: comparison.difference_text(pair) for pair in pairs}
    corrected = {pair.row: comparison.probability(pair.holm) for pair in pairs}
    test = f"p of the paired t test, two-sided, corrected for the {tests} of this table"
    return [
        ExtraColumn("difference", "difference", of, texts, numbers, _FIELDS),
        ExtraColumn("holm", "p (Holm)", test, corrected, numbers, ("p_holm", "p")),
    ]
