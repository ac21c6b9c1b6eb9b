"""How torch, timm and avalanche are imported, which takes seconds and which only what runs methods needs."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep third-party noise off the screen (avalanche warns of solvers that nothing here uses, tqdm in notebooks of
    bars that nothing here draws), and the garbage collector off a million new objects, of which none is garbage: it
    takes a quarter of the time."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for message in ("no QP solver found", "IProgress not found"):
        warnings.filterwarnings("ignore", message=message)
    # For processes that this one starts.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:no QP solver found")
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
