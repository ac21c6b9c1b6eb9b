"""The command `cl-bench run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_bench.cli.results import REFERENCE, RESULTS
from cl_bench.cli.shared import Compiled, DataRoot, Device, MethodFiles, PrecisionName, err, loading, out, use_data
from cl_bench.errors import UserError

if TYPE_CHECKING:
    from cl_bench.experiment import Experiment
    from cl_bench.running.ray_executor import OnRay


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=r"Example: cl-bench run --methods 'sdlora\[rank=4|8],coda' --seeds 0-4")(run)


def run(
    methods: Annotated[
        str | None, typer.Option(help=r"Names, with options: 'sdlora\[rank=4|8],coda'.", show_default=False)
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Instead: a suite of 'cl-bench ls suites', or a YAML file.", show_default=False),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="See 'cl-bench ls benchmarks'.", show_default="icons-100")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="See 'cl-bench ls backbones'.", show_default="the benchmark's")
    ] = None,
    root: DataRoot = None,
    split_list: Annotated[
        Path | None,
        typer.Option(help="Which images train and which test: text or YAML.", show_default="the data set's"),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File with its weights: safetensors, torch state dict, Google npz.", show_default=False),
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="yes, or no: random weights.", show_default="yes")] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="Input: checkpoint (mean and std of its training) or none (in [0, 1]).", show_default="checkpoint"
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the input in pixels.", show_default="the backbone's")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Files: decoded once (auto, resized) or whenever they are read (files).", show_default="auto"
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Each sets class order and training seed: 0-4 or 0,2.", show_default="0")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Pin the order of classes (or domains): natural, permutation:K, a file.", show_default="by seed"
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="class-incremental or domain-incremental.", show_default="the benchmark's"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="How many, or the classes of each: 10 or 40,30,30 or 50,5x10.", show_default="by benchmark"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Hyper-parameter: lr=0.1 for all methods, sdlora.rank=8 for one.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Same as --set epochs=N.", show_default=False)] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Hyper-parameters: auto, tuned, published, published:imagenet-r, unified.", show_default="auto"
        ),
    ] = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipes", help="Tuned recipes of your own.", show_default=False)
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Measure besides: interpolation, accuracy between the weights of consecutive tasks (LoRA methods).",
            show_default="none",
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results store.")] = RESULTS,
    device: Device = "auto",
    precision: PrecisionName = None,
    compiled: Compiled = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same numbers twice on one GPU; slower. A CPU always does.")
    ] = False,
    method_file: MethodFiles = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, what is there, and how long the rest may take.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again what is already there.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first run that fails.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Minutes between checkpoints inside a task; after each task there is one.")
    ] = 10.0,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time on this host, which share its cores or GPUs.",
            show_default="1 on a GPU; on a CPU as many as fit",
        ),
    ] = None,
    executor: Annotated[str, typer.Option(help="Where runs execute: here, or ray: all GPUs, or a cluster.")] = "here",
    address: Annotated[
        str | None,
        typer.Option(help="With ray: a running cluster, auto or HOST:PORT.", show_default="this host alone"),
    ] = None,
    gpus_per_run: Annotated[
        float | None, typer.Option(help="With ray: 0.5 puts two runs on a GPU.", show_default="1; on a CPU 0")
    ] = None,
    cpus_per_run: Annotated[
        int | None, typer.Option(min=1, help="With ray: also the threads of a run.", show_default="1")
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="With ray: hosts share no disk; results come back through Ray.")
    ] = False,
    limit_tasks: Annotated[int | None, typer.Option(min=1, help="Trial: only the first tasks.")] = None,
    limit_train: Annotated[int | None, typer.Option(min=1, help="Trial: training images per class.")] = None,
    limit_test: Annotated[int | None, typer.Option(min=1, help="Trial: test images per class.")] = None,
) -> None:
    """Run methods on a benchmark; what is already in the results folder is not run again."""
    from cl_bench.running.suites import Grid, find
    from cl_bench.store import Store

    if (methods is None) == (suite is None):
        raise UserError("say what to run: --methods 'sdlora,coda', or --suite NAME or FILE, and not both")
    asked: dict[str, Any] = {
        "methods": methods,
        "benchmark": benchmark,
        "backbone": backbone,
        "pretrained": pretrained,
        "normalise": normalise,
        "size": size,
        "images": images,
        "seeds": seeds,
        "order": order,
        "scenario": scenario,
        "tasks": tasks,
        "set": [*(settings or []), *([f"epochs={epochs}"] if epochs else [])] or None,
        "recipe": recipe,
        "precision": precision,
        "limit_tasks": limit_tasks,
        "limit_train": limit_train,
        "limit_test": limit_test,
        "probe": probe,
    }
    on_ray = _on_ray(executor, device, address, gpus_per_run, cpus_per_run, collect)
    if on_ray and jobs:
        raise UserError("--jobs is for this host alone; with --executor ray, see --cpus-per-run and --gpus-per-run")
    given = {name: value for name, value in asked.items() if value is not None}
    grids = [grid.changed(given) for grid in find(suite).runs] if suite else [Grid.model_validate(given)]
    if suite and checkpoint is not None:
        raise UserError("--checkpoint is for one backbone; name that and the methods instead of a suite")
    cells = [cell for grid in grids for cell in grid.cells()]
    for cell in cells:
        cell.check()
    use_data(root, skip_bad, split_list)
    store = Store(results)
    if not dry_run:
        store.check_writable()
    with loading():
        from cl_bench.running import plan, recipes
        from cl_bench.running.runner import Settings, pick_device, resolve_precision

    tuned = recipes.read(recipe_file) if recipe_file else ()
    where = on_ray.guess() if on_ray else pick_device(device)
    precision_of = partial(resolve_precision, device=where)
    planned = plan.plan_cells(cells, precision_of, method_file or [], checkpoint=checkpoint, tuned=tuned)
    from cl_bench.cli.console import preview, run_all
    from cl_bench.running.executors import side_by_side

    if dry_run:
        preview(planned, store, [REFERENCE], where, out, err, force)
        return
    settings_ = Settings(checkpoint_every, force, compiled, deterministic)
    if on_ray is None:
        _decode_images([run.experiment for run in planned if force or not store.json_path(run.experiment).is_file()])
    sys.exit(run_all(planned, store, on_ray or side_by_side(planned, where, jobs), settings_, out, err, fail_fast))


def _on_ray(
    executor: str, device: str, address: str | None, gpus: float | None, cpus: int | None, collect: bool
) -> OnRay | None:
    """The Ray executor, if it is asked for."""
    if executor == "ray":
        from cl_bench.running.ray_executor import OnRay

        return OnRay(device, address, gpus, cpus or 1, collect)
    if executor != "here":
        raise UserError(f"--executor '{executor}' is unknown; expected here or ray")
    asked = {"--address": address, "--gpus-per-run": gpus, "--cpus-per-run": cpus, "--collect": collect or None}
    for name, value in asked.items():
        if value is not None:
            raise UserError(f"{name} is for --executor ray")
    return None


def _decode_images(experiments: Sequence[Experiment]) -> None:
    """Decode what these runs keep decoded, unless that was done before, and show how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cl_bench import streams

    columns = (TextColumn("decoding images once"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("", visible=False)
        for benchmark, storage in dict.fromkeys((one.benchmark, one.storage) for one in experiments):
            streams.find(benchmark).source(
                storage, lambda done, total: bar.update(task, completed=done, total=total, visible=True)
            )
