"""`cl-bench report|table|figure|compare`: what is made of stored results alone, without torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli.results import REFERENCE, RESULTS, folders_of, warn_damaged
from cl_bench.cli.shared import err, out
from cl_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    from cl_bench.reporting.charts import Chart
    from cl_bench.reporting.runs import Run, Section
    from cl_bench.reporting.text_tables import TextTable

# pandas, matplotlib and the like are imported by the commands that need them.

Results = Annotated[
    list[Path] | None,
    typer.Option(help="Folders to read; may be given several times.", show_default="results/runs, results/reference"),
]
Benchmark = Annotated[str | None, typer.Option(help="Only, or instead of the paper's.", show_default=False)]
Backbone = Annotated[str | None, typer.Option(help="Only, or instead of the paper's.", show_default=False)]
Form = Annotated[str, typer.Option("--format", help="terminal, md, csv, tex (LaTeX, booktabs) or html.")]
OutFile = Annotated[Path | None, typer.Option("--out", help="File to write to.", show_default="the screen")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: cl-bench report --results results/reference --pictures png,pdf")(report)
    app.command(epilog="Example: cl-bench table sdlora-table2 --benchmark icons-100 --format tex")(table)
    app.command(epilog="Example: cl-bench figure sdlora-fig2 --benchmark icons-100 --format pdf")(figure)
    app.command(epilog=r"Example: cl-bench compare sdlora inflora 'coda\[align=true]' --margin 1")(compare)


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

    folders = _folders(results)
    kinds = () if pictures == "none" else _formats(pictures, "--pictures")
    command = " ".join(["cl-bench report", *(f"--results {folder}" for folder in folders), f"--out {output}"])
    command += f" --pictures {pictures}" if kinds else ""
    with err.status("rendering ..."):
        rendered = reports.render([(folder, folder.name) for folder in folders], output, command, kinds)
    for damaged in rendered.damaged:
        warn_damaged(damaged)
    for built in rendered.tables:
        text_tables.show(result_table.text_table(built), out)
    out.print(f"report: {output / 'index.html'}", soft_wrap=True, highlight=False)


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

    _known(name, "table", table_names())
    runs = _runs(results)
    if benchmark is not None and not any(run.protocol.benchmark == benchmark for run in runs):
        streams.find(benchmark)
    made = paper_tables.build(name, runs, benchmark, backbone)
    _print(made.text_table, form, output)
    if made.commands:
        err.print(f"{made.cells - made.filled} of {made.cells} cells have no run; this fills them:")
        store = f" --results {shlex.quote(str(results[0]))}" if results else ""
        for command in made.commands:
            err.print(f"{command}{store}", markup=False)


def figure(
    name: Annotated[str, typer.Argument(help="See 'cl-bench ls figures'.")],
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    results: Results = None,
    form: Annotated[str, typer.Option("--format", help="png, pdf, svg, several with commas, or csv alone.")] = "png",
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports/figures"),
) -> None:
    """A figure of the paper, or one that every protocol has, with the numbers behind it as CSV."""
    from cl_bench.reporting import comparison, plots
    from cl_bench.reporting.paper import figures as paper_figures
    from cl_bench.reporting.paper.layouts import figure_layouts
    from cl_bench.reporting.render import drawing

    kinds = () if form == "csv" else _formats(form, "--format")
    _known(name, "figure", [*figure_layouts(), *plots.NAMES, "ranks"])
    charts: list[tuple[Chart, str, tuple[str, ...]]] = []
    if name == "ranks":
        ranks = comparison.ranks(_sections(results, benchmark, backbone))
        if ranks is None:
            raise UserError("average ranks need three rows with runs on the same ten streams and seeds; run more seeds")
        charts.append((ranks, ranks.name, ()))
    elif name in plots.NAMES:
        for section in _sections(results, benchmark, backbone):
            found = plots.standard(section)
            if name in found:
                charts.append((found[name], f"{section.slug}-{name}", section.ceilings))
        if not charts:
            raise UserError(f"no stored run can fill the figure '{name}'; see 'cl-bench results ls' for what there is")
    else:
        made = paper_figures.build(name, _runs(results), benchmark, backbone)
        for note in made.notes:
            err.print(note)
        if made.command:
            err.print(f"this makes what is missing:\n{made.command}")
        if made.chart is None:
            raise UserError(f"no stored run can fill a panel of '{name}'; run the command above, or see --benchmark")
        charts.append((made.chart, made.chart.name, ()))
    try:
        output.mkdir(parents=True, exist_ok=True)
        for chart, stem, ceilings in charts:
            for path in drawing.save(chart, output / stem, kinds, ceilings):
                out.print(str(path), soft_wrap=True, highlight=False)
    except OSError as error:
        raise UserError(f"folder '{output}' cannot be written ({error.strerror}); name another one") from error


def compare(
    rows: Annotated[
        list[str] | None,
        typer.Argument(metavar="ROW", help="Names as in tables; all rows if none.", show_default=False),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are compared with.", show_default="the first row named")
    ] = None,
    metric: Annotated[str, typer.Option(help="acc, aaa, forgetting, ...")] = "acc",
    margin: Annotated[
        float | None,
        typer.Option(help="Also test equivalence within so many points.", show_default=False),
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Also compare inside each seed, by the stored predictions.")
    ] = False,
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    results: Results = None,
    form: Form = "terminal",
    output: OutFile = None,
) -> None:
    """Paired tests between rows on the same seeds and class orders: difference, p, effect size, equivalence."""
    from cl_bench import metrics
    from cl_bench.reporting import comparison

    named = rows or []
    against = baseline or (named[0] if named else None)
    if against is None:
        raise UserError("say what to compare: rows, e.g. 'cl-bench compare sdlora inflora', or --baseline ROW for all")
    if metric not in metrics.METRICS:
        raise unknown_name("metric", metric, metrics.METRICS)
    if margin is not None and not 0 < margin < 100:
        raise UserError(f"--margin {margin:g}: expected percentage points above 0 and below 100, e.g. --margin 1")
    found = _sections(results, benchmark, backbone)
    known = {label for section in found for label in section.rows}
    for label in [*named, against]:
        if label not in known:
            raise unknown_name("row", label, known, "See 'cl-bench results ls'.")
    if named and all(label == against for label in named):
        raise UserError(
            f"'{against}' cannot be compared with itself: name a second row, or all others with --baseline '{against}' "
            "and no row"
        )
    fitting = [section for section in found if against in section.rows]
    stores = _folders(results) if samples else ()
    made = [
        table
        for section in fitting
        if (table := comparison.text_table(section, against, named, metric, margin, stores))
    ]
    if not made:
        needs = f", and {metric} needs tasks learned one after the other" if metrics.METRICS[metric].sequential else ""
        raise UserError(
            f"no other row can be compared with '{against}' in any protocol: run them on the same seeds and class "
            f"orders{needs}"
        )
    for number, table in enumerate(made):
        if output is not None and len(made) > 1:
            _print(table, form, output.with_name(f"{output.stem}-{number + 1}{output.suffix}"))
        else:
            _print(table, form, output)


# --- what they share ---------------------------------------------------------------------------------------------


def _folders(results: Sequence[Path] | None) -> list[Path]:
    return list(results or [folder for folder in (RESULTS, REFERENCE) if folder.is_dir()] or [RESULTS])


def _sections(results: Sequence[Path] | None, benchmark: str | None, backbone: str | None) -> list[Section]:
    """The stored runs by protocol.

    Raises:
        UserError: there are none, or none of this benchmark or backbone.
    """
    from cl_bench.reporting import report as reports

    found, damaged = reports.load([(folder, folder.name) for folder in _folders(results)])
    for sentence in damaged:
        warn_damaged(sentence)
    for option, value in (("benchmark", benchmark), ("backbone", backbone)):
        if value is not None:
            there = {getattr(section.protocol, option) for section in found}
            if value not in there:
                raise unknown_name(f"--{option}", value, there, "Only these have stored runs.")
            found = [section for section in found if getattr(section.protocol, option) == value]
    return found


def _runs(results: Sequence[Path] | None) -> list[Run]:
    """All stored runs; none where there is nothing yet."""
    from cl_bench.reporting.runs import collect

    return collect([(folder, folder.name) for folder in folders_of(results)], warn_damaged)


def _known(name: str, what: str, names: Sequence[str] | dict[str, str]) -> None:
    if name not in names:
        raise unknown_name(what, name, list(names), f"See 'cl-bench ls {what}s'.")


def _formats(text: str, option: str) -> tuple[str, ...]:
    """Formats of pictures, as typed.

    Raises:
        UserError: one of them is none.
    """
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for kind in kinds:
        if kind not in PICTURES:
            raise unknown_name(option, kind, PICTURES)
    return kinds


PICTURES = ("png", "pdf", "svg")


def _print(table: TextTable, form: str, output: Path | None) -> None:
    """Show a table, or write it to a file, whose ending says how unless `form` does.

    Raises:
        UserError: no such format, or the file cannot be written.
    """
    from cl_bench.reporting import text_tables

    if output is not None and form == "terminal":
        form = output.suffix.removeprefix(".")
    if form == "terminal":
        text_tables.show(table, out)
        return
    text = text_tables.write(table, form)
    if output is None:
        print(text, end="")
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out '{output}' cannot be written ({error.strerror}); name another file") from error
    out.print(f"wrote {output}", soft_wrap=True, highlight=False)
