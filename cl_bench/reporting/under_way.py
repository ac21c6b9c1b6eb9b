"""Unfinished runs, for a report that is made again and again while a sweep runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cl_bench.files import write_atomically
from cl_bench.store import Store
from cl_bench.store.unfinished import unfinished


class Row(NamedTuple):
    """What is shown of an unfinished run, as texts."""

    label: str
    benchmark: str
    seed: str
    tasks: str
    accuracy: str
    when: str


@dataclass(frozen=True)
class UnderWay:
    """The unfinished runs of some results folders.

    Attributes:
        seconds: whole seconds after which a page that shows them reloads.
    """

    runs: tuple[Row, ...]
    seconds: int

    @property
    def reload(self) -> str:
        """The element of a page by which it reloads itself."""
        return f'<meta http-equiv="refresh" content="{self.seconds}">'


def look(folders: Sequence[Path], seconds: int) -> UnderWay:
    """The unfinished runs of these results folders."""
    rows = []
    for folder in folders:
        for run in unfinished(Store(folder)):
            rows.append(
                Row(
                    run.label,
                    run.benchmark,
                    "" if run.seed is None else str(run.seed),
                    f"{run.done} of {'?' if run.stages is None else run.stages}",
                    "-" if run.accuracy is None else f"{100 * run.accuracy:.1f} %",
                    f"{run.changed.astimezone():%Y-%m-%d %H:%M:%S}",
                )
            )
    return UnderWay(tuple(rows), seconds)


def stop_reloading(page: Path) -> None:
    """Let a page stay as it is.

    Raises:
        OSError: the page cannot be read or written.
    """
    head, mark, tail = page.read_text(encoding="utf-8").partition('<meta http-equiv="refresh" content="')
    if mark:
        write_atomically(page, (head + tail.partition(">\n")[2]).encode())
