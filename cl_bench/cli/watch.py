"""`cl-bench report --watch`: makes the report again whenever a run has gone on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cl_bench.cli.shared import out
from cl_bench.errors import printable
from cl_bench.running.signals import raise_if_interrupted
from cl_bench.store import CHECKPOINTS

if TYPE_CHECKING:
    from cl_bench.reporting.under_way import UnderWay


def watch(folders: Sequence[Path], index: Path, seconds: float, build: Callable[[UnderWay], None]) -> None:
    """Build a report, and again after each change of the folders, until Ctrl-C or another signal ends this.

    Args:
        index: page of the report.
        seconds: time between two looks at the folders, and between two reloads of the page.
        build: makes the report and shows its tables.
    """
    from cl_bench.reporting import under_way

    before: set[tuple[str, int]] | None = None
    try:
        while True:
            raise_if_interrupted()
            now = _state(folders)
            if now != before:
                before = now
                found = under_way.look(folders, math.ceil(seconds))
                if out.is_terminal:
                    out.clear()
                build(found)
                if found.runs:
                    out.print(_table(found))
                watched = ", ".join(map(str, folders))
                out.print(f"{datetime.now():%H:%M:%S} watching {escape(watched)}; Ctrl-C ends this", soft_wrap=True)
            time.sleep(seconds)
    finally:
        # The page stays as it is, but no longer asks for a newer one.
        with suppress(OSError):
            under_way.stop_reloading(index)


def _state(folders: Sequence[Path]) -> set[tuple[str, int]]:
    """Path and time of change of each record and checkpoint."""
    found = set()
    for folder in folders:
        for path in (*folder.glob("*.json"), *(folder / CHECKPOINTS).glob("*.safetensors")):
            # It may be gone by now.
            with suppress(OSError):
                found.add((str(path), path.stat().st_mtime_ns))
    return found


def _table(found: UnderWay) -> Table:
    table = Table("run", "benchmark", "seed", "tasks", "acc so far", "last sign", box=None, header_style="bold")
    for run in found.runs:
        table.add_row(*(escape(printable(text)) for text in run))
    table.title = "unfinished"
    return table
