"""Logs a run to a CSV file, with a JSON file of its settings beside it; needs no package."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict

from cl_bench.files import write_atomically
from cl_bench.running.trackers.tracker import RunFacts, Status, Tracker


class CsvTracker(Tracker):
    """One row per step, one column per name; a value that was not measured at a step is an empty cell.

    A resumed run drops the rows after its checkpoint and writes them again.
    """

    def start(self, facts: RunFacts) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / f"{facts.file_stem}.csv"
        about = {name: value for name, value in asdict(facts).items() if name not in ("file_stem", "steps")}
        write_atomically(self._path.with_suffix(".json"), f"{json.dumps(about, indent=1)}\n".encode())
        self._columns = ["step"]
        rows = self._rows_until(facts.steps) if facts.steps else []
        self._rewrite(rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": str(step), **{name: repr(value) for name, value in values.items()}}
        if new := [name for name in row if name not in self._columns]:
            rows = self._rows_until(step - 1)
            self._columns += new
            self._rewrite([*rows, row])
            return
        # Appended in one call, so that a killed run leaves at most one incomplete line, its last.
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text([row]))

    def finish(self, status: Status) -> None:
        """Every row is written already."""

    def _rows_until(self, step: int) -> list[dict[str, str]]:
        """The complete rows of the file up to a step; its columns become those of this tracker."""
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
