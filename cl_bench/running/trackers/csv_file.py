"""Logs a run to a CSV file, with a JSON file of its settings beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from cl_bench.files import write_atomically
from cl_bench.running.trackers.rows import RowFile
from cl_bench.running.trackers.tracker import RunFacts, Status, Tracker


class CsvTracker(Tracker):
    """One row per step (see `RowFile`). A resumed run drops the rows after its checkpoint and writes them again."""

    def start(self, facts: RunFacts) -> None:
        path = self.path(facts, ".csv")
        self._rows = RowFile(path, facts.steps)
        about = {name: value for name, value in asdict(facts).items() if name != "steps"}
        write_atomically(path.with_suffix(".json"), f"{json.dumps(about, indent=1)}\n".encode())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._rows.append(step, values)

    def finish(self, status: Status) -> None:
        """Every row is on disk already."""
