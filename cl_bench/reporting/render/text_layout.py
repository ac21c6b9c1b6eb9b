"""Pages that pictures are drawn for, and layout of the texts in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from functools import cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

FAINT = "#555555"
"""Colour of less important elements."""
_BASE = 8.0


@dataclass(frozen=True)
class Page:
    """Widths and letters of pictures.

    Attributes:
        column, text: widths in inches of pictures with one panel, and of wide ones.
        label: size in points of titles.
        small: size in points of ticks and names.
        families: font families, the first one that has a character is used.
        mathtext: matplotlib's fonts for mathematics.
        foreign: characters of which the first family has other glyphs; texts with them use the other families.
    """

    column: float = 3.5
    text: float = 7.2
    label: float = _BASE
    small: float = 7.0
    families: tuple[str, ...] = ("DejaVu Sans",)
    mathtext: str = "dejavusans"
    foreign: str = ""

    @property
    def scale(self) -> float:
        """Size of letters relative to those of `SCREEN`."""
        return self.label / _BASE

    def width_of(self, text: str, size: float) -> float:
        """Width of a text in inches, for a font size in points."""
        return _text_width(text, size, self.families_of(text))

    def families_of(self, text: str) -> tuple[str, ...]:
        """The font families that have all characters of a text."""
        return self.families[1:] if set(text) & set(self.foreign) else self.families

    def wrapped(self, label: str, width: float, size: float) -> str:
        """Wrap a label to a width in inches, with breaks before and between options where possible."""
        whole = self.width_of(label, size)
        if whole <= width:
            return label
        # 8 % fewer characters than the average width allows, because letters differ in width.
        most = max(8, int(0.92 * len(label) * width / whole))
        return textwrap.fill(re.sub(r",(?! )", ", ", label.replace("[", " [")), most)

    def height_of(self, text: str, size: float) -> float:
        """Height of a text of one or several lines in inches."""
        return 1.15 * size * (text.count("\n") + 1) / 72


SCREEN = Page()
"""The page of reports."""


@cache
def _text_width(text: str, size: float, families: tuple[str, ...]) -> float:
    font = FontProperties(family=list(families), size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72
