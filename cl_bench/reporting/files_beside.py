"""The files beside the page of a report: its tables, and the numbers and pictures of its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cl_bench.files import write_atomically
from cl_bench.reporting import charts as chart_data
from cl_bench.reporting import page_data, text_tables
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.text_tables import LatexOptions, TextTable
from cl_bench.running.workers import CONTEXT

_MAX_CHARTS_IN_ONE_PROCESS = 8
"""Up to this number of pictures, starting other processes, each with its own imports, takes longer than drawing."""
_Job = tuple[Chart, Path, Sequence[str], Sequence[str]]


class FileWriter:
    """Writes the files of a report, and returns the texts of those that its page offers.

    Args:
        out: folder of the report.
        pictures: formats of `render.drawing.FORMATS` in which every figure is also drawn, by `draw`.
        latex: how LaTeX tables are written.

    Its methods raise OSError if `out` cannot be written.
    """

    def __init__(self, out: Path, pictures: Sequence[str], latex: LatexOptions) -> None:
        self.out, self.pictures, self.latex = out, pictures, latex
        self._tables: list[Path] = []
        self._figures: dict[Path, list[Path]] = {}
        self._jobs: list[_Job] = []

    def make_folders(self) -> None:
        """Make the folders for all files."""
        for folder in ("tables", "figures"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)

    @property
    def paths(self) -> list[Path]:
        """Paths of the files written: tables, then figures."""
        return [*self._tables, *(path for paths in self._figures.values() for path in paths)]

    def tables(self, tables: Sequence[TextTable]) -> dict[str, str]:
        """Write tables in all formats; returns the texts that the page offers, by path."""
        offered = page_data.files_of_tables(tables, self.latex)
        for table in tables:
            for form in text_tables.FORMATS:
                name = f"tables/{table.name}.{form}"
                text = offered[name] if name in offered else text_tables.write(table, form, self.latex)
                self._tables.append(self._write(name, text))
        return offered

    def charts(self, charts: Mapping[str, Chart], ceilings: Sequence[str] = ()) -> dict[str, str]:
        """Write the numbers of charts, by the stem of their files; returns the texts, by path.

        Args:
            ceilings: labels of rows trained on all tasks at once.
        """
        texts = {}
        for stem, chart in charts.items():
            name = f"figures/{stem}.csv"
            texts[name] = chart_data.to_csv(chart)
            self._figures[self.out / "figures" / stem] = [self._write(name, texts[name])]
            if self.pictures:
                self._jobs.append((chart, self.out / "figures" / stem, self.pictures, ceilings))
        return texts

    def _write(self, name: str, text: str) -> Path:
        path = self.out / name
        write_atomically(path, text.encode())
        return path

    def join(self, other: FileWriter) -> None:
        """Take over the files that another writer of this report has written, and the pictures that it has to draw."""
        self._tables += other._tables
        self._figures |= other._figures
        self._jobs += other._jobs

    def discard(self) -> None:
        """Remove the files written so far, whose runs turned out to be unusable."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def draw(self) -> None:
        """Draw the pictures of all charts written so far; many are drawn by several processes."""
        workers = min(os.cpu_count() or 1, len(self._jobs))
        if workers <= 1 or len(self._jobs) <= _MAX_CHARTS_IN_ONE_PROCESS:
            drawn = list(map(_draw, self._jobs))
        else:
            with ProcessPoolExecutor(workers, mp_context=CONTEXT) as pool:
                drawn = list(pool.map(_draw, self._jobs, chunksize=2))
        for (_, stem, _, _), paths in zip(self._jobs, drawn, strict=True):
            self._figures[stem] = paths


def _draw(job: _Job) -> list[Path]:
    from cl_bench.reporting.render import drawing

    return drawing.save(*job)
