"""Where a user's data sets are and how they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cl_bench.errors import UserError

ROOT_VARIABLE = "CL_BENCH_DATA"
DEFAULT_ROOT = Path("data")


@dataclass(frozen=True)
class DataConfig:
    """Where data sets are and how they are read, in absolute paths: it travels with a run to other processes and hosts.

    Attributes:
        root: folder with the data sets.
        skip_bad: leave out images that cannot be decoded.
        split_list: which images train and which test; None: as the data set's folder says.
        domains: of `folder:PATH`, whether its folders are domains rather than classes.
    """

    root: Path
    skip_bad: bool = False
    split_list: Path | None = None
    domains: bool = False

    @classmethod
    def of(cls, root: Path | None = None, skip_bad: bool = False, split_list: Path | None = None) -> Self:
        """What the user asks for; the root is that of `data_root`.

        Raises:
            UserError: the root that is given is no folder.
        """
        if root is not None and not root.is_dir():
            raise UserError(f"--root '{root}' is no folder; name the one that holds the data sets")
        return cls(data_root(root).absolute(), skip_bad, split_list.absolute() if split_list else None)


def data_root(root: Path | None = None) -> Path:
    """The folder with the data sets: as given, else `CL_BENCH_DATA`, else `data/` in the current folder."""
    variable = os.environ.get(ROOT_VARIABLE)
    return root or (Path(variable).expanduser() if variable else DEFAULT_ROOT)


def existing_root(root: Path | None = None) -> Path:
    """The same, if it is there; the default one need not be.

    Raises:
        UserError: one was named and is not there.
    """
    top = data_root(root)
    if not top.is_dir() and top.absolute() != DEFAULT_ROOT.absolute():
        whence = ROOT_VARIABLE if top.absolute() == data_root().absolute() else "--root"
        raise UserError(f"the data folder '{top}' ({whence}) is not there; make it, or name the right one")
    return top
