"""The command `cl-bench repeat`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cl_bench.cli import completion
from cl_bench.cli.shared import err, loading, out, run_progress, takes
from cl_bench.options import RunOptions
from cl_bench.running.progress_bars import run_bars
from cl_bench.store import default_folders

if TYPE_CHECKING:
    import torch

    from cl_bench.running.plan import PlannedRun
    from cl_bench.store import Arrays, RunRecord


@takes("method_file", "root", "checkpoint", "device")
def repeat(
    given: Mapping[str, Any],
    key: Annotated[
        str, typer.Argument(help="Key of a stored run, or its first digits.", autocompletion=completion.KEY)
    ],
    results: Annotated[
        list[Path] | None, typer.Option(help="Results folders to search.", show_default="runs and reference")
    ] = None,
) -> None:
    """Repeat a stored run and print the differences; exit code 1 if a count or prediction differs."""
    options = RunOptions.read({name: value for name, value in given.items() if name != "device"})
    with loading():
        from cl_bench.running.device import pick_device
        from cl_bench.streams import DataConfig
        from cl_bench.studies import repeat as repeats

    record, arrays = repeats.find(key, results or default_folders())
    data = DataConfig.of(options.get("root"))
    run = repeats.planned(record, options.get("checkpoint"), options.get("method_file", ()), data)
    sys.exit(0 if repeat_run(record, arrays, run, pick_device(given.get("device", "auto"))) else 1)


def repeat_run(record: RunRecord, arrays: Arrays | None, run: PlannedRun, device: torch.device) -> bool:
    """Repeat a stored run and print the differences; returns whether there are none.

    Args:
        arrays: the stored predictions; None: only counts are compared.
    """
    from cl_bench.studies.repeat import repeat

    with run_bars(err) as bars:
        found = repeat(record, arrays, run, device, run_progress(bars, 1))
    table = Table("", "stored", "now", "difference", box=None, header_style="bold")
    accuracies = (f"{100 * value:.2f}" for value in (found.stored, found.now))
    table.add_row("accuracy, %", *accuracies, f"{100 * (found.now - found.stored):+.2f}")
    for name, before, now in found.environment:
        table.add_row(name, str(before), str(now), "")
    out.print(f"{escape(found.label)}, seed {record.experiment.seed}, key {found.key}")
    out.print(table)
    predictions = f" and {found.predictions} of {found.images} final predictions" if found.images else ""
    differing = f"{found.counts} of {found.entries} counts{predictions} differ" + (
        " (other hardware or versions round differently, which training amplifies)" if found.environment else ""
    )
    same = "the same in every count" + (
        " and prediction" if found.images else "; the reference in the package holds no predictions to compare"
    )
    out.print(same if found.identical else differing)
    return found.identical
