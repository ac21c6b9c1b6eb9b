"""The results store: one JSON and one npz per run, addressed by content key.

Records are written atomically and never locked: writers of the same key end with one valid record. A record holds
integer counts; every metric, table and figure is derived from them afterwards. A failed run is never stored.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from cl_bench.errors import UserError, printable
from cl_bench.experiment import Experiment
from cl_bench.files import kind_of, open_regular, write_atomically
from cl_bench.store import predictions
from cl_bench.store import record as schema
from cl_bench.store.index import Index
from cl_bench.store.predictions import Arrays
from cl_bench.store.record import MAX_JSON_BYTES, NewerSchema, RunRecord, fault, parse

__all__ = ["Arrays", "DamagedRecord", "RunRecord", "Store", "UnreadableRecord", "matching"]


CHECKPOINTS = ".checkpoints"
"""Folder in a results folder for runs that are not over."""


class DamagedRecord(Exception):
    """A result file that cannot be trusted; the message names the file and what is wrong with it, in one line."""

    def __init__(self, sentence: str) -> None:
        # Names of files may hold anything.
        super().__init__(printable(sentence))


class UnreadableRecord(DamagedRecord):
    """One that may be whole all the same: of a newer schema, or the file system does not give it out."""


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

    def checkpoint_path(self, experiment: Experiment) -> Path:
        """Where the checkpoint of a run lies until the run is stored."""
        return self.root / CHECKPOINTS / f"{experiment.file_stem}.safetensors"

    def forget_checkpoint(self, experiment: Experiment) -> None:
        """Remove it, and what writers that were killed have left of it."""
        path = self.checkpoint_path(experiment)
        for file in (path, *path.parent.glob(f".{glob.escape(path.name)}-*")):
            # What cannot be removed must not fail a run whose record is stored.
            with suppress(OSError):
                file.unlink()
        with suppress(OSError):
            path.parent.rmdir()

    def check_paths(self, experiment: Experiment) -> None:
        """Raise `UserError` if something else than a file is where a run reads or writes one: before it trains."""
        record, checkpoint = self.json_path(experiment), self.checkpoint_path(experiment)
        arrays = self.root.glob(f"{glob.escape(experiment.file_stem)}-*.npz")
        for path, expected in (
            (checkpoint.parent, "folder"),
            *((each, "file") for each in (checkpoint, record, *arrays)),
        ):
            try:
                found = kind_of(path)
                what = f"a {found}"
            except OSError as error:
                found = what = f"what cannot be read ({error.strerror})"
            if found not in ("", expected):
                raise UserError(f"'{path}' is {what}, expected a {expected} or nothing: move or remove it")

    def arrays_path(self, record: RunRecord) -> Path:
        """The npz of a record, named after its own content, or after the record's as version 0.1.0 did."""
        path, earlier = (
            self.root / f"{record.experiment.file_stem}-{digest[:8]}.npz"
            for digest in (record.arrays_sha256, record.checksum)
        )
        return earlier if not path.exists() and earlier.exists() else path

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

    def write(self, record: RunRecord, arrays: Arrays, *, replace: bool = True) -> Path:
        """Write a record and its arrays (per-sample predictions) atomically; returns the JSON's path.

        Args:
            replace: whether a valid record of the same run makes way; otherwise the first one stays.

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
        content = (text + "\n").encode()
        try:
            self._put(path, content, self.arrays_path(record), packed, replace=replace)
        except FileExistsError:
            try:
                self.load(path)
            except DamagedRecord:
                self._put(path, content, self.arrays_path(record), packed)
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
        earlier = self.arrays_named_by(path)
        try:
            write_atomically(path, content, replace=replace)
        except OSError:
            self._discard(arrays, path)
            raise
        if earlier not in (None, arrays):
            self._discard(earlier, path)
        # Another writer may have discarded it before this JSON was there.
        if not arrays.exists() and self.arrays_named_by(path) == arrays:
            write_atomically(arrays, packed)

    def arrays_named_by(self, path: Path) -> Path | None:
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
        if self.arrays_named_by(path) == arrays:
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
        index = Index(self.root, schema.SCHEMA_VERSION)
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
            record = parse(content)
        except ValueError as error:
            kind = UnreadableRecord if isinstance(error, NewerSchema) else DamagedRecord
            raise kind(f"{path}: {error}") from error
        if path.stem != record.experiment.file_stem:
            raise DamagedRecord(f"{path}: holds the run {record.experiment.file_stem}")
        return record, content, status


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
