"""The command `cl-bench show`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cl_bench.cli import completion
from cl_bench.cli.results import show_run
from cl_bench.cli.shared import out, takes
from cl_bench.errors import counted
from cl_bench.experiment import number_of
from cl_bench.options.execution import RESULTS_DEFAULT, default_results
from cl_bench.running.imports import quiet_imports

if TYPE_CHECKING:
    from cl_bench.contract.method import Method


def _described(cls: type[Method]) -> str:
    """Docstring of a method's class, or of its module."""
    # A dataclass without docstring gets its signature as one.
    own = "" if (cls.__doc__ or "").startswith(f"{cls.__name__}(") else cls.__doc__
    text = own or sys.modules[cls.__module__].__doc__ or ""
    return inspect.cleandoc(text) or f"The class {cls.__name__} has no docstring that says what it does."


@takes("method_file")
def show(
    given: Mapping[str, Any],
    name: Annotated[
        str,
        typer.Argument(
            help="Method, benchmark or backbone, or the first digits of a run's key.",
            autocompletion=completion.ANYTHING,
        ),
    ],
    benchmark: Annotated[
        str,
        typer.Option(help="Benchmark whose recipe a method is shown with.", autocompletion=completion.BENCHMARK),
    ] = "icons-100",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone whose recipe a method is shown with.",
            show_default="the benchmark's",
            autocompletion=completion.BACKBONE,
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Results folder in which runs are looked up.", show_default=RESULTS_DEFAULT),
    ] = None,
) -> None:
    """Show one method, benchmark, backbone or stored run in full."""
    if show_run(name, [results or default_results()]):
        return
    with quiet_imports():
        show_thing(name, benchmark, backbone, [Path(file) for file in given.get("method_file", ())])


def show_thing(name: str, benchmark: str, backbone: str | None, method_files: Sequence[Path]) -> None:
    """Show a method with its recipe, a benchmark or a backbone.

    Raises:
        UserError: no method, benchmark or backbone has this name.
    """
    import dataclasses

    from cl_bench import backbones, streams
    from cl_bench.contract import registry
    from cl_bench.contract.near_names import unknown_method
    from cl_bench.contract.sources import ENTRY_POINTS
    from cl_bench.running import plan

    own = {found.name: found for found in map(registry.load_file, method_files)}
    if name in own or name in registry.names():
        found = own.get(name) or registry.find(name)
        vit = backbones.find(backbone) if backbone else None
        resolved, recipe = plan.resolve(found, streams.find(benchmark), {}, backbone=vit)
        paper = f": {escape(found.cls.paper)}" if found.cls.paper else ""
        out.print(f"[bold]{name}[/] (revision {found.revision}){paper}")
        out.print(escape(_described(found.cls)))
        title = f"{recipe.name} on {benchmark}" + (f" and {backbone}" if backbone else "")
        table = Table("hyper-parameter", "default", title, box=None, header_style="bold")
        for field in dataclasses.fields(found.cls):
            table.add_row(field.name, *(escape(str(v[field.name])) for v in (found.defaults, resolved.values())))
        out.print(table)
        for paper, values in found.cls.published.items():
            listed = ", ".join(f"{key}={value}" for key, value in values.items())
            out.print(f"[bold]published:{paper}[/]  {escape(listed)}", highlight=False)
        out.print(escape(f"BibTeX: cl-bench cite {found.in_command()}"), highlight=False, soft_wrap=True)
    elif name in streams.names():
        item = streams.find(name)
        out.print(f"[bold]{name}[/]: {item.description}")
        kind = "domain" if item.scenario == "domain-incremental" else "task"
        parts = counted(number_of(item.tasks), kind)
        out.print(f"{counted(item.num_classes, 'class')} in {parts}, {item.scenario}", highlight=False)
        if item.dataset is None:
            source = item.source()
            out.print(f"{counted(len(source.train), 'training image')}, {counted(len(source.test), 'test image')}")
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
        points = entry_points(group=ENTRY_POINTS)
        raise unknown_method(name, everything, points, "method, benchmark, backbone or run", hint="")
