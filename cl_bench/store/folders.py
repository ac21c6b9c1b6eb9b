"""Where stored runs are looked for if no folder is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS, REFERENCE = Path("results/runs"), Path("results/reference")
"""Where runs are stored unless told otherwise, and those that the README shows."""


def folders_to_read(named: Sequence[Path] = ()) -> list[Path]:
    """The folders that are named, else those of the default ones that are there."""
    return list(named or [folder for folder in (RESULTS, REFERENCE) if folder.is_dir()] or [RESULTS])
