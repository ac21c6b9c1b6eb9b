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


def lines_to_csv(
    head: Sequence[str], lines: Iterable[tuple[Sequence[object], Sequence[float | None]]], float_format: str
) -> str:
    """CSV of some lines, as `to_csv` makes it of a frame with these columns; None and NaN are empty cells.

    Args:
        lines: each line as texts or whole numbers, which recur from line to line, and other numbers.
        float_format: format of numbers, e.g. `%.10g`.
    """
    made = [",".join(map(_cell, head))]
    for first, numbers in lines:
        # NaN is the number that differs from itself.
        shown = ["" if one is None or one != one else float_format % one for one in numbers]
        made.append(",".join([*map(_cell, first), *shown]))
    return "\n".join([*made, ""])


@lru_cache(maxsize=4096)
def _cell(value: object) -> str:
    """Text of a cell among others; labels of rows and tasks recur in every line of a chart."""
    buffer = io.StringIO()
    # Alone in its line, an empty text would be quoted.
    csv.writer(buffer, lineterminator="").writerow([_inert(value), None])
    return buffer.getvalue()[:-1]


def _inert(value: Any) -> Any:
    """Put an apostrophe before a text that looks like a formula; texts that are numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
