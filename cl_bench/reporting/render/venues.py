"""Pages of venues (`assets/venues.toml`) and of a width in inches, from the option `--width`."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from cl_bench.errors import UserError, unknown_name
from cl_bench.reporting.render.text_layout import Page

_LETTERS: dict[str, dict[str, Any]] = {
    "times": {"families": ("STIXGeneral", "DejaVu Sans"), "mathtext": "stix"},
    # Computer Modern has other glyphs in the places of these characters, as TeX's own encoding has.
    "computer-modern": {
        "families": ("cmr10", "STIXGeneral", "DejaVu Sans"), "mathtext": "cm", "foreign": '_<>|{}"\\^~'
    },
}  # fmt: skip
"""Fonts that matplotlib ships and that look like those of LaTeX, so that no TeX is needed."""
_PARTS = ("column", "page")
NARROWEST, WIDEST = 2.0, 20.0
"""Limits of a width in inches: less has no room for names, more is no page."""


@cache
def venues() -> dict[str, Page]:
    """Pages of the known venues, by name."""
    table = tomllib.loads((files("cl_bench") / "assets" / "venues.toml").read_text(encoding="utf-8"))
    return {
        name: Page(row["column"], row["text"], row["caption"], row["small"], **_LETTERS[row["letters"]])
        for name, row in table.items()
    }


def parse_width(text: str) -> Page:
    """The page that an option `--width` names: a venue, `VENUE:column`, `VENUE:page`, or a number of inches.

    For a venue alone, pictures with one panel are as wide as a column, and others as the text.

    Raises:
        UserError: unknown venue or part of its page, or a width outside the limits.
    """
    name, colon, part = text.strip().lower().partition(":")
    if (page := venues().get(name)) is not None:
        if not colon:
            return page
        if part not in _PARTS:
            raise unknown_name("--width", part, _PARTS, f"Expected {name}:column or {name}:page.")
        width = page.column if part == "column" else page.text
        return replace(page, column=width, text=width)
    try:
        width = float(name)
    except ValueError:
        raise unknown_name("--width", name, venues(), "A number is a width in inches.") from None
    if colon or not NARROWEST <= width <= WIDEST:
        raise UserError(f"--width '{text}' is not valid; expected {NARROWEST:g} to {WIDEST:g} inches, e.g. 3.25")
    return replace(venues()["cvpr"], column=width, text=width)
