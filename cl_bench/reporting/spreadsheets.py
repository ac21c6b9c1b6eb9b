"""Data frames as CSV in which spreadsheets find no formula."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from cl_bench.errors import printable

_FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def to_csv(frame: pd.DataFrame, float_format: str | None = None) -> str:
    """Convert a frame to CSV without its index; a text that a spreadsheet would read as a formula gets an apostrophe.

    Args:
        float_format: format of floats; None: the shortest text that reads back as the same float.
    """
    texts = frame.select_dtypes(["object", "string"])
    # Built from lists, because `Series.map` would infer new types for columns of mixed values.
    inert = {str(name): pd.Series(list(map(_inert, texts[name])), frame.index, texts[name].dtype) for name in texts}
    shown = frame.assign(**inert).rename(columns=_inert)
    return shown.to_csv(index=False, lineterminator="\n", float_format=float_format)


def _inert(value: Any) -> Any:
    """Put an apostrophe before a text that looks like a formula; texts that are numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
