"""The command line: `cl-bench run`, and all the other commands that `cl-bench --help` lists."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from cl_bench import __version__, data_cli, report_cli, results_cli
from cl_bench.errors import UserError
from cl_bench.results_cli import REFERENCE, RESULTS

if TYPE_CHECKING:
    from cl_bench.experiment import Experiment
    from cl_bench.ray_executor import OnRay

# torch, timm and avalanche take seconds to import: only the commands that need them do so.


class _Interrupted(Exception):
    """Ctrl-C under another name: typer swallows `KeyboardInterrupt`, and says nothing or "Aborted."."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Continual learning on pre-trained Vision Transformers, measured so that numbers can be trusted.",
)
ls = typer.Typer(no_args_is_help=True, help="List what there is.")
app.add_typer(ls, name="ls")
app.add_typer(data_cli.app, name="data")
app.add_typer(results_cli.app, name="results")
report_cli.add_to(app)
out = Console()
err = Console(stderr=True, highlight=False, soft_wrap=True)

TRIALS = Path("results/tuning")
MethodFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--method-file",
        help="A file with a method of your own; its name is the method's.",
        show_default=False,
    ),
]


DataRoot = Annotated[
    Path | None,
    typer.Option("--root", help="Folder with the data sets.", show_default="CL_BENCH_DATA, else data/"),
]


def main() -> None:
    """Entry point: bad input ends in one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(2)
    except (KeyboardInterrupt, _Interrupted):
        err.print("interrupted; what was finished is stored, and the same command goes on from there")
        sys.exit(130)


@app.command(epilog=r"Example: cl-bench run --methods 'sdlora\[rank=4|8],coda' --seeds 0-4")
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="Of the backbone: fp32, bf16, or auto: bf16 where it is fast.", show_default="auto"),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the backbone.", show_default="on a GPU"),
    ] = None,
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
            help="Runs at a time on this host, which share its cores or GPU.",
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
    from cl_bench.store import Store
    from cl_bench.suites import Grid, find

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
    _use_data(root, skip_bad, split_list)
    store = Store(results)
    if not dry_run:
        store.check_writable()
    with err.status("loading torch, timm and avalanche ..."):
        _quiet_imports()
        from cl_bench import plan, recipes
        from cl_bench.runner import Settings, pick_device, resolve_precision

    tuned = recipes.read(recipe_file) if recipe_file else ()
    where = on_ray.guess() if on_ray else pick_device(device)
    precision_of = partial(resolve_precision, device=where)
    planned = plan.plan_cells(cells, precision_of, method_file or [], checkpoint=checkpoint, tuned=tuned)
    from cl_bench.console import preview, run_all
    from cl_bench.executors import side_by_side

    if dry_run:
        preview(planned, store, [REFERENCE], where, out, err, force)
        return
    settings_ = Settings(checkpoint_every, force, compiled, deterministic)
    if on_ray is None:
        _decode_images([run.experiment for run in planned if force or not store.json_path(run.experiment).is_file()])
    sys.exit(run_all(planned, store, on_ray or side_by_side(planned, where, jobs), settings_, out, err, fail_fast))


@app.command(epilog="Example: cl-bench bench --methods sdlora,coda --device cpu")
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the backbone: fp32, bf16, or auto: bf16 where it is fast.")
    ] = "auto",
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the backbone.", show_default="on a GPU"),
    ] = None,
    task: Annotated[int, typer.Option(min=1, help="The task in which steps are timed.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps in each of five groups, of which the median counts.")] = 10,
    method_file: MethodFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time training steps, predictions and data on this machine, and say what bounds them; stores nothing."""
    from cl_bench.suites import Grid

    fields = {"methods": methods, "benchmark": benchmark, "pretrained": pretrained, "precision": precision}
    grid = Grid.model_validate({**fields, "size": size, "backbone": backbone, "set": settings or ()})
    grid.check()
    _use_data(root)
    with err.status("loading torch, timm and avalanche ..."):
        _quiet_imports()
        from cl_bench import plan
        from cl_bench.console import bench_all
        from cl_bench.runner import Settings, pick_device, resolve_precision

    where = pick_device(device)
    planned = plan.plan_cells(grid.cells(), partial(resolve_precision, device=where), method_file or [])
    bench_all(planned, where, Settings(compiled=compiled), task - 1, steps, as_json, out, err)


@app.command(epilog=r"Example: cl-bench tune --methods 'sdlora,finetune\[loss=masked]' --budget 16")
def tune(
    methods: Annotated[str, typer.Option(help=r"Names, with options that are not searched: 'sdlora\[rank=4],coda'.")],
    stream: Annotated[str, typer.Option(help="Benchmark on whose training images the search runs.")] = "icons-tune",
    budget: Annotated[int, typer.Option(min=1, help="Settings tried per method.")] = 16,
    seeds: Annotated[str, typer.Option(help="Runs per setting.")] = "100-101",
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of training images held out.")] = 0.2,
    output: Annotated[Path, typer.Option("--out", help="Recipes file; other entries in it stay.")] = Path(
        "recipes.toml"
    ),
    results: Annotated[Path, typer.Option(help="Folder of the trials' records.")] = TRIALS,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    method_file: MethodFiles = None,
) -> None:
    """Search hyper-parameters, with the same budget for every method, and write them as recipes."""
    from cl_bench.experiment import parse_methods, parse_seeds
    from cl_bench.store import Store

    specs = parse_methods(methods)
    seed_list = parse_seeds(seeds)
    Store(results).check_writable()
    with err.status("loading torch, timm and avalanche ..."):
        _quiet_imports()
        from cl_bench import recipes, registry, streams
        from cl_bench.console import tune_all
        from cl_bench.runner import pick_device
        from cl_bench.tune import Row, Search

    streams.find(stream)
    pick_device(device)
    if output.exists():
        recipes.read(output)
    known = registry.lookup([spec.name for spec in specs], method_file or [])
    rows = [Row.of(known[spec.name], spec.options) for spec in specs]
    how = Search(stream, budget, seed_list, validation, results, device, jobs, tuple(method_file or ()))
    tune_all(rows, how, output, out, err)


@app.command(epilog=r"Example: cl-bench audit sdlora 'l2p\[as_published_leaky=true]'")
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
    from cl_bench.experiment import Limits, parse_methods

    if everything == bool(methods):
        raise UserError("name the methods to audit, e.g. 'cl-bench audit sdlora coda', or give --all, not both")
    specs = [] if everything else parse_methods(",".join(methods or []), "METHOD")
    joint = parse_methods(ceiling, "--ceiling")
    with err.status("loading torch, timm and avalanche ..."):
        _quiet_imports()
        from cl_bench import audit as audits
        from cl_bench import plan, registry
        from cl_bench.audit_console import audit_all, check_audit_file, write_audit

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
        leaks = [(found, {audits.LEAKY: True}) for found in known.values() if audits.LEAKY in found.defaults]
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


@app.command(epilog="Example: cl-bench repeat 08f4ef8b --results results/reference")
def repeat(
    key: Annotated[str, typer.Argument(help="Key of a stored run, or how it begins.")],
    results: Annotated[
        list[Path] | None, typer.Option(help="Folders to look in.", show_default="runs and reference")
    ] = None,
    root: DataRoot = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File with the weights, if the run had one.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    method_file: MethodFiles = None,
) -> None:
    """Run a stored result again and print the difference; exit code 1 if a count or prediction differs."""
    _use_data(root)
    with err.status("loading torch, timm and avalanche ..."):
        _quiet_imports()
        from cl_bench import repeat as repeats
        from cl_bench.console import repeat_run
        from cl_bench.runner import pick_device

    record, arrays = repeats.find(key, results or [RESULTS, REFERENCE])
    run = repeats.planned(record, checkpoint, method_file or [])
    sys.exit(0 if repeat_run(record, arrays, run, pick_device(device), out, err) else 1)


@ls.command("methods")
def ls_methods(method_file: MethodFiles = None) -> None:
    """Methods with their papers and facts."""
    from rich.table import Table

    _quiet_imports()
    from cl_bench import registry

    table = Table("method", "paper", "passes", "stores", "needs T", box=None, header_style="bold")
    found = [registry.load_file(path) for path in method_file or []]
    for name in registry.names():
        try:
            found.append(registry.find(name))
        except UserError as error:
            err.print(f"[yellow]warning:[/] {_escape(str(error))}")
    for item in found:
        cls = item.cls
        table.add_row(item.name, cls.paper, str(cls.forward_passes), cls.stores, "yes" if cls.needs_num_tasks else "no")
    out.print(table)


@ls.command("benchmarks")
def ls_benchmarks(root: DataRoot = None) -> None:
    """Benchmarks: tasks, classes, images, whether the data is there, and on what our reader was checked."""
    from rich.table import Table

    _use_data(root)
    _quiet_imports()
    from cl_bench import streams
    from cl_bench.streams.verify import presence

    facts, titles = (Table(box=None, header_style="bold") for _ in range(2))
    facts.add_column("benchmark", no_wrap=True)
    facts.add_column("tasks", no_wrap=True)
    facts.add_column("classes", justify="right")
    facts.add_column("train/test", justify="right", no_wrap=True)
    facts.add_column("here", no_wrap=True)
    facts.add_column("checked on", no_wrap=True)
    titles.add_column("benchmark", no_wrap=True)
    titles.add_column("what it is")
    with err.status("looking ..."):
        for name in streams.names():
            item = streams.find(name)
            if item.dataset is None:
                source = item.source()
                sizes, here, checked = (len(source.train), len(source.test)), "embedded", "files"
            else:
                sizes = item.dataset.train, item.dataset.test
                here, checked = presence(item.dataset).state, item.dataset.checked
            tasks = f"{item.tasks} domains" if item.scenario == "domain-incremental" else str(item.tasks)
            images = "/".join(f"{size:,}" for size in sizes)
            facts.add_row(name, tasks, str(item.num_classes), images, here, checked)
            titles.add_row(name, item.description)
    out.print(facts)
    out.print()
    out.print(titles)
    out.print("\nAnd folder:PATH, any tree PATH/train/CLASS/*.jpg with PATH/test. More: 'cl-bench data list'.")


@ls.command("suites")
def ls_suites() -> None:
    """Suites: sets of runs, by name."""
    from rich.table import Table

    from cl_bench import suites

    table = Table("suite", "what it is", box=None, header_style="bold")
    for name in suites.names():
        table.add_row(name, suites.find(name).title)
    out.print(table)


@ls.command("tables")
def ls_tables() -> None:
    """Tables of the paper, by name: 'cl-bench table NAME'."""
    from rich.table import Table

    from cl_bench.report import paper_tables

    listed = Table("table", "what it is", box=None, header_style="bold")
    for name, title in paper_tables.names().items():
        listed.add_row(name, title)
    out.print(listed)


@ls.command("figures")
def ls_figures() -> None:
    """Figures of the paper and of every protocol, by name: 'cl-bench figure NAME'."""
    from rich.table import Table

    from cl_bench.report import paper_figures, plots

    listed = Table("figure", "what it is", box=None, header_style="bold")
    for name, layout in paper_figures.layouts().items():
        listed.add_row(name, layout.title)
    for name, title in [*plots.NAMES.items(), ("ranks", "critical-difference diagram over all streams and seeds")]:
        listed.add_row(name, title)
    out.print(listed)


@ls.command("backbones")
def ls_backbones() -> None:
    """Backbones: architecture, input and weights."""
    from rich.table import Table

    _quiet_imports()
    from cl_bench import backbones

    table = Table("backbone", "input", "weights", "description", box=None, header_style="bold")
    for name in backbones.names():
        item = backbones.find(name)
        table.add_row(name, f"{item.channels}x{item.size}x{item.size}", item.weights[:12], item.description)
    out.print(table)
    out.print(
        "\nAny VisionTransformer of timm, by its full tag, such as vit_base_patch14_dinov2.lvd142m; with --checkpoint "
        "FILE the weights come from a file, with --pretrained no they are random. Papers call four different weights "
        "ViT-B/16:\n",
        highlight=False,
    )
    table = Table(box=None, header_style="bold")
    table.add_column("backbone", no_wrap=True)
    table.add_column("trained on, and used by")
    for name, papers in backbones.VIT_B16.items():
        table.add_row(name, papers)
    out.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method, benchmark, backbone, or the (start of the) key of a run.")],
    benchmark: Annotated[str, typer.Option(help="Benchmark whose recipe a method is shown with.")] = "icons-100",
    results: Annotated[Path, typer.Option(help="Results folder in which runs are looked up.")] = RESULTS,
    method_file: MethodFiles = None,
) -> None:
    """Show one method, benchmark, backbone or stored run in full."""
    if results_cli.show_run(name, [results]):
        return
    _quiet_imports()
    from cl_bench.console import show_thing

    show_thing(name, benchmark, method_file or [], out)


@app.command("new-method")
def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method, a Python identifier.")],
    folder: Annotated[Path, typer.Option(help="Where to write NAME.py.")] = Path(),
) -> None:
    """Write a small working method to start from."""
    import re
    from importlib.resources import files
    from string import Template

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"'{name}' cannot name a method; expected a letter, then letters, digits and _, all lower-case ASCII, "
            "such as my_method"
        )
    path = folder / f"{name}.py"
    template = Template((files("cl_bench") / "assets" / "new_method.py.txt").read_text())
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        with path.open("x") as file:
            file.write(template.substitute(name=name, class_name=class_name))
    except FileExistsError as error:
        raise UserError(f"'{path}' exists already; remove it or choose another name") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror})") from error
    out.print(f"wrote {path}\ntry it: cl-bench run --method-file {path} --methods {name}", highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


def _on_ray(
    executor: str, device: str, address: str | None, gpus: float | None, cpus: int | None, collect: bool
) -> OnRay | None:
    """The Ray executor, if it is asked for."""
    if executor == "ray":
        from cl_bench.ray_executor import OnRay

        return OnRay(device, address, gpus, cpus or 1, collect)
    if executor != "here":
        raise UserError(f"--executor '{executor}' is unknown; expected here or ray")
    asked = {"--address": address, "--gpus-per-run": gpus, "--cpus-per-run": cpus, "--collect": collect or None}
    for name, value in asked.items():
        if value is not None:
            raise UserError(f"{name} is for --executor ray")
    return None


def _use_data(root: Path | None, skip_bad: bool = False, split_list: Path | None = None) -> None:
    """Make `--root` the data folder and pass on how to read it, here and to worker processes."""
    if skip_bad:
        os.environ["CL_BENCH_SKIP_BAD"] = "1"
    if split_list is not None:
        os.environ["CL_BENCH_SPLIT_LIST"] = str(split_list.absolute())
    if root is not None:
        if not root.is_dir():
            raise UserError(f"--root '{root}' is no folder; name the one that holds the data sets")
        os.environ["CL_BENCH_DATA"] = str(root.absolute())


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


def _quiet_imports() -> None:
    """Keep third-party noise off the screen: avalanche warns of solvers that nothing here uses."""
    import warnings

    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", message="no QP solver found")
    # For processes that this one starts.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:no QP solver found")


def _escape(text: str) -> Any:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
