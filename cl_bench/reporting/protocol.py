"""The protocol of a run: the conditions that must agree for numbers to be comparable and to share a table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from cl_bench.errors import counted
from cl_bench.experiment import ImageTransforms, Limits, Tasks, number_of
from cl_bench.store import RunRecord

PROTOCOL_FIELDS = ("benchmark", "scenario", "tasks", "split", "transforms", "backbone", "weights", "limits")
"""The fields of an experiment that belong to its protocol: what was asked, not how it was computed."""
_MOST_SIZES = 12
"""Limit of the task sizes that `shape` lists."""


@dataclass(frozen=True)
class Protocol:
    """The conditions that must agree for two runs to share a table.

    Precision is none of them: it tells how a run was computed, marks its row (see `reporting.precision`) and keeps the
    row's seeds apart from those of another precision.

    `classes`, the number of classes in the whole stream, follows from the other fields and is not compared.
    """

    benchmark: str
    scenario: str
    tasks: Tasks
    split: str
    transforms: ImageTransforms
    backbone: str
    weights: str
    limits: Limits
    classes: int = field(compare=False)

    @classmethod
    def of(cls, record: RunRecord) -> Protocol:
        """The protocol of a stored run."""
        shared = {name: getattr(record.experiment, name) for name in PROTOCOL_FIELDS}
        return cls(**shared, classes=len(record.classes))

    @property
    def digest(self) -> str:
        """First 8 hex digits of the SHA-256 of all compared fields.

        Defaults in `transforms` and `limits` are left out, so that a new field with a default changes no digest.
        """
        fields = {name: getattr(self, name) for name in PROTOCOL_FIELDS}
        for name in ("transforms", "limits"):
            fields[name] = fields[name].model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def num_tasks(self) -> int:
        """Length of the whole stream."""
        return number_of(self.tasks)

    @property
    def shape(self) -> str:
        """Tasks and classes in words, e.g. `10 tasks × 10 classes`."""
        if self.scenario == "domain-incremental":
            return f"{counted(self.num_tasks, 'domain')} of {counted(self.classes, 'class')}"
        tasks = counted(self.num_tasks, "task")
        if isinstance(self.tasks, int):
            return f"{tasks} \N{MULTIPLICATION SIGN} {counted(self.classes // self.tasks, 'class')}"
        runs = _runs(self.tasks)
        if len(runs) > _MOST_SIZES:
            return f"{tasks} of {min(self.tasks)} to {counted(max(self.tasks), 'class')}"
        sizes = [f"{n} \N{MULTIPLICATION SIGN} {size}" if n > 1 else f"{size}" for n, size in runs]
        return f"{tasks} of {' + '.join(sizes)} {'class' if self.tasks == (1,) else 'classes'}"

    @property
    def name(self) -> str:
        """Readable part of file names; not necessarily unique (see `runs.sections`)."""
        parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", part).strip("._")[:60] for part in (self.benchmark, self.backbone)]
        if self.scenario == "domain-incremental":
            shape = f"{self.num_tasks}-domains"
        elif isinstance(self.tasks, int):
            shape = f"{self.tasks}x{self.classes // self.tasks}"
        else:
            shape = "+".join(f"{n}x{size}" if n > 1 else f"{size}" for n, size in _runs(self.tasks))[:60]
        cuts = self.limits.model_dump(exclude_none=True)
        return "-".join([parts[0], shape, parts[1], *(f"{name}{value:g}" for name, value in cuts.items())])

    def limits_text(self) -> str:
        """The limits in words; empty where there are none."""
        words = {
            "tasks": f"first {self.limits.tasks} of {counted(self.num_tasks, 'task')} only",
            "train_per_class": f"at most {counted(self.limits.train_per_class or 0, 'training image')} per class",
            "test_per_class": f"at most {counted(self.limits.test_per_class or 0, 'test image')} per class",
            "validation": f"validated on {self.limits.validation or 0:.0%} of the training images, not tested",
        }
        return ", ".join(words[name] for name in words if getattr(self.limits, name) is not None)


def file_name(*parts: str | None) -> str:
    """Readable file name, without suffix, from arbitrary texts; names of more than 150 characters end in a hash."""
    whole = "-".join(part for part in parts if part)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", whole)
    return readable if len(readable) <= 150 else f"{readable[:140]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Run-length encoding of task sizes: pairs of a number of consecutive tasks and their common size."""
    return [(len(list(group)), size) for size, group in groupby(sizes)]
