"""The record of one run: its fields, their validation, and the migration of older records."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from sys import intern
from typing import IO, Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cl_bench import metrics
from cl_bench.errors import counted, printable
from cl_bench.experiment import (
    Count,
    Environment,
    Experiment,
    Item,
    Items,
    PlainScalar,
    Seconds,
    Session,
    Text,
    bounded,
    differences,
    first_fault,
)
from cl_bench.store import predictions

SCHEMA_VERSION = 2
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # Schema 1 recorded only the number of the sessions before the last one.
    1: lambda fields: fields | {"earlier_sessions": []},
}
"""Migrations: entry n converts fields of schema n to schema n + 1 on loading; files stay as they are.

A new field with a default needs no entry. No migration may change the experiment's key, which names the files.
"""
MAX_JSON_BYTES = 2**24
"""Limit of the size of a JSON file; a run of 10 tasks takes 6 KB, a run of 500 tasks 5 MB."""
_MAX_NAMES = 10_000
"""Limit of the names in one JSON object."""
NestedItems = Items[Items[Item]]


def _in_our_time(moment: datetime) -> datetime:
    """Convert a moment to UTC; years far from today are refused, since not every program and time zone has them."""
    if not 1900 <= moment.year < 2200:
        raise ValueError("expected a date from 1900 to 2199")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_in_our_time)]


class NewerSchema(ValueError):
    """The record has a newer schema than this version of cl-bench knows."""


class RunRecord(BaseModel):
    """Everything measured in one run.

    Attributes:
        schema_version: schema of this record; older records are upgraded on reading, newer ones are refused.
        key: content key of `experiment`.
        label: method with the options that the user set, e.g. `finetune[masked=true]`; the name of the row in tables.
        recipe: source of the hyper-parameters (`tuned`, `unified`, ...); informative, not part of the key.
        tuning_trials, tuning_minutes: settings tried in the hyper-parameter search, and minutes of all its runs.
        experiment: description of the run, from which its key is computed.
        sessions: number of processes that worked on the run; more than one if it was interrupted.
        stages: tasks trained on in each stage: `[[0], [1], ...]`; joint training has one stage with all tasks.
        correct: class-incremental hits `correct[t][j]` in task j after stage t; None for tasks not seen by stage t.
        correct_task_aware: hits when the argmax is restricted to the classes of the image's own task; for all tasks.
        total: test images per task.
        classes: names of all classes of the stream in label order, including those that `limits` cut off.
        domains: domain of each task of a domain-incremental stream; empty for other streams.
        train_seconds, eval_seconds: wall-clock seconds per stage.
        train_samples, eval_samples: images that went through training steps and through evaluation, per stage.
        trainable: parameters trained, per stage.
        stored: numbers stored after each stage in addition to the frozen backbone.
        exemplar_mb: size of the method's memory of past images in MB of 10^6 bytes; 0: exemplar-free.
        flops_per_image: floating-point operations of one prediction, two per multiply-add.
        forward_passes: backbone passes of one prediction.
        peak_memory_bytes: peak memory of the device (CUDA allocator), or of the process on a CPU.
        environment: versions, hardware and threads of the last session.
        earlier_sessions: the sessions before the last one; empty in older records.
        traces: optional tables filled by the method (magnitudes, residuals, distances), each a list of rows; None
            replaces a number that is not finite.
        finished: time at which the record was stored; None in older records.
        arrays_sha256: SHA-256 of the npz file that belongs to the record.
        checksum: `content_hash` of the record, which reveals edited numbers. In version 0.1.0 its start was part of the
            name of the npz file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = Field(default=SCHEMA_VERSION, strict=True)
    key: str
    label: Text
    recipe: Text
    tuning_trials: Count = 0
    tuning_minutes: Seconds = 0.0
    experiment: Experiment
    sessions: Count = Field(default=1, ge=1)
    stages: NestedItems[Count]
    correct: NestedItems[Count | None]
    correct_task_aware: NestedItems[Count]
    total: Items[Count]
    classes: Items[Text]
    domains: Items[Text] = []
    train_seconds: Items[Seconds]
    eval_seconds: Items[Seconds]
    train_samples: Items[Count]
    eval_samples: Items[Count]
    trainable: Items[Count]
    stored: Items[Count]
    exemplar_mb: float = Field(default=0.0, ge=0, le=10**9)
    flops_per_image: Count
    forward_passes: Count
    peak_memory_bytes: Count
    environment: Environment
    earlier_sessions: Items[Session] = []
    traces: dict[Text, Items[dict[Text, PlainScalar]]] = {}
    finished: Moment | None = None
    arrays_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    checksum: str = ""

    @field_validator("traces", mode="before")
    @classmethod
    def _bounded(cls, traces: Any, info: ValidationInfo) -> Any:
        """Replace numbers that are not finite: a residual of 0 / 0 must not cost the run. Raise on any other fault."""
        fit = isinstance(traces, dict) and all(isinstance(rows, list) for rows in traces.values())
        if not fit or not all(isinstance(row, dict) for rows in traces.values() for row in rows):
            raise ValueError("expected a list of rows under each name")
        if all(_is_number(value) for rows in traces.values() for row in rows for value in row.values()):
            return traces
        if any(isinstance(value, dict | list) for rows in traces.values() for row in rows for value in row.values()):
            raise ValueError("expected a number, text or nothing in each column of a row")
        measured = _strict if info.context == _STORED else _forgiving
        return {name: [{k: measured(v) for k, v in row.items()} for row in rows] for name, rows in traces.items()}

    @field_validator("traces", mode="after")
    @classmethod
    def _with_shared_names(cls, traces: dict[str, list[dict[str, PlainScalar]]]) -> dict[str, Any]:
        """The names of columns as one text each: validation makes one per row, which is half the memory of a record."""
        return {name: [{intern(k): v for k, v in row.items()} for row in rows] for name, rows in traces.items()}

    def sealed(self) -> RunRecord:
        """A copy of the record with its checksum."""
        return self.model_copy(update={"checksum": content_hash(self.model_dump(mode="json"))})

    @model_validator(mode="after")
    def _consistent(self) -> RunRecord:
        if self.key != self.experiment.key:
            raise ValueError(f"key {self.key} does not belong to the experiment in it ({self.experiment.key})")
        stages, tasks, run = len(self.stages), len(self.total), self.experiment
        if tasks != (run.limits.tasks or run.num_tasks) or tasks > run.num_tasks or min(self.total) < 1:
            raise ValueError(f"{counted(tasks, 'test set')} of sizes {self.total} do not fit the experiment's tasks")
        classes = len(self.classes)
        if run.scenario == "class-incremental" and not (
            classes and classes % run.tasks == 0 if isinstance(run.tasks, int) else classes == sum(run.tasks)
        ):
            raise ValueError(f"{counted(classes, 'class')} cannot be cut into the experiment's tasks")
        for name in ("correct", "correct_task_aware"):
            rows = getattr(self, name)
            if len(rows) != stages or any(len(row) != tasks for row in rows):
                raise ValueError(f"'{name}' is not {stages} stages x {tasks} tasks")
            metrics.accuracy_matrix(rows, self.total)
            if not all(any(count is not None for count in row) for row in rows):
                raise ValueError(f"'{name}' has a stage without any count")
        if not all(task < tasks for stage in self.stages for task in stage):
            raise ValueError(f"'stages' names tasks beyond the {tasks} of the stream")
        if self.earlier_sessions and sum(s.processes for s in self.earlier_sessions) != self.sessions - 1:
            raise ValueError(f"'earlier_sessions' does not hold all {self.sessions - 1} before the last")
        for name in ("train_seconds", "eval_seconds", "train_samples", "eval_samples", "trainable", "stored"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"'{name}' does not have one entry for each of the {stages} stages")
        return self

    @property
    def environments(self) -> list[Environment]:
        """Environments of all sessions, in order; sessions without a recorded environment are left out."""
        known = [session.environment for session in self.earlier_sessions if session.environment]
        return [*known, self.environment]

    @property
    def mixed(self) -> dict[str, list[PlainScalar]]:
        """Differences between the environments of the sessions: values by name, in the order of the sessions."""
        return differences(self.environments)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training and evaluation together."""
        return sum(self.train_seconds) + sum(self.eval_seconds)


def content_hash(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of the stored fields, without `checksum`."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


_STORED = "stored"
"""Validation context of records read from a file, where numbers must be finite; new records get them replaced."""


def _is_number(value: Any) -> bool:
    """Whether `_strict` accepts the value as a number; fast, since reports read millions of them."""
    kind = type(value)
    return (kind is float and -math.inf < value < math.inf) or (kind is int and -(2**63) <= value < 2**63)


def _forgiving(value: Any) -> Any:
    """A value traced by a method; None if it cannot be stored."""
    try:
        return _strict(value)
    except ValueError:
        return None


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected finite numbers")
    return bounded(value)


def fault(record: RunRecord, packed: IO[bytes]) -> str:
    """Describe the first contradiction between a record and its npz; empty if there is none."""
    try:
        arrays = predictions.unpack(packed, len(record.stages), sum(record.total))
    except ValueError as error:
        return str(error)
    counts: dict[str, Sequence[Sequence[int | None]]] = {
        "predicted": record.correct,
        "predicted_task_aware": record.correct_task_aware,
    }
    return predictions.fault(arrays, record.total, len(record.classes), counts)


def parse(content: bytes) -> RunRecord:
    """Parse and validate the content of a JSON file, upgraded to the current schema.

    Raises:
        NewerSchema: the record has a newer schema.
        ValueError: no record, impossible values, or edited; the message is one short line.
    """
    try:
        fields = _fields(content)
        expected = content_hash(fields)
        record = RunRecord.model_validate(_upgraded(fields), context=_STORED)
    except NewerSchema:
        raise
    except ValidationError as error:
        raise ValueError(_plain(first_fault(error))) from error
    except ValueError as error:
        raise ValueError(_plain(str(error))) from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if record.checksum != expected:
        raise ValueError("altered (its checksum does not fit its content)")
    return record


def _fields(content: bytes) -> dict[str, Any]:
    """Parse the JSON object in a file.

    Raises:
        ValueError: not a JSON object, or it holds NaN, infinity or a duplicate name.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > _MAX_NAMES:
            raise ValueError(f"an object has more than {_MAX_NAMES:,} names")
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("an object has the same name twice")
        return fields

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        fields = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refused)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not whole JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    if b"\\ud" in content.lower():
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a character (a lone surrogate)") from error
    return fields


def _upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """Upgrade fields to the current schema.

    Raises:
        NewerSchema: the fields have a newer schema.
        ValueError: no valid schema version, or fields that do not fit it.
    """
    version = fields.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"schema_version: expected a whole number from 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise NewerSchema(f"schema version {version} is newer than {SCHEMA_VERSION}; update cl-bench")
    for step in range(version, SCHEMA_VERSION):
        try:
            fields = UPGRADES[step](fields) | {"schema_version": step + 1}
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot be upgraded from schema version {step}") from error
    return fields


def _plain(text: str) -> str:
    """A text as one short, printable line."""
    line = printable(text[:201])
    return line if len(text) <= 200 else f"{line[:200]} ..."
