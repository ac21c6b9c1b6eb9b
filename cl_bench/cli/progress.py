"""How runs are seen to get on: a bar with the time left on a terminal, one plain line per task elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cl_bench.cli.shared import err

if TYPE_CHECKING:
    from cl_bench.running import progress
    from cl_bench.running.plan import PlannedRun


def progress_bars(note: str) -> Progress:
    """Progress bars with a note and the time left; silent where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn(note),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def run_progress(bars: Progress, runs: int) -> progress.Progress:
    """Shows in these bars how so many runs get on."""
    from cl_bench.running import progress

    class Display(progress.Progress):
        """One run's bar, or its lines."""

        def __init__(self, bars: Progress, runs: int, numbers: Iterator[int]) -> None:
            self.bars, self.runs, self.numbers = bars, runs, numbers
            self.name = ""
            self.bar: TaskID | None = None

        def for_concurrent_run(self) -> progress.Progress:
            return Display(self.bars, self.runs, self.numbers)

        def start(self, run: PlannedRun, images: int) -> None:
            self.name = f"[{next(self.numbers)}/{self.runs}] {run.label} seed {run.experiment.seed}"
            self.bar = self.bars.add_task(escape(self.name), total=images, note="")

        def advance(self, images: int) -> None:
            assert self.bar is not None
            self.bars.advance(self.bar, images)

        def resume(self, done: int, stages: int) -> None:
            err.print(escape(f"{self.name} goes on after task {done}/{stages}"))

        def warn(self, text: str) -> None:
            err.print(f"[yellow]warning:[/] {escape(text)}")

        def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
            assert self.bar is not None
            note = f"task {index + 1}/{stages}: {100 * accuracy:.1f} %"
            self.bars.update(self.bar, note=note)
            if not err.is_terminal:
                err.print(escape(f"{self.name} {note} after {seconds:.0f} s"))

    return Display(bars, runs, itertools.count(1))
