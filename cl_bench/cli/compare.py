"""The command `cl-bench compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import (
    Backbone,
    Benchmark,
    Form,
    Highlight,
    OutFile,
    Reference,
    Results,
    Rows,
    Siunitx,
    command_line,
    folders_of_predictions,
    from_sections,
    print_tables,
)
from cl_bench.cli.shared import err
from cl_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    from cl_bench.reporting.runs import Section
    from cl_bench.reporting.text_tables import TextTable

Columns = Annotated[
    str | None,
    typer.Option(
        help="Columns, in this order: runs, difference, p, holm, effect, wins; within, tost, samples if asked for; of "
        "traces also value, baseline.",
        show_default="all",
        autocompletion=completion.one_of("runs", "difference", "p", "holm", "effect", "wins", separator=","),
    ),
]


def compare(
    context: typer.Context,
    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="ROW", help="Rows, named as in tables; by default all.", show_default=False),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--against", "--baseline", help="Row that the others are compared with.", show_default="the first row named"
        ),
    ] = None,
    rows: Rows = None,
    columns: Columns = None,
    highlight: Highlight = None,
    metric: Annotated[
        str, typer.Option(help="Metric: acc, aaa, forgetting, ...", autocompletion=completion.METRIC)
    ] = "acc",
    trace: Annotated[
        str | None,
        typer.Option(
            help="Compare what runs traced instead: the name of a trace, such as updates, or updates.norm, several "
            "with commas.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="A line for each stage, block or other place of the trace.", show_default="mean over all"),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Also test equivalence within this many percentage points.", show_default=False),
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Also compare the stored predictions of each seed.")
    ] = False,
    across: Annotated[
        str | None,
        typer.Option(
            help="Also pair rows of different precision: precision.",
            show_default="rows of one precision only",
            autocompletion=completion.one_of("precision"),
        ),
    ] = None,
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    results: Results = None,
    reference: Reference = True,
    form: Form = "terminal",
    siunitx: Siunitx = False,
    output: OutFile = None,
) -> None:
    """Compare rows by paired tests on the same seeds and class orders: a metric, or what runs traced."""
    from cl_bench import metrics
    from cl_bench.reporting import comparison, precision, text_tables, traces
    from cl_bench.reporting.selection import Selection, matching

    named = named or []
    selection = Selection.parse(rows, highlight, columns)
    if named and selection.rows:
        raise UserError("name the rows to compare as arguments or by --rows, not both")
    against = baseline or (named[0] if named else None)
    if against is None:
        raise UserError("say what to compare: rows, e.g. 'cl-bench compare sdlora inflora', or --against ROW for all")
    if metric not in metrics.METRICS:
        raise unknown_name("metric", metric, metrics.METRICS)
    if margin is not None and not 0 < margin < 100:
        raise UserError(f"--margin {margin:g}: expected percentage points above 0 and below 100, e.g. --margin 1")
    if across not in (None, "precision"):
        raise UserError(
            f"--across '{across}': rows are paired across precision only; give --across precision, or omit it"
        )
    if by is not None and trace is None:
        raise UserError(f"--by {by} splits a trace; name one, e.g. --trace updates --by {by}")
    if trace is not None and (samples or margin is not None):
        raise UserError("--trace compares what runs traced, without --margin and --samples; leave them out")
    stores = folders_of_predictions(results, reference) if samples else ()
    wanted = traces.Wanted.parse(trace) if trace is not None else ()
    build = (
        partial(traces.text_table, wanted=wanted, by=by or "")
        if wanted
        else partial(comparison.text_table, metric=metric, margin=margin, folders=stores)
    )

    def tables(found: list[Section]) -> tuple[list[TextTable], dict[str, str], list[str]]:
        """Tables of comparisons; the reason for each protocol that has none; and what differs in precision alone."""
        traces.check(found, wanted, by or "")
        known = {label for section in found for label in section.rows}
        selection.check(dict.fromkeys(sorted(known), ""))
        row = _label(against, found)
        for label in named:
            if all(precision.find(section, section, label) is None for section in found):
                raise unknown_name("row", label, known, "See 'cl-bench results ls'.")
        if named and all(label in (against, row) for label in named):
            raise UserError(
                f"'{against}' cannot be compared with itself: name a second row, or all others with --against "
                f"'{against}' and no row"
            )
        made: list[TextTable] = []
        undefined: dict[str, str] = {}
        left_out: list[str] = []
        for whole in found:
            stand_out = tuple(matching(selection.highlight, whole.rows))
            section = replace(whole, chosen=bool(selection.rows), highlight=stand_out)
            chosen = selection.shown(whole.rows) if selection.rows else named
            if selection.rows and not chosen:
                continue
            for one in precision.comparisons(section, row, chosen, across is not None):
                table = build(one.section, one.baseline, one.rows, left_out=one.left_out)
                if table is None:
                    left_out.extend(one.left_out)
                else:
                    made.append(text_tables.with_columns(table, selection.columns) if selection.columns else table)
                if reason := "" if wanted else comparison.why_undefined(one.section, one.baseline, metric):
                    protocol = section.protocol
                    place = f"{protocol.benchmark}, {protocol.shape} (protocol {protocol.digest})"
                    undefined[place] = reason
        return made, undefined, left_out

    made, undefined, left_out = from_sections(tables, results, benchmark, backbone, reference=reference)
    if undefined and not made:
        reasons = " and ".join(dict.fromkeys(undefined.values()))
        raise UserError(f"'{against}' cannot be compared: {reasons}; compare by --metric acc, or with another row")
    for protocol, reason in undefined.items():
        err.print(f"no comparison with '{against}' on {protocol}: {reason}", markup=False)
    if not made and left_out:
        raise UserError(f"'{against}' has nothing to be compared with. {' '.join(dict.fromkeys(left_out))}")
    if not made and trace is not None:
        raise UserError(f"no row to be compared with '{against}' traced '{trace}'; name rows that did, or run them")
    if not made:
        needs = f", and {metric} needs tasks learned one after the other" if metrics.METRICS[metric].sequential else ""
        raise UserError(
            f"no other row can be compared with '{against}' in any protocol: run them on the same seeds and class "
            f"orders{needs}"
        )
    print_tables(made, form, output, text_tables.LatexOptions(siunitx, command_line(context)))


def _label(baseline: str, found: Sequence[Section]) -> str:
    """The baseline as it is written, if a row has this name with or without the mark of its precision; else by pattern.

    Raises:
        UserError: the pattern matches no row, or several.
    """
    from cl_bench.reporting import precision
    from cl_bench.reporting.selection import one_row

    if any(precision.find(section, section, baseline) is not None for section in found):
        return baseline
    return one_row("--against", baseline, sorted({label for section in found for label in section.rows}))
