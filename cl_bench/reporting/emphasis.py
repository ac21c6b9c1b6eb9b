"""Which rows of a chart are in colour, which in grey and which are left out, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cl_bench.reporting.runs import Section
from cl_bench.store import REFERENCE

MAX_COLOURED = 6
"""Limit of the rows in colour, unless the user asks for more: more colours are not told apart at a glance."""
_NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
_FAR = 2
"""Interquartile ranges between a quartile and a value that is far from all others."""
_MOST_NAMES = 8
"""Limit of the names in a sentence; of more rows, a caption gives the number."""


@dataclass(frozen=True)
class Emphasis:
    """The rows in colour.

    Attributes:
        labels: their labels, in the order in which they are drawn.
        rule: how they were chosen, for captions.
    """

    labels: tuple[str, ...]
    rule: str


def in_section(section: Section, finals: Mapping[str, float]) -> Emphasis:
    """Choose the rows in colour for a chart of one protocol, see `choose`; own rows are those outside the reference.

    Args:
        finals: final accuracy of the chart's rows, which are rows of the section.
    """
    own = [label for label in finals if any(run.origin != REFERENCE.name for run in section.rows[label])]
    return choose(finals, own, section.highlight, ordered=section.chosen)


def choose(
    finals: Mapping[str, float], own: Collection[str] = (), requested: Sequence[str] = (), *, ordered: bool = False
) -> Emphasis:
    """Choose the rows in colour: those requested; otherwise own rows first, then the best, six in all.

    Args:
        finals: final accuracy of each row.
        own: labels of the user's own rows, in contrast to those of the reference results.
        requested: labels that the user asks for; those that are not in `finals` are ignored.
        ordered: whether the user chose the rows, so that the first six come before the best six.
    """
    asked = tuple(label for label in dict.fromkeys(requested) if label in finals)
    if asked:
        return Emphasis(asked, "the rows that were asked for")
    if ordered:
        return Emphasis(tuple(finals)[:MAX_COLOURED], f"the first {_NUMBERS[MAX_COLOURED]} of the chosen rows")
    ranked = sorted(finals, key=lambda label: (label not in own, -finals[label], label))
    labels = tuple(ranked[:MAX_COLOURED])
    mine = sum(label in own for label in labels)
    if not mine or set(finals) == set(own):
        return Emphasis(labels, _best(len(labels), "row"))
    if mine == len(labels):
        return Emphasis(labels, _best(mine, "own row"))
    rest = _best(len(labels) - mine, "reference row")
    return Emphasis(labels, f"{'the own row' if mine == 1 else f'the {_NUMBERS[mine]} own rows'} and {rest}")


def _best(count: int, what: str) -> str:
    rows = what if count == 1 else f"{_NUMBERS[count]} {what}s"
    return f"the {rows} with the best final accuracy"


def outlying(values: Mapping[str, float], keep: Collection[str], *, high: bool = False) -> tuple[str, ...]:
    """Labels whose value is so far below all others that it would compress the scale for them.

    Args:
        values: a value for each row; with fewer than five rows none is outlying.
        keep: labels that are never outlying.
        high: look for values far above the others instead.

    Returns:
        Labels more than two interquartile ranges (and two points) from the nearer quartile, farthest first.
    """
    if len(values) < 5:
        return ()
    sign = -1 if high else 1
    signed = {label: sign * value for label, value in values.items()}
    first, third = np.percentile(list(signed.values()), [25, 75])
    floor = first - _FAR * max(third - first, 1.0)
    far = [label for label, value in signed.items() if value < floor and label not in keep]
    return tuple(sorted(far, key=lambda label: signed[label]))


def sentence(emphasis: Emphasis, rows: Collection[str], omitted: Mapping[str, float], *, panels: bool = False) -> str:
    """A sentence on what is in colour, in grey and left out; begins with a space, or is empty if all is in colour.

    Args:
        rows: labels of all rows of the chart.
        omitted: rows that are left out as outlying, with the value that is.
        panels: whether each row has a panel of its own, so that rows without emphasis are not drawn at all.
    """
    others = [label for label in rows if label not in emphasis.labels and label not in omitted]
    text = ""
    if others and panels:
        text = f" Drawn: {emphasis.rule}. Not drawn, but in the CSV: {_names(others)}."
    elif others:
        text = f" In colour: {emphasis.rule}. In grey: {_names(others)}."
    if omitted:
        far = ", ".join(f"{label} ({value:.1f})".replace("(-", "(−") for label, value in omitted.items())
        text += f" Left out, far from all others: {far}."
    return text


def _names(labels: Sequence[str]) -> str:
    if len(labels) <= _MOST_NAMES:
        return ", ".join(labels)
    return f"{len(labels)} other rows"
