"""The command `cl-bench figure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import (
    Backbone,
    Benchmark,
    Highlight,
    Results,
    Rows,
    check_known,
    from_runs,
    from_sections,
)
from cl_bench.cli.shared import err, out
from cl_bench.errors import UserError
from cl_bench.grammar import PICTURES, parse_pictures

if TYPE_CHECKING:
    from cl_bench.reporting.charts import Chart


def figure(
    name: Annotated[str, typer.Argument(help="Figure, see 'cl-bench ls figures'.", autocompletion=completion.FIGURE)],
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    rows: Rows = None,
    highlight: Highlight = None,
    results: Results = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="png, pdf, svg, several with commas, or csv alone.",
            autocompletion=completion.one_of(*PICTURES, "csv", separator=","),
        ),
    ] = "png",
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports/figures"),
) -> None:
    """Draw a figure of the paper or of every protocol, and write its numbers as CSV."""
    from cl_bench.reporting import comparison, plots
    from cl_bench.reporting.paper import figures as paper_figures
    from cl_bench.reporting.paper.layouts import figure_layouts
    from cl_bench.reporting.render import drawing
    from cl_bench.reporting.selection import Selection

    kinds = () if form == "csv" else parse_pictures(form, "--format")
    check_known(name, "figure", [*figure_layouts(), *plots.NAMES, "ranks"])
    selection = Selection.parse(rows, highlight)
    charts: list[tuple[Chart, str, tuple[str, ...]]] = []
    if name == "ranks":
        ranks = from_sections(comparison.ranks, results, benchmark, backbone, selection)
        if ranks is None:
            raise UserError("average ranks need three rows with runs on the same ten streams and seeds; run more seeds")
        charts.append((ranks, ranks.name, ()))
    elif name in plots.NAMES:
        charts = from_sections(
            lambda found: [
                (made[name], f"{section.slug}-{name}", section.ceilings)
                for section in found
                if name in (made := plots.standard(section))
            ],
            results,
            benchmark,
            backbone,
            selection,
        )
        if not charts:
            raise UserError(f"no stored run can fill the figure '{name}'; see 'cl-bench results ls' for what there is")
    else:
        made = from_runs(lambda runs: paper_figures.build(name, runs, benchmark, backbone, selection), results)
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
