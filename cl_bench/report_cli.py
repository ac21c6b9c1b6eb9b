"""`cl-bench report`: what is made of stored results alone, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_bench import results_cli
from cl_bench.results_cli import REFERENCE, RESULTS

# pandas, matplotlib and the like are imported by the commands that need them.

out = Console()
err = Console(stderr=True, highlight=False, soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: cl-bench report --results results/reference --out reports")(report)


def report(
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folders to read; may be given several times.",
            show_default="results/runs, results/reference",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports"),
) -> None:
    """Recompute tables, figures and the HTML page from stored results alone."""
    from cl_bench import report as reports
    from cl_bench.report.tables import show as show_table

    folders = results or [folder for folder in (RESULTS, REFERENCE) if folder.is_dir()] or [RESULTS]
    command = " ".join(["cl-bench report", *(f"--results {folder}" for folder in folders), f"--out {output}"])
    with err.status("rendering ..."):
        rendered = reports.render([(folder, folder.name) for folder in folders], output, command)
    for damaged in rendered.damaged:
        results_cli.warn_damaged(damaged)
    for table in rendered.tables:
        show_table(table, out)
    out.print(f"report: {output / 'index.html'}", soft_wrap=True, highlight=False)
