"""Grouping of runs into rows and tables.

Runs with the same `Protocol` share a table. A *row* of the table is a method with its hyper-parameters and revision, in
one precision and one form of image storage; the runs of a row differ only in seed and class order.
"""

from __future__ import annotations

import gc
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cl_bench import metrics
from cl_bench.errors import counted, printable
from cl_bench.experiment import Environment, Value, value_text
from cl_bench.reporting.protocol import PROTOCOL_FIELDS, Protocol
from cl_bench.reporting.reference import ORIGIN, ReferenceResults
from cl_bench.store import RunRecord, Store

_REPEAT_FIELDS = ("seed", "class_order")
_Identity = frozenset[tuple[str, str]]
_Conditions = tuple[Protocol, str]
"""A protocol and a precision: rows of the same label are one row only if these agree."""
_LONGEST_LABEL = 300
"""Characters; longer labels are cut."""


@dataclass(frozen=True)
class Run:
    """One stored run with its place in the report.

    Attributes:
        label: name of the row, unique within the protocol: `unmarked`, with the precision in its brackets if most rows
            of the protocol have another, e.g. `sdlora[bf16]`.
        unmarked: name of the row without that mark, unique among the rows of the same protocol and precision.
        origin: name of the results folder that the run was read from.
    """

    record: RunRecord
    origin: str
    protocol: Protocol
    label: str
    unmarked: str

    @property
    def precision(self) -> str:
        """Resolved precision of the backbone, `fp32` or `bf16`."""
        return self.record.experiment.precision

    @cached_property
    def sequential(self) -> bool:
        """Whether the tasks were learned one after the other; if not, only final accuracy is defined."""
        return metrics.is_sequential(self.record.correct, self.record.total)

    @cached_property
    def acc(self) -> float:
        """Final accuracy, a fraction (`metrics.acc`)."""
        return metrics.acc(self.record.correct, self.record.total)

    @property
    def hardware(self) -> str:
        """Devices of the run, e.g. `NVIDIA H200` or `CPU (x86_64)`; times and memory compare only on equal devices."""
        return " and ".join(dict.fromkeys(map(_hardware, self.record.environments)))

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of cl-bench of its sessions, e.g. `0.1.0`, each once."""
        found = (environment.get("cl-bench") for environment in self.record.environments)
        return tuple(dict.fromkeys(str(version or "not recorded") for version in found))

    @property
    def mixed(self) -> str:
        """Differences between the environments of its sessions, e.g. `threads 2, then 4`; empty if there are none."""
        return "; ".join(
            f"{name} {', then '.join(map(value_text, values))}" for name, values in sorted(self.record.mixed.items())
        )


def versions_of(runs: Iterable[Run]) -> list[str]:
    """The versions of cl-bench that made some runs, sorted."""
    return sorted({version for run in runs for version in run.versions})


def _hardware(environment: Environment) -> str:
    kind, name = (environment.get(field, "") for field in ("device", "device_name"))
    if kind == "cpu":
        return f"CPU ({name})" if name else "CPU"
    return str(name or kind or "not recorded")


@dataclass(frozen=True)
class Section:
    """All runs of one protocol, by row label; file names of the protocol begin with `slug`.

    Attributes:
        chosen: whether the user chose the rows (see `selection`), whose order is then the user's; otherwise tables and
            figures sort them.
        highlight: labels of the rows that stand out, in colour or bold; empty: the usual rule of a table or figure.
        against: label of the row that the others are compared with; empty: none.
    """

    protocol: Protocol
    slug: str
    rows: dict[str, list[Run]]
    chosen: bool = False
    highlight: tuple[str, ...] = ()
    against: str = ""

    @property
    def runs(self) -> list[Run]:
        """The runs of all rows."""
        return [run for runs in self.rows.values() for run in runs]

    @property
    def precisions(self) -> dict[str, str]:
        """Precision of each row, by label."""
        return {label: runs[0].precision for label, runs in self.rows.items()}

    @property
    def ceilings(self) -> tuple[str, ...]:
        """Labels of the rows trained on all tasks at once (joint training); anytime metrics are undefined for them."""
        return tuple(label for label, runs in self.rows.items() if not runs[0].sequential)


def collect(
    folders: Iterable[tuple[Path, str]],
    on_damaged: Callable[[str], None],
    reference: ReferenceResults | None = None,
) -> list[Run]:
    """Read all runs of the folders, and the reference runs that join them.

    Labels are unique among the rows of their protocol.

    A run stored in several folders (same row, seed and class order) is taken from the first of them.

    Args:
        folders: pairs of path and origin name; a folder that does not exist holds no runs.
        on_damaged: called for each skipped file, with a sentence that names the file and the reason.

    Raises:
        UserError: the reference cannot be read.
    """
    with _without_collector():
        found = [(record, origin) for path, origin in folders for record in Store(path).records(on_damaged)]
        if reference is not None:
            joining = reference.joining([record for record, _ in found], on_damaged)
            found += [(record, ORIGIN) for record in joining]
        return label_runs(found)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Switch the garbage collector off: scanning millions of objects, none of them garbage, takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def label_runs(records: Iterable[tuple[RunRecord, str]]) -> list[Run]:
    """Convert pairs of record and origin to runs without duplicates, with labels that are unique in their protocol."""
    found = list(records)
    known: defaultdict[tuple[str, int | str], dict[str, Value]] = defaultdict(dict)
    for record, _ in found:
        known[record.experiment.method, record.experiment.revision].update(record.experiment.defaults)
    unique: dict[tuple[_Conditions, _Identity, int, str], tuple[RunRecord, str]] = {}
    for record, origin in found:
        identity = _identity(record, known[record.experiment.method, record.experiment.revision])
        conditions: _Conditions = Protocol.of(record), record.experiment.precision
        place = (conditions, identity, record.experiment.seed, record.experiment.class_order)
        unique.setdefault(place, (record, origin))
    labels: defaultdict[_Conditions, dict[_Identity, str]] = defaultdict(dict)
    for (conditions, identity, _, _), (record, _) in unique.items():
        # The same row can have several labels, e.g. with a default spelled out: the shortest one is used.
        candidates = [record.label, labels[conditions].get(identity, record.label)]
        labels[conditions][identity] = min(candidates, key=lambda label: (len(label), label))
    distinct = {conditions: _distinct(rows) for conditions, rows in labels.items()}
    marked = _marked(distinct)
    return [
        _with_printable_texts(
            record, origin, conditions[0], marked[conditions][identity], distinct[conditions][identity]
        )
        for (conditions, identity, _, _), (record, origin) in unique.items()
    ]


def _with_printable_texts(record: RunRecord, origin: str, protocol: Protocol, label: str, unmarked: str) -> Run:
    """The run with control characters replaced in all texts that reports show (see `printable`)."""
    shown = record.model_dump_json(include=set(_TEXTS))
    if shown.isprintable() and "\\" not in shown:
        # No text has such a character: JSON would escape some of them.
        return Run(record, printable(origin), protocol, label, unmarked)
    texts = {name: getattr(record, name) for name in _TEXTS}
    safe = _printable(texts)
    if safe != texts:
        record = record.model_copy(update=safe)
        protocol = Protocol.of(record)
    return Run(record, printable(origin), protocol, label, unmarked)


_TEXTS = ("label", "recipe", "experiment", "environment", "earlier_sessions")
"""The fields of a record with texts that reports show."""


def _printable(value: Any) -> Any:
    """Apply `printable` to every text in a value, including names of fields."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(name): _printable(item) for name, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _printable(item) for name, item in value})
    return [_printable(item) for item in value] if isinstance(value, list) else value


def choose_backbone(
    runs: Iterable[Run], benchmark: str | None, requested: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the backbone for a table or figure that shows only one.

    Args:
        requested: the user's choice, which wins; without it, the backbone with most runs on `benchmark` is chosen.

    Returns:
        Name of the backbone, None if there is neither a request nor a run on the benchmark; and a note if runs on other
        backbones are left out although none was requested.
    """
    if requested or not benchmark:
        return requested, ()
    counts = Counter(run.protocol.backbone for run in runs if run.protocol.benchmark == benchmark)
    if not counts:
        return None, ()
    first, *others = sorted(counts, key=lambda name: (-counts[name], name))
    if not others:
        return first, ()
    what = f"{counted(sum(counts[name] for name in others), 'run')} on {benchmark} with another backbone"
    return first, (f"Backbone: {first}. Left out: {what} ({', '.join(others)}); --backbone shows them.",)


def sections(runs: Iterable[Run]) -> list[Section]:
    """Group runs by protocol and row. Sections are sorted by slug, rows by label, runs by seed and class order.

    The slug is the readable name of the protocol, with its digest where several protocols have the same name.
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


def _identity(record: RunRecord, defaults: dict[str, Value]) -> _Identity:
    """Identity of a row among those of its conditions, as (name, JSON value) pairs.

    They are the fields of the experiment that are no part of protocol, precision, seed and class order.

    Hyper-parameters are compared with defaults filled in, so that a changed default cannot merge two different runs. A
    hyper-parameter that is missing in an older record counts as its default, as in the content key.
    """
    excluded = {*PROTOCOL_FIELDS, "precision", *_REPEAT_FIELDS, "defaults", "hyperparameters"}
    fields = record.experiment.model_dump(mode="json", exclude=excluded)
    resolved = defaults | record.experiment.hyperparameters
    return frozenset((name, json.dumps(value)) for name, value in [*fields.items(), *resolved.items()])


def _distinct(labels: dict[_Identity, str]) -> dict[_Identity, str]:
    """Unique labels for rows of the same conditions: rows with the same label get the options in which they differ."""
    result = dict(labels)
    for _ in range(2):  # twice, because a new label may equal the original label of another row
        by_label: defaultdict[str, list[_Identity]] = defaultdict(list)
        for identity, label in result.items():
            by_label[label].append(identity)
        for label, rows in by_label.items():
            common = frozenset.intersection(*rows)
            for identity in rows:
                result[identity] = _with_options(label, sorted(identity - common))
    # Clashes are left only where labels contradict their hyper-parameters, or are cut: a number distinguishes these.
    taken: set[str] = set()
    for identity in sorted(result, key=sorted):
        whole = printable(result[identity])
        short = whole if len(whole) <= _LONGEST_LABEL else f"{whole[:_LONGEST_LABEL]} ..."
        result[identity] = _untaken(short, taken)
    return result


def _untaken(label: str, taken: set[str]) -> str:
    """The label, with a number if it is taken; it then counts as taken."""
    unique, number = label, 1
    while unique in taken:
        number += 1
        unique = f"{label} ({number})"
    taken.add(unique)
    return unique


def usual_precision(rows: Mapping[str, int]) -> str:
    """The precision with most rows, fp32 of equals: its rows carry no mark.

    Args:
        rows: number of rows by precision.
    """
    return max(rows, key=lambda precision: (rows[precision], precision == "fp32", precision))


def _marked(labels: Mapping[_Conditions, Mapping[_Identity, str]]) -> dict[_Conditions, dict[_Identity, str]]:
    """Labels that are unique in their protocol: rows of another precision than the usual one are marked with it."""
    rows: defaultdict[Protocol, Counter[str]] = defaultdict(Counter)
    for (protocol, precision), found in labels.items():
        rows[protocol][precision] += len(found)
    usual = {protocol: usual_precision(counts) for protocol, counts in rows.items()}
    taken: defaultdict[Protocol, set[str]] = defaultdict(set)
    result = {}
    # Labels without a mark come first, so that they stay as they are.
    for conditions in sorted(labels, key=lambda one: (one[1] != usual[one[0]], one[1])):
        protocol, precision = conditions
        mark = "" if precision == usual[protocol] else precision
        result[conditions] = {
            identity: _untaken(_in_brackets(labels[conditions][identity], mark), taken[protocol])
            for identity in sorted(labels[conditions], key=sorted)
        }
    return result


def _in_brackets(label: str, words: str) -> str:
    """Add words to the brackets of a label: `sdlora` and `epochs=5` give `sdlora[epochs=5]`."""
    if not words:
        return label
    return f"{label[:-1]},{words}]" if label.endswith("]") else f"{label}[{words}]"


def _with_options(label: str, options: list[tuple[str, str]]) -> str:
    """Add options to the brackets of a label."""
    # The revision of a method file is a long hash, of which 8 digits are enough.
    texts = [re.sub(r"^([0-9a-f]{8})[0-9a-f]{8,}$", r"\1", value.strip('"')) for _, value in options]
    return _in_brackets(label, ",".join(f"{name}={text}" for (name, _), text in zip(options, texts, strict=True)))
