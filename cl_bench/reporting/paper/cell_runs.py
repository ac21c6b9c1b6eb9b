"""The stored runs of each cell of a paper's table, with marks for their differences from the paper and the column."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_bench.experiment import value_text
from cl_bench.reporting.paper.layouts import Paper
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.runs import Run


@dataclass(frozen=True)
class StreamColumn:
    """A column of the paper: a benchmark in a number of tasks on a backbone (None: any backbone)."""

    benchmark: str
    tasks: int
    backbone: str | None

    def __str__(self) -> str:
        return f"{self.benchmark}, N = {self.tasks}"

    def fits(self, protocol: Protocol) -> bool:
        """Whether runs of a protocol belong to the column."""
        return (
            protocol.benchmark == self.benchmark
            and protocol.num_tasks == self.tasks
            and self.backbone in (None, protocol.backbone)
        )


@dataclass(frozen=True)
class RunGroup:
    """Runs of one row on one stream, of one protocol, configuration and precision; `marks` describe differences."""

    runs: tuple[Run, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class StreamRuns:
    """The runs of a stream.

    Attributes:
        main: the protocol with most runs; None without runs.
        precision: the precision of most of those runs; empty without runs.
        rows: groups of runs by label; those of the main protocol and precision come first, larger before smaller ones.
        trials: number of runs that were left out because they used only a part of the data.
    """

    main: Protocol | None = None
    precision: str = ""
    rows: Mapping[str, Sequence[RunGroup]] = field(default_factory=dict)
    trials: int = 0


def choose_runs(stream: StreamColumn, labels: Sequence[str], runs: Sequence[Run], paper: Paper | None) -> StreamRuns:
    """Choose the runs of some rows on a stream.

    Args:
        labels: labels of the rows, as stored.
        runs: all stored runs; those of other rows and streams are ignored.
        paper: protocol to compare with; None: marks only describe differences between runs.
    """
    fitting: defaultdict[str, defaultdict[tuple[Protocol, str], list[Run]]] = defaultdict(lambda: defaultdict(list))
    sizes: defaultdict[tuple[Protocol, str], int] = defaultdict(int)
    trials = 0
    ours = [run for run in runs if stream.fits(run.protocol) and run.record.label in labels]
    for run in sorted(ours, key=lambda run: (run.record.experiment.seed, run.record.experiment.class_order, run.label)):
        if run.protocol.limits_text():
            trials += 1
            continue
        fitting[run.record.label][run.protocol, run.label].append(run)
        sizes[run.protocol, run.precision] += 1
    if not sizes:
        return StreamRuns(trials=trials)
    usual = max(sizes, key=lambda one: (sizes[one], one[0].digest, one[1]))
    main, precision = usual
    rows = {}
    for label in (label for label in labels if label in fitting):
        kinds = sorted(
            fitting[label].items(),
            key=lambda item: ((item[0][0], item[1][0].precision) != usual, -len(item[1]), item[0][1]),
        )
        first = kinds[0][1][0]
        rows[label] = [
            RunGroup(tuple(found), (*_against_paper(found[0], paper), *_against_column(found[0], usual, first)))
            for _, found in kinds
        ]
    return StreamRuns(main, precision, rows, trials)


def _against_paper(run: Run, paper: Paper | None) -> Iterator[str]:
    """Differences of a run from the paper's protocol, in words."""
    if paper is None:
        return
    transforms = [
        f"{name} {_value(getattr(run.protocol.transforms, name))} (paper: {_value(wanted)})"
        for name, wanted in paper.transforms.items()
        if not _equal(getattr(run.protocol.transforms, name), wanted)
    ]
    if transforms:
        yield ", ".join(transforms)
    if run.protocol.scenario != paper.scenario:
        yield f"{run.protocol.scenario} (paper: {paper.scenario})"
    if not isinstance(run.protocol.tasks, int):
        yield f"{run.protocol.shape} (paper: all of the same size)"
    images, known_images = sum(run.record.total), paper.test_images.get(run.protocol.benchmark)
    if known_images is not None and images != known_images:
        yield f"another split, of {images:,} test images (paper: {known_images:,})"
    epochs = run.record.experiment.hyperparameters.get("epochs")
    known_epochs = paper.epochs.get(run.protocol.benchmark, ())
    if known_epochs and epochs is not None and epochs not in known_epochs:
        yield f"{'1 epoch' if epochs == 1 else f'{epochs} epochs'} (paper: {' or '.join(map(str, known_epochs))})"


def _against_column(run: Run, usual: tuple[Protocol, str], first: Run) -> Iterator[str]:
    """Differences from the column's protocol and precision, and from the configuration of the row's first line."""
    protocols = _conditions(run.protocol, run.precision), _conditions(*usual)
    record, other = run.record.experiment, first.record.experiment
    # A hyper-parameter that one revision lacks counts as the default of the other, as in `runs.label_runs`.
    defaults = other.defaults | record.defaults
    configurations = tuple(
        {"revision": one.revision, "image storage": one.storage, "probe": one.probe, **defaults, **one.hyperparameters}
        for one in (record, other)
    )
    for ours, theirs in (protocols, configurations):
        changes = [
            f"{name} {_value(ours[name])} instead of {_value(theirs[name])}"
            for name in sorted(ours.keys() & theirs.keys())
            if ours[name] != theirs[name]
        ]
        if changes:
            yield ", ".join(changes)


def _conditions(protocol: Protocol, precision: str) -> dict[str, object]:
    """The precision, and all fields of a protocol by name, except limits, which no run here has."""
    names = ("benchmark", "scenario", "backbone", "weights", "split")
    facts: dict[str, object] = {name: getattr(protocol, name) for name in names}
    return facts | {"precision": precision, "tasks": protocol.shape} | protocol.transforms.model_dump()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, list | tuple):
        # A tuple of one value stands for all channels.
        return all(math.isclose(a, b) for a, b in zip(one, other, strict=len(one) == len(other)))
    return math.isclose(one, other)


def _value(value: object) -> str:
    """Text of a value: floats with 4 digits, hashes (weights, split) cut to 8 digits."""
    return re.sub(r"^([0-9a-f]{8})[0-9a-f]{24,}$", r"\1", value_text(value, digits=4))
