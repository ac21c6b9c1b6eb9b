"""What pictures have in common: their widths, and the texts in them."""

from __future__ import annotations

import textwrap
from functools import cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

COLUMN, TEXT = 3.5, 7.2
"""Width of a paper's column and of its text, in inches."""
FAINT = "#555555"
"""Colour of what is less important."""


@cache
def text_width(text: str, size: float) -> float:
    """In inches, at a size in points."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


def wrapped(label: str, width: float = 3.0, size: float = 7) -> str:
    """A label on as many lines as the width in inches asks for, broken before and between options where possible."""
    whole = text_width(label, size)
    if whole <= width:
        return label
    # A little less than on average: letters are not equally wide.
    return textwrap.fill(label.replace("[", " [").replace(",", ", "), max(8, int(0.92 * len(label) * width / whole)))
