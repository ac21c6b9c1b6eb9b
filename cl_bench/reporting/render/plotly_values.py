"""Numbers, texts and symbols of charts as plotly.js takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from cl_bench.stats import Summary

SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x",
    "<": "triangle-left", ">": "triangle-right",
}  # fmt: skip
"""Symbol for each marker of matplotlib."""


def interval_text(value: Summary) -> str:
    """The half-width of an interval and the number of runs, to follow the mean in a hover text."""
    runs = f", {value.n} runs" if value.n > 1 else ", 1 run"
    return (f" ± {value.half_width:.2f}" if value.half_width is not None else "") + runs


def error_bar(value: Summary) -> dict[str, Any]:
    """The interval of a value as a bar; none is visible where there is none."""
    if value.half_width is None:
        return {"visible": False}
    return {"type": "data", "array": [rounded(value.half_width)], "thickness": 1, "width": 0}


def rounded(value: float | None) -> float | None:
    """Round to six significant digits, since the page holds many numbers; None if not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def rounded_all(values: Iterable[float]) -> list[float | None]:
    """`rounded` of each value."""
    return [rounded(value) for value in values]


def escaped(text: str) -> str:
    """Escape a text for plotly.js, which reads texts as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
