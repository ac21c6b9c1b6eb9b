"""The command `cl-bench figure`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import (
    Backbone,
    Benchmark,
    Highlight,
    Reference,
    Results,
    Rows,
    check_known,
    folders_of_predictions,
    from_runs,
    from_sections,
)
from cl_bench.cli.shared import err, out, warn
from cl_bench.errors import UserError, printable
from cl_bench.grammar import PICTURES, parse_pictures

if TYPE_CHECKING:
    from cl_bench.reporting.charts import Chart
    from cl_bench.reporting.runs import Section


def figure(
    name: Annotated[str, typer.Argument(help="Figure, see 'cl-bench ls figures'.", autocompletion=completion.FIGURE)],
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    rows: Rows = None,
    highlight: Highlight = None,
    results: Results = None,
    reference: Reference = True,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="png, pdf, svg, several with commas, or csv alone.",
            autocompletion=completion.one_of(*PICTURES, "csv", separator=","),
        ),
    ] = "png",
    width: Annotated[
        str | None,
        typer.Option(
            help="Page to draw for, with its widths and letters: neurips, iclr, icml, cvpr, eccv or acl, with :column "
            "or :page for one width; or inches.",
            show_default="for the screen",
            autocompletion=completion.WIDTH,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports/figures"),
) -> None:
    """Draw a figure of the paper or of every protocol, and write its numbers as CSV."""
    from cl_bench.reporting import comparison, plots
    from cl_bench.reporting.chosen_tables import presented
    from cl_bench.reporting.confusions import views
    from cl_bench.reporting.paper import figures as paper_figures
    from cl_bench.reporting.paper.layouts import figure_layouts
    from cl_bench.reporting.render import drawing, venues
    from cl_bench.reporting.render.text_layout import SCREEN
    from cl_bench.reporting.selection import Selection

    kinds = () if form == "csv" else parse_pictures(form, "--format")
    check_known(name, "figure", [*figure_layouts(), *plots.NAMES, *views.NAMES, "ranks"])
    page = venues.parse_width(width) if width else SCREEN
    selection = Selection.parse(rows, highlight)
    charts: list[tuple[Chart, str, tuple[str, ...]]] = []
    if name == "ranks":
        ranks = from_sections(comparison.ranks, results, benchmark, backbone, selection, reference)
        if ranks is None:
            raise UserError("average ranks need three rows with runs on the same ten streams and seeds; run more seeds")
        charts.append((ranks, ranks.name, ()))
    elif name in plots.NAMES or name in views.NAMES:
        standard = (
            plots.standard
            if name in plots.NAMES
            else partial(_of_predictions, name, folders_of_predictions(results, reference))
        )
        charts = from_sections(
            lambda found: [
                (made[name], f"{section.slug}-{name}", section.ceilings)
                for section in presented(found)
                if name in (made := standard(section))
            ],
            results,
            benchmark,
            backbone,
            selection,
            reference,
        )
        if not charts:
            raise UserError(f"no stored run can fill the figure '{name}'; see 'cl-bench results ls' for what there is")
    else:
        made = from_runs(
            lambda runs: paper_figures.build(name, runs, benchmark, backbone, selection),
            results,
            benchmark or backbone,
            reference,
        )
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
            for path in drawing.save(chart, output / stem, kinds, ceilings, page):
                out.print(str(path), soft_wrap=True, highlight=False)
            err.print(f"caption: {printable(chart.caption)}", soft_wrap=True, highlight=False, markup=False)
    except OSError as error:
        raise UserError(f"folder '{output}' cannot be written ({error.strerror}); name another one") from error


def _of_predictions(name: str, folders: Sequence[Path], section: Section) -> dict[str, Chart]:
    """The chart of stored predictions with this name, if the runs of a protocol allow it; warns of runs without any."""
    from cl_bench.reporting.confusions import rows_of, views

    if not section.chosen and set(section.ceilings) == set(section.rows):
        # Runs of joint training on fewer tasks only serve as references for other rows.
        return {}
    rows, left = rows_of(section.rows, folders)
    if left:
        warn(f"{len(left)} of {len(section.runs)} runs of {section.slug} are left out: {left[0]}")
    return views.charts(section, rows, [name])
