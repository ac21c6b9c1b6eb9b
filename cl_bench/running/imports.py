"""Imports of torch, timm and avalanche, which take seconds and which only commands that run methods need."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import heavy libraries in this block without their irrelevant warnings, and with garbage collection paused.

    Avalanche warns about missing solvers and tqdm about missing notebook bars; cl-bench uses neither. The collector
    would take a quarter of the import time for a million new objects, none of which is garbage.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    for message in ("no QP solver found", "IProgress not found"):
        warnings.filterwarnings("ignore", message=message)
    # Child processes inherit this.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:no QP solver found")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
