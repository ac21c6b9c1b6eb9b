"""Repeating stored runs, through the command."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.helpers.command import RUNS, TRIAL, Cli, assert_refused
from tests.helpers.factories import record, write

METHODS = "simplecil,linear[epochs=1,align=true,align_epochs=1]"


def keys() -> list[str]:
    """Keys of the stored runs."""
    return [re.sub(r".*-", "", path.stem) for path in sorted(RUNS.glob("*.json"))]


def test_a_stored_run_is_repeated_to_the_last_prediction(cl_bench: Cli) -> None:
    assert cl_bench("run", "--methods", METHODS, *TRIAL).code == 0
    before = {path.name: path.read_bytes() for path in RUNS.iterdir()}
    for key in keys():
        outcome = cl_bench("repeat", key[:10])
        assert outcome.code == 0 and "the same in every count and prediction" in outcome.out, outcome
        assert key in outcome.out and "+0.00" in outcome.out
    assert {path.name: path.read_bytes() for path in RUNS.iterdir()} == before, "repeating stores nothing"


def test_another_result_is_seen(cl_bench: Cli, tmp_path: Path) -> None:
    """A forged record, with consistent counts, checksum and predictions, but from another seed."""
    assert cl_bench("run", "--methods", "linear[epochs=1]", "--seeds", "0-1", "--order", "natural", *TRIAL).code == 0
    records = {path: json.loads(path.read_text()) for path in RUNS.glob("*.json")}
    assert len(records) == 2
    from cl_bench.store import RunRecord, Store

    store = Store(RUNS)
    one, other = (store.load(path) for path in records)
    fields = other.model_dump() | {"experiment": one.experiment, "key": one.key, "checksum": ""}
    Store("forged").write(RunRecord(**fields).sealed(), store.arrays(other))
    outcome = cl_bench("repeat", one.key, "--results", "forged")
    assert outcome.code == 1 and "final predictions differ" in outcome.out, outcome


def test_keys_that_name_no_run_or_several(cl_bench: Cli) -> None:
    assert_refused(cl_bench("repeat", "0123"), "no run with the key '0123'", "no existing folder")
    write(RUNS, record("alpha"), record("beta"))
    assert_refused(cl_bench("repeat", "zz"), "no run with the key 'zz' in 'results/runs'")
    assert_refused(cl_bench("repeat", ""), "is the start of 2 keys", "give more digits")
