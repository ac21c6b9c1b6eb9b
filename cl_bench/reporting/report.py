"""Reports: tables, figures and a page from folders of run records, without torch."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cl_bench.errors import UserError, printable
from cl_bench.files import write_atomically
from cl_bench.reporting import chosen_tables, comparison, page, result_table
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.files_beside import FileWriter
from cl_bench.reporting.intransigence import references
from cl_bench.reporting.page_data import PageData
from cl_bench.reporting.paper import figures as paper_figures
from cl_bench.reporting.paper import tables as paper_tables
from cl_bench.reporting.paper.layouts import figure_layouts, table_benchmarks, table_names, table_rows
from cl_bench.reporting.protocols import ProtocolRenderer, ReportSettings
from cl_bench.reporting.reference import ORIGIN, ReferenceResults
from cl_bench.reporting.reference import of as reference_of
from cl_bench.reporting.runs import Run, Section, collect, label_runs, sections
from cl_bench.reporting.salvage import without_failing_runs
from cl_bench.reporting.selection import Selection
from cl_bench.reporting.text_tables import LatexOptions, TextTable
from cl_bench.reporting.under_way import UnderWay
from cl_bench.store import REFERENCE, RunRecord, own_folders


class NoResults(UserError):
    """None of the folders holds a run, damaged ones included."""


@dataclass(frozen=True)
class RenderedReport:
    """Output of `render`.

    Attributes:
        paths: files written, the page first.
        damaged: one sentence per skipped result file, naming it.
        tables: the result tables, one per protocol, for printing.
    """

    paths: list[Path]
    damaged: list[str]
    tables: list[result_table.ResultTable]


def tables_of(records: Iterable[RunRecord], origin: str) -> list[result_table.ResultTable]:
    """Build the result tables of loaded records, one per protocol."""
    return [result_table.build(section) for section in sections(label_runs((record, origin) for record in records))]


def load_runs(
    folders: Iterable[tuple[Path, str]], reference: ReferenceResults | None = None
) -> tuple[list[Run], list[str]]:
    """Read all valid runs of the folders, and the reference runs that join them.

    Args:
        folders: pairs of path and origin name, the preferred one first (see `runs.collect`).

    Returns:
        The runs in the order of reports: by protocol, row, seed and class order, as `runs.sections` sorts them; and one
        sentence per damaged file.

    Raises:
        NoResults: none of the folders holds a run.
        UserError: all runs are damaged.
    """
    folders = list(folders)
    damaged: list[str] = []
    runs = [run for section in sections(collect(folders, damaged.append, reference)) for run in section.runs]
    if not runs:
        looked = ", ".join(f"'{path}'" for path, _ in folders) or "no folder at all"
        skipped = f" ({len(damaged)} damaged: {'; '.join(damaged)})" if damaged else ""
        kind = UserError if damaged else NoResults
        raise kind(f"no results in {looked}{skipped}; make some with `cl-bench run --methods NAME,NAME`")
    return runs, damaged


def report_folders(
    named: Sequence[Path],
    out: Path,
    pictures: Sequence[str] = (),
    under_way: UnderWay | None = None,
    selection: Selection | None = None,
    siunitx: bool = False,
    reference: bool = True,
) -> RenderedReport:
    """`render` with the folders' names as origins; the page shows the matching `cl-bench report` command.

    Args:
        named: results folders; none: the default one.
        reference: whether the reference results join, where a run has their protocol. Without any run, those of a
            checkout are shown, and those of the package are not.
    """
    folders = own_folders(named)
    command = " ".join(["cl-bench report", *(f"--results {folder}" for folder in folders), f"--out {out}"])
    command += f" --pictures {','.join(pictures)}" if pictures else ""
    command += f" {shlex.join(selection.flags())}" if selection and selection.flags() else ""
    command += " --siunitx" if siunitx else ""
    command += "" if reference else " --no-reference"
    joining = reference_of(folders, alone=not named and REFERENCE.is_dir()) if reference else None
    return render(origins(folders), out, command, pictures, under_way, selection, siunitx, joining)


def origins(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Pairs of folder and origin: its name, or its whole path where another folder has the same name."""
    names = Counter(folder.name for folder in folders)
    return [(folder, folder.name if names[folder.name] == 1 else str(folder)) for folder in folders]


def render_without_runs(folders: Sequence[Path], out: Path, under_way: UnderWay | None = None) -> RenderedReport:
    """Write a page that says what to type to get runs.

    Raises:
        UserError: `out` cannot be written.
    """
    command = "cl-bench report" if out == Path("reports") else f"cl-bench report --out {out}"
    return render_sections([], [], {str(folder): str(folder) for folder in folders}, out, command, (), under_way)


def render(
    folders: Iterable[tuple[Path, str]],
    out: Path,
    command: str,
    pictures: Sequence[str] = (),
    under_way: UnderWay | None = None,
    selection: Selection | None = None,
    siunitx: bool = False,
    reference: ReferenceResults | None = None,
) -> RenderedReport:
    """Write the page, `index.html`, and its tables and the numbers of its figures as files.

    - Per protocol: `tables/SLUG.{md,csv,tex,html}`, and `figures/SLUG-NAME.csv` for each chart of `plots.standard` and
      of `confusions.on_page`.
    - Per benchmark with suitable runs: the papers' tables and figures, e.g. `tables/sdlora-table2-BENCHMARK.md` and
      `figures/sdlora-fig2-BENCHMARK.csv`.
    - `figures/ranks.csv` if there are at least ten blocks (see `comparison.ranks`).

    The same records give the same bytes. Other files in `out` are left alone.

    Args:
        folders: pairs of path and origin name, the preferred one first.
        out: folder to write to; made if missing.
        command: command line that makes this report, shown on the page.
        pictures: formats of `render.drawing.FORMATS` in which every figure is also drawn.
        under_way: unfinished runs that the page shows, and how often it reloads; None: it does neither.
        selection: the rows and columns to show; by default all.
        siunitx: write LaTeX tables for the package siunitx.
        reference: reference results that join the runs of the folders.

    Raises:
        UserError: there is no valid run, no row or column that was chosen, the reference cannot be read, or `out`
            cannot be written.
    """
    folders = list(folders)
    runs, damaged = load_runs(folders, reference)
    places = {origin: str(path) for path, origin in folders}
    if reference is not None:
        places.setdefault(ORIGIN, str(reference.path) if reference.has_predictions else "")

    def write(chosen: Sequence[Run], to: Path = out) -> RenderedReport:
        return render_sections(sections(chosen), damaged, places, to, command, pictures, under_way, selection, siunitx)

    def attempt(chosen: Sequence[Run]) -> None:
        with TemporaryDirectory() as folder:
            write(chosen, Path(folder))

    return without_failing_runs(write, runs, damaged.append, attempt)


def render_sections(
    everything: Sequence[Section],
    damaged: Sequence[str],
    places: Mapping[str, str],
    out: Path,
    command: str,
    pictures: Sequence[str] = (),
    under_way: UnderWay | None = None,
    selection: Selection | None = None,
    siunitx: bool = False,
    processes: int | None = None,
) -> RenderedReport:
    """`render` for runs that are loaded already.

    Args:
        damaged: one sentence per skipped result file.
        places: path of the results folder by origin; empty for the results that come with the package.
        processes: number of processes that share the protocols; None: see `ProtocolRenderer`.

    Raises:
        UserError: `out` cannot be written.
    """
    runs = [run for section in everything for run in section.runs]
    selection = selection or Selection()
    chosen_tables.check(selection)
    found = selection.of(chosen_tables.presented(everything))
    named = {printable(origin): printable(path) for origin, path in places.items()}
    data, latex = PageData(), LatexOptions(siunitx, command)
    tables: dict[str, result_table.ResultTable] = {}
    stores = tuple(Path(path) for path in places.values() if path)
    files = FileWriter(out, pictures, latex)
    settings = ReportSettings(out, tuple(pictures), latex, selection, named, stores, references(runs))
    try:
        files.make_folders()
        with ProtocolRenderer(page.in_order(found), settings, processes) as renderer:
            papers, figures = paper_parts(runs, selection)
            ranks = comparison.ranks(found)
            figures = [*([ranks] if ranks else []), *figures]
            rendered = renderer.results()
        for one in rendered:
            files.join(one.files)
            data.add(one.data)
            tables[one.table.slug] = one.table
        stems = {chart.name: chart for chart in figures}
        data.add_papers(figures, files.tables(papers) | files.charts(stems))
        files.draw()
        texts = list(map(page.FigureText.of, figures))
        shown_command, folders = printable(command), list(named.values())
        parts = [one.parts for one in rendered]
        text = page.render(parts, papers, texts, data, damaged, shown_command, folders, under_way)
        write_atomically(out / "index.html", text.encode())
    except OSError as error:
        raise UserError(
            f"report folder '{out}' cannot be written ({error.strerror}: {error.filename}); name another one"
        ) from error
    except Exception:
        files.discard()
        raise
    return RenderedReport(
        [out / "index.html", *files.paths], list(damaged), [tables[section.slug] for section in found]
    )


def paper_parts(runs: Sequence[Run], selection: Selection | None = None) -> tuple[list[TextTable], list[Chart]]:
    """The papers' tables and figures with runs: in the paper's own protocol, and once per other benchmark.

    Only their rows among those selected are shown; without any, a table or figure is left out.
    """
    by_benchmark: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_benchmark[run.protocol.benchmark].append(run)
    others = sorted(by_benchmark)
    selection = selection or Selection()
    made_tables, made_figures = [], []
    for name in table_names():
        chosen = selection.rows_of(table_rows(name))
        for benchmark in (None, *(other for other in others if other not in table_benchmarks(name))):
            fitting = runs if benchmark is None else by_benchmark[benchmark]
            table = paper_tables.build(name, fitting, benchmark, selection=chosen) if chosen else None
            if table is not None and table.filled:
                made_tables.append(table.text_table)
    for name, layout in figure_layouts().items():
        own = {panel.benchmark for panel in layout.panels}
        chosen = selection.rows_of(dict.fromkeys((row for panel in layout.panels for row in panel.rows), ""))
        for benchmark in (None, *(other for other in others if other not in own)):
            fitting = runs if benchmark is None else by_benchmark[benchmark]
            figure = paper_figures.build(name, fitting, benchmark, selection=chosen) if chosen else None
            if figure is not None and figure.chart is not None and figure.filled:
                made_figures.append(figure.chart)
    return made_tables, made_figures
