"""Forged records: one field has an arbitrary value, and key, file names, hashes and checksum agree with it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cl_bench.experiment import Experiment, Limits
from cl_bench.store import RunRecord, Store
from tests.helpers import factories

Place = tuple[str | int, ...]
"""Path of names and indices to a value in the JSON of a record."""
CUT = Limits(tasks=3)
TRACES: dict[str, list[dict[str, Any]]] = {
    "loss": [{"stage": stage, "epoch": 0, "loss": 1.5} for stage in range(3)],
    "magnitudes": [{"stage": 1, "direction": 0, "value": 1.0}, {"stage": 1, "direction": 1, "value": 0.5}],
}
INTEGERS = [-1, 0, 1, 2**53, 2**53 + 1, 2**63, 10**400, True, 1.5, "1", None, []]
FLOATS = [0, -1.0, 5e-324, 1e9, 1e18, 1e308, float("inf"), 10**400, None, "1"]
TEXTS: list[Any] = [
    "", "x" * 20_000, "x" * 9_000, "\x1b[31mred", "\u202eevil", "=1+1", "-1.5", "@x", "\tx", "a\nb", "\x00",
    "9" * 5_000, "\u00e9" * 300, "%s{}$\\[bold]", "../../x", None, 1,
]  # fmt: skip
DATES: list[Any] = [
    "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "2026-01-01T00:00:00+23:59", "1970-01-01T00:00:00Z", 1e18,
    "yesterday", None, -1e18, 253402300799,
]  # fmt: skip


def valid(number: int = 0) -> RunRecord:
    """A small valid record, a different one for each number."""
    made = factories.record("forged", classes_per_task=2, limits=CUT, hyperparameters={"case": number})
    return made.model_copy(update={"traces": TRACES})


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Pairs of place and value for every value in a record; of the items of a list only the first and the last."""
    if place not in ((), ("checksum",), ("arrays_sha256",)):
        yield place, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*place, name))
    elif isinstance(value, list):
        for position in sorted({0, len(value) - 1}) if value else ():
            yield from places(value[position], (*place, position))


def extremes(place: Place, value: Any) -> list[Any]:
    """Extreme values to replace a value with."""
    if place == ("finished",):
        return DATES
    if isinstance(value, list):
        return [[], None, [[]], value * 2, value * 1000]
    if isinstance(value, dict):
        return [{}, None, {"x" * 20_000: 1}, {"k": 10**400}, {"\x1b": "\x1b"}, {"a": {"b": 1}}]
    return TEXTS if isinstance(value, str) else FLOATS if isinstance(value, float) else INTEGERS


def forge(folder: Path, place: Place, value: Any, number: int) -> Path:
    """Store `valid(number)` with `value` at `place`; returns the path of its JSON."""
    record = valid(number)
    store = Store(folder)
    path = store.write(record, factories.arrays(record))
    fields = copy.deepcopy(json.loads(path.read_text()))
    arrays = factories.npz(path)
    parent = fields
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = value
    stem = path.stem
    try:
        experiment = Experiment.model_validate(fields["experiment"])
    except ValidationError:
        pass
    else:
        stem = experiment.file_stem
        if place != ("key",):
            fields["key"] = experiment.key
    rest = {name: field for name, field in fields.items() if name != "checksum"}
    fields["checksum"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    path.unlink()
    arrays.rename(folder / f"{stem}-{arrays.stem[-8:]}.npz")
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(fields))
    return path
