"""Which runs may stand in one table, and which of them are repeats of one row.

A *protocol* is everything that must agree for two numbers to be comparable; different protocols never share a
table. Within a protocol a *row* is a method with its hyper-parameters and revision; its runs differ in seed
and class order.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cl_bench import metrics
from cl_bench.experiment import Limits, Tasks, Transforms, Value, number_of
from cl_bench.store import RunRecord, Store

EXTRA: Mapping[str, tuple[str, str, bool]] = {
    "fwt": ("fwt, %", "task-aware accuracy on a task before it is learned, minus chance, mean over tasks", True),
    "intransigence": (
        "intransigence, %",
        "accuracy of joint training on all tasks up to a new one, minus that right after learning it, mean over tasks",
        False,
    ),
}
"""Metrics that need more than a run's class-incremental counts: title, description, whether more is better."""


class Folder(NamedTuple):
    """A results folder and the name under which its runs are reported (`runs`, `reference`)."""

    path: Path
    origin: str


@dataclass(frozen=True)
class Protocol:
    """What must agree for two runs to be compared. `classes` (in the whole stream) follows from the rest."""

    benchmark: str
    scenario: str
    tasks: Tasks
    split: str
    transforms: Transforms
    backbone: str
    weights: str
    precision: str
    limits: Limits
    classes: int = field(compare=False)

    @classmethod
    def of(cls, record: RunRecord) -> Protocol:
        shared = {name: getattr(record.experiment, name) for name in _PROTOCOL_FIELDS}
        return cls(**shared, classes=len(record.classes))

    @property
    def digest(self) -> str:
        """First 8 hex digits of the SHA-256 of all compared fields; a later one with a default changes nothing."""
        fields = {name: getattr(self, name) for name in _PROTOCOL_FIELDS}
        for name in ("transforms", "limits"):
            fields[name] = fields[name].model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def num_tasks(self) -> int:
        """Length of the whole stream."""
        return number_of(self.tasks)

    @property
    def shape(self) -> str:
        """Tasks and classes in words, e.g. `10 tasks x 10 classes` with a multiplication sign."""
        if self.scenario == "domain-incremental":
            return f"{self.tasks} domains of {self.classes} classes"
        if isinstance(self.tasks, int):
            return f"{self.tasks} tasks \N{MULTIPLICATION SIGN} {self.classes / self.tasks:g} classes"
        runs = _runs(self.tasks)
        sizes = [f"{n} \N{MULTIPLICATION SIGN} {size}" if n > 1 else f"{size}" for n, size in runs]
        return f"{len(self.tasks)} tasks of {' + '.join(sizes)} classes"

    @property
    def name(self) -> str:
        """Readable part of file names; not necessarily unique (see `sections`)."""
        parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", part).strip("._")[:60] for part in (self.benchmark, self.backbone)]
        if self.scenario == "domain-incremental":
            shape = f"{self.tasks}-domains"
        elif isinstance(self.tasks, int):
            shape = f"{self.tasks}x{self.classes / self.tasks:g}"
        else:
            shape = "+".join(f"{n}x{size}" if n > 1 else f"{size}" for n, size in _runs(self.tasks))[:60]
        cuts = self.limits.model_dump(exclude_none=True)
        return "-".join([parts[0], shape, parts[1], *(f"{name}{value:g}" for name, value in cuts.items())])

    def limits_text(self) -> str:
        """The limits in words; empty where there are none."""
        words = {
            "tasks": f"first {self.limits.tasks} of {self.num_tasks} tasks only",
            "train_per_class": f"at most {self.limits.train_per_class} training images per class",
            "test_per_class": f"at most {self.limits.test_per_class} test images per class",
            "validation": f"validated on {self.limits.validation or 0:.0%} of the training images, not tested",
        }
        return ", ".join(words[name] for name in words if getattr(self.limits, name) is not None)


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes of tasks as pairs of how many in a row and which."""
    return [(len(list(group)), size) for size, group in groupby(sizes)]


_PROTOCOL_FIELDS = (
    "benchmark", "scenario", "tasks", "split", "transforms", "backbone", "weights", "precision", "limits",
)  # fmt: skip
_REPEAT_FIELDS = ("seed", "class_order")
_Identity = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """One stored run with its place in the report.

    Attributes:
        label: the row's name, unique within the protocol.
        origin: name of the folder that it was read from.
    """

    record: RunRecord
    origin: str
    protocol: Protocol
    label: str

    @property
    def sequential(self) -> bool:
        """Whether the tasks were learned one after the other; otherwise only final accuracy is defined."""
        return metrics.is_sequential(self.record.correct, self.record.total)

    @property
    def hardware(self) -> str:
        """What it was made on, e.g. `NVIDIA H200` or `CPU (x86_64)`; times and memory compare on the same only."""
        kind, name = (self.record.environment.get(field, "") for field in ("device", "device_name"))
        if kind == "cpu":
            return f"CPU ({name})" if name else "CPU"
        return str(name or kind or "not recorded")


@dataclass(frozen=True)
class Section:
    """All runs of one protocol, by row label; `slug` names its files."""

    protocol: Protocol
    slug: str
    rows: dict[str, list[Run]]

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.rows.values() for run in runs]


def collect(folders: Iterable[tuple[Path, str]], on_damaged: Callable[[str], None]) -> list[Run]:
    """All runs of the folders, each once, with labels that are unique among the rows of their protocol.

    A run stored in two folders (same row, seed and class order) is taken from the first of them.

    Args:
        folders: pairs of path and origin name; a folder that does not exist holds no runs.
        on_damaged: told of each file that had to be skipped, with the reason.
    """
    with _without_collector():
        return named((record, origin) for path, origin in folders for record in Store(path).records(on_damaged))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of small objects, all of which stay: looking for garbage among them would take half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def named(records: Iterable[tuple[RunRecord, str]]) -> list[Run]:
    """Records with their origins as runs, each once, with labels that are unique within their protocol."""
    found = list(records)
    known: defaultdict[tuple[str, int | str], dict[str, Value]] = defaultdict(dict)
    for record, _ in found:
        known[record.experiment.method, record.experiment.revision].update(record.experiment.defaults)
    unique: dict[tuple[Protocol, _Identity, int, str], tuple[RunRecord, str]] = {}
    for record, origin in found:
        identity = _identity(record, known[record.experiment.method, record.experiment.revision])
        place = (Protocol.of(record), identity, record.experiment.seed, record.experiment.class_order)
        unique.setdefault(place, (record, origin))
    labels: defaultdict[Protocol, dict[_Identity, str]] = defaultdict(dict)
    for (protocol, identity, _, _), (record, _) in unique.items():
        # Equal hyper-parameters can be written in two ways; the shortest label says all that is needed.
        candidates = [record.label, labels[protocol].get(identity, record.label)]
        labels[protocol][identity] = min(candidates, key=lambda label: (len(label), label))
    distinct = {protocol: _distinct(rows) for protocol, rows in labels.items()}
    return [
        Run(record, origin, protocol, distinct[protocol][identity])
        for (protocol, identity, _, _), (record, origin) in unique.items()
    ]


def one_backbone(runs: Iterable[Run], benchmark: str | None, asked: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The backbone for what shows one only: the one asked for, else of most runs on the benchmark.

    Returns:
        Its name, None if nothing decides; and a note if runs on other backbones are left out unasked.
    """
    if asked or not benchmark:
        return asked, ()
    counts = Counter(run.protocol.backbone for run in runs if run.protocol.benchmark == benchmark)
    if not counts:
        return None, ()
    first, *others = sorted(counts, key=lambda name: (-counts[name], name))
    if not others:
        return first, ()
    left = sum(counts[name] for name in others)
    what = f"{left} run{'s' if left > 1 else ''} on {benchmark} with another backbone"
    return first, (f"Backbone: {first}. Left out: {what} ({', '.join(others)}); --backbone shows them.",)


def sections(runs: Iterable[Run]) -> list[Section]:
    """Runs grouped by protocol, then row, in the order of file names; runs of a row by seed and class order.

    The slug is readable; protocols whose readable names agree get a short hash each.
    """
    grouped: defaultdict[Protocol, list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.protocol].append(run)
    uses = Counter(protocol.name.casefold() for protocol in grouped)
    result = []
    for protocol, members in grouped.items():
        unique = uses[protocol.name.casefold()] == 1
        rows: defaultdict[str, list[Run]] = defaultdict(list)
        members.sort(key=lambda run: (run.label, run.record.experiment.seed, run.record.experiment.class_order))
        for run in members:
            rows[run.label].append(run)
        slug = protocol.name if unique else f"{protocol.name}-{protocol.digest}"
        result.append(Section(protocol, slug, dict(rows)))
    return sorted(result, key=lambda section: section.slug)


def tidy(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, in the given order.

    Columns: the protocol's fields; `label`, `method`, `revision`, `recipe`, `origin`, `key`, `seed`, `class_order`;
    every one of `metrics.METRICS` and of `EXTRA` as fractions, NaN where undefined; `minutes` of training and
    evaluation together; `trainable`, the most numbers trained in any stage; `tuning_trials` and `tuning_minutes`,
    what the search for the hyper-parameters has cost.
    """
    known = references(runs)
    return pd.DataFrame([_flat(run, known) for run in runs])


def exported(runs: Sequence[Run]) -> pd.DataFrame:
    """`tidy`, with columns of one type each: also `hyperparameters` (JSON) and `finished` (UTC, NaT if not known)."""
    frame = tidy(runs).astype({"revision": str})
    options = (json.dumps(run.record.experiment.hyperparameters, sort_keys=True) for run in runs)
    finished = pd.Series([run.record.finished for run in runs], dtype="datetime64[s, UTC]")
    return frame.assign(hyperparameters=list(options), finished=finished)


def long(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, stage and task, the last two from 0.

    Columns: `key`, `label`, `origin`, `benchmark`, `seed`, `class_order`, `stage`, `task`; test images in `total`, hits
    in `correct` (missing where the task was not evaluated) and `correct_task_aware`.
    """
    rows = [
        (run.record.key, run.label, run.origin, run.protocol.benchmark, run.record.experiment.seed,
         run.record.experiment.class_order, t, j, size, run.record.correct[t][j], run.record.correct_task_aware[t][j])
        for run in runs
        for t in range(len(run.record.correct))
        for j, size in enumerate(run.record.total)
    ]  # fmt: skip
    columns = (
        "key", "label", "origin", "benchmark", "seed", "class_order", "stage", "task", "total", "correct",
        "correct_task_aware",
    )  # fmt: skip
    return pd.DataFrame(rows, columns=columns).astype({"correct": "Int64"})


def _flat(run: Run, known: Mapping[_Place, Mapping[str, Mapping[int, float]]]) -> dict[str, Any]:
    record, experiment, protocol = run.record, run.record.experiment, run.protocol
    counts = (record.correct, record.total)
    return {
        "benchmark": protocol.benchmark,
        "scenario": protocol.scenario,
        "tasks": protocol.num_tasks,
        "classes": protocol.classes,
        "split": protocol.split,
        "transforms": protocol.transforms.model_dump_json(),
        "backbone": protocol.backbone,
        "weights": protocol.weights,
        "precision": protocol.precision,
        "limits": protocol.limits.model_dump_json(exclude_none=True),
        "label": run.label,
        "method": experiment.method,
        "revision": experiment.revision,
        "recipe": record.recipe,
        "origin": run.origin,
        "key": record.key,
        "seed": experiment.seed,
        "class_order": experiment.class_order,
        **{name: metrics.value(name, *counts) for name in metrics.METRICS},
        "fwt": _forward_transfer(run),
        "intransigence": next((sum(v) / len(v) for v in intransigence(run, known).values()), float("nan")),
        "minutes": record.seconds / 60,
        "trainable": max(record.trainable, default=0),
        "tuning_trials": record.tuning_trials,
        "tuning_minutes": record.tuning_minutes,
    }


def _forward_transfer(run: Run) -> float:
    """`metrics.fwt` against chance: 1 / classes of the task, as a head that has not been trained guesses."""
    if not run.sequential or run.protocol.scenario != "class-incremental":
        return float("nan")
    tasks = run.protocol.tasks
    sizes = [run.protocol.classes // tasks] * tasks if isinstance(tasks, int) else list(tasks)
    chance = [1 / size for size in sizes[: len(run.record.total)]]
    return metrics.fwt(run.record.correct_task_aware, run.record.total, chance)


_Place = tuple[Protocol, int, str]


def references(runs: Iterable[Run]) -> dict[_Place, dict[str, dict[int, float]]]:
    """Joint training on the first k tasks of a stream (suite `intransigence`): accuracies on the last of them.

    Returns:
        By protocol without its cut to k tasks, seed and class order; then by row and task k - 1: a fraction.
    """
    runs = list(runs)
    # Of the first task alone, joint training looks like any other: its label tells.
    joint = {run.record.label for run in runs if not run.sequential}
    found: defaultdict[_Place, dict[str, dict[int, float]]] = defaultdict(dict)
    for run in runs:
        if run.record.label in joint:
            record, last = run.record, len(run.record.total) - 1
            accuracy = (record.correct[0][last] or 0) / record.total[last]
            found[_place(run, None)].setdefault(record.label, {}).setdefault(last, accuracy)
    return dict(found)


def intransigence(run: Run, known: Mapping[_Place, Mapping[str, Mapping[int, float]]]) -> dict[str, list[float]]:
    """What each task is learned worse than by joint training on it and all tasks before (`metrics`), as fractions.

    Args:
        known: `references`.

    Returns:
        One value per task, by the row that is the reference; rows that lack a prefix are left out.
    """
    correct, total = run.record.correct, run.record.total
    by_row = known.get(_place(run, run.protocol.limits.tasks), {}) if run.sequential else {}
    return {
        label: metrics.intransigence_per_task(correct, total, [by_task[k] for k in range(len(total))]).tolist()
        for label, by_task in sorted(by_row.items())
        if label != run.record.label and all(k in by_task for k in range(len(total)))
    }


def _place(run: Run, tasks: int | None) -> _Place:
    """Where a run belongs, with its stream cut to so many tasks."""
    limits = run.protocol.limits.model_copy(update={"tasks": tasks})
    return replace(run.protocol, limits=limits), run.record.experiment.seed, run.record.experiment.class_order


def is_reference(section: Section, joint: Collection[str]) -> bool:
    """Whether a cut-down stream has runs of joint training only: what `references` is made of, no table of its own."""
    return section.protocol.limits.tasks is not None and all(label in joint for label in section.rows)


def _identity(record: RunRecord, defaults: dict[str, Value]) -> _Identity:
    """What makes a row, as (name, JSON value) pairs: the experiment without protocol, seed and class order.

    Hyper-parameters are compared resolved, so that a changed default cannot merge two different runs; one
    that an older record does not know counts as its default, as in the content key.
    """
    excluded = {*_PROTOCOL_FIELDS, *_REPEAT_FIELDS, "defaults", "hyperparameters"}
    fields = record.experiment.model_dump(mode="json", exclude=excluded)
    resolved = defaults | record.experiment.hyperparameters
    return frozenset((name, json.dumps(value)) for name, value in [*fields.items(), *resolved.items()])


def _distinct(labels: dict[_Identity, str]) -> dict[_Identity, str]:
    """Labels of the rows of a protocol, told apart by the options in which rows of the same label differ."""
    result = dict(labels)
    for _ in range(2):  # the second time for a new label that another row had from the start
        by_label: defaultdict[str, list[_Identity]] = defaultdict(list)
        for identity, label in result.items():
            by_label[label].append(identity)
        for label, rows in by_label.items():
            common = frozenset.intersection(*rows)
            for identity in rows:
                result[identity] = _with_options(label, sorted(identity - common))
    # Only labels that contradict their own hyper-parameters can still clash.
    uses: Counter[str] = Counter()
    for identity in sorted(result, key=sorted):
        label = result[identity]
        uses[label] += 1
        result[identity] = label if uses[label] == 1 else f"{label} ({uses[label]})"
    return result


def _with_options(label: str, options: list[tuple[str, str]]) -> str:
    """`label` with more options in its brackets: `sdlora` and epochs 5 give `sdlora[epochs=5]`."""
    if not options:
        return label
    # A method file's revision is a long hash; its start is enough for people.
    texts = [re.sub(r"^([0-9a-f]{8})[0-9a-f]{8,}$", r"\1", value.strip('"')) for _, value in options]
    words = ",".join(f"{name}={text}" for (name, _), text in zip(options, texts, strict=True))
    return f"{label[:-1]},{words}]" if label.endswith("]") else f"{label}[{words}]"
