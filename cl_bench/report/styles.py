"""How rows are drawn: the same colour, marker and dash in every plot, report and session, also in grey."""

from __future__ import annotations

import tomllib
import zlib
from collections.abc import Collection, Iterable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

# Of `styles.toml`; what a method that is not listed there takes.
_COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#8b5a2b", "#56b4e9", "#4c4c4c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.5), (5, 1.5, 1.5, 1.5))
_CEILINGS = ("#333333", "#8a8a8a")
_SEQUENCE = ("#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743")


class Style(NamedTuple):
    """A colour (hex), a marker (matplotlib code, "" for none), and a dash: lengths on and off, () for a solid line."""

    colour: str
    marker: str
    dash: tuple[float, ...]


def of(labels: Iterable[str], ceilings: Collection[str] = ()) -> dict[str, Style]:
    """A style per row label; rows of one colour have markers of their own, up to nine.

    The method's name decides the colour, its options marker and dash, whatever else is in the plot; only where two
    rows of a colour have the same marker the one with options, or later in the alphabet, takes the next free one.

    Args:
        labels: of rows.
        ceilings: those which do not learn the tasks in turn (joint training): grey, dashed, without markers.
    """
    names = sorted(set(labels))
    found = {
        label: Style(_CEILINGS[i % len(_CEILINGS)], "", (7, 4))
        for i, label in enumerate(name for name in names if name in ceilings)
    }
    taken: set[tuple[str, str]] = set()
    # Methods without options first: they keep the style that the data file gives them.
    for label in sorted((name for name in names if name not in ceilings), key=lambda name: ("[" in name, name)):
        style = _own(label)
        # Points have no dashes, so rows of one colour differ by marker as long as there are markers.
        place = _MARKERS.index(style.marker)
        free = [m for m in _MARKERS[place:] + _MARKERS[:place] if (style.colour, m) not in taken]
        found[label] = style._replace(marker=free[0]) if free else style
        taken.add((style.colour, found[label].marker))
    return found


def sequential(order: float) -> Style:
    """The style of a line at a place from 0 to 1 in a sequence: dark to light, as the eye and grey paper order them."""
    place = min(max(order, 0.0), 1.0) * (len(_SEQUENCE) - 1)
    low = min(int(place), len(_SEQUENCE) - 2)
    one, other = (tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)) for text in _SEQUENCE[low : low + 2])
    mixed = (round(a + (place - low) * (b - a)) for a, b in zip(one, other, strict=True))
    return Style("#" + "".join(f"{value:02x}" for value in mixed), "o", ())


def _own(label: str) -> Style:
    """The style that a label has by itself."""
    method, _, options = label.partition("[")
    known = _known().get(method)
    if known is None:
        number = zlib.crc32(method.encode(errors="replace"))
        known = Style(_COLOURS[number % len(_COLOURS)], _MARKERS[number // 8 % len(_MARKERS)], ())
    if not options:
        return known
    number = zlib.crc32(options.encode(errors="replace"))
    return Style(known.colour, _MARKERS[number % len(_MARKERS)], _DASHES[number // 16 % len(_DASHES)])


@cache
def _known() -> dict[str, Style]:
    table = tomllib.loads((files("cl_bench") / "assets" / "styles.toml").read_text(encoding="utf-8"))["methods"]
    return {name: Style(row["colour"], row["marker"], tuple(row.get("dash", ()))) for name, row in table.items()}
