"""Run records: written records are read back unchanged, damage is named, killed and racing writers do no harm."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cl_bench.errors import UserError
from cl_bench.experiment import Limits
from cl_bench.files import open_regular, write_atomically
from cl_bench.store import DamagedRecord, RunRecord, Store
from cl_bench.store.record import SCHEMA_VERSION, content_hash
from tests.helpers import ROOT, factories
from tests.helpers.damage import cut_short, dangling, one_bit, to_folder


def without_added_fields(record: RunRecord | None) -> RunRecord:
    """A stored record without the fields that writing adds."""
    assert record is not None
    return record.model_copy(update={"arrays_sha256": "", "checksum": "", "finished": None})


def predicted_variant(store: Store, found: RunRecord) -> int:
    """Number of the variant to which stored predictions belong."""
    arrays = store.arrays(found)
    wrong = arrays["predicted"][-1] != arrays["label"]
    return int((arrays["predicted"][-1] - arrays["label"] - 1)[wrong][0]) % len(found.classes)


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    """A record with arbitrary valid counts: sequential or joint, including tasks of a single image."""
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


@settings(max_examples=40, deadline=None)
@given(records())
def test_what_is_written_is_found_and_loaded(tmp_path_factory: pytest.TempPathFactory, record: RunRecord) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "not" / "yet" / "there")
    assert store.find(record.experiment) is None
    arrays = factories.arrays(record)
    path = store.write(record, arrays)
    assert path == store.json_path(record.experiment) and path.parent == store.root
    found = store.load(path)
    assert without_added_fields(found) == without_added_fields(store.find(record.experiment)) == record
    back = store.arrays(found)
    assert back.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(back[name], values)
        assert back[name].dtype == values.dtype
    assert list(store.records(pytest.fail)) == [found]
    assert found.checksum == content_hash(json.loads(path.read_text())) != ""
    assert store.arrays_path(found).name == f"{path.stem}-{found.arrays_sha256[:8]}.npz"
    assert hashlib.sha256(store.arrays_path(found).read_bytes()).hexdigest() == found.arrays_sha256
    assert set(store.root.iterdir()) == {path, store.arrays_path(found)}


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


def test_a_replaced_record_takes_its_predictions_with_it(tmp_path: Path) -> None:
    store, record = Store(tmp_path), factories.record()
    (neighbour,) = factories.write(tmp_path, factories.record(seed=1))
    names = set()
    for variant in (0, 1, 1, 0):
        path = store.write(record, factories.arrays(record, variant))
        found = store.load(path)
        assert predicted_variant(store, found) == variant
        assert set(tmp_path.iterdir()) == {neighbour, factories.npz(neighbour), path, store.arrays_path(found)}
        names.add(store.arrays_path(found))
    assert len(names) == 2


def test_the_same_predictions_have_the_same_bytes_and_name_whenever_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = []
    for year in (1995, 2031):
        record = factories.record().model_copy(update={"finished": datetime(year, 1, 1, tzinfo=UTC)})
        monkeypatch.setattr(time, "localtime", lambda *seconds, year=year: time.struct_time((year, *[1] * 8)))
        (path,) = factories.write(tmp_path / str(year), record)
        stored.append((factories.npz(path).name, factories.npz(path).read_bytes()))
    assert stored[0] == stored[1]


def test_predictions_named_as_version_0_1_0_did_are_found_and_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (path,) = factories.write(tmp_path, factories.record())
    record = store.load(path)
    now = factories.npz(path)
    before = now.rename(now.with_name(f"{path.stem}-{record.checksum[:8]}.npz"))
    assert store.load(path) == record and store.arrays(record)
    store.write(*factories.variant(1))
    assert version(store, store.load(path)) == 1 and not before.exists()


@pytest.mark.parametrize("damage", ["edited", "cut", "newer"])
def test_a_damaged_record_can_be_replaced(tmp_path: Path, damage: str) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    if damage == "cut":
        cut_short(path)
    else:
        name = "schema_version" if damage == "newer" else "peak_memory_bytes"
        factories.edit(path, put(name, SCHEMA_VERSION + 1), sealed=False)
    store = Store(tmp_path)
    with pytest.raises(DamagedRecord):
        store.load(path)
    store.write(*factories.variant(1))
    assert version(store, store.load(path)) == 1


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    assert [file.stat().st_mode & 0o777 for file in (path, factories.npz(path))] == [0o644, 0o644]


def test_records_come_in_file_order_and_damaged_ones_are_skipped_and_named(tmp_path: Path) -> None:
    runs = [factories.record(method, seed) for method in ("gamma", "alpha", "beta") for seed in (2, 0, 1)]
    paths = sorted(factories.write(tmp_path, *runs))
    paths[2].write_text("{")
    lost = factories.npz(paths[4])
    lost.unlink()
    (tmp_path / "notes.txt").write_text("not a record")
    (tmp_path / "stray.npz").write_bytes(b"")
    (tmp_path / ".alpha.json-1234").write_text("left by a killed writer")
    (tmp_path / "folder").mkdir()
    sentences: list[str] = []
    found = list(Store(tmp_path).records(sentences.append))
    assert [Store(tmp_path).json_path(r.experiment) for r in found] == [
        p for i, p in enumerate(paths) if i not in (2, 4)
    ]
    assert len(sentences) == 2
    assert str(paths[2]) in sentences[0] and str(lost) in sentences[1]


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
    "a schema that is no number": put("schema_version", None),
    "counts of nothing": put("correct", []),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("change", list(CHANGES))
def test_impossible_records_are_refused_by_name_whatever_their_checksum(
    tmp_path: Path, change: str, sealed: bool
) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    factories.edit(path, CHANGES[change], sealed=sealed)
    store = Store(tmp_path)
    with pytest.raises(DamagedRecord) as caught:
        store.load(path)
    assert "checksum" not in str(caught.value), "what is wrong is more than an edit"
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(DamagedRecord):
        store.find(factories.experiment())
    sentences: list[str] = []
    assert list(store.records(sentences.append)) == [] and sentences == [str(caught.value)]


POSSIBLE: dict[str, Change] = {
    "a hit less": lambda data: data["correct"][9].__setitem__(0, data["correct"][9][0] - 1),
    "a task-aware hit less": lambda data: data["correct_task_aware"][9].__setitem__(
        0, data["correct_task_aware"][9][0] - 1
    ),
    "a larger test set": lambda data: data["total"].__setitem__(0, data["total"][0] + 1),
    "another label": put("label", "beta"),
    "another recipe": put("recipe", "unified"),
    "another class name": lambda data: data["classes"].__setitem__(0, "zebra"),
    "faster": lambda data: data["train_seconds"].__setitem__(0, 1.0),
    "smaller": lambda data: data["stored"].__setitem__(0, 1),
    "less memory": put("peak_memory_bytes", 1),
    "another machine": lambda data: data["environment"].__setitem__("device", "cuda"),
    "another trace": lambda data: data["traces"].__setitem__("norms", [{"task": 0}]),
    "a default of the experiment": lambda data: data["experiment"]["defaults"].__setitem__("momentum", 0.9),
}


@pytest.mark.parametrize("change", list(POSSIBLE))
def test_edited_numbers_are_noticed(tmp_path: Path, change: str) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    original = path.read_text()
    factories.edit(path, POSSIBLE[change], sealed=False)
    store = Store(tmp_path)
    with pytest.raises(DamagedRecord, match=f"{path}: altered .*checksum"):
        store.load(path)
    with pytest.raises(DamagedRecord, match="checksum"):
        store.find(factories.experiment())
    sentences: list[str] = []
    assert list(store.records(sentences.append)) == [] and len(sentences) == 1
    # Only the checksum reveals the edit.
    path.write_text(original)
    factories.edit(path, POSSIBLE[change], sealed=True)
    assert store.load(path).arrays_sha256


@pytest.mark.parametrize("checksum", ["", "0" * 64, None], ids=["empty", "zeros", "missing"])
def test_a_record_needs_its_own_checksum(tmp_path: Path, checksum: str | None) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    factories.edit(
        path, lambda data: data.pop("checksum") if checksum is None else data.update(checksum=checksum), sealed=False
    )
    with pytest.raises(DamagedRecord, match="checksum"):
        Store(tmp_path).load(path)


def test_the_layout_of_the_json_does_not_count(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    found = Store(tmp_path).load(path)
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=4))
    assert Store(tmp_path).load(path) == found


def test_predictions_of_another_run_are_not_taken_for_those_of_the_json(tmp_path: Path) -> None:
    """An edited `arrays_sha256`, even with a valid checksum, does not fit the npz."""
    (path,) = factories.write(tmp_path, factories.record())
    factories.edit(path, put("arrays_sha256", "0" * 64), sealed=True)
    with pytest.raises(DamagedRecord, match="npz: altered"):
        Store(tmp_path).load(path)


def test_records_stay_valid_when_a_field_with_a_default_is_added(tmp_path: Path) -> None:
    """Content keys stay the same too; otherwise a new optional field would orphan every stored result."""

    class Wider(RunRecord):
        energy_joules: float | None = None

    (path,) = factories.write(tmp_path, factories.record())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cl_bench.store.record.RunRecord", Wider)
        assert Store(tmp_path).load(path).key == factories.record().key


@pytest.mark.parametrize("version", ["2", [2], {"a": 1}], ids=repr)
def test_a_schema_version_of_another_type_is_damage(tmp_path: Path, version: Any) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    factories.edit(path, put("schema_version", version), sealed=True)
    with pytest.raises(DamagedRecord, match=str(path)):
        Store(tmp_path).load(path)


def test_a_newer_schema_is_reported_as_such(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    factories.edit(path, put("schema_version", SCHEMA_VERSION + 1), sealed=True)
    with pytest.raises(DamagedRecord, match=f"schema version {SCHEMA_VERSION + 1} is newer.*update cl-bench"):
        Store(tmp_path).load(path)


def test_a_newer_schema_with_a_new_field_is_reported_as_such(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    newer = {"schema_version": SCHEMA_VERSION + 1, "energy_joules": 12.5}
    factories.edit(path, lambda data: data.update(newer), sealed=True)
    with pytest.raises(DamagedRecord, match=f"schema version {SCHEMA_VERSION + 1} is newer.*update cl-bench"):
        Store(tmp_path).load(path)


@pytest.mark.parametrize(
    "damage", [cut_short, to_folder, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\xff\x00")]
)
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_unreadable_files_are_named(tmp_path: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    file = path if suffix == ".json" else factories.npz(path)
    damage(file)
    with pytest.raises(DamagedRecord) as caught:
        Store(tmp_path).load(path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("damage", [one_bit, dangling, Path.unlink])
def test_altered_or_missing_predictions_are_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    predictions = factories.npz(path)
    damage(predictions)
    with pytest.raises(DamagedRecord) as caught:
        Store(tmp_path).find(factories.experiment())
    assert str(predictions) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_without_permission_are_named(tmp_path: Path, suffix: str) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    file = path if suffix == ".json" else factories.npz(path)
    file.chmod(0)
    with pytest.raises(DamagedRecord, match=f"{file}.*[Pp]ermission"):
        Store(tmp_path).load(path)


def test_a_misnamed_record_is_refused(tmp_path: Path) -> None:
    one, other = factories.write(tmp_path, factories.record(seed=0), factories.record(seed=1))
    predictions = factories.npz(one)
    predictions.replace(other.with_name(predictions.name.replace(one.stem, other.stem)))
    one.replace(other)
    with pytest.raises(DamagedRecord, match=f"{other}: holds the run {one.stem}"):
        Store(tmp_path).find(factories.experiment(seed=1))


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    one, other = factories.write(tmp_path, factories.record(seed=0), factories.record(seed=1))
    factories.npz(one).write_bytes(factories.npz(other).read_bytes())
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
from cl_bench.store import Store
from tests.helpers import factories

root, variants, rounds = Path(sys.argv[1]), [int(v) for v in sys.argv[2].split(",")], int(sys.argv[3])
run = factories.record()
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    # `train_samples` in the JSON and the wrong predictions in the npz identify the variant.
    variant = variants[number % len(variants)]
    record = run.model_copy(update={"train_samples": [variant] * 10, "train_seconds": [float(number)] * 10})
    Store(root).write(record, factories.arrays(run, variant))
"""
FOREVER = 10**9


def writer(root: Path, variants: Sequence[int], rounds: int = FOREVER) -> subprocess.Popen[str]:
    """A real process that, on a signal, writes one record repeatedly, each time the next variant."""
    command = [sys.executable, "-c", WRITER, str(root), ",".join(map(str, variants)), str(rounds)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def kill_while_writing(root: Path, variants: Sequence[int]) -> Path:
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


def version(store: Store, found: RunRecord) -> int:
    """Number of the variant in a record; asserts that its JSON and npz agree."""
    number = predicted_variant(store, found)
    assert found.train_samples == [number] * 10
    return number


@pytest.mark.parametrize("variants", [[0], [0, 1], range(90)], ids=["same", "two", "many"])
@pytest.mark.parametrize("attempt", range(3))
def test_a_killed_writer_leaves_a_valid_record_or_none(tmp_path: Path, attempt: int, variants: Sequence[int]) -> None:
    """Results are equal each time, as of a deterministic run, or different, as with `--force` after a code change."""
    path = kill_while_writing(tmp_path, variants)
    store = Store(tmp_path)
    found = store.find(factories.experiment())
    assert found is None or version(store, found) in variants
    assert len(list(store.records(pytest.fail))) == int(path.exists())
    # Leftovers do not disturb the next writer.
    store.write(*factories.variant(7))
    found = store.find(factories.experiment())
    assert found is not None and version(store, found) == 7


@pytest.mark.parametrize("attempt", range(2))
def test_a_killed_rewriter_leaves_the_earlier_or_a_later_record(tmp_path: Path, attempt: int) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    assert kill_while_writing(tmp_path, range(90)) == path
    store = Store(tmp_path)
    found = store.load(path)
    assert without_added_fields(found) == factories.record() or version(store, found) in range(90)


def finish(processes: Sequence[subprocess.Popen[str]]) -> None:
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.communicate()


@pytest.mark.parametrize("attempt", range(2))
@pytest.mark.parametrize(
    ("one", "other"), [([0], [0]), (range(40), range(40, 80))], ids=["same results", "other results"]
)
def test_two_writers_of_one_run_end_with_one_valid_record(
    tmp_path: Path, attempt: int, one: Sequence[int], other: Sequence[int]
) -> None:
    """The 40 results of a writer are all different, or all the same."""
    processes = [writer(tmp_path, variants, rounds=40) for variants in (one, other)]
    for process in processes:
        go(process)
    finish(processes)
    store = Store(tmp_path)
    found = store.find(factories.experiment())
    assert found is not None and version(store, found) in {one[-1], other[-1]}
    assert list(store.records(pytest.fail)) == [found]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")], "temporary files were left"


@pytest.mark.parametrize(
    ("one", "other"), [([0, 1], [1, 0]), (range(40), range(40, 80))], ids=["two in turns", "other results"]
)
def test_a_reader_finds_a_valid_record_while_two_processes_rewrite_it(
    tmp_path: Path, one: Sequence[int], other: Sequence[int]
) -> None:
    store = Store(tmp_path)
    store.write(*factories.variant(one[0]))
    processes = [writer(tmp_path, variants) for variants in (one, other)]
    for process in processes:
        go(process)
    reads, refused, writes = 0, [], set()
    while reads < 200 or len(writes) < 20:
        try:
            found = store.find(factories.experiment())
            assert found is not None and found.train_samples[0] in {*one, *other}
            writes.add(found.train_seconds[0])
        except DamagedRecord as error:
            refused.append(str(error))
        reads += 1
    for process in processes:
        process.kill()
        process.communicate()
    assert not refused, f"{len(refused)} of {reads} reads, e.g. {refused[:1]}"


# The same races, one step at a time.


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_record_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    store = Store(tmp_path)
    path = store.write(*factories.variant(0))
    left = list(range(times, 0, -1))

    def replaced_first(file: Path, limit: int) -> BufferedReader:
        if file.suffix == ".npz" and left:
            store.write(*factories.variant(left.pop()))
        return open_regular(file, limit)

    monkeypatch.setattr("cl_bench.store.store.open_regular", replaced_first)
    assert store.load(path).train_samples[0] == times and not left


def test_a_writer_never_removes_the_predictions_of_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results 0 are replaced by results 1; before the old npz is removed, another process writes results 0 again."""
    store = Store(tmp_path)
    path = store.write(*factories.variant(0))
    queue = [factories.variant(0, seconds=2.0)]

    def write_and_be_overtaken(target: Path, content: bytes, *, replace: bool = True) -> None:
        write_atomically(target, content, replace=replace)
        if target == path and queue:
            store.write(*queue.pop())

    monkeypatch.setattr("cl_bench.store.store.write_atomically", write_and_be_overtaken)
    store.write(*factories.variant(1))
    found = store.load(path)
    assert not queue and version(store, found) == 0 and found.train_seconds[0] == 2.0


def test_a_write_that_fails_leaves_the_record_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    path = store.write(*factories.variant(0))
    before = store.load(path)

    def full(target: Path, content: bytes, *, replace: bool = True) -> None:
        if target == path:
            raise OSError(28, "No space left on device")
        write_atomically(target, content, replace=replace)

    monkeypatch.setattr("cl_bench.store.store.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        store.write(*factories.variant(1))
    assert store.load(path) == before and version(store, before) == 0


def test_predictions_that_are_wanted_again_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results 0 are replaced; before their npz is removed, another process stores identical results 0 again."""
    store = Store(tmp_path)
    path = store.write(*factories.variant(0))
    first, queue = store.load(path), [factories.variant(0)[1]]

    def overtaken(target: Path, content: bytes, *, replace: bool = True) -> None:
        write_atomically(target, content, replace=replace)
        if target == path and queue:
            store.write(first, queue.pop())

    monkeypatch.setattr("cl_bench.store.store.write_atomically", overtaken)
    store.write(*factories.variant(1))
    assert not queue and store.load(path) == first and version(store, first) == 0
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_predictions_that_another_writer_removes_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results 0 are stored again while another process, which has just replaced them, removes their npz."""
    store = Store(tmp_path)
    path = store.write(*factories.variant(0))
    first, queue = store.load(path), [factories.variant(1)]

    def overtaken(target: Path, content: bytes, *, replace: bool = True) -> None:
        write_atomically(target, content, replace=replace)
        if target == store.arrays_path(first) and queue:
            store.write(*queue.pop())
            assert not target.exists()

    monkeypatch.setattr("cl_bench.store.store.write_atomically", overtaken)
    store.write(first, factories.variant(0)[1])
    assert not queue and store.load(path) == first and version(store, first) == 0


def test_files_and_their_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    real = os.fsync

    def spied(handle: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(os, "fsync", spied)
    factories.write(tmp_path, factories.record())
    assert flushed == [False, True, False, True], "predictions, their name, the record, its name"


def test_predictions_that_contradict_the_counts_are_not_stored(tmp_path: Path) -> None:
    record = factories.record()
    arrays = factories.arrays(record)
    arrays["predicted"][-1] = arrays["label"]
    with pytest.raises(ValueError, match="'predicted' has .* hits"):
        Store(tmp_path).write(record, arrays)
    assert list(tmp_path.iterdir()) == []


def test_traces_that_are_not_finite_do_not_cost_the_run(tmp_path: Path) -> None:
    rows = {"residual": [{"task": 0, "value": float("nan"), "norm": float("inf"), "rate": 0.5}]}
    record = RunRecord(**factories.record().model_dump() | {"traces": rows})
    path = Store(tmp_path).write(record, factories.arrays(record))
    assert Store(tmp_path).load(path).traces == {"residual": [{"task": 0, "value": None, "norm": None, "rate": 0.5}]}
