"""The default results folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_bench.options.execution import RESULTS_DEFAULT, default_results

REFERENCE = Path("results/reference")
"""The folder of the runs that the README shows."""
DEFAULT_FOLDERS = f"{RESULTS_DEFAULT}; and {REFERENCE}"
"""The default folders in words, for help texts."""


def default_folders() -> list[Path]:
    """The default folder for new runs (see `default_results`), and that of the reference runs."""
    return [default_results(), REFERENCE]


def own_folders(named: Sequence[Path] = ()) -> list[Path]:
    """The given folders; without any, the default folder for new runs, whether it exists or not."""
    return list(named or [default_results()])


def folders_to_read(named: Sequence[Path] = ()) -> list[Path]:
    """The given folders; without any, the default folders that exist."""
    return list(named or [folder for folder in default_folders() if folder.is_dir()] or [default_results()])
