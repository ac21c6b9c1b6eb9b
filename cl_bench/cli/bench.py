"""The command `cl-bench bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from cl_bench.cli.shared import err, loading, out, split_given, takes, warn
from cl_bench.errors import UserError, counted
from cl_bench.options import ExecutionOptions, RunOptions

if TYPE_CHECKING:
    import torch

    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.runner import Settings


@takes(
    "methods", "method_file", "benchmark", "root", "backbone", "pretrained", "size", "precision", "set", "device",
    "compile", "cuda_graphs", methods="sdlora,coda",
)  # fmt: skip
def bench(
    given: Mapping[str, Any],
    task: Annotated[int, typer.Option(min=1, help="Task whose steps are timed.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps per group; the median of five groups is reported.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time training steps, predictions and data on this machine, and show what bounds them; stores nothing."""
    requested, execution = split_given(given)
    options, how = RunOptions.of(requested), ExecutionOptions.of(execution)
    with loading():
        from cl_bench.running import plan
        from cl_bench.running.device import pick_device, resolve_precision
        from cl_bench.running.runner import Settings

    where = pick_device(how.device)
    planned = plan.plan_options([options], partial(resolve_precision, device=where))
    for remark in dict.fromkeys(remark for run in planned for remark in run.remarks):
        warn(remark)
    bench_all(planned, where, Settings(compiled=how.compile, graphs=how.cuda_graphs), task - 1, steps, as_json)


def bench_all(
    planned: Sequence[PlannedRun],
    device: torch.device,
    settings: Settings,
    task: int,
    steps: int,
    as_json: bool,
) -> None:
    """Time the method of every run and print one row for each.

    Raises:
        UserError: the stream has fewer tasks.
    """
    from cl_bench.studies import bench

    experiment = planned[0].experiment
    if task >= experiment.num_tasks:
        raise UserError(f"--task {task + 1} is more than the {counted(experiment.num_tasks, 'task')} of the stream")
    found = []
    with err.status("a large matrix product ..."):
        ceiling = bench.ceiling(device, experiment.precision)
    for run in planned:
        with err.status(escape(f"{run.label} ...")):
            found.append(bench.measure(run, device, settings, task=task, steps=steps, ceiling=ceiling))
    name = bench.device_name(device)
    if as_json:
        rows = [
            asdict(speed)
            | {"rate": speed.rate, "headroom": speed.headroom, "bound": speed.regime and speed.regime.bound}
            for speed in found
        ]
        # JSON has no NaN, which stands for methods without training steps.
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
        if speed.regime is not None:
            out.print(escape(f"{speed.label}: {speed.regime.advice(speed.graph_refusal)}"))
        if speed.waits:
            out.print(escape(f"{speed.label}: the host waits for the device in every step"))
        if speed.fault:
            out.print(escape(f"{speed.label}: {speed.fault}; what was timed is no training"))
        if speed.headroom < 1:
            out.print(escape(f"{speed.label}: the network waits for its images"))
