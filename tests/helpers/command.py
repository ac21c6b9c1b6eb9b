"""The outcome of a command: exit code, output, and stored files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TRIAL = ["--limit-tasks", "2", "--limit-train", "3", "--limit-test", "2"]
"""Options with which a run takes about a second."""


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]

RUNS = Path("results/runs")


def stored(folder: Path = RUNS) -> list[dict[str, Any]]:
    """The JSON of all records, sorted by file name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


Result = tuple[dict[str, Any], dict[str, np.ndarray]]
"""The JSON of a record, and its arrays."""


def results(folder: Path) -> dict[str, Result]:
    """All records stored by commands in a folder, by key; asserts that each has exactly one npz."""
    store = folder / RUNS
    found = {}
    for path in store.glob("*.json"):
        (packed,) = store.glob(f"{path.stem}-*.npz")
        with np.load(packed) as arrays:
            record = json.loads(path.read_text())
            found[record["key"]] = record, dict(arrays)
    assert len(list(store.glob("*.npz"))) == len(found)
    return found


def tree(folder: Path = Path()) -> dict[str, bytes | None]:
    """Every path below `folder`: content of files, None for folders."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def rows(out: str) -> dict[str, list[str]]:
    """The printed result table: label -> acc, aaa, forgetting, seeds, minutes, trainable, tuning."""
    split = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    return {cells[0]: cells[1:] for cells in split if len(cells) == 8 and cells[0] != "method"}


def computed(outcome: Outcome) -> tuple[int, int]:
    """Numbers of runs computed and already stored, from the last line of the output."""
    match = re.search(r"(\d+) run\(s\) computed in .* min, (\d+) already there", outcome.err)
    assert match, outcome
    return int(match[1]), int(match[2])


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    """Assert exit code 2, one error sentence with all fragments, and no other output."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("error:") == 1, outcome.err
    assert outcome.err.count("\n") == 1 and outcome.out == ""
    for fragment in fragments:
        assert fragment in outcome.err
