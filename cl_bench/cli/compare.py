"""The command `cl-bench compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import (
    Backbone,
    Benchmark,
    Form,
    OutFile,
    Results,
    from_sections,
    print_table,
)
from cl_bench.cli.shared import err
from cl_bench.errors import UserError, unknown_name
from cl_bench.store import folders_to_read

if TYPE_CHECKING:
    from cl_bench.reporting.runs import Section
    from cl_bench.reporting.text_tables import TextTable


def compare(
    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="ROW", help="Rows, named as in tables; by default all.", show_default=False),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Row that the others are compared with.", show_default="the first row named")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Metric: acc, aaa, forgetting, ...", autocompletion=completion.METRIC)
    ] = "acc",
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
    form: Form = "terminal",
    output: OutFile = None,
) -> None:
    """Compare rows by paired tests on the same seeds and class orders: difference, p, effect size, equivalence."""
    from cl_bench import metrics
    from cl_bench.reporting import comparison, precision

    named = named or []
    against = baseline or (named[0] if named else None)
    if against is None:
        raise UserError("say what to compare: rows, e.g. 'cl-bench compare sdlora inflora', or --baseline ROW for all")
    if metric not in metrics.METRICS:
        raise unknown_name("metric", metric, metrics.METRICS)
    if margin is not None and not 0 < margin < 100:
        raise UserError(f"--margin {margin:g}: expected percentage points above 0 and below 100, e.g. --margin 1")
    if across not in (None, "precision"):
        raise UserError(
            f"--across '{across}': rows are paired across precision only; give --across precision, or omit it"
        )
    stores = folders_to_read(results or ()) if samples else ()

    def tables(found: list[Section]) -> tuple[list[TextTable], dict[str, str], list[str]]:
        """Tables of comparisons; the reason for each protocol that has none; and what differs in precision alone."""
        known = {label for section in found for label in section.rows}
        for label in [*named, against]:
            if all(precision.find(section, section, label) is None for section in found):
                raise unknown_name("row", label, known, "See 'cl-bench results ls'.")
        if named and all(label == against for label in named):
            raise UserError(
                f"'{against}' cannot be compared with itself: name a second row, or all others with --baseline "
                f"'{against}' and no row"
            )
        made: list[TextTable] = []
        undefined: dict[str, str] = {}
        left_out: list[str] = []
        for section in found:
            for one in precision.comparisons(section, against, named, across is not None):
                table = comparison.text_table(one.section, one.baseline, one.rows, metric, margin, stores, one.left_out)
                if table is None:
                    left_out.extend(one.left_out)
                else:
                    made.append(table)
                if reason := comparison.why_undefined(one.section, one.baseline, metric):
                    protocol = section.protocol
                    place = f"{protocol.benchmark}, {protocol.shape} (protocol {protocol.digest})"
                    undefined[place] = reason
        return made, undefined, left_out

    made, undefined, left_out = from_sections(tables, results, benchmark, backbone)
    if undefined and not made:
        reasons = " and ".join(dict.fromkeys(undefined.values()))
        raise UserError(f"'{against}' cannot be compared: {reasons}; compare by --metric acc, or with another row")
    for protocol, reason in undefined.items():
        err.print(f"no comparison with '{against}' on {protocol}: {reason}", markup=False)
    if not made and left_out:
        raise UserError(f"'{against}' has nothing to be compared with. {' '.join(dict.fromkeys(left_out))}")
    if not made:
        needs = f", and {metric} needs tasks learned one after the other" if metrics.METRICS[metric].sequential else ""
        raise UserError(
            f"no other row can be compared with '{against}' in any protocol: run them on the same seeds and class "
            f"orders{needs}"
        )
    for number, table in enumerate(made):
        if output is not None and len(made) > 1:
            print_table(table, form, output.with_name(f"{output.stem}-{number + 1}{output.suffix}"))
        else:
            print_table(table, form, output)
