"""The command `cl-bench table`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import (
    Against,
    Backbone,
    Benchmark,
    Columns,
    Form,
    Highlight,
    OutFile,
    Reference,
    Results,
    Rows,
    Siunitx,
    check_known,
    command_line,
    from_runs,
    from_sections,
    print_table,
    print_tables,
)  # fmt: skip
from cl_bench.cli.shared import err
from cl_bench.errors import UserError, counted

if TYPE_CHECKING:
    from cl_bench.reporting.runs import Run, Section
    from cl_bench.reporting.text_tables import TextTable


def table(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Table, see 'cl-bench ls tables'.", autocompletion=completion.TABLE)],
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    rows: Rows = None,
    columns: Columns = None,
    highlight: Highlight = None,
    against: Against = None,
    results: Results = None,
    reference: Reference = True,
    form: Form = "terminal",
    siunitx: Siunitx = False,
    output: OutFile = None,
) -> None:
    """Show stored rows, or a table of the paper: our values next to the published ones, commands for empty cells."""
    from cl_bench import streams
    from cl_bench.reporting import chosen_tables, result_table
    from cl_bench.reporting.cells import TABLES
    from cl_bench.reporting.paper import tables as paper_tables
    from cl_bench.reporting.paper.layouts import table_names
    from cl_bench.reporting.selection import Selection
    from cl_bench.reporting.text_tables import LatexOptions

    check_known(name, "table", [*TABLES, *table_names()])
    selection = Selection.parse(rows, highlight, columns, against)
    latex = LatexOptions(siunitx, command_line(context))
    if name in TABLES:

        def tables(found: list[Section]) -> list[TextTable]:
            chosen = selection.of(chosen_tables.presented(found))
            return [result_table.text_table(chosen_tables.build(section, selection)) for section in chosen]

        print_tables(from_sections(tables, results, benchmark, backbone, reference=reference), form, output, latex)
        return
    if against is not None:
        raise UserError(f"--against compares rows of one protocol; use it with 'cl-bench table results', not '{name}'")

    def build(runs: Sequence[Run]) -> paper_tables.PaperTable:
        if benchmark is not None and not any(run.protocol.benchmark == benchmark for run in runs):
            streams.find(benchmark)
        return paper_tables.build(name, runs, benchmark, backbone, selection)

    made = from_runs(build, results, benchmark or backbone, reference)
    print_table(made.text_table, form, output, latex)
    if made.commands:
        empty = made.cells - made.filled
        verb, them = ("has", "it") if empty == 1 else ("have", "them")
        err.print(f"{empty} of {counted(made.cells, 'cell')} {verb} no run; this fills {them}:")
        store = f" --results {shlex.quote(str(results[0]))}" if results else ""
        for command in made.commands:
            err.print(f"{command}{store}", markup=False)
