"""The results store: one JSON and one npz per run, addressed by content key.

Records are written atomically and never locked: writers of the same key end with one valid record. A record holds
integer counts; every metric, table and figure is derived from them afterwards. A failed run is never stored.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cl_bench import metrics
from cl_bench.errors import UserError
from cl_bench.experiment import Experiment, Scalar
from cl_bench.files import write_atomically

SCHEMA_VERSION = 1
Arrays = dict[str, NDArray[Any]]


class RunRecord(BaseModel):
    """Everything measured in one run.

    Attributes:
        schema_version: of this record; a reader refuses newer ones.
        key: content key of `experiment`.
        label: method and the options that the user set, e.g. `finetune[masked=true]`: the row name in tables.
        recipe: where the hyper-parameters came from (`tuned`, `unified`, ...); informative, not part of the key.
        tuning_trials, tuning_minutes: what the search for them has cost.
        sessions: processes that have worked on the run: more than one if it was interrupted.
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
        traces: optional tables that a method fills (magnitudes, residuals, distances), a list of rows each.
        arrays_sha256: of the npz beside this file.
        checksum: `content_hash` of the record, so that an edited number is noticed; the npz has its start in its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA_VERSION, strict=True)
    key: str
    label: str
    recipe: str
    tuning_trials: int = 0
    tuning_minutes: float = 0.0
    experiment: Experiment
    sessions: int = 1
    stages: list[list[int]]
    correct: list[list[int | None]]
    correct_task_aware: list[list[int]]
    total: list[int]
    classes: list[str]
    domains: list[str] = []
    train_seconds: list[float]
    eval_seconds: list[float]
    train_samples: list[int]
    eval_samples: list[int]
    trainable: list[int]
    stored: list[int]
    flops_per_image: int
    forward_passes: int
    peak_memory_bytes: int
    environment: dict[str, Scalar]
    traces: dict[str, list[dict[str, Scalar]]] = {}
    arrays_sha256: str = ""
    checksum: str = ""

    @model_validator(mode="before")
    @classmethod
    def _not_newer(cls, data: Any) -> Any:
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ValueError(f"schema version {version} is newer than {SCHEMA_VERSION}; update cl-bench")
        return data

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
        for name in ("train_seconds", "eval_seconds", "train_samples", "eval_samples", "trainable", "stored"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"'{name}' does not have one entry for each of the {stages} stages")
        return self


def content_hash(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a record as it is stored, without its `checksum`."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class DamagedRecord(Exception):
    """A result file that cannot be trusted; the message names the file and what is wrong with it."""


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

    def find(self, experiment: Experiment) -> RunRecord | None:
        """The record of this experiment, or None.

        Raises:
            DamagedRecord: there is one, but it cannot be trusted.
        """
        path = self.json_path(experiment)
        return self.load(path) if path.exists() else None

    def write(self, record: RunRecord, arrays: Arrays) -> Path:
        """Write a record and its arrays (per-sample predictions) atomically; returns the JSON's path.

        Each write gives the npz a name of its own and makes it before the JSON, so that a JSON never points to another
        writer's arrays; the npz of a replaced record is removed, unless that record was too damaged to name it.
        """
        self.check_writable()
        path = self.json_path(record.experiment)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        packed = buffer.getvalue()
        record = record.model_copy(update={"arrays_sha256": hashlib.sha256(packed).hexdigest()}).sealed()
        write_atomically(self.arrays_path(record), packed)
        try:
            replaced = self.arrays_path(self._read(path))
        except DamagedRecord:
            replaced = None
        text = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True)
        write_atomically(path, (text + "\n").encode())
        if replaced is not None and replaced != self.arrays_path(record):
            replaced.unlink(missing_ok=True)
        return path

    def load(self, path: Path) -> RunRecord:
        """Read and validate one record.

        Raises:
            DamagedRecord: unreadable, not valid, misnamed, or its npz is missing or altered.
        """
        return self._load(path)[0]

    def _load(self, path: Path) -> tuple[RunRecord, bytes]:
        """A record and its packed arrays."""
        record = self._read(path)
        while True:
            arrays = self.arrays_path(record)
            try:
                packed = arrays.read_bytes()
                break
            except OSError as error:
                # Perhaps the record has just been replaced, and its arrays with it.
                previous, record = record, self._read(path)
                if record == previous:
                    raise DamagedRecord(f"{arrays}: {error.strerror} (predictions of {path.name})") from error
        if hashlib.sha256(packed).hexdigest() != record.arrays_sha256:
            raise DamagedRecord(f"{arrays}: altered (its SHA-256 is not the one in {path.name})")
        return record, packed

    def _read(self, path: Path) -> RunRecord:
        """The JSON alone."""
        try:
            content = path.read_bytes()
            record = RunRecord.model_validate_json(content)
        except OSError as error:
            raise DamagedRecord(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DamagedRecord(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
        if path.stem != record.experiment.file_stem:
            raise DamagedRecord(f"{path}: holds the run {record.experiment.file_stem}")
        if record.checksum != content_hash(json.loads(content)):
            raise DamagedRecord(f"{path}: altered (its checksum does not fit its content)")
        return record

    def arrays(self, record: RunRecord) -> Arrays:
        """Per-sample arrays: `label`, `task` [images]; `predicted`, `predicted_task_aware` [stages, images].

        Raises:
            DamagedRecord: the record as it is stored now cannot be trusted.
        """
        _, packed = self._load(self.json_path(record.experiment))
        with np.load(io.BytesIO(packed), allow_pickle=False) as data:
            return {name: data[name] for name in data.files}

    def records(self, on_damaged: Callable[[str], None], files: str = "*.json") -> Iterator[RunRecord]:
        """All valid records of the folder, in file order; `on_damaged` is told of each that had to be skipped.

        Args:
            files: pattern of the file names that are read at all.
        """
        for path in sorted(self.root.glob(files)):
            try:
                yield self.load(path)
            except DamagedRecord as error:
                on_damaged(str(error))
