"""Progress display: a bar with the remaining time in a terminal or notebook, lines of text elsewhere."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cl_bench.running.progress import RunProgress

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun


class _NotebookBars(Progress):
    """Bars in the output of a notebook cell; unlike rich's own, they do not need ipywidgets."""

    _handle: Any = None
    _drawn = 0.0

    def start(self) -> None:
        """Show nothing until the first bar is added."""

    def stop(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        if not any(task.visible for task in self.tasks):
            return
        from IPython.display import HTML, display

        drawing = Console(file=io.StringIO(), record=True, width=100, force_terminal=True, force_jupyter=False)
        drawing.print(self.get_renderable())
        shown = HTML(drawing.export_html(inline_styles=True, code_format="<pre>{code}</pre>"))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
        self._drawn = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._refresh_at_times()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._refresh_at_times()

    def _refresh_at_times(self) -> None:
        if time.monotonic() - self._drawn > 0.2:
            self.refresh()


def progress_bars(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """Bars on this console; they are not drawn if it is neither a terminal nor a notebook."""
    if console.is_jupyter:
        return _NotebookBars(*columns, auto_refresh=False)
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=transient)


def timed_bars(console: Console, note: str) -> Progress:
    """Bars with a note and the remaining time."""
    columns = (BarColumn(bar_width=24), TextColumn(note), TimeElapsedColumn(), TextColumn("left"))
    return progress_bars(console, TextColumn("{task.description}"), *columns, TimeRemainingColumn())


def run_bars(console: Console) -> Progress:
    """Bars for `RunBars`."""
    return timed_bars(console, "{task.fields[note]}")


@contextmanager
def decoding_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for the decoding of images.

    Yields:
        A function that shows (done, total).
    """
    columns = (TextColumn("decoding images once"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bars(console, *columns, transient=True) as bar:
        task = bar.add_task("", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class RunBars(RunProgress):
    """Shows the progress of runs: one bar per run, or one line per task if no bars are drawn.

    Args:
        bars: the display to which each run adds a bar (see `run_bars`).
        runs: total number of runs.
        on_line: called with each line to print.
        on_warning: called with each warning, a sentence.
        numbers: source of the running numbers of runs, shared by the views of concurrent runs; None: a new one from 1.
        notes: notes that were printed, shared by the views of concurrent runs; None: none yet.
    """

    def __init__(
        self,
        bars: Progress,
        runs: int,
        on_line: Callable[[str], None],
        on_warning: Callable[[str], None],
        numbers: Iterator[int] | None = None,
        notes: set[str] | None = None,
    ) -> None:
        self.bars, self.runs, self.on_line, self.on_warning = bars, runs, on_line, on_warning
        self.numbers = numbers or itertools.count(1)
        self.notes = set() if notes is None else notes
        self.name = ""
        self.bar: TaskID | None = None

    def for_concurrent_run(self) -> RunProgress:
        return RunBars(self.bars, self.runs, self.on_line, self.on_warning, self.numbers, self.notes)

    def start(self, run: PlannedRun, images: int) -> None:
        self.name = f"[{next(self.numbers)}/{self.runs}] {run.name}"
        self.bar = self.bars.add_task(escape(self.name), total=images, note="")

    def advance(self, images: int) -> None:
        assert self.bar is not None
        self.bars.advance(self.bar, images)

    def resume(self, done: int, stages: int) -> None:
        self.on_line(f"{self.name} resumes after task {done}/{stages}")

    def warn(self, text: str) -> None:
        self.on_warning(text)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.add(text)
            self.on_line(text)

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        assert self.bar is not None
        note = f"task {index + 1}/{stages}: {100 * accuracy:.1f} %"
        self.bars.update(self.bar, note=note)
        if self.bars.disable:
            self.on_line(f"{self.name} {note} after {seconds:.0f} s")
