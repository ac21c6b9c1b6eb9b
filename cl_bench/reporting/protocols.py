"""The parts of a report that belong to one protocol; the protocols of a large report are shared among processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cl_bench.reporting import chosen_tables, page, plots, result_table
from cl_bench.reporting.confusions.on_page import on_page
from cl_bench.reporting.files_beside import FileWriter
from cl_bench.reporting.intransigence import References
from cl_bench.reporting.page_data import ProtocolData
from cl_bench.reporting.result_table import ResultTable
from cl_bench.reporting.runs import Section
from cl_bench.reporting.selection import Selection
from cl_bench.reporting.text_tables import LatexOptions
from cl_bench.running.workers import CONTEXT, become_helper, interrupts_blocked

_RUNS_PER_PROCESS = 500
"""Number of runs whose part of a report takes about twice as long as starting a process."""


@dataclass(frozen=True)
class ReportSettings:
    """What all protocols of a report share.

    Attributes:
        out: folder of the report; its subfolders exist.
        pictures: formats of `render.drawing.FORMATS` in which every figure will also be drawn.
        places: path of the results folder by origin, printable.
        stores: results folders with predictions.
        references: result of `intransigence.references` of all runs.
    """

    out: Path
    pictures: Sequence[str]
    latex: LatexOptions
    selection: Selection
    places: Mapping[str, str]
    stores: Sequence[Path]
    references: References


@dataclass(frozen=True)
class RenderedProtocol:
    """The part of a report for one protocol.

    Attributes:
        parts: see `page.protocol_parts`.
        files: the writer with the files of the protocol.
    """

    table: ResultTable
    data: ProtocolData
    parts: dict[str, Any]
    files: FileWriter


def render_protocol(section: Section, settings: ReportSettings) -> RenderedProtocol:
    """Write the files of a protocol, and make its part of the page; if its runs make that fail, remove the files again.

    Raises:
        OSError: the folder of the report cannot be written.
    """
    files = FileWriter(settings.out, settings.pictures, settings.latex)
    try:
        table = chosen_tables.build(section, settings.selection)
        shown, errors = plots.standard(section), on_page(section, settings.stores)
        charts = {**shown, **(errors.charts if errors else {})}
        stems = {f"{section.slug}-{name}": chart for name, chart in charts.items()}
        written = files.tables([result_table.text_table(table)]) | files.charts(stems, section.ceilings)
        data = ProtocolData.of(section, table, charts, settings.places, settings.references, written)
        return RenderedProtocol(table, data, page.protocol_parts(section, table, shown, errors), files)
    except OSError:
        raise
    except Exception:
        files.discard()
        raise


class ProtocolRenderer:
    """Renders protocols, those of a large report with the help of other processes, which start with the `with` block.

    The helpers take protocols from the beginning; this process takes them from the end when it asks for `results`. If
    runs make the block fail, the files written so far are removed again.

    Args:
        processes: number of processes, this one included; None: by cores and runs.
    """

    def __init__(self, sections: Sequence[Section], settings: ReportSettings, processes: int | None = None) -> None:
        self.sections, self.settings = sections, settings
        if processes is None:
            runs = sum(len(section.runs) for section in sections)
            processes = min(os.cpu_count() or 1, runs // _RUNS_PER_PROCESS)
        self._helpers = max(0, min(processes, len(sections)) - 1)
        self._left = deque(range(len(sections)))
        self._helped: dict[int, Future[RenderedProtocol]] = {}
        self._mine: dict[int, RenderedProtocol] = {}
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[int | None] = set()
        self._feeder = threading.Thread(target=self._feed, daemon=True)

    def __enter__(self) -> ProtocolRenderer:
        if self._helpers:
            self._others = {child.pid for child in multiprocessing.active_children()}
            self._pool = ProcessPoolExecutor(self._helpers, mp_context=CONTEXT, initializer=become_helper)
            with interrupts_blocked():
                for _ in range(self._helpers):
                    self._submit()
            self._feeder.start()
        return self

    def _submit(self) -> Future[RenderedProtocol] | None:
        """Give the next protocol to a helper; None if there is none left, or the helpers have ended."""
        assert self._pool is not None
        try:
            place = self._left.popleft()
            self._helped[place] = self._pool.submit(render_protocol, self.sections[place], self.settings)
        except (IndexError, RuntimeError):
            return None
        return self._helped[place]

    def _feed(self) -> None:
        """Give each helper its next protocol when it has rendered one, so that none waits in a queue."""
        busy = set(self._helped.values())
        while busy:
            done, busy = wait(busy, return_when=FIRST_COMPLETED)
            busy |= {future for _ in done if (future := self._submit())}

    def results(self) -> list[RenderedProtocol]:
        """All protocols, in the order of the sections.

        Raises:
            OSError: the folder of the report cannot be written.
        """
        while (place := self._last()) is not None:
            self._mine[place] = render_protocol(self.sections[place], self.settings)
        if self._helpers:
            self._feeder.join()
        return [self._result(place) for place in range(len(self.sections))]

    def _last(self) -> int | None:
        """The last protocol that nobody has begun."""
        try:
            return self._left.pop()
        except IndexError:
            return None

    def _result(self, place: int) -> RenderedProtocol:
        if place not in self._mine:
            with suppress(BrokenProcessPool, KeyError):
                return self._helped[place].result()
            # A helper was killed, perhaps because memory ran out: this process makes do without.
            self._mine[place] = render_protocol(self.sections[place], self.settings)
        return self._mine[place]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.clear()
        if self._pool is not None:
            if error is not None:
                for child in multiprocessing.active_children():
                    if child.pid not in self._others:
                        child.terminate()
            self._pool.shutdown(cancel_futures=True)
        if isinstance(error, Exception) and not isinstance(error, OSError):
            ended = [one for one in self._helped.values() if one.done() and not one.cancelled() and not one.exception()]
            for rendered in (*self._mine.values(), *(one.result() for one in ended)):
                rendered.files.discard()
