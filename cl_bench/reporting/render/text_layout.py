"""Widths of pictures, and layout of the texts in them."""

from __future__ import annotations

import textwrap
from functools import cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

COLUMN, TEXT = 3.5, 7.2
"""Width of a paper's column and of its text, in inches."""
FAINT = "#555555"
"""Colour of less important elements."""


@cache
def text_width(text: str, size: float) -> float:
    """Width of a text in inches, for a font size in points."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


def wrapped(label: str, width: float = 3.0, size: float = 7) -> str:
    """Wrap a label to a width in inches, with breaks before and between options where possible."""
    whole = text_width(label, size)
    if whole <= width:
        return label
    # 8 % fewer characters than the average width allows, because letters differ in width.
    return textwrap.fill(label.replace("[", " [").replace(",", ", "), max(8, int(0.92 * len(label) * width / whole)))
