"""The results store: one JSON and one npz per run, addressed by content key.

Records are written atomically and never locked: writers of the same key end with one valid record. A record holds
integer counts; every metric, table and figure is derived from them afterwards. A failed run is never stored.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cl_bench import metrics, predictions
from cl_bench.errors import UserError
from cl_bench.experiment import Experiment, Scalar
from cl_bench.files import open_regular, write_atomically
from cl_bench.index import Index

Arrays = predictions.Arrays
SCHEMA_VERSION = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""The migration path: entry n makes the fields of schema n those of n + 1, on loading; files stay as they are.

A field with a default needs no entry. None may change the experiment's key, which names the files.
"""
MAX_JSON_BYTES = 2**24
"""Larger JSON files are not read: a run of 10 tasks takes 6 KB, one of 500 tasks 5 MB."""
_MAX_NAMES = 10_000
"""Names in one object of it."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0)]
Item = TypeVar("Item")
# One fault is enough; a hostile file could hold millions.
Items = Annotated[list[Item], Field(fail_fast=True)]
Rows = Annotated[list[Annotated[list[Item], Field(fail_fast=True)]], Field(fail_fast=True)]


class RunRecord(BaseModel):
    """Everything measured in one run.

    Attributes:
        schema_version: of this record; a reader upgrades older ones and refuses newer ones.
        key: content key of `experiment`.
        label: method and the options that the user set, e.g. `finetune[masked=true]`: the row name in tables.
        recipe: where the hyper-parameters came from (`tuned`, `unified`, ...); informative, not part of the key.
        tuning_trials, tuning_minutes: what the search for them has cost.
        stages: the tasks trained on in each stage: `[[0], [1], ...]`, for joint training one stage with all.
        correct: class-incremental hits `correct[t][j]`; None for tasks not seen by stage t.
        correct_task_aware: hits when the argmax is restricted to the classes of the image's own task; all tasks.
        total: test images per task.
        classes: names of all classes of the stream in label order, also those that `limits` cut off.
        domains: of a domain-incremental stream, the domain of each task.
        train_seconds, eval_seconds: wall seconds per stage.
        train_samples, eval_samples: images that passed through training steps and through evaluation, per stage.
        trainable, stored: numbers trained in, and kept after, each stage (beside the frozen backbone).
        flops_per_image: multiply-adds times two of one prediction; `forward_passes` of the backbone in it.
        peak_memory_bytes: of the device (CUDA allocator), or of the process on a CPU.
        environment: versions and hardware.
        traces: optional tables that a method fills (magnitudes, residuals, distances), a list of rows each; None where
            a number is not finite.
        finished: when the record was stored; None in older ones.
        arrays_sha256: of the npz beside this file.
        checksum: `content_hash` of the record, so that an edited number is noticed; the npz has its start in its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = Field(default=SCHEMA_VERSION, strict=True)
    key: str
    label: str
    recipe: str
    tuning_trials: Count = 0
    tuning_minutes: Seconds = 0.0
    experiment: Experiment
    stages: Rows[Count]
    correct: Rows[Count | None]
    correct_task_aware: Rows[Count]
    total: Items[Count]
    classes: Items[str]
    domains: Items[str] = []
    train_seconds: Items[Seconds]
    eval_seconds: Items[Seconds]
    train_samples: Items[Count]
    eval_samples: Items[Count]
    trainable: Items[Count]
    stored: Items[Count]
    flops_per_image: Count
    forward_passes: Count
    peak_memory_bytes: Count
    environment: dict[str, Scalar]
    traces: dict[str, Items[dict[str, Scalar]]] = {}
    finished: AwareDatetime | None = None
    arrays_sha256: str = ""
    checksum: str = ""

    @field_validator("traces", mode="before")
    @classmethod
    def _finite(cls, traces: Any) -> Any:
        """A method's residual of 0 / 0 must not cost the run; the first fault is enough (see `Items`)."""
        fit = isinstance(traces, dict) and all(isinstance(rows, list) for rows in traces.values())
        if not fit or not all(isinstance(row, dict) for rows in traces.values() for row in rows):
            raise ValueError("expected a list of rows under each name")
        if any(isinstance(value, dict | list) for rows in traces.values() for row in rows for value in row.values()):
            raise ValueError("expected a number, text or nothing in each column of a row")
        return {name: [{k: _finite(v) for k, v in row.items()} for row in rows] for name, rows in traces.items()}

    def sealed(self) -> RunRecord:
        """The record with its checksum."""
        return self.model_copy(update={"checksum": content_hash(self.model_dump(mode="json"))})

    @model_validator(mode="after")
    def _consistent(self) -> RunRecord:
        if self.key != self.experiment.key:
            raise ValueError(f"key {self.key} does not belong to the experiment in it ({self.experiment.key})")
        stages, tasks = len(self.stages), len(self.total)
        if tasks != (self.experiment.limits.tasks or self.experiment.num_tasks) or min(self.total) < 1:
            raise ValueError(f"{tasks} test sets of sizes {self.total} do not fit the experiment's tasks")
        for name in ("correct", "correct_task_aware"):
            rows = getattr(self, name)
            if len(rows) != stages or any(len(row) != tasks for row in rows):
                raise ValueError(f"'{name}' is not {stages} stages x {tasks} tasks")
            metrics.accuracy_matrix(rows, self.total)
            if not all(any(count is not None for count in row) for row in rows):
                raise ValueError(f"'{name}' has a stage without any count")
        if not all(task < tasks for stage in self.stages for task in stage):
            raise ValueError(f"'stages' names tasks beyond the {tasks} there are")
        for name in ("train_seconds", "eval_seconds", "train_samples", "eval_samples", "trainable", "stored"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"'{name}' does not have one entry for each of the {stages} stages")
        return self


def content_hash(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a record as it is stored, without its `checksum`."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class DamagedRecord(Exception):
    """A result file that cannot be trusted; the message names the file and what is wrong with it."""


class UnreadableRecord(DamagedRecord):
    """One that may be whole all the same: of a newer schema, or the file system does not give it out."""


class _NewerSchema(ValueError):
    """More than this version of cl-bench can understand."""


class _Stored(NamedTuple):
    """A record that was read, with its files as they are: the JSON, and the npz still open."""

    record: RunRecord
    content: bytes
    status: os.stat_result
    arrays: BufferedReader


class Store:
    """A folder of run records.

    Args:
        root: the folder; made on the first write.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def json_path(self, experiment: Experiment) -> Path:
        return self.root / f"{experiment.file_stem}.json"

    def arrays_path(self, record: RunRecord) -> Path:
        return self.root / f"{record.experiment.file_stem}-{record.checksum[:8]}.npz"

    def check_writable(self) -> None:
        """Raise `UserError` now rather than after hours of training."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".probe-"):
                pass
        except OSError as error:
            raise UserError(
                f"results folder '{self.root}' cannot be written ({error.strerror}); "
                "name a writable folder with --results"
            ) from error

    # --- writing ----------------------------------------------------------------------------------------------

    def write(self, record: RunRecord, arrays: Arrays) -> Path:
        """Write a record and its arrays (per-sample predictions) atomically; returns the JSON's path.

        Raises:
            UserError: the folder cannot be written, or the record is too large.
            ValueError: the arrays do not fit the record (see `predictions`).
        """
        self.check_writable()
        packed = predictions.pack(arrays)
        if wrong := fault(record, io.BytesIO(packed)):
            raise ValueError(f"predictions of {record.label}: {wrong}")
        finished = record.finished or datetime.now(UTC).replace(microsecond=0)
        update = {"arrays_sha256": hashlib.sha256(packed).hexdigest(), "finished": finished}
        record = record.model_copy(update=update).sealed()
        text = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
        if len(text) >= MAX_JSON_BYTES:
            raise UserError(
                f"the record of {record.label} takes {len(text):,} bytes of the {MAX_JSON_BYTES:,} allowed; "
                "let the method trace less"
            )
        path = self.json_path(record.experiment)
        self._put(path, (text + "\n").encode(), self.arrays_path(record), packed)
        return path

    def copy(self, path: Path, *, replace: bool = False) -> Path:
        """Copy a record of another store byte by byte, after every check.

        Args:
            path: the JSON in the other store.
            replace: whether a record of the same run makes way.

        Raises:
            DamagedRecord: it cannot be trusted.
            FileExistsError: there is a record of this run, and `replace` is false.
            OSError: the folder cannot be written.
        """
        with Store(path.parent).opened(path) as stored:
            if wrong := fault(stored.record, stored.arrays):
                raise DamagedRecord(f"{path}: {wrong}")
            stored.arrays.seek(0)
            packed = stored.arrays.read()
        target = self.root / path.name
        self._put(target, stored.content, self.arrays_path(stored.record), packed, replace=replace)
        return target

    def _put(self, path: Path, content: bytes, arrays: Path, packed: bytes, *, replace: bool = True) -> None:
        """Store both files so that a JSON always names an npz that is there, whoever else writes the same run.

        Each content gives its npz a name of its own, and the npz comes before the JSON. The npz of a replaced record
        is removed, unless that record was too damaged to name it.
        """
        write_atomically(arrays, packed)
        earlier = self.named_arrays(path)
        try:
            write_atomically(path, content, replace=replace)
        except FileExistsError:
            self._discard(arrays, path)
            raise
        if earlier not in (None, arrays):
            self._discard(earlier, path)
        # Another writer may have discarded it before this JSON was there.
        if not arrays.exists() and self.named_arrays(path) == arrays:
            write_atomically(arrays, packed)

    def named_arrays(self, path: Path) -> Path | None:
        """The npz that the record there names; None if it is too damaged to say."""
        try:
            return self.arrays_path(self._read(path)[0])
        except DamagedRecord:
            return None

    def _discard(self, arrays: Path, path: Path) -> None:
        """Remove an npz, unless the record names it (again)."""
        aside = arrays.with_name(f".{arrays.name}-{secrets.token_hex(4)}")
        try:
            arrays.replace(aside)
        except FileNotFoundError:
            return
        if self.named_arrays(path) == arrays:
            aside.replace(arrays)
        else:
            aside.unlink(missing_ok=True)

    # --- reading ----------------------------------------------------------------------------------------------

    def find(self, experiment: Experiment) -> RunRecord | None:
        """The record of this experiment, or None.

        Raises:
            DamagedRecord: there is one, but it cannot be trusted.
        """
        path = self.json_path(experiment)
        return self.load(path) if path.exists() else None

    def load(self, path: Path) -> RunRecord:
        """Read and validate one record.

        Raises:
            DamagedRecord: unreadable, not valid, misnamed, or its npz is missing or altered.
        """
        with self.opened(path) as stored:
            return stored.record

    def check(self, path: Path) -> None:
        """Check a record and its files in every way, and count its predictions again.

        Raises:
            DamagedRecord: something is wrong.
        """
        with self.opened(path) as stored:
            if wrong := fault(stored.record, stored.arrays):
                raise DamagedRecord(f"{self.arrays_path(stored.record)}: {wrong}")

    def arrays(self, record: RunRecord) -> Arrays:
        """Per-sample arrays: `label`, `task` [images]; `predicted`, `predicted_task_aware` [stages, images].

        Raises:
            DamagedRecord: the record as it is stored now cannot be trusted, or its arrays have other shapes.
        """
        path = self.json_path(record.experiment)
        with self.opened(path) as stored:
            try:
                return predictions.unpack(stored.arrays, len(stored.record.stages), sum(stored.record.total))
            except ValueError as error:
                raise DamagedRecord(f"{self.arrays_path(stored.record)}: {error}") from error

    def records(self, on_damaged: Callable[[str], None], files: str = "*.json") -> Iterator[RunRecord]:
        """All valid records of the folder, in file order; `on_damaged` is told of each that had to be skipped.

        Large folders are read by way of a cache in them (see `index`).

        Args:
            files: pattern of the file names that are read at all.

        Raises:
            UserError: the folder cannot be read.
        """
        index = Index(self.root, SCHEMA_VERSION)
        for name in self.names(files):
            record = _remembered(index.find(name), name)
            try:
                yield record or self._indexed(name, index)
            except DamagedRecord as error:
                on_damaged(str(error))
        if files == "*.json":
            index.save()

    def _indexed(self, name: str, index: Index) -> RunRecord:
        """A record from its own files."""
        with self.opened(self.root / name) as stored:
            record = stored.record
            arrays_status = os.fstat(stored.arrays.fileno())
            index.add(name, stored.status, self.arrays_path(record).name, arrays_status, record.model_dump_json())
            return record

    def names(self, files: str = "*.json") -> list[str]:
        """Names of the folder's files that fit the pattern, in order; none where there is no folder.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            return sorted(name for name in os.listdir(self.root) if fnmatchcase(name, files) and name[0] != ".")  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(
                f"results folder '{self.root}' cannot be read ({error.strerror}); check its permissions"
            ) from error

    @contextmanager
    def opened(self, path: Path) -> Iterator[_Stored]:
        """A record and its files, which belong together and are what was written.

        Raises:
            DamagedRecord: as `load`.
        """
        record, content, status = self._read(path)
        patient = abs(time.time() - status.st_mtime) < 10
        while True:
            arrays = self.arrays_path(record)
            try:
                file = open_regular(arrays, _room(record))
                break
            except OSError as error:
                # Perhaps the record has just been replaced, and its arrays with it.
                previous, (record, content, status) = record, self._read(path)
                if record == previous and not patient:
                    kind = DamagedRecord if isinstance(error, FileNotFoundError) else UnreadableRecord
                    raise kind(f"{arrays}: {error.strerror} (predictions of {path.name})") from error
                if record == previous:
                    # Or another writer is putting them back.
                    patient = False
                    time.sleep(0.02)
        with file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.arrays_sha256:
                raise DamagedRecord(f"{arrays}: altered (its SHA-256 is not the one in {path.name})")
            file.seek(0)
            yield _Stored(record, content, status, file)

    def _read(self, path: Path) -> tuple[RunRecord, bytes, os.stat_result]:
        """The JSON alone: record, content and status from before it was read."""
        try:
            with open_regular(path, MAX_JSON_BYTES) as file:
                status = os.fstat(file.fileno())
                content = file.read(MAX_JSON_BYTES + 1)
        except OSError as error:
            raise UnreadableRecord(f"{path}: {error.strerror}") from error
        try:
            fields = _fields(content)
            expected = content_hash(fields)
            record = RunRecord.model_validate(_upgraded(fields))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DamagedRecord(f"{path}: {_plain(where + ': ' if where else '')}{_plain(first['msg'])}") from error
        except ValueError as error:
            kind = UnreadableRecord if isinstance(error, _NewerSchema) else DamagedRecord
            raise kind(f"{path}: {_plain(str(error))}") from error
        if path.stem != record.experiment.file_stem:
            raise DamagedRecord(f"{path}: holds the run {record.experiment.file_stem}")
        if record.checksum != expected:
            raise DamagedRecord(f"{path}: altered (its checksum does not fit its content)")
        return record, content, status


def fault(record: RunRecord, packed: IO[bytes]) -> str:
    """What contradicts a record in its npz, in words; empty if nothing does."""
    try:
        arrays = predictions.unpack(packed, len(record.stages), sum(record.total))
    except ValueError as error:
        return str(error)
    counts: dict[str, Sequence[Sequence[int | None]]] = {
        "predicted": record.correct,
        "predicted_task_aware": record.correct_task_aware,
    }
    return predictions.fault(arrays, record.total, len(record.classes), counts)


def matching(key: str, folders: Iterable[Path], on_damaged: Callable[[str], None]) -> list[tuple[RunRecord, Store]]:
    """The stored runs whose key begins like this, each key once, from the first folder that has it."""
    found: dict[str, tuple[RunRecord, Store]] = {}
    for store in map(Store, folders):
        for record in store.records(on_damaged, f"*-{glob.escape(key)}*.json"):
            if record.key.startswith(key):
                found.setdefault(record.key, (record, store))
    return list(found.values())


def _remembered(text: str | None, name: str) -> RunRecord | None:
    """A record from the cache, if it is one of this file."""
    try:
        record = RunRecord.model_validate_json(text) if text else None
    except ValidationError:
        return None
    return record if record and name.endswith(f"-{record.key}.json") else None


def _room(record: RunRecord) -> int:
    """Bytes that the npz of this record can take at most."""
    return min(predictions.MAX_BYTES, 8 * (2 * len(record.stages) + 2) * sum(record.total)) + 2**16


def _fields(content: bytes) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: anything else, NaN, infinity or a name that comes twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > _MAX_NAMES:
            raise ValueError(f"an object has more than {_MAX_NAMES:,} names")
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a name comes twice in one object")
        return fields

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        fields = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refused)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not whole JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    if b"\\ud" in content.lower():
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a character (a lone surrogate)") from error
    return fields


def _upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields in the schema of today.

    Raises:
        ValueError: of a later schema, of none, or not what their schema says.
    """
    version = fields.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"schema_version: expected a whole number from 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise _NewerSchema(f"schema version {version} is newer than {SCHEMA_VERSION}; update cl-bench")
    for step in range(version, SCHEMA_VERSION):
        try:
            fields = UPGRADES[step](fields) | {"schema_version": step + 1}
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot be upgraded from schema version {step}") from error
    return fields


def _plain(text: str) -> str:
    """One short line, whatever a file holds."""
    line = "".join(character if character.isprintable() else "?" for character in text[:201])
    return line if len(text) <= 200 else f"{line[:200]} ..."
