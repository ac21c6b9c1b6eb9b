"""Location of the user's data sets, and options for reading them."""

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
    """Location of data sets and how to read them, with absolute paths, as it is sent to other processes and hosts.

    Attributes:
        root: folder with the data sets.
        skip_bad: leave out images that cannot be decoded.
        split_list: file that assigns images to training and testing; None: the split of the data set's folder.
        domains: for `folder:PATH`: whether its folders are domains rather than classes.
    """

    root: Path
    skip_bad: bool = False
    split_list: Path | None = None
    domains: bool = False

    @classmethod
    def of(cls, root: Path | None = None, skip_bad: bool = False, split_list: Path | None = None) -> Self:
        """The configuration for these options; without `root`, that of `data_root`.

        Raises:
            UserError: `root` is not a folder.
        """
        if root is not None and not root.is_dir():
            raise UserError(f"--root '{root}' is no folder; name the one that holds the data sets")
        return cls(data_root(root).absolute(), skip_bad, split_list.absolute() if split_list else None)


def data_root(root: Path | None = None) -> Path:
    """The folder with the data sets: `root` if given, else `CL_BENCH_DATA`, else `data/` in the current folder."""
    variable = os.environ.get(ROOT_VARIABLE)
    return root or (Path(variable).expanduser() if variable else DEFAULT_ROOT)


def existing_root(root: Path | None = None) -> Path:
    """The folder of `data_root`, which must exist unless it is the default one.

    Raises:
        UserError: the folder was named by `root` or `CL_BENCH_DATA` and does not exist.
    """
    top = data_root(root)
    if not top.is_dir() and top.absolute() != DEFAULT_ROOT.absolute():
        whence = ROOT_VARIABLE if top.absolute() == data_root().absolute() else "--root"
        raise UserError(f"the data folder '{top}' ({whence}) does not exist; create it, or name the right one")
    return top
