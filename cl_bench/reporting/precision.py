"""Rows of several precisions in one table: which are paired with which, and what the reader is told.

Precision tells how a run was computed. It marks a row, `sdlora[bf16]`, and leaves it in the table of its protocol. Part
of a difference between two precisions is theirs, not the methods', so rows are paired within a precision by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cl_bench.errors import counted
from cl_bench.reporting.runs import Run, Section, usual_precision

_MOST_NAMES = 6
"""Number of rows up to which a sentence names each of them."""


def by_precision(section: Section) -> list[Section]:
    """Split a section into parts of one precision each, with labels that carry no mark; the usual precision first."""
    precisions = set(section.precisions.values())
    if len(precisions) == 1:
        # A selection of runs may have left only marked rows.
        marked = any(run.label != run.unmarked for run in section.runs)
        return [_part(section, precisions.pop())] if marked else [section]
    usual = usual_of(section)
    return [_part(section, precision) for precision in sorted(precisions, key=lambda one: (one != usual, one))]


def _part(section: Section, precision: str) -> Section:
    rows: dict[str, list[Run]] = {}
    for runs in section.rows.values():
        if runs[0].precision == precision:
            rows[runs[0].unmarked] = [replace(run, label=run.unmarked) for run in runs]
    unmarked = {label: runs[0].unmarked for label, runs in section.rows.items() if runs[0].precision == precision}
    return replace(
        section,
        slug=f"{section.slug}-{precision}",
        rows=rows,
        highlight=tuple(unmarked[label] for label in section.highlight if label in unmarked),
        against=unmarked.get(section.against, ""),
    )


def usual_of(section: Section) -> str:
    """The precision of the rows without a mark; of most rows if every row is marked."""
    unmarked = Counter(runs[0].precision for label, runs in section.rows.items() if label == runs[0].unmarked)
    return usual_precision(unmarked or Counter(section.precisions.values()))


def text(section: Section) -> str:
    """The precisions of a section in words, the usual one first: `fp32`, or `fp32 and bf16`."""
    usual = usual_of(section)
    return " and ".join(sorted(set(section.precisions.values()), key=lambda one: (one != usual, one)))


def note(section: Section) -> str:
    """A sentence for the reader of a table with several precisions; empty if it has one."""
    precisions = set(section.precisions.values())
    if len(precisions) == 1:
        return ""
    usual = usual_of(section)
    marks = " or ".join(f"[{precision}]" for precision in sorted(precisions - {usual}))
    return (
        f"Precision: {usual}, except in rows marked {marks}. Seeds of two precisions are never pooled, and rows of two "
        "precisions are paired only by 'cl-bench compare --across precision'."
    )


@dataclass(frozen=True)
class Comparison:
    """A comparison of rows with a baseline.

    Attributes:
        section: the rows that may be paired.
        baseline, rows: labels in the section; no rows: all of them.
        left_out: sentences on rows that were asked for and have another precision.
    """

    section: Section
    baseline: str
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def comparisons(section: Section, baseline: str, rows: Sequence[str], across: bool) -> list[Comparison]:
    """The comparisons of a section in which there is a baseline: one per precision, or one across precisions.

    Args:
        baseline, rows: names of rows, with or without the mark of the precision; no rows: all of them.
        across: pair rows of different precisions as well.
    """
    made = []
    for part in [section] if across else by_precision(section):
        label = find(section, part, baseline)
        if label is not None:
            found = [one for name in rows if (one := find(section, part, name)) is not None]
            # Rows that are all elsewhere must not become all rows that are here.
            named = tuple(found) or ((label,) if rows else ())
            made.append(Comparison(part, label, named, tuple(_elsewhere(section, part, rows))))
    return made


def find(section: Section, part: Section, name: str) -> str | None:
    """Label in `part` of the row that a name stands for, with or without its mark in `section`; None if there is none.

    A row of exactly this name comes first.
    """
    marked = {run.record.key: label for label, runs in section.rows.items() for run in runs}
    names = {label: (label, marked[runs[0].record.key], runs[0].unmarked) for label, runs in part.rows.items()}
    fitting = [(place.index(name), label) for label, place in names.items() if name in place]
    return min(fitting)[1] if fitting else None


def _elsewhere(section: Section, part: Section, names: Sequence[str]) -> list[str]:
    """A sentence on the rows of a section that a comparison within `part` leaves out for their precision."""
    own = set(part.precisions.values())
    left = {
        label: runs[0].precision
        for label, runs in section.rows.items()
        if runs[0].precision not in own and (not names or label in names or runs[0].unmarked in names)
    }
    if not left:
        return []
    what = ", ".join(left) if len(left) <= _MOST_NAMES else counted(len(left), "row")
    return [
        f"Not compared, because computed in {' and '.join(sorted(set(left.values())))} instead of "
        f"{' and '.join(sorted(own))}: {what}; --across precision compares them too."
    ]


def across_note(section: Section, rows: Sequence[str]) -> list[str]:
    """A sentence for a comparison of rows of several precisions; none if they have one."""
    found: dict[str, list[str]] = {}
    for label in rows:
        found.setdefault(section.precisions[label], []).append(label)
    if len(found) < 2:
        return []
    words = "; ".join(
        f"{precision}: {', '.join(labels) if len(labels) <= _MOST_NAMES else counted(len(labels), 'row')}"
        for precision, labels in sorted(found.items())
    )
    return [f"Paired across precisions ({words}), so a difference may be due to the precision."]
