"""Data frames as CSV that spreadsheets read as data."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from cl_bench.errors import printable

_FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def to_csv(frame: pd.DataFrame, float_format: str | None = None) -> str:
    """The frame as CSV without its index, a line per row; a text that a spreadsheet would calculate gets an apostrophe.

    Args:
        float_format: of floats; None: as many digits as tell them apart.
    """
    texts = frame.select_dtypes(["object", "string"])
    # Lists keep the types of mixed columns, which pandas would guess anew.
    inert = {str(name): pd.Series(list(map(_inert, texts[name])), frame.index, texts[name].dtype) for name in texts}
    shown = frame.assign(**inert).rename(columns=_inert)
    return shown.to_csv(index=False, lineterminator="\n", float_format=float_format)


def _inert(value: Any) -> Any:
    """Numbers stay numbers, also those that are texts."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
