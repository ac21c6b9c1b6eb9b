"""What the released programs need in order to start at all on today's libraries, and on a machine without a GPU."""

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
    """A module that has every name, for imports of what is never called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def absent(names: Sequence[str]) -> list[str]:
    """Put empty modules in place of those that are not installed; return which."""
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
    """Import from a program's folder first, and let it write its logs into `work`."""
    before = Path.cwd()
    sys.path.insert(0, str(folder.absolute()))
    os.chdir(work)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(folder.absolute()))


class _Copying(io.StringIO):
    """Keeps what passes through it."""

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
    """Copies of what is printed to stdout and stderr meanwhile."""
    copies = _Copying(sys.stdout), _Copying(sys.stderr)
    with redirect_stdout(copies[0]), redirect_stderr(copies[1]):
        yield copies


def whole_pickles() -> str:
    """Let `torch.load` read the modules that a program has saved itself, as it did before torch 2.6."""
    load = torch.load

    def trusting(*args: Any, **options: Any) -> Any:
        return load(*args, **{"weights_only": False, **options})

    torch.load = trusting
    return "torch.load: weights_only=False, the default of the torch that the program was written for"


def arrays_from_svd() -> str:
    """Let `np.linalg.svd` of a tensor return arrays, as it did before numpy 2."""
    svd = np.linalg.svd
    linalg: Any = np.linalg
    linalg.svd = lambda a, *args, **options: svd(np.asarray(a), *args, **options)
    return "np.linalg.svd: arrays for a tensor, as from the numpy that the program was written for"


def without_cuda() -> str:
    """Make `.cuda()` a copy on the CPU."""
    module: Any = nn.Module
    tensor: Any = Tensor
    module.cuda = lambda self, *_, **__: self
    # A copy, as from the CPU to a GPU: the programs add in place to what they have just moved.
    tensor.cuda = lambda self, *_, **__: self.clone()
    return "device: `.cuda()` stays on the CPU"
