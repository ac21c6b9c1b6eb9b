"""The results store: one JSON and one npz file per run, addressed by content key.

Records are written atomically and without locks: concurrent writers of the same key leave one valid record. A record
holds integer counts, from which every metric, table and figure is derived afterwards. Failed runs are never stored.
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
"""Name of the folder in a results folder that holds checkpoints of unfinished runs."""


class DamagedRecord(Exception):
    """A result file that cannot be trusted; the message is one line that names the file and the fault."""

    def __init__(self, sentence: str) -> None:
        # File names may contain control characters.
        super().__init__(printable(sentence))


class UnreadableRecord(DamagedRecord):
    """A result file that may be undamaged but cannot be read here: newer schema, or refused by the file system."""


class _Stored(NamedTuple):
    """A record as read from its files: content and status of the JSON, and the npz, still open."""

    record: RunRecord
    content: bytes
    status: os.stat_result
    arrays: BufferedReader


class Store:
    """A folder of run records.

    Args:
        root: path of the folder, which is made on the first write.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def json_path(self, experiment: Experiment) -> Path:
        return self.root / f"{experiment.file_stem}.json"

    def checkpoint_path(self, experiment: Experiment) -> Path:
        """Path of the checkpoint of an unfinished run."""
        return self.root / CHECKPOINTS / f"{experiment.file_stem}.safetensors"

    def forget_checkpoint(self, experiment: Experiment) -> None:
        """Remove the checkpoint of a run, and temporary files of it left by killed writers."""
        path = self.checkpoint_path(experiment)
        for file in (path, *path.parent.glob(f".{glob.escape(path.name)}-*")):
            # The run is stored already: a file that cannot be removed must not make it fail.
            with suppress(OSError):
                file.unlink()
        with suppress(OSError):
            path.parent.rmdir()

    def check_paths(self, experiment: Experiment) -> None:
        """Check before training that all paths of a run can be used.

        Raises:
            UserError: there is something else than a file at the path of a file, or than a folder at that of a folder.
        """
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
        """Path of the npz of a record, named after its SHA-256; version 0.1.0 named it after the record's checksum."""
        path, earlier = (
            self.root / f"{record.experiment.file_stem}-{digest[:8]}.npz"
            for digest in (record.arrays_sha256, record.checksum)
        )
        return earlier if not path.exists() and earlier.exists() else path

    def check_writable(self) -> None:
        """Check before hours of training that the folder can be written.

        Raises:
            UserError: it cannot.
        """
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
        """Write a record and its arrays (per-sample predictions) atomically.

        Args:
            replace: whether to replace a valid record of the same run; a damaged one is always replaced.

        Returns:
            Path of the JSON file.

        Raises:
            UserError: the folder cannot be written, or the record is too large.
            ValueError: the arrays contradict the record (see `predictions`).
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
        """Copy a record of another store byte by byte, after all checks.

        Args:
            path: the JSON file in the other store.
            replace: whether to replace a record of the same run.

        Raises:
            DamagedRecord: the record to copy cannot be trusted.
            FileExistsError: this store has a record of the run, and `replace` is false.
            OSError: this store cannot be written.
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
        """Store both files so that a JSON always names an existing npz, even with concurrent writers of the same run.

        The name of an npz depends on its content, and the npz is written before the JSON. The npz of a replaced record
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
        # Another writer may have discarded the npz before this JSON was written.
        if not arrays.exists() and self.arrays_named_by(path) == arrays:
            write_atomically(arrays, packed)

    def arrays_named_by(self, path: Path) -> Path | None:
        """Path of the npz named by the JSON at `path`; None if the JSON is too damaged to name it."""
        try:
            return self.arrays_path(self._read(path)[0])
        except DamagedRecord:
            return None

    def _discard(self, arrays: Path, path: Path) -> None:
        """Remove an npz, unless the JSON at `path` names it, perhaps by now again."""
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
        """The stored record of an experiment; None if there is none.

        Raises:
            DamagedRecord: the record cannot be trusted.
        """
        path = self.json_path(experiment)
        return self.load(path) if path.exists() else None

    def load(self, path: Path) -> RunRecord:
        """Read and validate one record.

        Raises:
            DamagedRecord: the JSON is unreadable, invalid or misnamed, or the npz is missing or altered.
        """
        with self.opened(path) as stored:
            return stored.record

    def check(self, path: Path) -> None:
        """Run all checks on a record and its files, and count its predictions again.

        Raises:
            DamagedRecord: a check fails.
        """
        with self.opened(path) as stored:
            if wrong := fault(stored.record, stored.arrays):
                raise DamagedRecord(f"{self.arrays_path(stored.record)}: {wrong}")

    def arrays(self, record: RunRecord) -> Arrays:
        """Per-sample arrays: `label`, `task` [images]; `predicted`, `predicted_task_aware` [stages, images].

        Raises:
            DamagedRecord: the stored record cannot be trusted, or its arrays have wrong shapes.
        """
        with suppress(OSError, ValueError), open_regular(self.arrays_path(record), _room(record)) as file:
            content = file.read()
            # Predictions that belong to the record in hand need no second look at its JSON.
            if hashlib.sha256(content).hexdigest() == record.arrays_sha256:
                return predictions.unpack(io.BytesIO(content), len(record.stages), sum(record.total))
        path = self.json_path(record.experiment)
        with self.opened(path) as stored:
            try:
                return predictions.unpack(stored.arrays, len(stored.record.stages), sum(stored.record.total))
            except ValueError as error:
                raise DamagedRecord(f"{self.arrays_path(stored.record)}: {error}") from error

    def records(self, on_damaged: Callable[[str], None], files: str = "*.json") -> Iterator[RunRecord]:
        """Iterate over the valid records of the folder, sorted by file name.

        Large folders have a cache (see `index`), which makes reading fast.

        Args:
            on_damaged: called for each skipped record, with a sentence that names the file and the fault.
            files: pattern of the names of the JSON files to read.

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
        """Read a record from its files and add it to the cache."""
        with self.opened(self.root / name) as stored:
            record = stored.record
            arrays_status = os.fstat(stored.arrays.fileno())
            index.add(name, stored.status, self.arrays_path(record).name, arrays_status, record.model_dump_json())
            return record

    def names(self, files: str = "*.json") -> list[str]:
        """Sorted names of the files that match a pattern; empty if the folder does not exist.

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
        """Open a record: JSON and npz belong together and are as they were written.

        Raises:
            DamagedRecord: as for `load`.
        """
        record, content, status = self._read(path)
        patient = abs(time.time() - status.st_mtime) < 10
        while True:
            arrays = self.arrays_path(record)
            try:
                file = open_regular(arrays, _room(record))
                break
            except OSError as error:
                # The record, and its npz, may just have been replaced: read it again.
                previous, (record, content, status) = record, self._read(path)
                if record == previous and not patient:
                    kind = DamagedRecord if isinstance(error, FileNotFoundError) else UnreadableRecord
                    raise kind(f"{arrays}: {error.strerror} (predictions of {path.name})") from error
                if record == previous:
                    # Another writer may be putting the npz back: wait once.
                    patient = False
                    time.sleep(0.02)
        with file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.arrays_sha256:
                raise DamagedRecord(f"{arrays}: altered (its SHA-256 is not the one in {path.name})")
            file.seek(0)
            yield _Stored(record, content, status, file)

    def _read(self, path: Path) -> tuple[RunRecord, bytes, os.stat_result]:
        """Read the JSON alone: the record, its bytes, and the status of the file from before it was read."""
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
    """The stored runs whose key starts with `key`, each with the first store that has it."""
    found: dict[str, tuple[RunRecord, Store]] = {}
    for store in map(Store, folders):
        for record in store.records(on_damaged, f"*-{glob.escape(key)}*.json"):
            if record.key.startswith(key):
                found.setdefault(record.key, (record, store))
    return list(found.values())


def _remembered(text: str | None, name: str) -> RunRecord | None:
    """Validate a record from the cache; None if it is invalid or does not belong to the file `name`."""
    try:
        record = RunRecord.model_validate_json(text) if text else None
    except ValidationError:
        return None
    return record if record and name.endswith(f"-{record.key}.json") else None


def _room(record: RunRecord) -> int:
    """Largest possible size in bytes of the npz of a record."""
    return min(predictions.MAX_BYTES, 8 * (2 * len(record.stages) + 2) * sum(record.total)) + 2**16
