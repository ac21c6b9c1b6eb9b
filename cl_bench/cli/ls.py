"""The commands `cl-bench ls ...`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.table import Column, Table

from cl_bench.cli.shared import err, out, takes, warn
from cl_bench.errors import UserError, counted
from cl_bench.experiment import number_of
from cl_bench.running.imports import quiet_imports

app = typer.Typer(no_args_is_help=True, help="List methods, benchmarks, backbones, suites, tables and figures.")


@app.command("methods")
@takes("method_file")
def ls_methods(given: Mapping[str, Any]) -> None:
    """List methods with their papers, passes per prediction and stored data."""
    from cl_bench.contract import listing

    table = Table("method", "paper", "passes", "stores", "needs T", box=None, header_style="bold")
    with quiet_imports():
        own = [listing.of_file(Path(path)) for path in given.get("method_file", ())]
        found, errors = listing.installed()
    for error in errors:
        warn(error)
    for item in (*own, *found):
        needs = "yes" if item.needs_num_tasks else "no"
        table.add_row(item.name, item.paper, str(item.forward_passes), item.stored, needs)
    out.print(table)


@app.command("benchmarks")
@takes("root")
def ls_benchmarks(given: Mapping[str, Any]) -> None:
    """List benchmarks: tasks, classes, images, whether the data is present, and what its reader was checked on."""
    with quiet_imports():
        from cl_bench import streams
        from cl_bench.streams import DataConfig
        from cl_bench.streams.verify import presence

    data = DataConfig.of(Path(given["root"]) if given else None)
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
            try:
                item = streams.find(name, data)
            except UserError as error:
                warn(error)
                continue
            if item.dataset is None:
                source = item.source()
                sizes, here, checked = (len(source.train), len(source.test)), "embedded", "files"
            else:
                sizes = item.dataset.train, item.dataset.test
                here, checked = presence(item.dataset, data.root).state, item.dataset.checked
            number = number_of(item.tasks)
            tasks = counted(number, "domain") if item.scenario == "domain-incremental" else str(number)
            images = "/".join(f"{size:,}" for size in sizes)
            facts.add_row(name, tasks, str(item.num_classes), images, here, checked)
            titles.add_row(name, item.description)
    out.print(facts)
    out.print()
    out.print(titles)
    out.print("\nAnd folder:PATH, any tree PATH/train/CLASS/*.jpg with PATH/test. More: 'cl-bench data list'.")


@app.command("suites")
def ls_suites() -> None:
    """List suites, which are named sets of runs."""
    from cl_bench.running import suites

    table = Table("suite", "what it is", box=None, header_style="bold")
    for name in suites.names():
        table.add_row(name, suites.find(name).title)
    out.print(table)


@app.command("tables")
def ls_tables() -> None:
    """List tables of the paper and of every protocol for 'cl-bench table NAME'."""
    from cl_bench.reporting.cells import TABLES
    from cl_bench.reporting.paper.layouts import table_names

    listed = Table("table", "what it is", box=None, header_style="bold")
    for name, title in [*TABLES.items(), *table_names().items()]:
        listed.add_row(name, title)
    out.print(listed)


@app.command("figures")
def ls_figures() -> None:
    """List figures of the paper and of every protocol for 'cl-bench figure NAME'."""
    from cl_bench.reporting import plots
    from cl_bench.reporting.confusions import views
    from cl_bench.reporting.paper.layouts import figure_layouts

    listed = Table("figure", "what it is", box=None, header_style="bold")
    for name, layout in figure_layouts().items():
        listed.add_row(name, layout.title)
    for name, title in [
        *plots.NAMES.items(),
        *views.NAMES.items(),
        ("ranks", "critical-difference diagram over all streams and seeds"),
    ]:
        listed.add_row(name, title)
    out.print(listed)


@app.command("backbones")
def ls_backbones() -> None:
    """List backbones: architecture, input and weights."""
    with quiet_imports():
        from cl_bench import backbones

    name_column = Column("backbone", no_wrap=True)
    table = Table(name_column, "input", "weights", "description", box=None, header_style="bold")
    for name in backbones.names():
        item = backbones.find(name)
        table.add_row(name, f"{item.channels}x{item.size}x{item.size}", item.weights[:8], item.description)
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
