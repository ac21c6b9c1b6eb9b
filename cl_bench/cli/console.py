"""What a person sees in the terminal while runs go on, and when looking things up."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cl_bench.errors import UserError
from cl_bench.store import Arrays, DamagedRecord, RunRecord, Store

if TYPE_CHECKING:
    import torch

    from cl_bench.running import runner
    from cl_bench.running.executors import Executor, Outcome
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.runner import Settings
    from cl_bench.studies.tune import Row, Search


def _display(bars: Progress, runs: int, err: Console) -> runner.Progress:
    """Shows how so many runs get on."""
    from cl_bench.running import runner

    class Display(runner.Progress):
        """A bar with the time left on a terminal, one plain line per task elsewhere."""

        def __init__(self, bars: Progress, runs: int, numbers: Iterator[int]) -> None:
            self.bars, self.runs, self.numbers = bars, runs, numbers
            self.name = ""
            self.bar: TaskID | None = None

        def beside(self) -> runner.Progress:
            return Display(self.bars, self.runs, self.numbers)

        def start(self, run: PlannedRun, images: int) -> None:
            self.name = f"[{next(self.numbers)}/{self.runs}] {run.label} seed {run.experiment.seed}"
            self.bar = self.bars.add_task(escape(self.name), total=images, note="")

        def advance(self, images: int) -> None:
            assert self.bar is not None
            self.bars.advance(self.bar, images)

        def resume(self, done: int, stages: int) -> None:
            err.print(escape(f"{self.name} goes on after task {done}/{stages}"))

        def warn(self, text: str) -> None:
            err.print(f"[yellow]warning:[/] {escape(text)}")

        def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
            assert self.bar is not None
            note = f"task {index + 1}/{stages}: {100 * accuracy:.1f} %"
            self.bars.update(self.bar, note=note)
            if not err.is_terminal:
                err.print(escape(f"{self.name} {note} after {seconds:.0f} s"))

    return Display(bars, runs, itertools.count(1))


def repeat_run(
    record: RunRecord, arrays: Arrays, run: PlannedRun, device: torch.device, out: Console, err: Console
) -> bool:
    """Carry a stored run out again and print the difference; returns whether there is none."""
    from cl_bench.studies.repeat import repeat

    with _bars("{task.fields[note]}", err) as bars:
        found = repeat(record, arrays, run, device, _display(bars, 1, err))
    table = Table("", "stored", "now", "difference", box=None, header_style="bold")
    accuracies = (f"{100 * value:.2f}" for value in (found.stored, found.now))
    table.add_row("accuracy, %", *accuracies, f"{100 * (found.now - found.stored):+.2f}")
    for name, before, now in found.environment:
        table.add_row(name, str(before), str(now), "")
    out.print(f"{escape(found.label)}, seed {record.experiment.seed}, key {found.key}")
    out.print(table)
    differing = (
        f"{found.counts} of {found.entries} counts and {found.predictions} of {found.images} final predictions differ"
        + (" (other hardware or versions round differently, which training amplifies)" if found.environment else "")
    )
    out.print("the same in every count and prediction" if found.identical else differing)
    return found.identical


def run_all(
    planned: Sequence[PlannedRun],
    store: Store,
    executor: Executor,
    settings: Settings,
    out: Console,
    err: Console,
    fail_fast: bool = False,
) -> int:
    """Carry out what is missing and print one table over all of it.

    Returns:
        The exit code: 0, 2 if a run failed for its input, 1 if one failed for another reason.
    """
    from cl_bench.reporting import report, result_table, text_tables

    missing = [run for run in planned if settings.fresh or not _stored(run, store, err)]
    failed: list[Outcome] = []
    done = 0
    began = time.perf_counter()
    with (
        _bars("{task.fields[note]}", err) as bars,
        closing(executor(missing, store, settings, _display(bars, len(missing), err))) as outcomes,
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
    out: Console,
    err: Console,
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
        there = not force and _stored(run, store, err)
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


def _bars(note: str, err: Console) -> Progress:
    """Progress bars with a note and the time left; silent where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn(note),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def bench_all(
    planned: Sequence[PlannedRun],
    device: torch.device,
    settings: Settings,
    task: int,
    steps: int,
    as_json: bool,
    out: Console,
    err: Console,
) -> None:
    """Time every run's method and print what was found, a row each.

    Raises:
        UserError: the stream has no such task.
    """
    from cl_bench.studies import bench

    experiment = planned[0].experiment
    if task >= experiment.num_tasks:
        raise UserError(f"--task {task + 1} is more than the {experiment.num_tasks} tasks there are")
    found = []
    with err.status("a large matrix product ..."):
        ceiling = bench.ceiling(device, experiment.precision)
    for run in planned:
        with err.status(escape(f"{run.label} ...")):
            found.append(bench.measure(run, device, settings, task=task, steps=steps, ceiling=ceiling))
    name = bench.device_name(device)
    if as_json:
        rows = [asdict(speed) | {"rate": speed.rate, "headroom": speed.headroom} for speed in found]
        # Of methods that take no steps, there is no number of theirs.
        rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        document = {"device": name, "precision": experiment.precision, "ceiling": ceiling, "rows": rows}
        out.print_json(json.dumps(document))
        return
    size = experiment.transforms.size
    out.print(
        f"{name}, {experiment.precision}: a large product runs at {ceiling / 1e12:.3g} TFLOP/s, the ceiling\n"
        f"{experiment.benchmark}; {experiment.backbone} at {size} x {size}; task {task + 1}",
        highlight=False,
    )
    table = Table("method", box=SIMPLE_HEAD)
    heads = ["batch", "step,\nms", "trained,\nimg/s", "of ceil-\ning, %", "predicted,\nimg/s"]
    heads += ["data,\nimg/s", "data /\ntrained"]
    for head in (*heads, *(("peak,\nGiB",) if device.type == "cuda" else ())):
        table.add_column(head, justify="right")
    for speed in found:
        trained = (f"{1000 * speed.step:.1f}", f"{speed.rate:,.0f}", f"{100 * speed.share:.0f}")
        cells = (str(speed.batch), *trained, f"{speed.prediction:,.0f}", f"{speed.data:,.0f}", f"{speed.headroom:.1f}")
        memory = (f"{speed.memory / 2**30:.1f}",) if device.type == "cuda" else ()
        table.add_row(escape(speed.label), *("-" if cell == "nan" else cell for cell in cells), *memory)
    out.print(table)
    for speed in found:
        if speed.waits:
            out.print(escape(f"{speed.label}: the host waits for the device in every step"))
        if speed.headroom < 1:
            out.print(escape(f"{speed.label}: the network waits for its images"))


def tune_all(rows: Sequence[Row], how: Search, output: Path, out: Console, err: Console) -> None:
    """Carry out a search, print every trial, and write the recipes.

    Raises:
        UserError: a row has nothing to search, or all its trials failed.
    """
    from cl_bench.running import recipes
    from cl_bench.studies import tune

    total = len(rows) * how.budget * len(how.seeds)
    bars = _bars("{task.completed}/{task.total} runs", err)
    with bars:
        bar = bars.add_task(f"tuning on {escape(how.stream)}", total=total)
        trials = tune.search(rows, how, lambda: bars.advance(bar))
    found = []
    for row, tried in zip(rows, trials, strict=True):
        table = Table("validation aaa, %", "setting", title=Text(row.label), title_justify="left", box=SIMPLE_HEAD)
        for trial in sorted(tried, key=lambda trial: -(trial.score or 0.0)):
            score = escape(trial.failure) if trial.score is None else f"{100 * trial.score:.2f}"
            table.add_row(score, escape(" ".join(f"{name}={value}" for name, value in trial.values.items())))
        out.print(table)
        found.append(tune.best(row, tried, how))
    recipes.write(output, found)
    minutes = sum(entry.minutes for entry in found)
    out.print(
        f"{len(found)} recipe(s) from {total} runs ({minutes:.1f} min of training and evaluation): {output}",
        soft_wrap=True,
        highlight=False,
    )


def _stored(run: PlannedRun, store: Store, err: Console) -> bool:
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


def show_thing(name: str, benchmark: str, backbone: str | None, method_files: Sequence[Path], out: Console) -> None:
    """Show a method (with its recipe), a benchmark or a backbone.

    Raises:
        UserError: nothing has this name.
    """
    import dataclasses

    from cl_bench import backbones, streams
    from cl_bench.contract import registry
    from cl_bench.errors import unknown_name
    from cl_bench.running import plan

    own = {found.name: found for found in map(registry.load_file, method_files)}
    if name in own or name in registry.names():
        found = own.get(name) or registry.find(name)
        vit = backbones.find(backbone) if backbone else None
        resolved, recipe = plan.resolve(found, streams.find(benchmark), {}, backbone=vit)
        out.print(f"[bold]{name}[/] (revision {found.revision}): {escape(found.cls.paper)}")
        out.print(escape((found.cls.__doc__ or "").strip()))
        title = f"{recipe.name} on {benchmark}" + (f" and {backbone}" if backbone else "")
        table = Table("hyper-parameter", "default", title, box=None, header_style="bold")
        for field in dataclasses.fields(found.cls):
            table.add_row(field.name, *(escape(str(v[field.name])) for v in (found.defaults, resolved.values())))
        out.print(table)
        for paper, values in found.cls.published.items():
            listed = ", ".join(f"{key}={value}" for key, value in values.items())
            out.print(f"[bold]published:{paper}[/]  {escape(listed)}", highlight=False)
    elif name in streams.names():
        item = streams.find(name)
        out.print(f"[bold]{name}[/]: {item.description}")
        kind = "domains" if item.scenario == "domain-incremental" else "tasks"
        out.print(f"{item.num_classes} classes in {item.tasks} {kind}, {item.scenario}", highlight=False)
        if item.dataset is None:
            source = item.source()
            out.print(f"{len(source.train)} training images, {len(source.test)} test images")
            out.print(", ".join(source.classes))
        else:
            facts = item.dataset
            splits = ", ".join(f"{tasks}x{each}" for tasks, each in facts.splits)
            out.print(f"{facts.train:,} training images, {facts.test:,} test images; licence: {facts.licence}")
            out.print(f"{facts.page}\npublished tasks x classes: {splits or 'none'}", highlight=False)
            for layout, tree in facts.layouts.items():
                out.print(escape(f"\nread as '{layout}':\n{tree}"), highlight=False)
    elif "." in name:
        vit = backbones.find(name)
        out.print(f"[bold]{name}[/]: {vit.description}")
        out.print(f"timm {vit.architecture} {dict(vit.options)}, mean {vit.mean}, std {vit.std}")
        out.print(f"weights {vit.weights or 'of timm, hashed when they are read'}", soft_wrap=True)
        if card := backbones.card(name):
            data, probes = card["data"], card["probes"]
            out.print(
                f"pre-trained on {data['train_images']:,} images of {data['classes']} classes "
                f"({card['recipe']['data']['licence']}); {card['accuracy']['heldout']:.1f} % of "
                f"{data['heldout_images']:,} held-out images right; frozen, on {probes['name']}: nearest mean "
                f"{probes['trained']['nearest_mean']:.1f} %, linear probe {probes['trained']['linear']:.1f} %",
                highlight=False,
            )
    else:
        everything = [*registry.names(), *streams.names(), *backbones.names()]
        raise unknown_name("method, benchmark, backbone or run", name, everything)
