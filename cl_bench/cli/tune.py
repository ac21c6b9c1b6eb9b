"""The command `cl-bench tune`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cl_bench.cli import completion
from cl_bench.cli.shared import err, loading, out, split_given, takes, warn
from cl_bench.errors import UserError
from cl_bench.options import ExecutionOptions, RunOptions
from cl_bench.running.progress_bars import timed_bars
from cl_bench.store import Store

if TYPE_CHECKING:
    from cl_bench.studies.tune import Search, TuningTarget

TRIALS = "results/tuning"


@takes(
    "methods", "method_file", "seeds", "root", "backbone", "precision", "set", "epochs", "results", "device",
    "jobs", seeds="100-101", results=TRIALS, jobs="1",
)  # fmt: skip
def tune(
    given: Mapping[str, Any],
    stream: Annotated[
        str,
        typer.Option(help="Benchmark on whose training images the search runs.", autocompletion=completion.BENCHMARK),
    ] = "icons-tune",
    budget: Annotated[int, typer.Option(min=1, help="Number of settings tried per method.")] = 16,
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of training images held out.")] = 0.2,
    output: Annotated[Path, typer.Option("--out", help="Recipes file; its other entries are kept.")] = Path(
        "recipes.toml"
    ),
) -> None:
    """Search hyper-parameters, with the same budget for every method, and write them as recipes.

    Given hyper-parameters (in brackets or by --set) are not searched, and become part of the recipes. With --backbone,
    the recipes apply to runs on this backbone only.
    """
    requested, execution = split_given(given)
    options, how = RunOptions.of(requested), ExecutionOptions.of(execution)
    Store(how.folder).check_writable()
    with loading():
        from cl_bench import backbones, streams
        from cl_bench.contract import registry
        from cl_bench.running import recipes
        from cl_bench.running.device import pick_device, resolve_precision
        from cl_bench.running.settings import settings_for
        from cl_bench.streams import DataConfig
        from cl_bench.studies.tune import Search, TuningTarget, searchable

    data = DataConfig.of(options.root)
    backbone = options.backbone[0] if options.backbone else None
    backbones.find(backbone or streams.find(stream, data).backbone)
    resolved = resolve_precision(options.precision, pick_device(how.device))
    if output.exists():
        recipes.read(output)
    known = registry.lookup([spec.name for spec in options.methods], options.method_file)
    fixed = settings_for(known, options.settings)
    targets = [TuningTarget.of(known[spec.name], spec.options, fixed.options[spec.name]) for spec in options.methods]
    rows, left_out = searchable(targets)
    for remark in (*fixed.remarks, *([left_out] if left_out else [])):
        warn(remark)
    if how.jobs == "auto":
        raise UserError("--jobs auto is for cl-bench run; give tune the number of trials that run at a time, e.g. 4")
    search = Search(
        stream=stream,
        data=data,
        backbone=backbone,
        precision=resolved,
        budget=budget,
        seeds=list(options.seeds),
        validation=validation,
        store=how.folder,
        device=how.device,
        jobs=how.jobs or 1,
        method_files=options.method_file,
    )
    tune_all(rows, search, output)


def tune_all(rows: Sequence[TuningTarget], how: Search, output: Path) -> None:
    """Run a search, print every trial, and write the recipes.

    Raises:
        UserError: all trials of a row failed.
    """
    from cl_bench.running import recipes
    from cl_bench.studies import tune

    for row in rows:
        given = ", ".join(f"{name}={value}" for name, value in {**row.options, **row.budget()}.items())
        err.print(escape(f"{row.label}: searches {', '.join(row.space)}{f'; sets {given}' if given else ''}"))
    total = len(rows) * how.budget * len(how.seeds)
    bars = timed_bars(err, "{task.completed}/{task.total} runs")
    with bars:
        bar = bars.add_task(f"tuning on {escape(how.stream)}", total=total)
        trials = tune.search(rows, how, lambda: bars.advance(bar), warn)
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
    files = [f"--method-file {shlex.quote(str(file))}" for file in how.method_files]
    methods = shlex.quote(",".join(row.label for row in rows))
    command = " ".join(["cl-bench run", *files, "--methods", methods, "--recipes", shlex.quote(str(output))])
    out.print(escape(f"use them: {command}"), soft_wrap=True, highlight=False)
