"""A CSV file of logged rows, which a resumed run continues."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from cl_bench.files import write_atomically


class RowFile:
    """One row per step, one column per name; a value that was not measured at a step is an empty cell.

    Every row is on disk when `append` returns; a killed process leaves at most one incomplete line, the last.

    Args:
        path: the file, whose folder is made if it is missing.
        steps: rows of an existing file that are kept, up to this step; 0: none.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        self._columns = ["step"]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(self._rows_until(steps) if steps else [])

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write the row of a step that is later than all others."""
        row = {"step": str(step), **{name: repr(value) for name, value in values.items()}}
        if new := [name for name in row if name not in self._columns]:
            rows = self._rows_until(step - 1)
            self._columns += new
            self._rewrite([*rows, row])
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text([row]))

    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """Step and values of all rows."""
        read = self._rows_until()
        return [(int(row.pop("step")), {name: float(text) for name, text in row.items() if text}) for row in read]

    def _rows_until(self, step: float = float("inf")) -> list[dict[str, str]]:
        """The complete rows of the file up to a step; its columns become those of this object."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        self._columns = list(reader.fieldnames or ["step"])
        return [row for row in reader if int(row["step"]) <= step]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        heads = dict(zip(self._columns, self._columns, strict=True))
        write_atomically(self._path, self._text([heads, *rows]).encode())

    def _text(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()
