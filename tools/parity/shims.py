"""Patches that let the released programs run with current libraries, and on a machine without a GPU."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn


class _Anything(ModuleType):
    """A module that has every attribute, for imports that are never used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def absent(names: Sequence[str]) -> list[str]:
    """Replace modules that are not installed by stubs; return their names."""
    stubbed = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = _Anything(name)
            stubbed.append(name)
    return stubbed


@contextmanager
def inside(folder: Path, work: Path) -> Iterator[None]:
    """Import from a program's folder first, with `work` as the current folder for its logs."""
    before = Path.cwd()
    sys.path.insert(0, str(folder.absolute()))
    os.chdir(work)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(folder.absolute()))


class _Copying(io.StringIO):
    """Writes to a target and records everything written."""

    def __init__(self, target: TextIO) -> None:
        super().__init__()
        self.target = target

    def write(self, text: str) -> int:
        self.target.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.target.flush()


@contextmanager
def printed() -> Iterator[Sequence[io.StringIO]]:
    """Copies of everything printed to stdout and stderr inside the context."""
    copies = _Copying(sys.stdout), _Copying(sys.stderr)
    with redirect_stdout(copies[0]), redirect_stderr(copies[1]):
        yield copies


def whole_pickles() -> str:
    """Make `torch.load` read modules that the program saved itself, as before torch 2.6; return a description."""
    load = torch.load

    def trusting(*args: Any, **options: Any) -> Any:
        return load(*args, **{"weights_only": False, **options})

    torch.load = trusting
    return "torch.load: weights_only=False, the default of the torch that the program was written for"


def arrays_from_svd() -> str:
    """Make `np.linalg.svd` of a tensor return arrays, as before numpy 2; return a description."""
    svd = np.linalg.svd
    linalg: Any = np.linalg
    linalg.svd = lambda a, *args, **options: svd(np.asarray(a), *args, **options)
    return "np.linalg.svd: arrays for a tensor, as from the numpy that the program was written for"


def without_cuda() -> str:
    """Make `.cuda()` a copy on the CPU; return a description."""
    module: Any = nn.Module
    tensor: Any = Tensor
    module.cuda = lambda self, *_, **__: self
    # A copy, like a transfer to a GPU, because the programs modify the result in place.
    tensor.cuda = lambda self, *_, **__: self.clone()
    return "device: `.cuda()` stays on the CPU"
