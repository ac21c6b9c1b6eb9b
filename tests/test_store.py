"""Run records: what goes in comes out, what is damaged is named, and killed or racing writers do no harm."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cl_bench.errors import UserError
from cl_bench.experiment import Limits
from cl_bench.store import SCHEMA_VERSION, DamagedRecord, RunRecord, Store
from tests import factories

HOUSE = Path(__file__).parents[1]


def without_hash(record: RunRecord | None) -> RunRecord:
    """A record as it was before it was written."""
    assert record is not None
    return record.model_copy(update={"arrays_sha256": ""})


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    """A record with any counts that are possible: sequential or joint, tasks of one image included."""
    tasks = draw(st.integers(1, 4))
    total = draw(st.lists(st.integers(1, 40), min_size=tasks, max_size=tasks))
    joint = draw(st.booleans())
    stages = [list(range(tasks))] if joint else [[task] for task in range(tasks)]
    rows, aware = [], []
    for stage in stages:
        rows.append([draw(st.integers(0, n)) if j <= stage[-1] else None for j, n in enumerate(total)])
        aware.append([draw(st.integers(0, n)) for n in total])
    count = len(stages)
    seconds = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=count, max_size=count)
    numbers = st.lists(st.integers(0, 10**12), min_size=count, max_size=count)
    scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=5)
    plain = factories.record(seed=draw(st.integers(0, 99)), joint=joint, limits=Limits(tasks=tasks))
    return plain.model_copy(
        update={
            "label": draw(st.text(max_size=20)),
            "stages": stages,
            "correct": rows,
            "correct_task_aware": aware,
            "total": total,
            "train_seconds": draw(seconds),
            "eval_seconds": draw(seconds),
            "train_samples": draw(numbers),
            "eval_samples": draw(numbers),
            "trainable": draw(numbers),
            "stored": draw(numbers),
            "traces": draw(
                st.dictionaries(
                    st.text(max_size=5),
                    st.lists(st.dictionaries(st.text(max_size=5), scalars, max_size=2), max_size=2),
                    max_size=2,
                )
            ),
        }
    )


@settings(max_examples=60, deadline=None)
@given(records())
def test_what_is_written_is_found_and_loaded(tmp_path_factory: pytest.TempPathFactory, record: RunRecord) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "not" / "yet" / "there")
    assert store.find(record.experiment) is None
    arrays = factories.arrays(record)
    path = store.write(record, arrays)
    assert path == store.json_path(record.experiment) and path.parent == store.root
    found = store.load(path)
    assert without_hash(found) == without_hash(store.find(record.experiment)) == record
    back = store.arrays(found)
    assert back.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(back[name], values)
        assert back[name].dtype == values.dtype
    assert list(store.records(pytest.fail)) == [found]
    assert {file.name for file in store.root.iterdir()} == {path.name, path.with_suffix(".npz").name}


def test_another_experiment_is_not_found(tmp_path: Path) -> None:
    factories.write(tmp_path, factories.record(seed=0))
    store = Store(tmp_path)
    assert store.find(factories.experiment(seed=0)) is not None
    for other in (
        factories.experiment(seed=1),
        factories.experiment(seed=0, revision=2),
        factories.experiment(seed=0, hyperparameters={"rank": 8}),
    ):
        assert store.find(other) is None


def test_writing_again_replaces(tmp_path: Path) -> None:
    record = factories.record()
    factories.write(tmp_path, record, record.model_copy(update={"recipe": "unified"}))
    store = Store(tmp_path)
    found = store.find(record.experiment)
    assert found is not None and found.recipe == "unified"
    assert len(list(tmp_path.iterdir())) == 2


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    assert [file.stat().st_mode & 0o777 for file in (path, path.with_suffix(".npz"))] == [0o644, 0o644]


def test_records_come_in_file_order_and_damaged_ones_are_skipped_and_named(tmp_path: Path) -> None:
    runs = [factories.record(method, seed) for method in ("gamma", "alpha", "beta") for seed in (2, 0, 1)]
    paths = sorted(factories.write(tmp_path, *runs))
    paths[2].write_text("{")
    paths[4].with_suffix(".npz").unlink()
    (tmp_path / "notes.txt").write_text("not a record")
    (tmp_path / "stray.npz").write_bytes(b"")
    (tmp_path / ".alpha.json-1234").write_text("left by a killed writer")
    (tmp_path / "folder").mkdir()
    told: list[str] = []
    found = list(Store(tmp_path).records(told.append))
    assert [Store(tmp_path).json_path(r.experiment) for r in found] == [
        p for i, p in enumerate(paths) if i not in (2, 4)
    ]
    assert len(told) == 2
    assert str(paths[2]) in told[0] and str(paths[4].with_suffix(".npz")) in told[1]


def test_a_folder_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    store = Store(tmp_path / "absent")
    assert list(store.records(pytest.fail)) == []
    assert store.find(factories.experiment()) is None
    assert not store.root.exists()


# --- damage ----------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def put(name: str, value: Any) -> Change:
    return lambda data: data.__setitem__(name, value)


CHANGES: dict[str, Change] = {
    "another key": put("key", "0" * 16),
    "another experiment": lambda data: data["experiment"].__setitem__("seed", 9),
    "hyper-parameter altered": lambda data: data["experiment"]["hyperparameters"].__setitem__("lr", 0.5),
    "newer schema": put("schema_version", SCHEMA_VERSION + 1),
    "more hits than images": lambda data: data["correct"][0].__setitem__(0, data["total"][0] + 1),
    "more task-aware hits than images": lambda data: data["correct_task_aware"][0].__setitem__(0, data["total"][0] + 1),
    "negative hits": lambda data: data["correct"][3].__setitem__(1, -1),
    "half a hit": lambda data: data["correct"][3].__setitem__(1, 0.5),
    "a stage too few": lambda data: data["correct"].pop(),
    "a task too few": lambda data: data["correct"][4].pop(),
    "a task-aware row too many": lambda data: data["correct_task_aware"].append(data["correct_task_aware"][0]),
    "no task-aware count": lambda data: data["correct_task_aware"][0].__setitem__(0, None),
    "a test set too few": lambda data: data["total"].pop(),
    "an empty test set": lambda data: data["total"].__setitem__(0, 0),
    "no test set": put("total", []),
    "seconds missing": lambda data: data["train_seconds"].pop(),
    "stored numbers missing": lambda data: data["stored"].pop(),
    "a field missing": lambda data: data.pop("total"),
    "an unknown field": put("accuracy", 0.9),
    "another type": put("correct", "many"),
    "counts of nothing": put("correct", []),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_altered_records_are_refused_by_name(tmp_path: Path, change: str) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    data = json.loads(path.read_text())
    CHANGES[change](data)
    path.write_text(json.dumps(data))
    store = Store(tmp_path)
    with pytest.raises(DamagedRecord) as caught:
        store.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(DamagedRecord):
        store.find(factories.experiment())
    told: list[str] = []
    assert list(store.records(told.append)) == [] and told == [str(caught.value)]


def test_a_newer_schema_is_told_as_such(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(DamagedRecord, match=f"schema version {SCHEMA_VERSION + 1} is newer.*update cl-bench"):
        Store(tmp_path).load(path)


@pytest.mark.xfail(strict=True, reason="unknown fields are refused before the schema version is looked at")
def test_a_newer_schema_with_a_new_field_is_told_as_such(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    newer = json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1, "energy_joules": 12.5}
    path.write_text(json.dumps(newer))
    with pytest.raises(DamagedRecord, match="is newer than"):
        Store(tmp_path).load(path)


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    "damage", [cut_short, to_folder, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\xff\x00")]
)
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_unreadable_files_are_named(tmp_path: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    damage(path.with_suffix(suffix))
    with pytest.raises(DamagedRecord) as caught:
        Store(tmp_path).load(path)
    assert str(path.with_suffix(suffix)) in str(caught.value)


@pytest.mark.parametrize("damage", [one_bit, dangling, Path.unlink])
def test_altered_or_missing_predictions_are_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    damage(path.with_suffix(".npz"))
    with pytest.raises(DamagedRecord) as caught:
        Store(tmp_path).find(factories.experiment())
    assert str(path.with_suffix(".npz")) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_without_permission_are_named(tmp_path: Path, suffix: str) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    path.with_suffix(suffix).chmod(0)
    with pytest.raises(DamagedRecord, match=f"{path.with_suffix(suffix)}.*[Pp]ermission"):
        Store(tmp_path).load(path)


def test_a_misnamed_record_is_refused(tmp_path: Path) -> None:
    one, other = factories.write(tmp_path, factories.record(seed=0), factories.record(seed=1))
    for suffix in (".json", ".npz"):
        one.with_suffix(suffix).replace(other.with_suffix(suffix))
    with pytest.raises(DamagedRecord, match=f"{other}: holds the run {one.stem}"):
        Store(tmp_path).find(factories.experiment(seed=1))


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    one, other = factories.write(tmp_path, factories.record(seed=0), factories.record(seed=1))
    one.with_suffix(".npz").write_bytes(other.with_suffix(".npz").read_bytes())
    with pytest.raises(DamagedRecord, match="altered"):
        Store(tmp_path).load(one)


def test_impossible_records_cannot_even_be_made() -> None:
    data = factories.record().model_dump()
    with pytest.raises(ValidationError, match="larger than its test set"):
        RunRecord(**data | {"total": [1] * 10})


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_results_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / ("" if kind == "file" else "results")
    with pytest.raises(UserError, match="--results"):
        Store(root).write(factories.record(), {})
    assert (tmp_path / "file").read_text() == ""


# --- killed and racing writers ---------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import numpy as np
from cl_bench.store import Store
from tests import factories

root, variants, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
run = factories.record()
noise = np.random.default_rng(0).integers(0, 100, (4, 20_000)).astype(np.int16)
print("ready", flush=True)
sys.stdin.readline()
number = 0
while number < rounds:
    # The variant is told by `train_samples` in the JSON and by `variant` in the npz.
    variant = (number + int(sys.argv[4])) % variants
    record = run.model_copy(update={"train_samples": [variant] * 10, "train_seconds": [float(number)] * 10})
    Store(root).write(record, {"variant": np.array([variant]), "noise": noise[variant]})
    number += 1
"""


def writer(root: Path, variants: int, rounds: int = 10**9, first: int = 0) -> subprocess.Popen[str]:
    """A real process that rewrites one record over and over, once it is told to go."""
    command = [sys.executable, "-c", WRITER, str(root), str(variants), str(rounds), str(first)]
    process = subprocess.Popen(command, cwd=HOUSE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def kill_while_writing(root: Path, variants: int) -> Path:
    """Let a real process rewrite one record in `root` and kill it at a random moment; returns the record's path."""
    process = writer(root, variants)
    go(process)
    time.sleep(random.uniform(0.01, 0.08))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    return Store(root).json_path(factories.experiment())


@pytest.mark.parametrize("attempt", range(8))
def test_a_killed_writer_leaves_a_valid_record_or_none(tmp_path: Path, attempt: int) -> None:
    """The same results each time, as a deterministic run gives them; only its seconds differ."""
    path = kill_while_writing(tmp_path, variants=1)
    found = Store(tmp_path).find(factories.experiment())
    if found is not None:
        assert Store(tmp_path).arrays(found)["variant"] == found.train_samples[0] == 0
    told: list[str] = []
    assert len(list(Store(tmp_path).records(told.append))) == int(path.exists()) and not told


@pytest.mark.parametrize("attempt", range(8))
def test_a_killed_writer_of_other_results_is_never_believed(tmp_path: Path, attempt: int) -> None:
    """A replaced record (`--force`) has other predictions: never those of one version with the counts of another."""
    kill_while_writing(tmp_path, variants=2)
    store = Store(tmp_path)
    try:
        found = store.find(factories.experiment())
    except DamagedRecord as error:
        assert "altered" in str(error)
    else:
        assert found is None or store.arrays(found)["variant"] == found.train_samples[0]


@pytest.mark.parametrize("attempt", range(3))
def test_two_writers_of_one_run_end_with_one_valid_record(tmp_path: Path, attempt: int) -> None:
    processes = [writer(tmp_path, variants=1, rounds=40) for _ in range(2)]
    for process in processes:
        go(process)
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    store = Store(tmp_path)
    found = store.find(factories.experiment())
    assert found is not None and store.arrays(found)["variant"] == 0
    assert len(list(tmp_path.iterdir())) == 2, "temporary files were left"
