"""Imports of torch, timm and avalanche, which take seconds and which only commands that run methods need."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cl_bench.running.deferred import deferred_imports


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import heavy libraries in this block without their irrelevant warnings, parts and garbage collection.

    Avalanche warns about missing solvers and tqdm about missing notebook bars; cl-bench uses neither. What both only
    use in few functions is imported there (see `deferred_imports`). The collector would take a quarter of the import
    time for a million new objects, none of which is garbage.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    for message in ("no QP solver found", "IProgress not found"):
        warnings.filterwarnings("ignore", message=message)
    # Child processes inherit this.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:no QP solver found")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with deferred_imports():
            yield
    finally:
        if was_enabled:
            gc.enable()
