"""What the commands share: where they write to, options, and how they import what takes seconds."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_bench.errors import UserError

out = Console()
err = Console(stderr=True, highlight=False, soft_wrap=True)

MethodFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--method-file",
        help="A file with a method of your own; its name is the method's.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision", help="Of the backbone: fp32, bf16, or auto: bf16 where it is fast.", show_default="auto"
    ),
]
Compiled = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the backbone.", show_default="on a GPU")
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--root", help="Folder with the data sets.", show_default="CL_BENCH_DATA, else data/"),
]


def use_data(root: Path | None, skip_bad: bool = False, split_list: Path | None = None) -> None:
    """Make `--root` the data folder and pass on how to read it, here and to worker processes."""
    if skip_bad:
        os.environ["CL_BENCH_SKIP_BAD"] = "1"
    if split_list is not None:
        os.environ["CL_BENCH_SPLIT_LIST"] = str(split_list.absolute())
    if root is not None:
        if not root.is_dir():
            raise UserError(f"--root '{root}' is no folder; name the one that holds the data sets")
        os.environ["CL_BENCH_DATA"] = str(root.absolute())


@contextmanager
def loading() -> Iterator[None]:
    """Around imports of torch, timm and avalanche, which take seconds: only the commands that need them have them."""
    with err.status("loading torch, timm and avalanche ..."), quiet_imports():
        yield


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep third-party noise off the screen (avalanche warns of solvers that nothing here uses), and the garbage
    collector off a million new objects, of which none is garbage: it takes a quarter of the time."""
    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", message="no QP solver found")
    # For processes that this one starts.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:no QP solver found")
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
