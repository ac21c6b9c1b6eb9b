"""The command `cl-bench run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cl_bench.cli.progress import progress_bars, run_progress
from cl_bench.cli.shared import OPTIONS, REFERENCE, err, loading, out, split_given, takes
from cl_bench.errors import UserError
from cl_bench.options import ExecutionOptions, RunOptions
from cl_bench.store import DamagedRecord, RunRecord, Store

if TYPE_CHECKING:
    import torch

    from cl_bench.running.executors import Executor, Outcome
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.ray_executor import OnRay
    from cl_bench.running.runner import Settings


@takes(*OPTIONS)
def run(
    given: Mapping[str, Any],
    suite: Annotated[
        str | None,
        typer.Option(
            help="Instead of methods: a suite of 'cl-bench ls suites', or a YAML file.",
            show_default=False,
            rich_help_panel="What to run",
        ),
    ] = None,
) -> None:
    """Run methods on a benchmark; what is already in the results folder is not run again."""
    asked, execution = split_given(given)
    wanted, how = _wanted(asked, suite), ExecutionOptions.of(execution)
    on_ray = _on_ray(how)
    store = Store(how.results)
    if not how.dry_run:
        store.check_writable()
    with loading():
        from cl_bench.running import plan
        from cl_bench.running.device import pick_device, resolve_precision
        from cl_bench.running.executors import local_executor
        from cl_bench.running.runner import Settings

    where = on_ray.likely_device() if on_ray else pick_device(how.device)
    planned = plan.plan_options(wanted, partial(resolve_precision, device=where))
    if how.dry_run:
        for options in wanted:
            out.print(options.command(), soft_wrap=True, highlight=False, markup=False)
        preview(planned, store, [REFERENCE], where, how.force)
        return
    settings = Settings(how.checkpoint_every, how.force, how.compile, how.deterministic)
    if on_ray is None:
        _decode_images([run for run in planned if how.force or not store.json_path(run.experiment).is_file()])
    executor = on_ray or local_executor(planned, where, how.jobs)
    sys.exit(run_all(planned, store, executor, settings, how.fail_fast))


def _wanted(asked: Mapping[str, Any], suite: str | None) -> list[RunOptions]:
    """The options of every set of runs.

    Raises:
        UserError: neither methods nor a suite, or both; no such suite; an option that cannot be read.
    """
    if ("methods" in asked) == (suite is not None):
        raise UserError("say what to run: --methods 'sdlora,coda', or --suite NAME or FILE, and not both")
    if suite is None:
        return [RunOptions.of(asked)]
    from cl_bench.running.suites import find

    if "checkpoint" in asked:
        raise UserError("--checkpoint is for one backbone; name that and the methods instead of a suite")
    return [options.changed(asked) for options in find(suite).runs]


def _on_ray(how: ExecutionOptions) -> OnRay | None:
    """The Ray executor, if it is asked for."""
    if how.executor == "ray":
        from cl_bench.running.ray_executor import OnRay

        if how.jobs:
            raise UserError("--jobs is for this host alone; with --executor ray, see --cpus-per-run and --gpus-per-run")
        return OnRay(how.device, how.address, how.gpus_per_run, how.cpus_per_run or 1, how.collect)
    if how.executor != "here":
        raise UserError(f"--executor '{how.executor}' is unknown; expected here or ray")
    for name in ("address", "gpus_per_run", "cpus_per_run", "collect"):
        if name in how.given():
            raise UserError(f"{OPTIONS[name].flag} is for --executor ray")
    return None


def _decode_images(runs: Sequence[PlannedRun]) -> None:
    """Decode what these runs keep decoded, unless that was done before, and show how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cl_bench import streams

    columns = (TextColumn("decoding images once"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("", visible=False)
        for name, storage, data in dict.fromkeys((r.experiment.benchmark, r.experiment.storage, r.data) for r in runs):
            streams.find(name, data).source(
                storage, lambda done, total: bar.update(task, completed=done, total=total, visible=True)
            )


def run_all(
    planned: Sequence[PlannedRun],
    store: Store,
    executor: Executor,
    settings: Settings,
    fail_fast: bool = False,
) -> int:
    """Carry out what is missing and print one table over all of it.

    Returns:
        The exit code: 0, 2 if a run failed for its input, 1 if one failed for another reason.
    """
    from cl_bench.reporting import report, result_table, text_tables

    missing = [run for run in planned if settings.fresh or not _stored(run, store)]
    failed: list[Outcome] = []
    done = 0
    began = time.perf_counter()
    with (
        progress_bars("{task.fields[note]}") as bars,
        closing(executor(missing, store, settings, run_progress(bars, len(missing)))) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.failure:
                failed.append(outcome)
                if fail_fast:
                    break
            else:
                done += 1
    code = max((outcome.code for outcome in failed), default=0)
    records = [record for run in planned if (record := _find(run, store)) is not None]
    if records:
        for table in report.tables_of(records, origin=str(store.root)):
            text_tables.show(result_table.text_table(table), out)
    there = len(planned) - len(missing)
    computed = f"{done} run(s) computed in {(time.perf_counter() - began) / 60:.1f} min"
    left = len(missing) - done - len(failed)
    not_begun = f", {left} not begun (--fail-fast)" if left else ""
    err.print(escape(f"{computed}, {there} already there{not_begun}; results: {store.root}"))
    for outcome in failed:
        name = f"{outcome.run.label} seed {outcome.run.experiment.seed}"
        err.print(f"[bold red]error:[/] {escape(f'{name} failed: {outcome.failure}')}")
    return code


def preview(
    planned: Sequence[PlannedRun],
    store: Store,
    others: Sequence[Path],
    device: torch.device,
    force: bool = False,
) -> None:
    """Show what would run, what is there, and how long the rest may take, by stored times.

    Args:
        others: results folders whose times count as well.
    """
    from cl_bench.running.estimate import Times

    stores = [store, *(Store(folder) for folder in others if folder.is_dir())]
    times = Times.of([record for each in stores for record in each.records(lambda damaged: None)], device)
    table = Table("run", "benchmark", "tasks", "backbone", box=None, header_style="bold")
    table.add_column("seed", justify="right")
    table.add_column("state")
    table.add_column("minutes", justify="right")
    minutes: list[float | None] = []
    for run in planned:
        experiment = run.experiment
        there = not force and _stored(run, store)
        begun = store.checkpoint_path(experiment).exists() and not force
        state = "stored" if there else "begun" if begun else "missing"
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
    stored = len(planned) - len(minutes)
    out.print(f"{len(planned)} run(s): {stored} stored, {len(minutes)} to do{about}{rest}", highlight=False)


def _stored(run: PlannedRun, store: Store) -> bool:
    try:
        return store.find(run.experiment) is not None
    except DamagedRecord as error:
        err.print(f"[yellow]warning:[/] computing again, the stored result is damaged: {escape(str(error))}")
        return False


def _find(run: PlannedRun, store: Store) -> RunRecord | None:
    try:
        return store.find(run.experiment)
    except DamagedRecord:
        return None
