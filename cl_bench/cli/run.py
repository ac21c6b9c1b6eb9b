"""The command `cl-bench run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cl_bench.cli import completion
from cl_bench.cli.shared import OPTIONS, err, loading, out, run_progress, split_given, takes, warn
from cl_bench.options import ExecutionOptions
from cl_bench.running.progress_bars import decoding_bar, run_bars
from cl_bench.running.sweep import Sweep, wanted_options
from cl_bench.store import REFERENCE, Store

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun


@takes(*OPTIONS)
def run(
    given: Mapping[str, Any],
    suite: Annotated[
        str | None,
        typer.Option(
            help="Suite of 'cl-bench ls suites', or a YAML file, instead of methods.",
            show_default=False,
            rich_help_panel="What to run",
            autocompletion=completion.SUITE,
        ),
    ] = None,
) -> None:
    """Run methods on a benchmark; runs that are already stored are not repeated."""
    requested, execution = split_given(given)
    wanted, how = wanted_options(requested, suite), ExecutionOptions.of(execution)
    sweep = Sweep.of(wanted, how, loading)
    if how.dry_run:
        for options in wanted:
            out.print(options.command(), soft_wrap=True, highlight=False, markup=False)
    for remark in sweep.remarks():
        warn(remark)
    missing = sweep.missing(warn)
    if how.dry_run:
        say_hyperparameters(sweep, out)
        preview(sweep, missing, [REFERENCE])
        return
    with decoding_bar(err) as on_progress:
        sweep.decode(missing, on_progress)
    say_hyperparameters(sweep, err)
    sys.exit(run_all(sweep, missing))


def say_hyperparameters(sweep: Sweep, console: Console) -> None:
    """Say where the hyper-parameters of each row come from, and how long it trains."""
    for line in sweep.hyperparameters():
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def run_all(sweep: Sweep, missing: Sequence[PlannedRun]) -> int:
    """Execute the missing runs and print one table of all runs.

    Returns:
        The exit code: 0 if all runs succeeded, 2 if a run failed because of its input, 1 if for another reason.
    """
    from cl_bench.reporting import report, result_table, text_tables

    began = time.perf_counter()
    with run_bars(err) as bars:
        outcomes = sweep.carry_out(missing, run_progress(bars, len(missing)))
    records = sweep.records()
    if records:
        for table in report.tables_of(records, origin=str(sweep.store.root)):
            text_tables.show(result_table.text_table(table), out)
    failed = [outcome for outcome in outcomes if outcome.failure]
    there = len(sweep.planned) - len(missing)
    done = len(outcomes) - len(failed)
    computed = f"{done} run(s) computed in {(time.perf_counter() - began) / 60:.1f} min"
    left = len(missing) - len(outcomes)
    logs = f"; logs: {sweep.log.folder}" if sweep.log and outcomes else ""
    not_begun = f", {left} not begun (--fail-fast)" if left else ""
    err.print(escape(f"{computed}, {there} already there{not_begun}; results: {sweep.store.root}{logs}"))
    for outcome in failed:
        err.print(f"[bold red]error:[/] {escape(f'{outcome.run.name} failed: {outcome.failure}')}")
    return max((outcome.code for outcome in failed), default=0)


def preview(sweep: Sweep, missing: Sequence[PlannedRun], others: Sequence[Path]) -> None:
    """Show which runs are stored or missing, and estimate the remaining time from stored times.

    Args:
        sweep: requested runs.
        missing: runs that are not stored.
        others: further results folders whose times are used.
    """
    from cl_bench.running.estimate import Times

    store, device = sweep.store, sweep.device
    stores = [store, *(Store(folder) for folder in others if folder.is_dir())]
    times = Times.of([record for each in stores for record in each.records(lambda damaged: None)], device)
    table = Table("run", "benchmark", "tasks", "backbone", box=None, header_style="bold")
    table.add_column("seed", justify="right")
    table.add_column("state")
    table.add_column("minutes", justify="right")
    to_do = {run.experiment.key for run in missing}
    minutes: list[float | None] = []
    for run in sweep.planned:
        experiment = run.experiment
        there = experiment.key not in to_do
        begun = store.checkpoint_path(experiment).exists() and not sweep.how.force
        state = "stored" if there else "begun" if begun else "missing"
        if run.lacks:
            state = f"no {run.lacks[0]}"
        estimate = None if there else times.minutes(experiment)
        if not there:
            minutes.append(estimate)
        shown = "" if there else "?" if estimate is None else f"{estimate:.1f}"
        tasks = str(experiment.num_tasks)
        cells = (run.label, experiment.benchmark, tasks, experiment.backbone, str(experiment.seed), state, shown)
        table.add_row(*map(escape, cells))
    out.print(table)
    known = [each for each in minutes if each is not None]
    unknown = len(minutes) - len(known)
    about = f", about {sum(known):.1f} min one after the other on {device.type}" if known else ""
    rest = f"; no times are stored for {unknown} of them" if unknown else ""
    stored = len(sweep.planned) - len(minutes)
    lacking = any(run.lacks for run in sweep.planned)
    unseen = "; results are found again only with the data and weights of a run" if lacking else ""
    out.print(
        f"{len(sweep.planned)} run(s): {stored} stored, {len(minutes)} to do{about}{rest}{unseen}", highlight=False
    )
