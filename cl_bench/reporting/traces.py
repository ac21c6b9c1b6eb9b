"""What runs traced while they learned: means over the rows of a trace, and paired comparisons of them.

A trace is a table that a method writes into its runs, see `Method.traces`: learned magnitudes, ranks left over, shares
of a loss. Nothing here knows what a table means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from statistics import fmean

import pandas as pd

from cl_bench import stats
from cl_bench.errors import UserError, counted, unknown_name
from cl_bench.grammar import split_names
from cl_bench.reporting import precision
from cl_bench.reporting.comparison import Block, probability, signed
from cl_bench.reporting.runs import Run, Section
from cl_bench.reporting.text_tables import DASH, Column, TextTable
from cl_bench.stats import Paired, Summary

PLACES = ("stage", "phase", "epoch", "step", "task", "block", "target", "direction", "link")
"""Columns that say where a row of a trace was measured; the numbers in all other columns are measurements."""
_DIGITS = 4
_MOST_DECIMALS = 6


@dataclass(frozen=True)
class Wanted:
    """A trace to compare: all measurements of a table, or one (`column`)."""

    table: str
    column: str = ""

    @classmethod
    def parse(cls, text: str) -> tuple[Wanted, ...]:
        """Read `TABLE` or `TABLE.COLUMN`, several with commas.

        Raises:
            UserError: the text has no name.
        """
        found = tuple(cls(*name.partition(".")[::2]) for name in split_names(text))
        if not found:
            raise UserError("--trace is empty; give the name of a trace, e.g. --trace updates or --trace updates.norm")
        return found


@dataclass(frozen=True)
class Measured:
    """What a value in a trace is: its table and column, and the place if values of several places are kept apart."""

    table: str
    column: str
    place: str | int = ""

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"


def measurements(run: Run, table: str, by: str = "") -> dict[Measured, float]:
    """Mean of each measured column over the rows of a trace, of those rows in which it is defined.

    Args:
        by: a column of `PLACES` whose values are kept apart; empty: the mean is over all rows.
    """
    found: defaultdict[Measured, list[float]] = defaultdict(list)
    for row in run.record.traces.get(table, ()):
        place = row.get(by, "") if by else ""
        for column, value in row.items():
            if column not in PLACES and isinstance(value, int | float) and isfinite(value):
                found[Measured(table, column, place if isinstance(place, str | int) else "")].append(value)
    return {measured: fmean(values) for measured, values in found.items()}


def check(sections: Iterable[Section], wanted: Sequence[Wanted], by: str) -> None:
    """Check the names of traces, and of the column `by`, against those of all runs.

    Raises:
        UserError: no run has such a trace, such a measurement in it, or such a place.
    """
    columns: defaultdict[str, set[str]] = defaultdict(set)
    for section in sections:
        for run in section.runs:
            for table, rows in run.record.traces.items():
                columns[table].update(column for row in rows for column in row)
    for one in wanted:
        if one.table not in columns:
            raise unknown_name("--trace", one.table, columns, "These are the traces in the stored runs.")
        if one.column and one.column not in columns[one.table] - set(PLACES):
            raise unknown_name(f"measurement of --trace {one.table}", one.column, columns[one.table] - set(PLACES))
        if by and by not in columns[one.table] & set(PLACES):
            raise unknown_name("--by", by, columns[one.table] & set(PLACES), f"These are places in '{one.table}'.")


@dataclass(frozen=True)
class _Line:
    """One measurement of a row beside that of the baseline.

    Attributes:
        own: over the runs that have a partner, or over all runs without any.
        other, result: None if the baseline has no such measurement on a common seed and class order.
    """

    row: str
    measured: Measured
    own: Summary
    other: Summary | None
    result: Paired | None


def text_table(
    section: Section,
    baseline: str,
    rows: Sequence[str] = (),
    *,
    wanted: Sequence[Wanted],
    by: str = "",
    left_out: Sequence[str] = (),
) -> TextTable | None:
    """Build the table of a trace's measurements, each beside those of a baseline, paired by seed and class order.

    A row whose trace the baseline lacks is shown without a difference. None if no row has one of the traces.

    Args:
        rows: labels; by default all rows.
        by: a column of `PLACES` whose values get a line each.
        left_out: sentences on rows that the section lacks, for the notes.
    """
    chosen = [row for row in dict.fromkeys(rows or section.rows) if row != baseline]
    others = _by_block(section.rows[baseline], wanted, by)
    found = {row: _by_block(section.rows[row], wanted, by) for row in chosen}
    lines = [_line(row, measured, found[row], others) for row in chosen for measured in _ordered(found[row], wanted)]
    if not lines:
        return None
    tested = [line.result.p for line in lines if line.result and line.result.p is not None]
    corrected = iter(stats.holm(tested))
    holm = [next(corrected) if line.result and line.result.p is not None else None for line in lines]
    single = len({one.table for one in wanted}) == 1
    texts = [_texts(line, p, by, single) for line, p in zip(lines, holm, strict=True)]
    numbers = pd.DataFrame([_numbers(line, baseline, p, by) for line, p in zip(lines, holm, strict=True)])
    names = ", ".join(dict.fromkeys(one.table for one in wanted))
    missing = [row for row in chosen if not found[row]]
    rules = frozenset(i for i in range(1, len(lines)) if lines[i].row != lines[i - 1].row)
    return TextTable(
        f"{section.slug}-{names.replace(', ', '-')}-against-{baseline}",
        f"{section.protocol.benchmark}, {section.protocol.shape}: what runs traced in '{names}', beside {baseline} "
        f"(protocol {section.protocol.digest}, {precision.text(section)}).",
        _columns(baseline, by),
        tuple(texts),
        (
            *_notes(lines, baseline, by, len(tested)),
            *([f"Without such a trace: {', '.join(missing)}."] if missing else []),
            *precision.across_note(section, [baseline, *chosen]),
            *left_out,
        ),
        rules,
        bold=frozenset(
            (r, c) for r, line in enumerate(lines) if line.row in section.highlight for c in range(len(texts[r]))
        ),
        data=numbers,
    )


def _by_block(runs: Sequence[Run], wanted: Sequence[Wanted], by: str) -> dict[Measured, dict[Block, float]]:
    """Each wanted measurement of a row's runs, by seed and class order."""
    found: defaultdict[Measured, dict[Block, float]] = defaultdict(dict)
    for run in runs:
        block = run.record.experiment.seed, run.record.experiment.class_order
        for one in wanted:
            for measured, value in measurements(run, one.table, by).items():
                if one.column in ("", measured.column):
                    found[measured][block] = value
    return dict(found)


def _ordered(found: Iterable[Measured], wanted: Sequence[Wanted]) -> list[Measured]:
    """Measurements in the order in which their tables are wanted, then of columns and places."""
    tables = [one.table for one in wanted]
    return sorted(
        found,
        key=lambda one: (
            tables.index(one.table), one.column, isinstance(one.place, str),
            0 if isinstance(one.place, str) else one.place, str(one.place),
        ),
    )  # fmt: skip


def _line(
    row: str,
    measured: Measured,
    found: Mapping[Measured, Mapping[Block, float]],
    others: Mapping[Measured, Mapping[Block, float]],
) -> _Line:
    own, other = found[measured], others.get(measured, {})
    common = sorted(own.keys() & other.keys())
    if not common:
        return _Line(row, measured, stats.summarise(list(own.values())), None, None)
    a, b = [own[block] for block in common], [other[block] for block in common]
    return _Line(row, measured, stats.summarise(a), stats.summarise(b), stats.paired(a, b))


def _columns(baseline: str, by: str) -> tuple[Column, ...]:
    return (
        Column("row", numeric=False),
        Column("trace", numeric=False),
        *([Column(by)] if by else []),
        Column("runs", name="runs", fields=("n",)),
        Column("value", name="value", fields=("value", "value_low", "value_high")),
        Column(baseline, name="baseline", fields=("baseline_value", "baseline_low", "baseline_high")),
        Column("difference", name="difference", fields=("difference", "low", "high")),
        Column("p", name="p", fields=("t", "p")),
        Column("p (Holm)", name="holm", fields=("p_holm",)),
        Column("effect", name="effect", fields=("effect",)),
        Column("more/equal/less", name="wins", fields=("more", "equal", "less")),
    )


def _texts(line: _Line, holm: float | None, by: str, single: bool) -> tuple[str, ...]:
    """The cells of a line; all values have as many decimals as the largest needs for four digits."""
    result, values = line.result, [abs(line.own.mean), *([abs(line.other.mean)] if line.other else [])]
    decimals = _decimals(max(values))
    return (
        line.row,
        line.measured.column if single else line.measured.name,
        *([str(line.measured.place)] if by else []),
        str(line.own.n),
        _value(line.own, decimals),
        DASH if line.other is None else _value(line.other, decimals),
        DASH if result is None else _value(result.difference, decimals, "+"),
        probability(result.p if result else None),
        probability(holm),
        DASH if result is None or result.effect is None else signed(result.effect),
        DASH if result is None else f"{result.wins}/{result.ties}/{result.losses}",
    )


def _decimals(size: float) -> int:
    """Decimals that show four digits of a number of this size."""
    return min(_MOST_DECIMALS, max(0, _DIGITS - 1 - floor(log10(size)))) if size else _DIGITS - 1


def _value(value: Summary, decimals: int, sign: str = "") -> str:
    half = "" if value.half_width is None else f" ± {value.half_width:.{decimals}f}"
    return f"{value.mean:{sign}.{decimals}f}{half}".replace("-", "−")


def _numbers(line: _Line, baseline: str, holm: float | None, by: str) -> dict[str, object]:
    own, other, result = line.own, line.other, line.result
    difference = result.difference if result else None
    return {
        "row": line.row,
        "baseline": baseline,
        "trace": line.measured.name,
        **({by: line.measured.place} if by else {}),
        "n": own.n,
        "value": own.mean,
        "value_low": own.low,
        "value_high": own.high,
        "baseline_value": other.mean if other else None,
        "baseline_low": other.low if other else None,
        "baseline_high": other.high if other else None,
        "difference": difference.mean if difference else None,
        "low": difference.low if difference else None,
        "high": difference.high if difference else None,
        "t": result.t if result else None,
        "p": result.p if result else None,
        "p_holm": holm,
        "effect": result.effect if result else None,
        "more": result.wins if result else None,
        "equal": result.ties if result else None,
        "less": result.losses if result else None,
    }


def _notes(lines: Sequence[_Line], baseline: str, by: str, tests: int) -> list[str]:
    of = f"rows of the trace with the same {by}" if by else "rows of the trace (tasks, blocks, ...)"
    notes = [
        f"Value: mean over the {of}, then over runs, ± half-width of its 95 % Student-t interval.",
        "Difference: over pairs of runs of the same seed and class order; p: paired t test, two-sided; p (Holm): "
        f"corrected for the {counted(tests, 'test')} of this table; effect: Cohen's d of the differences with Hedges' "
        "correction, for 3 pairs or more.",
    ]
    if by in ("stage", "task", "block", "phase", "direction"):
        notes.append(f"The first {by} is 0.")
    if alone := list(dict.fromkeys(line.row for line in lines if line.result is None)):
        notes.append(f"Where {baseline} has no such measurement, there is no difference: {', '.join(alone)}.")
    return notes
