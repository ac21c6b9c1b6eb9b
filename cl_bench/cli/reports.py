"""Helpers of commands that only read stored results: options, loading of runs, output of tables."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cl_bench.cli import completion
from cl_bench.cli.results import folders_of, warn_damaged
from cl_bench.cli.shared import out
from cl_bench.errors import UserError, unknown_name
from cl_bench.options.execution import RESULTS_DEFAULT
from cl_bench.store import REFERENCE, own_folders

if TYPE_CHECKING:
    from cl_bench.reporting.reference import ReferenceResults
    from cl_bench.reporting.runs import Run, Section
    from cl_bench.reporting.selection import Selection
    from cl_bench.reporting.text_tables import LatexOptions, TextTable

# pandas, matplotlib and the like are imported by the commands that need them.

Results = Annotated[
    list[Path] | None,
    typer.Option(help="Folders to read; may be given several times.", show_default=RESULTS_DEFAULT),
]
Reference = Annotated[
    bool,
    typer.Option(
        "--reference/--no-reference",
        help="Put the reference results that come with cl-bench beside runs of the same protocol.",
    ),
]
Benchmark = Annotated[
    str | None,
    typer.Option(
        help="Only this benchmark, or this one instead of the paper's.",
        show_default=False,
        autocompletion=completion.BENCHMARK,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="Only this backbone, or this one instead of the paper's.",
        show_default=False,
        autocompletion=completion.BACKBONE,
    ),
]
Form = Annotated[
    str,
    typer.Option(
        "--format",
        help="terminal, md, csv, tex (LaTeX, booktabs) or html.",
        autocompletion=completion.one_of("terminal", "md", "csv", "tex", "html"),
    ),
]
Rows = Annotated[
    str | None,
    typer.Option(
        help="Rows to show, in this order: patterns with * and ?, separated by commas; 'sdlora' matches it with any "
        "options, 'sdlora[]' without.",
        show_default="all",
        autocompletion=completion.METHODS,
    ),
]
Highlight = Annotated[
    str | None,
    typer.Option(
        help="Rows that stand out, as patterns: in colour while others are grey, bold in tables.",
        show_default=False,
        autocompletion=completion.METHODS,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Columns of tables, in this order: metrics (acc,bwt,...), seeds, minutes, trainable, tuning.",
        show_default="acc,aaa,forgetting and the costs",
        autocompletion=completion.COLUMNS,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="Row that the others are compared with: adds the paired difference in the first metric, and p.",
        show_default=False,
        autocompletion=completion.METHOD,
    ),
]
Siunitx = Annotated[
    bool,
    typer.Option("--siunitx", help="Write LaTeX tables with siunitx columns, aligned at the decimal point."),
]
OutFile = Annotated[Path | None, typer.Option("--out", help="File to write to.", show_default="the screen")]


Made = TypeVar("Made")


def from_sections(
    make: Callable[[list[Section]], Made],
    results: Sequence[Path] | None,
    benchmark: str | None,
    backbone: str | None,
    selection: Selection | None = None,
    reference: bool = True,
) -> Made:
    """Apply `make` to the stored runs, grouped by protocol; damaged runs are named and skipped.

    Args:
        selection: the rows to keep; by default all.
        reference: whether the reference results join, see `joining`.

    Raises:
        UserError: there are no runs, none with this benchmark or backbone, or none of a selected row.
    """
    from cl_bench.reporting import report as reports
    from cl_bench.reporting.runs import sections
    from cl_bench.reporting.salvage import without_failing_runs

    folders = own_folders(results or ())
    runs, damaged = reports.load_runs(reports.origins(folders), joining(results, benchmark or backbone, reference))
    for sentence in damaged:
        warn_damaged(sentence)

    def apply(some: Sequence[Run]) -> Made:
        found = _chosen(sections(some), benchmark, backbone)
        return make(found if selection is None else selection.of(found))

    return without_failing_runs(apply, runs, warn_damaged)


def _chosen(found: list[Section], benchmark: str | None, backbone: str | None) -> list[Section]:
    for option, value in (("benchmark", benchmark), ("backbone", backbone)):
        if value is not None:
            there = {getattr(section.protocol, option) for section in found}
            if value not in there:
                raise unknown_name(f"--{option}", value, there, "Only these have stored runs.")
            found = [section for section in found if getattr(section.protocol, option) == value]
    return found


def from_runs(
    make: Callable[[Sequence[Run]], Made], results: Sequence[Path] | None, chosen: str | None, reference: bool = True
) -> Made:
    """Apply `make` to all stored runs, or to none if nothing is stored; damaged runs are named and skipped.

    Args:
        chosen: benchmark or backbone that the user asked for.
        reference: whether the reference results join, see `joining`.
    """
    from cl_bench.reporting.runs import collect
    from cl_bench.reporting.salvage import without_failing_runs

    folders = folders_of(results) if results else own_folders()
    runs = collect([(folder, folder.name) for folder in folders], warn_damaged, joining(results, chosen, reference))
    return without_failing_runs(make, runs, warn_damaged)


def joining(results: Sequence[Path] | None, chosen: str | None, reference: bool) -> ReferenceResults | None:
    """The reference results that join the runs of the named folders, by default of the default one.

    They join where a run has the same protocol; all of them join if the user asks for a benchmark or backbone, or has
    named no folder and has no runs.

    Args:
        chosen: benchmark or backbone that the user asked for.
        reference: whether any join.
    """
    from cl_bench.reporting.reference import of

    return of(own_folders(results or ()), alone=not results, everywhere=chosen is not None) if reference else None


def folders_of_predictions(results: Sequence[Path] | None, reference: bool) -> list[Path]:
    """The folders that may hold predictions: the named ones or the default one, and the reference of a checkout."""
    return [*own_folders(results or ()), *([REFERENCE] if reference and REFERENCE.is_dir() else [])]


def check_known(name: str, what: str, names: Sequence[str] | dict[str, str]) -> None:
    if name not in names:
        raise unknown_name(what, name, list(names), f"See 'cl-bench ls {what}s'.")


def command_line(context: typer.Context) -> str:
    """The command line that is being carried out, with the arguments and options that the user gave."""
    words, options = ["cl-bench", context.info_name or ""], list[str]()
    for parameter in context.command.params:
        name, flag = parameter.name or "", parameter.opts[0]
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        values = [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
        if parameter.param_type_name == "argument":
            words += values
        else:
            options += [flag] if value is True else [part for one in values for part in (flag, one)]
    return shlex.join([*words, *options])


def print_tables(tables: Sequence[TextTable], form: str, output: Path | None, latex: LatexOptions) -> None:
    """`print_table` for each of several tables; files of more than one are numbered."""
    for number, table in enumerate(tables, start=1):
        several = output is not None and len(tables) > 1
        place = output.with_name(f"{output.stem}-{number}{output.suffix}") if output and several else output
        print_table(table, form, place, latex)


def print_table(table: TextTable, form: str, output: Path | None, latex: LatexOptions | None = None) -> None:
    """Print a table, or write it to a file in the format `form`, by default that of the file's ending.

    Raises:
        UserError: the format is unknown, siunitx is asked for in another format than LaTeX, or the file cannot be
            written.
    """
    from cl_bench.reporting import text_tables

    if output is not None and form == "terminal":
        form = output.suffix.removeprefix(".")
    if latex and latex.siunitx and form != "tex":
        raise UserError("--siunitx is for LaTeX tables; give --format tex, or --out FILE.tex")
    if form == "terminal":
        text_tables.show(table, out)
        return
    text = text_tables.write(table, form, latex)
    if output is None:
        print(text, end="")
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out '{output}' cannot be written ({error.strerror}); name another file") from error
    out.print(f"wrote {output}", soft_wrap=True, highlight=False)
