"""Styles of rows: the same colour, marker and dash in every plot, report and session, distinguishable in grey too."""

from __future__ import annotations

import tomllib
import zlib
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple, TypeVar

# Values used in `styles.toml`, from which methods that are not listed there take theirs.
_COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#8b5a2b", "#56b4e9", "#4c4c4c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.5), (5, 1.5, 1.5, 1.5))
_CEILINGS = ("#333333", "#8a8a8a")
_CEILING_DASHES: tuple[tuple[float, ...], ...] = ((7, 4), (12, 3), (3, 4))
_SEQUENCE = ("#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743")
CONTEXT, CONTEXT_NAME = "#c4c4c4", "#8a8a8a"
"""Colours of lines and points without emphasis, and of their names."""
Item = TypeVar("Item")


class Style(NamedTuple):
    """A colour (hex), a marker (matplotlib code, "" for none), and a dash: lengths on and off, () for a solid line."""

    colour: str
    marker: str
    dash: tuple[float, ...]


def by_label(labels: Iterable[str], ceilings: Collection[str] = ()) -> dict[str, Style]:
    """Assign a style to each row label.

    Rows differ in colour or marker, and in grey in marker or dash, as long as there are unused combinations. The name
    of the method decides the colour, its options decide marker and dash, independent of the other rows of the plot.
    Only where two rows would look alike, one takes the next free marker or dash: the one that is not in `styles.toml`,
    has options, or is later in the alphabet. Methods listed in `styles.toml` never change.

    Args:
        labels: labels of rows.
        ceilings: labels of rows trained on all tasks at once (joint training): grey, dashed, without markers.
    """
    found: dict[str, Style] = {}
    coloured: set[tuple[str, str]] = set()
    grey: set[tuple[str, tuple[float, ...]]] = set()
    for label in sorted(set(labels), key=lambda name: (name not in _listed_styles(), "[" in name, name)):
        # Points have no dashes, so rows of one colour use every marker before one repeats.
        found[label] = style = min(
            _choices(label, label in ceilings),
            key=lambda one: ((one.colour, one.marker) in coloured, (one.marker, one.dash) in grey),
        )
        coloured.add((style.colour, style.marker))
        grey.add((style.marker, style.dash))
    return found


def sequential(order: float) -> Style:
    """Style of a line at a position from 0 to 1 in a sequence: from dark to light, an order that holds in grey too."""
    place = min(max(order, 0.0), 1.0) * (len(_SEQUENCE) - 1)
    low = min(int(place), len(_SEQUENCE) - 2)
    one, other = (tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)) for text in _SEQUENCE[low : low + 2])
    mixed = (round(a + (place - low) * (b - a)) for a, b in zip(one, other, strict=True))
    return Style("#" + "".join(f"{value:02x}" for value in mixed), "o", ())


def luminance(colour: str) -> float:
    """Relative luminance of a hex colour as defined by WCAG 2: 0 is black, 1 is white."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@cache
def readable(colour: str) -> str:
    """The colour, darkened until small text in it can be read on white: a contrast of 4.5:1 (WCAG 2)."""
    while 1.05 / (luminance(colour) + 0.05) < 4.5:
        colour = "#" + "".join(f"{int(int(colour[i : i + 2], 16) * 0.95):02x}" for i in (1, 3, 5))
    return colour


def _choices(label: str, ceiling: bool) -> list[Style]:
    """Possible styles of a row, the preferred one first."""
    method, _, options = label.partition("[")
    chosen = zlib.crc32(label.encode(errors="replace"))
    if ceiling:
        colours = _rotated(_CEILINGS, int(bool(options)))
        dashes = _rotated(_CEILING_DASHES, chosen if options else 0)
        return [Style(colour, "", dash) for colour in colours for dash in dashes]
    # Methods that are not listed get a style from a hash of their name, the same in every session.
    number = zlib.crc32(method.encode(errors="replace"))
    own = _listed_styles().get(
        method, Style(_COLOURS[number % len(_COLOURS)], _MARKERS[number // 8 % len(_MARKERS)], ())
    )
    marker, dash = _MARKERS.index(own.marker), _DASHES.index(own.dash)
    if options:
        # Avoid the marker of the method without options, which is likely in the same plot.
        marker += 1 + chosen % (len(_MARKERS) - 1)
        dash += chosen // 16
    return [Style(own.colour, m, d) for m in _rotated(_MARKERS, marker) for d in _rotated(_DASHES, dash)]


def _rotated(items: Sequence[Item], place: int) -> list[Item]:
    """All items, rotated so that the item at `place` comes first."""
    return [items[(place + i) % len(items)] for i in range(len(items))]


@cache
def _listed_styles() -> dict[str, Style]:
    table = tomllib.loads((files("cl_bench") / "assets" / "styles.toml").read_text(encoding="utf-8"))["methods"]
    return {name: Style(row["colour"], row["marker"], tuple(row.get("dash", ()))) for name, row in table.items()}
