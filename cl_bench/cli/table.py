"""The command `cl-bench table`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import Backbone, Benchmark, Form, OutFile, Results, check_known, from_runs, print_table
from cl_bench.cli.shared import err
from cl_bench.errors import counted

if TYPE_CHECKING:
    from cl_bench.reporting.runs import Run


def table(
    name: Annotated[str, typer.Argument(help="Table, see 'cl-bench ls tables'.", autocompletion=completion.TABLE)],
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    results: Results = None,
    form: Form = "terminal",
    output: OutFile = None,
) -> None:
    """Show a table of the paper with our values next to the published ones, and the command for empty cells."""
    from cl_bench import streams
    from cl_bench.reporting.paper import tables as paper_tables
    from cl_bench.reporting.paper.layouts import table_names

    check_known(name, "table", table_names())

    def build(runs: Sequence[Run]) -> paper_tables.PaperTable:
        if benchmark is not None and not any(run.protocol.benchmark == benchmark for run in runs):
            streams.find(benchmark)
        return paper_tables.build(name, runs, benchmark, backbone)

    made = from_runs(build, results)
    print_table(made.text_table, form, output)
    if made.commands:
        empty = made.cells - made.filled
        verb, them = ("has", "it") if empty == 1 else ("have", "them")
        err.print(f"{empty} of {counted(made.cells, 'cell')} {verb} no run; this fills {them}:")
        store = f" --results {shlex.quote(str(results[0]))}" if results else ""
        for command in made.commands:
            err.print(f"{command}{store}", markup=False)
