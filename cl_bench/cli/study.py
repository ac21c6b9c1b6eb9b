"""The commands that run methods for other reasons than a result: to time, tune, audit and repeat them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cl_bench.cli.results import REFERENCE, RESULTS
from cl_bench.cli.shared import Compiled, DataRoot, Device, MethodFiles, PrecisionName, err, loading, out, use_data
from cl_bench.errors import UserError

TRIALS = Path("results/tuning")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: cl-bench bench --methods sdlora,coda --device cpu")(bench)
    app.command(epilog=r"Example: cl-bench tune --methods 'sdlora,finetune\[loss=masked]' --budget 16")(tune)
    app.command(epilog=r"Example: cl-bench audit sdlora 'l2p\[as_published_leaky=true]'")(audit)
    app.command(epilog="Example: cl-bench repeat 08f4ef8b --results results/reference")(repeat)


def bench(
    methods: Annotated[
        str, typer.Option("--methods", "--method", help=r"Names, with options: 'sdlora\[rank=4|8],coda'.")
    ] = "sdlora,coda",
    benchmark: Annotated[str, typer.Option(help="See 'cl-bench ls benchmarks'.")] = "icons-100",
    backbone: Annotated[
        str | None, typer.Option(help="See 'cl-bench ls backbones'.", show_default="the benchmark's")
    ] = None,
    root: DataRoot = None,
    pretrained: Annotated[str, typer.Option(help="yes, or no: random weights are as fast.")] = "yes",
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the input in pixels.", show_default="the backbone's")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Hyper-parameter, such as batch_size=128.", show_default=False)
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = None,
    compiled: Compiled = None,
    task: Annotated[int, typer.Option(min=1, help="The task in which steps are timed.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps in each of five groups, of which the median counts.")] = 10,
    method_file: MethodFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time training steps, predictions and data on this machine, and say what bounds them; stores nothing."""
    from cl_bench.running.suites import Grid

    fields = {"methods": methods, "benchmark": benchmark, "pretrained": pretrained, "precision": precision or "auto"}
    grid = Grid.model_validate({**fields, "size": size, "backbone": backbone, "set": settings or ()})
    grid.check()
    use_data(root)
    with loading():
        from cl_bench.cli.console import bench_all
        from cl_bench.running import plan
        from cl_bench.running.runner import Settings, pick_device, resolve_precision

    where = pick_device(device)
    planned = plan.plan_cells(grid.cells(), partial(resolve_precision, device=where), method_file or [])
    bench_all(planned, where, Settings(compiled=compiled), task - 1, steps, as_json, out, err)


def tune(
    methods: Annotated[str, typer.Option(help=r"Names, with options that are not searched: 'sdlora\[rank=4],coda'.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Not searched, but part of the recipes, such as batch_size=128.", show_default=False
        ),
    ] = None,
    stream: Annotated[str, typer.Option(help="Benchmark on whose training images the search runs.")] = "icons-tune",
    backbone: Annotated[
        str | None, typer.Option(help="The recipes then hold for runs on it only.", show_default="the stream's")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Settings tried per method.")] = 16,
    seeds: Annotated[str, typer.Option(help="Runs per setting.")] = "100-101",
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of training images held out.")] = 0.2,
    output: Annotated[Path, typer.Option("--out", help="Recipes file; other entries in it stay.")] = Path(
        "recipes.toml"
    ),
    results: Annotated[Path, typer.Option(help="Folder of the trials' records.")] = TRIALS,
    root: DataRoot = None,
    precision: PrecisionName = None,
    device: Device = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    method_file: MethodFiles = None,
) -> None:
    """Search hyper-parameters, with the same budget for every method, and write them as recipes."""
    from cl_bench.experiment import parse_methods, parse_seeds
    from cl_bench.store import Store

    specs = parse_methods(methods)
    seed_list = parse_seeds(seeds)
    Store(results).check_writable()
    use_data(root)
    with loading():
        from cl_bench import backbones, streams
        from cl_bench.cli.console import tune_all
        from cl_bench.contract import registry
        from cl_bench.running import plan, recipes
        from cl_bench.running.runner import pick_device, resolve_precision
        from cl_bench.studies.tune import Row, Search

    backbones.find(backbone or streams.find(stream).backbone)
    resolved = resolve_precision(precision or "auto", pick_device(device))
    if output.exists():
        recipes.read(output)
    known = registry.lookup([spec.name for spec in specs], method_file or [])
    fixed = plan.settings_for(known, settings or ())
    rows = [Row.of(known[spec.name], spec.options, fixed[spec.name]) for spec in specs]
    how = Search(
        stream=stream,
        backbone=backbone,
        precision=resolved,
        budget=budget,
        seeds=seed_list,
        validation=validation,
        store=results,
        device=device,
        jobs=jobs,
        method_files=tuple(method_file or ()),
    )
    tune_all(rows, how, output, out, err)


def audit(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD", help=r"Names, with options: sdlora 'coda\[length=4]'.", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All methods, and the leaks of released code, which must be caught.")
    ] = False,
    benchmark: Annotated[str, typer.Option(help="See 'cl-bench ls benchmarks'.")] = "icons-100",
    backbone: Annotated[
        str | None, typer.Option(help="See 'cl-bench ls backbones'.", show_default="the benchmark's")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Sets class order and training seed.")] = 0,
    ceiling: Annotated[
        str, typer.Option(help="Joint training; no method may be better than the best.")
    ] = "joint,joint[train=lora]",
    whole: Annotated[bool, typer.Option("--whole", help="The whole benchmark, but for limits that you set.")] = False,
    limit_tasks: Annotated[int | None, typer.Option(min=1, help="Only the first tasks.", show_default="3")] = None,
    limit_train: Annotated[int | None, typer.Option(min=1, help="Training images per class.", show_default="8")] = None,
    limit_test: Annotated[int | None, typer.Option(min=1, help="Test images per class.", show_default="5")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Markdown file whose table between the audit markers is replaced.", show_default=False
        ),
    ] = None,
    method_file: MethodFiles = None,
) -> None:
    """Check that methods leak, move and hide nothing; exit code 1 if one does."""
    from cl_bench.experiment import LEAKY_OPTION, Limits, parse_methods

    if everything == bool(methods):
        raise UserError("name the methods to audit, e.g. 'cl-bench audit sdlora coda', or give --all, not both")
    specs = [] if everything else parse_methods(",".join(methods or []), "METHOD")
    joint = parse_methods(ceiling, "--ceiling")
    with loading():
        from cl_bench.cli.audit_view import audit_all, check_audit_file, write_audit
        from cl_bench.contract import registry
        from cl_bench.running import plan
        from cl_bench.studies import audit as audits

    if output is not None:
        check_audit_file(output)
    if everything:
        own = (path.stem for path in method_file or [])
        specs = parse_methods(",".join(dict.fromkeys([*registry.names(), *own])))
    known = registry.lookup([spec.name for spec in (*specs, *joint)], method_file or [])
    cuts = [limit_tasks, limit_train, limit_test]
    if not whole:
        cuts = [cut or default for cut, default in zip(cuts, (3, 8, 5), strict=True)]
    limits = Limits(tasks=cuts[0], train_per_class=cuts[1], test_per_class=cuts[2])

    def planned(chosen: list[tuple[Any, Any]]) -> list[plan.PlannedRun]:
        return plan.plan(
            chosen, [seed], benchmark=benchmark, backbone=backbone, limits=limits, scenario="class-incremental"
        )

    runs = planned([(known[spec.name], spec.options) for spec in specs])
    rows = [audits.Row(run.label, run.method) for run in runs]
    if everything:
        leaks = [(found, {LEAKY_OPTION: True}) for found in known.values() if LEAKY_OPTION in found.defaults]
        rows += [audits.Row(run.label, run.method, leaky=True) for run in planned(leaks)]
    best = planned([(known[spec.name], spec.options) for spec in joint])
    for run in best:
        if run.method.trains_on != "stream":
            raise UserError(f"--ceiling: '{run.label}' does not train on all tasks at once; take e.g. joint")
    reports, title = audit_all(rows, best, audits.Slice.of(runs[0]), out, err)
    if output is not None:
        write_audit(output, title, reports)
        err.print(f"table: {output}")
    sys.exit(0 if all(report.good for report in reports) else 1)


def repeat(
    key: Annotated[str, typer.Argument(help="Key of a stored run, or how it begins.")],
    results: Annotated[
        list[Path] | None, typer.Option(help="Folders to look in.", show_default="runs and reference")
    ] = None,
    root: DataRoot = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File with the weights, if the run had one.", show_default=False)
    ] = None,
    device: Device = "auto",
    method_file: MethodFiles = None,
) -> None:
    """Run a stored result again and print the difference; exit code 1 if a count or prediction differs."""
    use_data(root)
    with loading():
        from cl_bench.cli.console import repeat_run
        from cl_bench.running.runner import pick_device
        from cl_bench.studies import repeat as repeats

    record, arrays = repeats.find(key, results or [RESULTS, REFERENCE])
    run = repeats.planned(record, checkpoint, method_file or [])
    sys.exit(0 if repeat_run(record, arrays, run, pick_device(device), out, err) else 1)
