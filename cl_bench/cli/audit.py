"""The command `cl-bench audit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_bench.cli import completion
from cl_bench.cli.shared import err, loading, takes
from cl_bench.errors import UserError
from cl_bench.experiment import LEAKY_OPTION
from cl_bench.grammar import MethodSpec, parse_methods
from cl_bench.options import RunOptions

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun

_TRIAL = {"limit_tasks": 3, "limit_train": 8, "limit_test": 5}
"""Limits of an audit without `--whole`."""


@takes(
    "method_file", "benchmark", "root", "backbone", "limit_tasks", "limit_train", "limit_test",
)  # fmt: skip
def audit(
    given: Mapping[str, Any],
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD",
            help=r"Methods, with their hyper-parameters: sdlora 'coda\[length=4]'.",
            show_default=False,
            autocompletion=completion.METHODS,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All methods, and the leaks of released code, which the audit must detect.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of class order and training.")] = 0,
    ceiling: Annotated[
        str, typer.Option(help="Joint training, whose best accuracy no method may exceed.")
    ] = "joint,joint[train=lora]",
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Audit on the whole benchmark, within given limits; by default 3 tasks, 8 and 5 images per class.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Markdown file in which the table between the audit markers is replaced.", show_default=False
        ),
    ] = None,
) -> None:
    """Check methods for test-time leaks, moved frozen weights and undeclared memory; exit code 1 if one fails."""
    if everything == bool(methods):
        raise UserError("name the methods to audit, e.g. 'cl-bench audit sdlora coda', or give --all, not both")
    requested = given if whole else {**_TRIAL, **given}
    options = RunOptions.of({**requested, "methods": methods or "joint", "scenario": "class-incremental"})
    joint = parse_methods(ceiling, "--ceiling")
    with loading():
        from cl_bench.cli.audit_view import audit_all, check_audit_file, write_audit
        from cl_bench.contract import registry
        from cl_bench.running import plan
        from cl_bench.studies import audit as audits

    if output is not None:
        check_audit_file(output)
    specs = list(options.methods)
    if everything:
        own = (path.stem for path in options.method_file)
        specs = [MethodSpec(name, {}) for name in dict.fromkeys([*registry.names(), *own])]
    known = registry.lookup([spec.name for spec in (*specs, *joint)], options.method_file)

    def planned(chosen: Sequence[MethodSpec]) -> list[plan.PlannedRun]:
        rows = replace(options, methods=tuple(chosen), seeds=(seed,))
        return plan.plan(plan.specs_of(rows, known, lambda precision: "fp32"))

    runs = planned(specs)
    rows = [audits.AuditedMethod(run.label, run.method) for run in runs]
    if everything:
        leaks = [
            MethodSpec(name, {LEAKY_OPTION: "true"}) for name, entry in known.items() if LEAKY_OPTION in entry.defaults
        ]
        rows += [audits.AuditedMethod(run.label, run.method, leaky=True) for run in planned(leaks)]
    longest = max(epochs for run in runs if isinstance(epochs := run.method.values().get("epochs", 0), int))
    best = [_trained_as_long(spec, planned, longest) for spec in joint]
    for run in best:
        if run.method.trains_on != "stream":
            raise UserError(f"--ceiling: '{run.label}' does not train on all tasks at once; take e.g. joint")
    reports, title = audit_all(rows, best, audits.Slice.of(runs[0]))
    if output is not None:
        write_audit(output, title, reports)
        err.print(f"table: {output}")
    sys.exit(0 if all(report.good for report in reports) else 1)


def _trained_as_long(
    ceiling: MethodSpec, planned: Callable[[Sequence[MethodSpec]], list[PlannedRun]], epochs: int
) -> PlannedRun:
    """Joint training, for as many epochs as the longest audited method: a longer training alone is no leak."""
    (run,) = planned([ceiling])
    own = run.method.values().get("epochs")
    if "epochs" in ceiling.options or not isinstance(own, int) or own >= epochs:
        return run
    (run,) = planned([replace(ceiling, options={**ceiling.options, "epochs": str(epochs)})])
    return run
