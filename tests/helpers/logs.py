"""What runs have logged with `--log csv`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

MEASURED_ANEW = ("time/", "memory/")
"""What differs from process to process."""


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The logs in a folder for logs, by key of the run; one row per step."""
    paths = (folder / "csv").glob("*.csv")
    return {path.stem.rpartition("-")[2]: pd.read_csv(path, index_col="step") for path in paths}


def repeatable(logged: pd.DataFrame) -> pd.DataFrame:
    """The columns that do not depend on when and where they were measured."""
    return logged[[name for name in logged if not str(name).startswith(MEASURED_ANEW)]]
