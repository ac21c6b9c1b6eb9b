"""Numbers, texts and symbols of charts as plotly.js takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def log_axis(values: Sequence[float | None]) -> dict[str, Any]:
    """A logarithmic axis with ticks at powers of ten, and at 2 and 5 times these where powers alone are too few.

    Values that differ by less than a factor of three get a linear axis, which always has enough ticks.
    """
    positive = [value for value in values if value is not None and 0 < value < math.inf]
    low, high = min(positive), max(positive)
    if high < 3 * low:
        return {"nticks": 5}
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    inside: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
        if len(inside) >= 3:
            break
    return {"type": "log", "tickvals": rounded_all(inside), "ticktext": [_short(tick) for tick in inside]}


def _short(value: float) -> str:
    """A tick in few characters: `0.02`, `500`, `20k`, `1M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
