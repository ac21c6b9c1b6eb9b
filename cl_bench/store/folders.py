"""The default results folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS, REFERENCE = Path("results/runs"), Path("results/reference")
"""The default folder for new runs, and the folder of the runs that the README shows."""


def folders_to_read(named: Sequence[Path] = ()) -> list[Path]:
    """The given folders; without any, the default folders that exist."""
    return list(named or [folder for folder in (RESULTS, REFERENCE) if folder.is_dir()] or [RESULTS])
