"""Data frames and lists as CSV in which spreadsheets find no formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
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


def lines_to_csv(head: Sequence[str], lines: Iterable[Sequence[object]], float_format: str) -> str:
    """CSV of some lines, as `to_csv` makes it of a frame with these columns; None and NaN are empty cells.

    Args:
        float_format: format of floats, e.g. `%.10g`.
    """

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_inert, head))
    writer.writerows(
        [
            (float_format % value if value == value else None)
            if isinstance(value, float)
            else _inert_text(value)
            if isinstance(value, str)
            else value
            for value in line
        ]
        for line in lines
    )
    return buffer.getvalue()


def _inert(value: Any) -> Any:
    """Put an apostrophe before a text that looks like a formula; texts that are numbers stay as they are."""
    return _inert_text(value) if isinstance(value, str) else value


@lru_cache(maxsize=4096)
def _inert_text(value: str) -> str:
    """`_inert` of a text; labels of rows and tasks recur in every line of a chart."""
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
