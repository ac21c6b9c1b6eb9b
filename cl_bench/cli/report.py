"""The command `cl-bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cl_bench.cli.reports import Results, picture_formats, report_folders
from cl_bench.cli.results import warn_damaged
from cl_bench.cli.shared import err, out


def report(
    results: Results = None,
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports"),
    pictures: Annotated[
        str, typer.Option(help="Also draw every figure: png, pdf, svg, several with commas, or none.")
    ] = "none",
) -> None:
    """Recompute tables, figures and the HTML page from stored results alone."""
    from cl_bench.reporting import report as reports
    from cl_bench.reporting import result_table, text_tables

    folders = report_folders(results)
    kinds = () if pictures == "none" else picture_formats(pictures, "--pictures")
    command = " ".join(["cl-bench report", *(f"--results {folder}" for folder in folders), f"--out {output}"])
    command += f" --pictures {pictures}" if kinds else ""
    with err.status("rendering ..."):
        rendered = reports.render([(folder, folder.name) for folder in folders], output, command, kinds)
    for damaged in rendered.damaged:
        warn_damaged(damaged)
    for built in rendered.tables:
        text_tables.show(result_table.text_table(built), out)
    out.print(f"report: {output / 'index.html'}", soft_wrap=True, highlight=False)
