"""The command `cl-bench table`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from cl_bench.cli.reports import Backbone, Benchmark, Form, OutFile, Results, check_known, print_table, stored_runs
from cl_bench.cli.shared import err


def table(
    name: Annotated[str, typer.Argument(help="See 'cl-bench ls tables'.")],
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    results: Results = None,
    form: Form = "terminal",
    output: OutFile = None,
) -> None:
    """A table of the paper: our cells beside the published ones; what would fill the empty ones."""
    from cl_bench import streams
    from cl_bench.reporting.paper import tables as paper_tables
    from cl_bench.reporting.paper.layouts import table_names

    check_known(name, "table", table_names())
    runs = stored_runs(results)
    if benchmark is not None and not any(run.protocol.benchmark == benchmark for run in runs):
        streams.find(benchmark)
    made = paper_tables.build(name, runs, benchmark, backbone)
    print_table(made.text_table, form, output)
    if made.commands:
        err.print(f"{made.cells - made.filled} of {made.cells} cells have no run; this fills them:")
        store = f" --results {shlex.quote(str(results[0]))}" if results else ""
        for command in made.commands:
            err.print(f"{command}{store}", markup=False)
