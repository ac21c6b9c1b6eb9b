"""The command `cl-bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli.reports import Against, Columns, Highlight, Reference, Results, Rows, Siunitx
from cl_bench.cli.results import warn_damaged
from cl_bench.cli.shared import err, out
from cl_bench.cli.watch import watch
from cl_bench.errors import UserError
from cl_bench.grammar import parse_pictures
from cl_bench.store import folders_to_read, own_folders

if TYPE_CHECKING:
    from cl_bench.reporting.under_way import UnderWay


def report(
    results: Results = None,
    reference: Reference = True,
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports"),
    pictures: Annotated[
        str, typer.Option(help="Draw every figure as png, pdf, svg, several of them (png,pdf), or none.")
    ] = "none",
    follow: Annotated[
        bool, typer.Option("--watch", help="Make the report again whenever a run has gone on, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=86400, help="With --watch: seconds between two looks.", metavar="SECONDS")
    ] = 10.0,
    site: Annotated[
        Path | None,
        typer.Option(
            help="Write a static leaderboard to this folder instead: pages per method, benchmark and backbone, with "
            "published numbers, ready to be hosted.",
            show_default=False,
        ),
    ] = None,
    rows: Rows = None,
    columns: Columns = None,
    highlight: Highlight = None,
    against: Against = None,
    siunitx: Siunitx = False,
) -> None:
    """Make tables, figures and an HTML page from stored results."""
    if site is not None:
        if follow:
            raise UserError("--watch makes the page of --out again, not a site; leave out --site or --watch")
        write_site(results, site)
        return
    from cl_bench.reporting import report as reports
    from cl_bench.reporting import result_table, text_tables
    from cl_bench.reporting.selection import Selection

    kinds = () if pictures == "none" else parse_pictures(pictures)
    selection = Selection.parse(rows, highlight, columns, against)
    folders = own_folders(results or ())
    index = output / "index.html"

    def build(under_way: UnderWay | None = None) -> None:
        with err.status("rendering ..."):
            try:
                rendered = reports.report_folders(
                    results or (), output, kinds, under_way, selection, siunitx, reference
                )
            except reports.NoResults as error:
                # A folder that the user names is expected to hold runs; without one, the page says how to get some.
                if results and not follow:
                    raise
                rendered = reports.render_without_runs(folders, output, under_way)
                err.print(str(error), soft_wrap=True, highlight=False, markup=False)
        for damaged in rendered.damaged:
            warn_damaged(damaged)
        for built in rendered.tables:
            text_tables.show(result_table.text_table(built), out)
        out.print(f"report: {index}", soft_wrap=True, highlight=False)

    if follow:
        watch(folders, index, interval, build)
    else:
        build()


def write_site(results: list[Path] | None, folder: Path) -> None:
    """Write the static leaderboard and name its index and the skipped files."""
    from cl_bench.reporting.site import pages

    with err.status("rendering ..."):
        index, damaged = pages.write(folders_to_read(results or ()), folder, may_be_empty=not results)
    for sentence in damaged:
        warn_damaged(sentence)
    out.print(f"site: {index}", soft_wrap=True, highlight=False)
