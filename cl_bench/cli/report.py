"""The command `cl-bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cl_bench.cli.reports import Results
from cl_bench.cli.results import warn_damaged
from cl_bench.cli.shared import err, out
from cl_bench.grammar import parse_pictures
from cl_bench.store import folders_to_read


def report(
    results: Results = None,
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports"),
    pictures: Annotated[
        str, typer.Option(help="Draw every figure as png, pdf, svg, several of them (png,pdf), or none.")
    ] = "none",
    site: Annotated[
        Path | None,
        typer.Option(
            help="Write a static leaderboard to this folder instead: pages per method, benchmark and backbone, with "
            "published numbers, ready to be hosted.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make tables, figures and an HTML page from stored results."""
    if site is not None:
        write_site(results, site)
        return
    from cl_bench.reporting import report as reports
    from cl_bench.reporting import result_table, text_tables

    kinds = () if pictures == "none" else parse_pictures(pictures)
    folders = folders_to_read(results or ())
    with err.status("rendering ..."):
        try:
            rendered = reports.report_folders(folders, output, kinds)
        except reports.NoResults as error:
            # A folder that the user names is expected to hold runs; without one, the page says how to get some.
            if results:
                raise
            rendered = reports.render_without_runs(folders, output)
            err.print(str(error), soft_wrap=True, highlight=False, markup=False)
    for damaged in rendered.damaged:
        warn_damaged(damaged)
    for built in rendered.tables:
        text_tables.show(result_table.text_table(built), out)
    out.print(f"report: {output / 'index.html'}", soft_wrap=True, highlight=False)


def write_site(results: list[Path] | None, folder: Path) -> None:
    """Write the static leaderboard and name its index and the skipped files."""
    from cl_bench.reporting.site import pages

    with err.status("rendering ..."):
        index, damaged = pages.write(folders_to_read(results or ()), folder, may_be_empty=not results)
    for sentence in damaged:
        warn_damaged(sentence)
    out.print(f"site: {index}", soft_wrap=True, highlight=False)
