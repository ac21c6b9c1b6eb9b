"""One stored run: its fields, the checks that they pass, and how older records are read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
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
    # Of sessions before the last, nothing but their number was recorded.
    1: lambda fields: fields | {"earlier_sessions": []},
}
"""The migration path: entry n makes the fields of schema n those of n + 1, on loading; files stay as they are.

A field with a default needs no entry. None may change the experiment's key, which names the files.
"""
MAX_JSON_BYTES = 2**24
"""Larger JSON files are not read: a run of 10 tasks takes 6 KB, one of 500 tasks 5 MB."""
_MAX_NAMES = 10_000
"""Names in one object of it."""
NestedItems = Items[Items[Item]]


def _in_our_time(moment: datetime) -> datetime:
    """The moment in UTC; far from today other time zones and other programs have no date for it."""
    if not 1900 <= moment.year < 2200:
        raise ValueError("expected a date from 1900 to 2199")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_in_our_time)]


class NewerSchema(ValueError):
    """More than this version of cl-bench can understand."""


class RunRecord(BaseModel):
    """Everything measured in one run.

    Attributes:
        schema_version: of this record; a reader upgrades older ones and refuses newer ones.
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
        environment: versions, hardware and threads of the last session.
        earlier_sessions: those before it; empty in older records.
        traces: optional tables that a method fills (magnitudes, residuals, distances), a list of rows each; None where
            a number is not finite.
        finished: when the record was stored; None in older ones.
        arrays_sha256: of the npz beside this file.
        checksum: `content_hash` of the record, so that an edited number is noticed; the npz has its start in its name.
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
        """A method's residual of 0 / 0 must not cost the run; the first fault is enough (see `Items`)."""
        fit = isinstance(traces, dict) and all(isinstance(rows, list) for rows in traces.values())
        if not fit or not all(isinstance(row, dict) for rows in traces.values() for row in rows):
            raise ValueError("expected a list of rows under each name")
        if any(isinstance(value, dict | list) for rows in traces.values() for row in rows for value in row.values()):
            raise ValueError("expected a number, text or nothing in each column of a row")
        measured = _strict if info.context == _STORED else _forgiving
        return {name: [{k: measured(v) for k, v in row.items()} for row in rows] for name, rows in traces.items()}

    def sealed(self) -> RunRecord:
        """The record with its checksum."""
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
            raise ValueError(f"'stages' names tasks beyond the {tasks} there are")
        if self.earlier_sessions and sum(s.processes for s in self.earlier_sessions) != self.sessions - 1:
            raise ValueError(f"'earlier_sessions' are not the {self.sessions - 1} before the last")
        for name in ("train_seconds", "eval_seconds", "train_samples", "eval_samples", "trainable", "stored"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"'{name}' does not have one entry for each of the {stages} stages")
        return self

    @property
    def environments(self) -> list[Environment]:
        """Of all sessions, in turn; sessions of which it was not recorded are left out."""
        known = [session.environment for session in self.earlier_sessions if session.environment]
        return [*known, self.environment]

    @property
    def mixed(self) -> dict[str, list[PlainScalar]]:
        """What the environments of the sessions differ in: the values by name, in the order of the sessions."""
        return differences(self.environments)

    @property
    def seconds(self) -> float:
        """Wall seconds of training and evaluation together."""
        return sum(self.train_seconds) + sum(self.eval_seconds)


def content_hash(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a record as it is stored, without its `checksum`."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


_STORED = "stored"
"""Context of the validation of what is in a file, which a record that was just made has not passed yet."""


def _forgiving(value: Any) -> Any:
    """What a method has measured; None where that is no number of ours."""
    try:
        return _strict(value)
    except ValueError:
        return None


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected finite numbers")
    return bounded(value)


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


def parse(content: bytes) -> RunRecord:
    """The record in a JSON file, in the schema of today.

    Raises:
        NewerSchema: it is of a later one.
        ValueError: it is none, impossible, or edited; one short line.
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
        raise NewerSchema(f"schema version {version} is newer than {SCHEMA_VERSION}; update cl-bench")
    for step in range(version, SCHEMA_VERSION):
        try:
            fields = UPGRADES[step](fields) | {"schema_version": step + 1}
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot be upgraded from schema version {step}") from error
    return fields


def _plain(text: str) -> str:
    """One short line, whatever a file holds."""
    line = printable(text[:201])
    return line if len(text) <= 200 else f"{line[:200]} ..."
