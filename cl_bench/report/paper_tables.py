"""The tables of a paper with our numbers beside the published ones.

Ours are mean (standard error of the mean) over runs, as the paper's; z is their difference in units of the combined
standard error, (ours - paper) / sqrt(se_ours^2 + se_paper^2). Runs that differ in protocol or hyper-parameters from the
paper or from the other rows of a column are marked, and told in a note what differs; they are never averaged together.
"""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import ascii_lowercase
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from cl_bench import metrics
from cl_bench.errors import unknown_name
from cl_bench.experiment import Transforms
from cl_bench.report.frame import Protocol, Run
from cl_bench.report.paper_figures import PAPERS
from cl_bench.report.sheets import Column, Sheet
from cl_bench.stats import Summary, summarise


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Table(_Strict):
    number: int
    title: str
    streams: tuple[tuple[str, int], ...]
    rows: tuple[str, ...]
    metrics: tuple[str, ...] = ("acc", "aaa")


class _Row(_Strict):
    name: str
    published: str | None = None


class _Paper(_Strict):
    numbers: str
    backbone: str
    transforms: dict[str, Any]
    epochs: dict[str, tuple[int, ...]]


class _Layout(_Strict):
    paper: _Paper
    rows: dict[str, _Row]
    tables: dict[str, _Table]


@dataclass(frozen=True)
class Metric:
    """A column of ours: its head, its value of a run, and how it is printed."""

    title: str
    value: Callable[[Run], float]
    decimals: int
    sequential: bool = False


METRICS: Mapping[str, Metric] = {
    "acc": Metric("acc, %", lambda run: 100 * metrics.acc(run.record.correct, run.record.total), 2),
    "aaa": Metric("aaa, %", lambda run: 100 * metrics.aaa(run.record.correct, run.record.total), 2, sequential=True),
    "gflops": Metric("GFLOPs", lambda run: run.record.flops_per_image / 1e9, 2),
    "learnable_params_m": Metric("trained, M", lambda run: max(run.record.trainable) / 1e6, 3),
    "stored_features_m": Metric("stored, M", lambda run: run.record.stored[-1] / 1e6, 3),
}
_COST = frozenset({"gflops", "learnable_params_m", "stored_features_m"})


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        filled, cells: how many of our cells have runs, and how many there are.
        command: makes the runs that are missing; empty if none is.
    """

    sheet: Sheet
    filled: int
    cells: int
    command: str


@dataclass(frozen=True)
class _Stream:
    """A column of the paper: a benchmark in so many tasks on a backbone (None: whichever the runs have)."""

    benchmark: str
    tasks: int
    backbone: str | None

    def fits(self, protocol: Protocol) -> bool:
        return (
            protocol.benchmark == self.benchmark
            and protocol.num_tasks == self.tasks
            and self.backbone in (None, protocol.backbone)
            and not protocol.limits_text()
        )


@dataclass(frozen=True)
class _Group:
    """Runs of one row on one stream, of one protocol and configuration; `marks` say what is different about them."""

    runs: tuple[Run, ...]
    marks: tuple[str, ...]


def names() -> dict[str, str]:
    """All tables, with their titles."""
    return {name: table.title for layout in _layouts() for name, table in layout.tables.items()}


def build(name: str, runs: Sequence[Run], benchmark: str | None = None, backbone: str | None = None) -> PaperTable:
    """A table of a paper from stored runs.

    Args:
        runs: also of other streams.
        benchmark, backbone: in every column instead of the paper's, without published cells then; columns that become
            the same are one.

    Raises:
        UserError: there is no table of this name.
    """
    layout = next((layout for layout in _layouts() if name in layout.tables), None)
    if layout is None:
        raise unknown_name("table", name, names())
    table = layout.tables[name]
    own = benchmark is None and backbone is None
    vit = backbone or (None if benchmark else layout.paper.backbone)
    streams = list(dict.fromkeys(_Stream(benchmark or stream, tasks, vit) for stream, tasks in table.streams))
    published = _published(layout, table.number) if own else {}
    paper = layout.paper if own else None
    groups = {stream: _groups(stream, table.rows, runs, paper) for stream in streams}

    letters: dict[str, str] = {}
    lines: list[tuple[str, ...]] = []
    data: list[dict[str, object]] = []
    filled = 0
    for label in table.rows:
        # The first line has the main runs of each stream; others follow, a line per position.
        depth = max([1, *(len(groups[stream].get(label, [])) for stream in streams)])
        for place in range(depth):
            cells = [layout.rows[label].name if place == 0 else ""]
            for stream in streams:
                found = groups[stream].get(label, [])
                group = found[place] if place < len(found) else None
                filled += group is not None and place == 0
                marks = "".join(_letter(mark, letters) for mark in group.marks) if group else ""
                for metric in table.metrics:
                    theirs = published.get((stream.benchmark, stream.tasks, label, metric)) if place == 0 else None
                    ours = _summary(metric, group)
                    cells += _cells(metric, ours, theirs, marks, own)
                    data.append(_numbers(label, stream, metric, ours, theirs, group))
            lines.append(tuple(cells))

    columns = [Column("method", numeric=False)]
    for stream in streams:
        head = f"{stream.benchmark}, N = {stream.tasks}"
        for metric in table.metrics:
            title = METRICS[metric].title
            columns.append(Column(f"{title}" if not own else f"{title}: ours", head))
            columns += [Column("paper", head)] if own else []
            columns += [Column("z", head)] if own and metric not in _COST else []
    cells_there = len(table.rows) * len(streams)
    missing = filled < cells_there
    slug = "-".join(part for part in (name, benchmark, backbone) if part).replace(":", "_").replace("/", "_")
    sheet = Sheet(
        slug,
        _caption(table, streams, own),
        tuple(columns),
        tuple(lines),
        tuple(_notes(table, groups, letters, own)),
        data=pd.DataFrame(data).astype({"n": "Int64"}),
    )
    command = f"cl-bench run --suite {name}" if missing else ""
    for option, value in (("--benchmark", benchmark), ("--backbone", backbone)):
        command += f" {option} {value}" if value and command else ""
    return PaperTable(sheet, filled, cells_there, command)


@cache
def _layouts() -> tuple[_Layout, ...]:
    found = sorted((file for file in PAPERS.iterdir() if file.name.endswith("-tables.toml")), key=lambda f: f.name)
    return tuple(_Layout.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))) for file in found)


def _published(layout: _Layout, number: int) -> dict[tuple[str, int, str, str], tuple[float, float | None]]:
    """Mean and standard error by benchmark, tasks, row and metric."""
    table = pd.read_csv((PAPERS / layout.paper.numbers).open("r", encoding="utf-8"))
    labels = {row.published or label: label for label, row in layout.rows.items()}
    return {
        (row["benchmark"], row["tasks"], labels[row["method"]], row["metric"]): (
            row["mean"],
            None if math.isnan(row["stderr"]) else row["stderr"],
        )
        for row in table[table["table"] == number].to_dict("records")
    }


# --- which runs --------------------------------------------------------------------------------------------------


def _groups(
    stream: _Stream, labels: Sequence[str], runs: Sequence[Run], paper: _Paper | None
) -> dict[str, list[_Group]]:
    """Runs by row, those of the stream's main protocol first: the one with the most runs of these rows."""
    fitting: defaultdict[str, defaultdict[tuple[Protocol, str], list[Run]]] = defaultdict(lambda: defaultdict(list))
    sizes: defaultdict[Protocol, int] = defaultdict(int)
    for run in runs:
        if run.record.label in labels and stream.fits(run.protocol):
            fitting[run.record.label][run.protocol, run.label].append(run)
            sizes[run.protocol] += 1
    if not sizes:
        return {}
    main = max(sizes, key=lambda protocol: (sizes[protocol], protocol.digest))
    result = {}
    for label, by_kind in fitting.items():
        kinds = sorted(by_kind.items(), key=lambda item: (item[0][0] != main, -len(item[1]), item[0][1]))
        first = kinds[0][1][0]
        result[label] = [
            _Group(tuple(found), (*_against_paper(found[0], paper), *_against(found[0], first, main)))
            for _, found in kinds
        ]
    return result


def _against_paper(run: Run, paper: _Paper | None) -> Iterator[str]:
    """What differs from the paper, in words."""
    if paper is None:
        return
    changes = [
        f"{name} {_value(getattr(run.protocol.transforms, name))} (paper: {_value(wanted)})"
        for name, wanted in paper.transforms.items()
        if not _equal(getattr(run.protocol.transforms, name), wanted)
    ]
    epochs = run.record.experiment.hyperparameters.get("epochs")
    known = paper.epochs.get(run.protocol.benchmark, ())
    if known and epochs is not None and epochs not in known:
        changes.append(f"{epochs} epochs (paper: {' or '.join(map(str, known))})")
    if changes:
        yield f"differs from the paper: {', '.join(changes)}"


def _against(run: Run, first: Run, main: Protocol) -> Iterator[str]:
    """What differs from the other rows of the column, and from the row's first line."""
    changes = []
    for name in ("backbone", "weights", "split", "precision", "scenario"):
        ours, theirs = getattr(run.protocol, name), getattr(main, name)
        if ours != theirs:
            changes.append(f"{name} {ours[:12]} instead of {theirs[:12]}")
    for name in Transforms.model_fields:
        ours, theirs = getattr(run.protocol.transforms, name), getattr(main.transforms, name)
        if ours != theirs:
            changes.append(f"{name} {_value(ours)} instead of {_value(theirs)}")
    mine, others = run.record.experiment, first.record.experiment
    if mine.revision != others.revision:
        changes.append(f"revision {str(mine.revision)[:8]} instead of {str(others.revision)[:8]}")
    for name, value in mine.hyperparameters.items():
        if name in others.hyperparameters and value != others.hyperparameters[name]:
            changes.append(f"{name} {_value(value)} instead of {_value(others.hyperparameters[name])}")
    if changes:
        yield ", ".join(changes)


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) and len(one) == len(other) else [(one, other)]
    return all(isinstance(a, tuple) == isinstance(b, tuple) and math.isclose(a, b) for a, b in pairs)


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_value, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- texts -------------------------------------------------------------------------------------------------------


def _summary(metric: str, group: _Group | None) -> Summary | None:
    """Over the runs for which the metric is defined."""
    kind = METRICS[metric]
    values = [kind.value(run) for run in group.runs if run.sequential or not kind.sequential] if group else []
    return summarise(values) if values else None


def _z(ours: Summary | None, theirs: tuple[float, float | None] | None) -> float | None:
    """Difference in units of the combined standard error; None where either has none."""
    if ours is None or theirs is None or ours.stderr is None or theirs[1] is None:
        return None
    combined = math.hypot(ours.stderr, theirs[1])
    return (ours.mean - theirs[0]) / combined if combined else None


def _cells(
    metric: str, ours: Summary | None, theirs: tuple[float, float | None] | None, marks: str, own: bool
) -> list[str]:
    """Ours and, in the paper's own protocol, the published value and z."""
    decimals = METRICS[metric].decimals
    text = ""
    if ours is not None:
        error = "" if ours.stderr is None or metric in _COST else f" ({ours.stderr:.{decimals}f})"
        text = f"{ours.mean:.{decimals}f}{error}{marks}"
    if not own:
        return [text]
    paper = ""
    if theirs is not None:
        paper = f"{theirs[0]:.2f}" + ("" if theirs[1] is None else f" ({theirs[1]:.2f})")
    if metric in _COST:
        return [text, paper]
    z = _z(ours, theirs)
    return [text, paper, "" if z is None else f"{z:+.1f}".replace("-", "−")]


def _letter(mark: str, letters: dict[str, str]) -> str:
    """` [a]` for the first text, ` [b]` for the next."""
    number = list(letters).index(mark) if mark in letters else len(letters)
    letters.setdefault(mark, ascii_lowercase[number % 26] * (1 + number // 26))
    return f" [{letters[mark]}]"


def _numbers(
    label: str,
    stream: _Stream,
    metric: str,
    ours: Summary | None,
    theirs: tuple[float, float | None] | None,
    group: _Group | None,
) -> dict[str, object]:
    runs = group.runs if group else ()
    return {
        "row": label,
        "benchmark": stream.benchmark,
        "tasks": stream.tasks,
        "backbone": runs[0].protocol.backbone if runs else stream.backbone,
        "metric": metric,
        "mean": ours.mean if ours else None,
        "stderr": ours.stderr if ours else None,
        "n": ours.n if ours else None,
        "seeds": " ".join(str(run.record.experiment.seed) for run in runs),
        "paper_mean": theirs[0] if theirs else None,
        "paper_stderr": theirs[1] if theirs else None,
        "z": _z(ours, theirs),
        "protocol": runs[0].protocol.digest if runs else "",
        "recipe": ", ".join(sorted({run.record.recipe for run in runs})),
        "differs": "; ".join(group.marks) if group else "",
    }


def _caption(table: _Table, streams: Sequence[_Stream], own: bool) -> str:
    if own:
        return f"{table.title}. Ours beside the published values."
    what = " and ".join(dict.fromkeys(stream.benchmark for stream in streams))
    vits = {stream.backbone for stream in streams if stream.backbone}
    on = f" on {', '.join(sorted(vits))}" if vits else ""
    return f"The rows of {table.title.split(':')[0]} on another stream: {what}{on}. No published values."


def _notes(
    table: _Table, groups: Mapping[_Stream, Mapping[str, Sequence[_Group]]], letters: Mapping[str, str], own: bool
) -> Iterator[str]:
    found = [group for by_row in groups.values() for several in by_row.values() for group in several]
    counts = sorted({len(group.runs) for group in found})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    if set(table.metrics) & _COST:
        yield (
            f"Ours: means over {runs} runs. GFLOPs: floating-point operations of one prediction, two per multiply-add, "
            "adapters merged where they can be; trained: the most numbers trained in any stage, head included (the "
            "paper counts the adapters of one task); stored: all numbers kept beside the frozen backbone after the "
            "last task, adapters and head included (the paper counts features and statistics of old classes only)."
        )
    else:
        yield (
            f"Ours: mean (standard error of the mean) over {runs} runs, which differ in seed and class order; "
            "acc and aaa are sample-weighted, as the released code reports them."
        )
    if counts and counts[0] == 1:
        yield "One run has no standard error."
    if own and not set(table.metrics) & _COST:
        yield (
            "Paper: mean (standard error) over five runs. z: difference in units of the combined standard error; "
            "beyond 2 or so it is more than chance."
        )
    protocols = sorted({group.runs[0].protocol.digest for group in found if not group.marks})
    if protocols:
        yield f"Protocol{'s' if len(protocols) > 1 else ''} of ours: {', '.join(protocols)}."
    for text, letter in letters.items():
        yield f"[{letter}] {text}."
