"""Hostile files in a results folder: each gives a clear sentence, within bounded memory, and executes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_bench.experiment import Limits
from cl_bench.store import DamagedRecord, Store, predictions
from tests.helpers import ROOT, factories

SMALL = factories.record(classes_per_task=1, limits=Limits(tasks=2))
ARRAYS = factories.arrays(SMALL)


def put(folder: Path, packed: bytes, change: Callable[[dict[str, Any]], object] = lambda data: None) -> Path:
    """Store a record with an npz of arbitrary content and matching hash and checksum, as a forger would."""
    (path,) = factories.write(folder, SMALL)
    factories.npz(path).write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    factories.edit(path, lambda data: (data.update(arrays_sha256=digest), change(data)), sealed=True)
    return path


def arrays_fault(folder: Path, packed: bytes) -> str:
    """The error message from reading these arrays."""
    store = Store(folder)
    record = store.load(put(folder, packed))
    with pytest.raises(DamagedRecord) as caught:
        store.arrays(record)
    with pytest.raises(DamagedRecord):
        store.check(store.json_path(record.experiment))
    sentence = str(caught.value)
    assert sentence.startswith(str(store.arrays_path(record))) and sentence.isprintable() and len(sentence) < 600
    return sentence


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(ARRAYS | arrays))  # type: ignore[arg-type]
    return buffer.getvalue()


def with_header(header: str, method: int = zipfile.ZIP_DEFLATED, body: bytes = b"") -> bytes:
    """An npz in which the array `label` has this header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ARRAYS:
            member = io.BytesIO()
            np.save(member, ARRAYS[name])
            text = header.encode() + b"\n"
            forged = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body
            archive.writestr(f"{name}.npy", forged if name == "label" else member.getvalue())
    return buffer.getvalue()


class Trap:
    """An object that executes code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


IMAGES = len(ARRAYS["label"])
FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "objects": (lambda: npz(label=np.array([Trap()] * IMAGES, dtype=object)), "dtype object"),
    "floats": (lambda: npz(label=ARRAYS["label"] * 1.0), "dtype float64"),
    "truth values": (lambda: npz(label=ARRAYS["label"] > 0), "dtype bool"),
    "texts": (lambda: npz(label=ARRAYS["label"].astype("U5")), "dtype <U5"),
    "fields": (lambda: npz(label=np.zeros(IMAGES, dtype=[("a", "i8")])), "dtype"),
    "one too many": (lambda: npz(label=np.append(ARRAYS["label"], 0)), "shape"),
    "a stage too few": (lambda: npz(predicted=ARRAYS["predicted"][:1]), "shape"),
    "transposed": (lambda: npz(predicted=ARRAYS["predicted"].T), "shape"),
    "another array": (lambda: npz(logits=ARRAYS["label"]), "logits.npy"),
    "path-like name": (lambda: npz(**{"../../evil": ARRAYS["label"]}), "evil"),
    "nothing": (lambda: b"", "not a whole npz"),
    "a pickle": (lambda: pickle.dumps(Trap()), "not a whole npz"),
    "huge shape": (lambda: with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (10**6,)}"), "header"),
    "huge literal shape": (
        lambda: with_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({10**18},)}}"),
        "shape",
    ),
    "negative shape": (lambda: with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}"), "shape"),
    "huge items": (
        lambda: with_header(f"{{'descr': '<V1000000000', 'fortran_order': False, 'shape': ({IMAGES},)}}"),
        "dtype",
    ),
    "deep header": (lambda: with_header("(" * 900), "header"),
    "endless header": (lambda: with_header(" " * 60_000), "header"),
    "no content": (
        lambda: with_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({IMAGES},)}}"),
        "not as long",
    ),
    "too much content": (
        lambda: with_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({IMAGES},)}}", body=bytes(10**6)),
        "not as long",
    ),
    "unusual compression": (
        lambda: with_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({IMAGES},)}}", zipfile.ZIP_LZMA),
        "unusual",
    ),
}


@pytest.mark.parametrize("case", list(FORGED))
def test_forged_predictions_end_in_a_sentence(tmp_path: Path, case: str) -> None:
    make, fragment = FORGED[case]
    assert fragment in arrays_fault(tmp_path, make())


@pytest.mark.parametrize("name", ["label", "task", "predicted", "predicted_task_aware"])
@pytest.mark.parametrize("value", [-2, 100, 2**40])
def test_labels_out_of_range_contradict_the_record(tmp_path: Path, name: str, value: int) -> None:
    values = ARRAYS[name].copy()
    values[..., 0] = value
    path = put(tmp_path, npz(**{name: values}))
    with pytest.raises(DamagedRecord, match=name):
        Store(tmp_path).check(path)


def test_a_single_other_prediction_contradicts_the_record(tmp_path: Path) -> None:
    values = ARRAYS["predicted"].copy()
    hit = int(np.flatnonzero(values[-1] == ARRAYS["label"])[0])
    values[-1, hit] = (values[-1, hit] + 1) % len(SMALL.classes)
    path = put(tmp_path, npz(predicted=values))
    counted = (SMALL.correct[-1][0] or 0) - 1
    with pytest.raises(DamagedRecord, match=f"{counted} hits in task 1 after stage 2 .*record has {counted + 1}"):
        Store(tmp_path).check(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_are_arrays_or_a_value_error(data: st.DataObject) -> None:
    packed = bytearray(npz())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    packed = packed[: data.draw(st.integers(0, len(packed)))] if data.draw(st.booleans()) else packed
    try:
        found = predictions.unpack(io.BytesIO(bytes(packed)), len(SMALL.stages), sum(SMALL.total))
    except ValueError:
        return
    assert {name: values.shape for name, values in found.items()} == {n: v.shape for n, v in ARRAYS.items()}


# --- JSON ------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["../../etc/passwd", "a\x00b", "\ud800", "\x1b[2J", "order:" + "9" * 50, 10**400, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_field_of_any_value_is_a_record_or_damage(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The forger updates checksum, key and file name as far as possible."""
    fields = json.loads(SMALL.model_dump_json())
    place = fields["experiment"] if data.draw(st.booleans()) else fields
    name = data.draw(st.sampled_from([*place, "unknown"]))
    place[name] = data.draw(JSON)
    rest = {key: value for key, value in fields.items() if key != "checksum"}
    fields["checksum"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    folder = tmp_path_factory.mktemp("store")
    path = Store(folder).json_path(SMALL.experiment)
    path.write_text(json.dumps(fields))
    sentences: list[str] = []
    assert list(Store(folder).records(sentences.append)) == []
    assert len(sentences) == 1 and sentences[0].isprintable() and len(sentences[0]) < 1000


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_are_a_record_or_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("store")
    (path,) = factories.write(folder, SMALL)
    before = Store(folder).load(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(bytes(content))
    try:
        assert Store(folder).load(path) == before
    except DamagedRecord as error:
        assert str(error).isprintable()


TEXTS = {
    "nan": ('"tuning_minutes": NaN', "NaN"),
    "infinity": ('"tuning_minutes": -Infinity', "Infinity"),
    "a float beyond floats": ('"tuning_minutes": 1e400', "tuning_minutes"),
    "an integer beyond floats": (f'"flops_per_image": {"9" * 400}', "flops_per_image"),
    "an integer beyond all": (f'"flops_per_image": {"9" * 5000}', "digits"),
    "a count of 1e400": ('"flops_per_image": 1e400', "flops_per_image"),
    "a name twice": ('"recipe": "tuned", "recipe": "unified"', "twice"),
    "half a character": (r'"recipe": "\ud800"', "surrogate"),
    "time in words": ('"finished": "yesterday"', "finished"),
    "deep": ('"traces": ' + "[" * 100_000, "deep"),
    "deep objects": ('"traces": ' + '{"a":' * 100_000, "deep"),
    "many names": ('"environment": {' + ",".join(f'"{i}": 1' for i in range(10_001)) + "}", "10,000 names"),
    "nested traces": ('"traces": {"a": [{"b": [1]}]}', "traces"),
    "no rows": ('"traces": {"a": 1}', "traces"),
}


@pytest.mark.parametrize("case", list(TEXTS))
def test_odd_json_ends_in_a_sentence(tmp_path: Path, case: str) -> None:
    text, fragment = TEXTS[case]
    (path,) = factories.write(tmp_path, SMALL)
    name = text.split('"')[1]
    fields = {key: value for key, value in json.loads(path.read_text()).items() if key != name}
    path.write_text("{" + text + ", " + json.dumps(fields)[1:])
    with pytest.raises(DamagedRecord, match=fragment) as caught:
        Store(tmp_path).load(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"a"', "{}".encode("utf-16"), b"\xef\xbb\xbf{}", b"{}"])
def test_content_other_than_a_json_object_in_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedRecord, match=str(path)):
        Store(tmp_path).load(path)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", ".hidden", "a\\b", "a\nb", "\N{SNOWMAN}" * 200])
@pytest.mark.parametrize("field", ["method", "benchmark"])
def test_names_never_lead_out_of_the_folder(tmp_path: Path, name: str, field: str) -> None:
    root = tmp_path / "deep" / "down" / "store"
    record = factories.record(**({"method": name} if field == "method" else {"benchmark": name}))
    (path,) = factories.write(root, record)
    assert {file.parent for file in tmp_path.rglob("*") if file.is_file()} == {root}
    assert path.resolve().parent == root.resolve() and path.name.isprintable() and path.name[0] != "."
    assert [found.key for found in Store(root).records(pytest.fail)] == [record.key]
    assert len(factories.npz(path).name.encode()) < 240, "temporary files need some more"


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, SMALL)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    arrays = factories.npz(path)
    arrays.unlink()
    os.mkfifo(arrays)
    sentences: list[str] = []
    assert list(Store(tmp_path).records(sentences.append)) == []
    assert ["regular" in sentence for sentence in sentences] == [True] * 3


READER = """
import resource, sys
from pathlib import Path
from cl_bench.store import DamagedRecord, Store
import numpy
store, room = Store(sys.argv[1]), int(sys.argv[2])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
for name in store.names():
    try:
        store.check(store.root / name)
    except DamagedRecord as error:
        print(error)
"""


def read_with(folder: Path, megabytes: int) -> str:
    """Output of checking the folder in a process with a limit of additional memory."""
    command = [sys.executable, "-c", READER, str(folder), str(megabytes * 2**20)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS") or not Path("/proc/self/statm").exists(), reason="Linux")
def test_bombs_are_refused_with_little_memory(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ARRAYS:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<i8", "fortran_order": False, "shape": (2**28,)}
                )
                member.write(bytes(2**23))
    (tmp_path / "npz").mkdir()
    put(tmp_path / "npz", bomb.getvalue())
    assert "shape" in read_with(tmp_path / "npz", 64)

    # The counts and shapes agree with each other.
    (tmp_path / "both").mkdir()

    def huge(data: dict[str, Any]) -> None:
        data.update(total=[2**27, 2**27], correct=[[0, None], [0, 0]], correct_task_aware=[[0, 0], [0, 0]])

    with zipfile.ZipFile(bomb := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ARRAYS:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                shape = (2**28,) if name in ("label", "task") else (2, 2**28)
                np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
    put(tmp_path / "both", bomb.getvalue(), huge)
    assert "beyond" in read_with(tmp_path / "both", 64)

    (tmp_path / "json").mkdir()
    with (tmp_path / "json" / "large.json").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "json" / "lists.json").write_text('{"schema_version": 1, "stages": [' + "[]," * 10**6 + "[]]}")
    assert read_with(tmp_path / "json", 256).count("\n") == 2
