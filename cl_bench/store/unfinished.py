"""Unfinished runs of a store, as their checkpoints tell, without torch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cl_bench.files import open_regular
from cl_bench.store.store import CHECKPOINTS, Store

ABOUT = "about"
"""Name of the entry in a checkpoint's metadata that describes the run: label, benchmark, seed, number of stages."""
FACTS = "cl-bench"
"""Name of the entry in a checkpoint's metadata that holds its facts (see `training.checkpoint.Facts`)."""
_MAX_HEADER = 10**8
"""Largest header of a safetensors file in bytes."""


class Unfinished(NamedTuple):
    """A run with a checkpoint and no record.

    Attributes:
        label, benchmark, seed: of the run; of a checkpoint that does not say, its file name, nothing and None.
        done, stages: number of finished stages, and of all stages; None: not known.
        accuracy: accuracy on the tasks so far, a fraction; None before the end of the first stage.
        changed: when the checkpoint was written.
    """

    label: str
    benchmark: str
    seed: int | None
    done: int
    stages: int | None
    accuracy: float | None
    changed: datetime


def unfinished(store: Store) -> list[Unfinished]:
    """Runs of the store that are not finished, by file name; checkpoints that cannot be read are left out."""
    found = []
    for path in sorted((store.root / CHECKPOINTS).glob("*.safetensors")):
        if path.name.startswith(".") or (store.root / f"{path.stem}.json").exists():
            continue
        try:
            found.append(_read(path))
        except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
            # It has just been replaced or removed, or it is damaged; then the run itself says so when it resumes.
            continue
    return found


def _read(path: Path) -> Unfinished:
    """The run of a checkpoint.

    Raises:
        OSError: the file cannot be read.
        ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError: it is damaged.
    """
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    metadata = _metadata(path)
    facts, about = json.loads(metadata[FACTS]), json.loads(metadata.get(ABOUT, "{}"))
    stages = facts["stages"]
    accuracy = None
    if stages:
        counts = [(hits, n) for hits, n in zip(stages[-1]["correct"], facts["total"], strict=True) if hits is not None]
        accuracy = sum(hits for hits, _ in counts) / sum(n for _, n in counts)
    number = about.get("stages")
    seed = about.get("seed")
    return Unfinished(
        label=str(about.get("label", path.stem)),
        benchmark=str(about.get("benchmark", "")),
        seed=None if seed is None else int(seed),
        done=len(stages),
        stages=None if number is None else int(number),
        accuracy=accuracy,
        changed=changed,
    )


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata in the header of a safetensors file: eight bytes with its length, then JSON."""
    with open_regular(path, _MAX_HEADER * 1000) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError("the header is too long")
        metadata: dict[str, Any] = json.loads(file.read(length))["__metadata__"]
        return metadata
