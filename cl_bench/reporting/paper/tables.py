"""The tables of a paper, with our numbers next to the published ones.

Both are mean (standard error of the mean) over runs; z is their difference in units of the combined standard error,
(ours - paper) / sqrt(se_ours^2 + se_paper^2). Runs whose protocol or hyper-parameters differ from the paper or from the
other rows of a column carry a mark, and a note says what differs; such runs are never averaged with others.
"""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import pandas as pd

from cl_bench import metrics
from cl_bench.errors import counted, unknown_name
from cl_bench.grammar import parse_methods
from cl_bench.reporting.paper.cell_runs import RunGroup, StreamColumn, StreamRuns, choose_runs
from cl_bench.reporting.paper.layouts import (
    TableLayout,
    TablesLayout,
    published_numbers,
    table_layouts,
    table_names,
    table_rows,
)
from cl_bench.reporting.protocol import Protocol, file_name
from cl_bench.reporting.runs import Run, choose_backbone, versions_of
from cl_bench.reporting.selection import Selection, matching
from cl_bench.reporting.text_tables import Column, TextTable, by_row
from cl_bench.running import suites
from cl_bench.stats import Summary, summarise


@dataclass(frozen=True)
class Metric:
    """A column with our numbers.

    Attributes:
        title: head of the column.
        value: computes the number of a run; NaN where undefined.
        spread: whether the number varies from run to run, so that it has a standard error.
    """

    title: str
    value: Callable[[Run], float]
    decimals: int
    spread: bool


METRICS: Mapping[str, Metric] = {
    "acc": Metric("acc, %", lambda run: 100 * metrics.value("acc", run.record.correct, run.record.total), 2, True),
    "aaa": Metric("aaa, %", lambda run: 100 * metrics.value("aaa", run.record.correct, run.record.total), 2, True),
    "gflops": Metric("GFLOPs", lambda run: run.record.flops_per_image / 1e9, 2, False),
    "learnable_params_m": Metric("trained, M", lambda run: max(run.record.trainable) / 1e6, 3, False),
    "stored_features_m": Metric("stored, M", lambda run: run.record.stored[-1] / 1e6, 3, False),
}


PARTS = ("ours", "paper", "z")
"""The columns of a metric: our value, the published one, and their difference in standard errors."""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        cells, filled: number of pairs of a row and a stream, and how many of them have our runs.
        commands: command lines that make the missing runs.
    """

    text_table: TextTable
    filled: int
    cells: int
    commands: tuple[str, ...]


def build(
    name: str,
    runs: Sequence[Run],
    benchmark: str | None = None,
    backbone: str | None = None,
    selection: Selection | None = None,
) -> PaperTable:
    """Build a table of a paper from stored runs.

    Args:
        runs: all stored runs; those of other rows and streams are ignored.
        benchmark, backbone: replace the paper's in every column; columns that become equal are merged, and published
            cells are left out. If only `benchmark` is given, the backbone is the one with most runs on it.
        selection: rows of the paper to show, and columns: metrics of the table and `PARTS`; by default all.

    Raises:
        UserError: unknown name of a table, a row or a column.
    """
    selection = selection or Selection()
    layout = next((layout for layout in table_layouts() if name in layout.tables), None)
    if layout is None:
        raise unknown_name("table", name, table_names())
    own = benchmark is None and backbone is None
    table, parts = _chosen(layout.tables[name], table_rows(name), selection, own)
    vit, others = choose_backbone(runs, benchmark, backbone or (None if benchmark else layout.paper.backbone))
    streams = list(dict.fromkeys(StreamColumn(benchmark or stream, tasks, vit) for stream, tasks in table.streams))
    published = published_numbers(layout, table.number) if own else {}
    by_stream = {stream: choose_runs(stream, table.rows, runs, layout.paper if own else None) for stream in streams}

    letters: dict[str, str] = {}
    lines: list[tuple[str, ...]] = []
    unranked: set[tuple[int, int]] = set()
    data: list[dict[str, object]] = []
    for label in table.rows:
        # The first line of a row has the main group of each stream, the second line the second groups, and so on.
        for place in range(max([1, *(len(by_stream[stream].rows.get(label, ())) for stream in streams)])):
            cells = [layout.rows[label].name]
            for stream in streams:
                found = by_stream[stream].rows.get(label, ())
                group = found[place] if place < len(found) else None
                marks = (
                    f" [{','.join(_letter(mark, letters) for mark in group.marks)}]" if group and group.marks else ""
                )
                for metric in table.metrics:
                    theirs = published.get((stream.benchmark, stream.tasks, label, metric)) if place == 0 else None
                    ours = _summary(metric, group)
                    texts = _cells(metric, ours, theirs, marks)
                    for part in _parts(metric, parts):
                        if part == "ours" and group and not _competes(group, by_stream[stream]):
                            unranked.add((len(lines), len(cells)))
                        cells.append(texts[part])
                    data.append(_numbers(label, stream, metric, ours, theirs, group))
            lines.append(tuple(cells))

    missing = [(stream, label) for label in table.rows for stream in streams if label not in by_stream[stream].rows]
    text_table = TextTable(
        file_name(name, benchmark, backbone),
        _caption(table, streams, own),
        _columns(table, streams, own, parts),
        tuple(lines),
        (*_notes(layout, table, by_stream, letters, own), *others),
        bold=_bold(lines, layout, selection, table.rows),
        unranked=frozenset(unranked),
        data=pd.DataFrame(data).astype({"n": "Int64"}),
    )
    chosen = (("benchmark", benchmark), ("backbone", None if own else vit))
    overrides = {key: value for key, value in chosen if value is not None}
    total = len(table.rows) * len(streams)
    whole = not selection.rows and len(missing) == total
    return PaperTable(text_table, total - len(missing), total, _commands(name, missing, whole, overrides))


def _chosen(
    table: TableLayout, names: Mapping[str, str], selection: Selection, own: bool
) -> tuple[TableLayout, tuple[str, ...]]:
    """The layout with the selected rows and metrics only, and the selected ones of `PARTS`.

    Raises:
        UserError: a row or column that the table does not have.
    """
    selection.check(names)
    there = PARTS if own else PARTS[:1]
    for column in selection.columns:
        if column not in (*table.metrics, *there):
            raise unknown_name("--columns", column, [*table.metrics, *there])
    chosen = [name for name in selection.columns if name in table.metrics] or table.metrics
    parts = tuple(name for name in selection.columns if name in there) or there
    rows = tuple(selection.shown(table.rows, names))
    return table.model_copy(update={"rows": rows, "metrics": tuple(dict.fromkeys(chosen))}), tuple(dict.fromkeys(parts))


def _bold(
    lines: Sequence[Sequence[str]], layout: TablesLayout, selection: Selection, rows: Sequence[str]
) -> frozenset[tuple[int, int]]:
    """The cells of the rows that stand out."""
    names = {label: layout.rows[label].name for label in rows}
    chosen = {names[label] for label in matching(selection.highlight, rows, names)}
    return frozenset((r, c) for r, line in enumerate(lines) if line[0] in chosen for c in range(len(line)))


def _competes(group: RunGroup, stream: StreamRuns) -> bool:
    """Whether runs can be the best of their column: of its protocol and precision, without help of other samples."""
    first = group.runs[0]
    usual = (first.protocol, first.precision) == (stream.main, stream.precision)
    return usual and not first.record.experiment.leaky


def _commands(
    name: str, missing: Sequence[tuple[StreamColumn, str]], whole: bool, overrides: Mapping[str, str]
) -> tuple[str, ...]:
    """Command lines that make the missing runs: those of the suite of the table, or only parts of it."""
    if whole:
        options = [part for key, value in overrides.items() for part in (f"--{key}", value)]
        return (shlex.join(["cl-bench", "run", "--suite", name, *options]),)
    wanted: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for grid in suites.find(name).runs:
        for cell in grid.changed(dict(overrides)).cells():
            for stream, label in missing:
                if stream.benchmark == cell.benchmark[0] and (stream.tasks,) == cell.tasks:
                    wanted[cell.flags(without=["methods"])] += [
                        label for spec in parse_methods(label) if spec in cell.methods
                    ]
    return tuple(
        shlex.join(["cl-bench", "run", "--methods", ",".join(dict.fromkeys(labels)), *options])
        for options, labels in wanted.items()
        if labels
    )


# --- texts -------------------------------------------------------------------------------------------------------


def _columns(
    table: TableLayout, streams: Sequence[StreamColumn], own: bool, parts: Sequence[str]
) -> tuple[Column, ...]:
    columns = [Column("method", numeric=False)]
    for stream in streams:
        for name in table.metrics:
            metric = METRICS[name]
            for part in _parts(name, parts):
                # More is better for accuracies; costs and z have no best.
                higher = True if metric.spread and part != "z" else None
                title, group = (part, f"{stream}: {metric.title}") if own else (metric.title, str(stream))
                columns.append(Column(title, group, higher=higher))
    return tuple(columns)


def _parts(metric: str, parts: Sequence[str]) -> list[str]:
    """The parts that a metric has; without a spread there is no z."""
    return [part for part in parts if part != "z" or METRICS[metric].spread]


def _summary(metric: str, group: RunGroup | None) -> Summary | None:
    """Summary over the runs for which the metric is defined; None if there is none."""
    values = [METRICS[metric].value(run) for run in group.runs] if group else []
    defined = [value for value in values if not math.isnan(value)]
    return summarise(defined) if defined else None


def _z(ours: Summary | None, theirs: tuple[float, float | None] | None) -> float | None:
    """Difference in units of the combined standard error; None if one of the two standard errors is missing."""
    if ours is None or theirs is None or ours.stderr is None or theirs[1] is None:
        return None
    combined = math.hypot(ours.stderr, theirs[1])
    return (ours.mean - theirs[0]) / combined if combined else None


def _cells(metric: str, ours: Summary | None, theirs: tuple[float, float | None] | None, marks: str) -> dict[str, str]:
    """Texts for our value, the published value and z, by the names of `PARTS`."""
    kind = METRICS[metric]
    text = paper = ""
    if ours is not None:
        error = "" if ours.stderr is None or not kind.spread else f" ({ours.stderr:.{kind.decimals}f})"
        text = f"{ours.mean:.{kind.decimals}f}{error}{marks}"
    if theirs is not None:
        paper = f"{theirs[0]:.2f}" + ("" if theirs[1] is None else f" ({theirs[1]:.2f})")
    z = _z(ours, theirs)
    return {"ours": text, "paper": paper, "z": "" if z is None else f"{z:+.1f}".replace("-", "\N{MINUS SIGN}")}


def _letter(mark: str, letters: dict[str, str]) -> str:
    """Letter of a mark: `a` for the first text, `b` for the next."""
    number = list(letters).index(mark) if mark in letters else len(letters)
    letters.setdefault(mark, ascii_lowercase[number % 26] * (1 + number // 26))
    return letters[mark]


def _numbers(
    label: str,
    stream: StreamColumn,
    metric: str,
    ours: Summary | None,
    theirs: tuple[float, float | None] | None,
    group: RunGroup | None,
) -> dict[str, object]:
    runs = group.runs if group else ()
    protocol = runs[0].protocol if runs else None
    return {
        "row": label,
        "benchmark": stream.benchmark,
        "tasks": stream.tasks,
        "backbone": protocol.backbone if protocol else stream.backbone,
        "metric": metric,
        "mean": ours.mean if ours else None,
        "stderr": ours.stderr if ours else None,
        "n": ours.n if ours else None,
        "seeds": " ".join(str(run.record.experiment.seed) for run in runs),
        "paper_mean": theirs[0] if theirs else None,
        "paper_stderr": theirs[1] if theirs else None,
        "z": _z(ours, theirs),
        "protocol": protocol.digest if protocol else "",
        "weights": protocol.weights if protocol else "",
        "split": protocol.split if protocol else "",
        "recipe": ", ".join(sorted({run.record.recipe for run in runs})),
        "origin": ", ".join(sorted({run.origin for run in runs})),
        "differs": "; ".join(group.marks) if group else "",
    }


def _caption(table: TableLayout, streams: Sequence[StreamColumn], own: bool) -> str:
    if own:
        return f"{table.title}. Our values next to the published ones."
    what = " and ".join(dict.fromkeys(stream.benchmark for stream in streams))
    vits = {stream.backbone for stream in streams if stream.backbone}
    on = f" on {', '.join(sorted(vits))}" if vits else ""
    return f"The rows of {table.title.split(':')[0]} on another stream: {what}{on}. No published values."


def _notes(
    layout: TablesLayout,
    table: TableLayout,
    by_stream: Mapping[StreamColumn, StreamRuns],
    letters: Mapping[str, str],
    own: bool,
) -> Iterator[str]:
    places = [
        (f"{layout.rows[label].name} at {stream}", groups[0])
        for stream, one in by_stream.items()
        for label, groups in one.rows.items()
    ]
    spread = any(METRICS[name].spread for name in table.metrics)
    if places:
        yield _OURS if spread else _COST
        yield by_row("Runs", [(place, _seeds(len(group.runs))) for place, group in places])
        recipes = [(place, ", ".join(sorted({run.record.recipe for run in group.runs}))) for place, group in places]
        yield by_row("Hyper-parameters", recipes)
        versions = [(place, ", ".join(versions_of(group.runs))) for place, group in places]
        if len({version for _, groups in places for version in versions_of(groups.runs)}) > 1:
            yield by_row("cl-bench versions", versions)
        protocols = [(str(stream), _protocol(one.main, one.precision)) for stream, one in by_stream.items() if one.main]
        yield by_row("Protocol of ours", protocols)
    if own and spread:
        yield (
            "Paper: mean (standard error) over five runs. z: difference in units of the combined standard error; "
            "beyond about 2 it is unlikely to be chance."
        )
    elif own:
        yield "Paper: trained counts the adapters of one task, stored counts features and class statistics."
    trials = sum(one.trials for one in by_stream.values())
    if trials:
        yield f"Left out: {counted(trials, 'trial run')} of these rows, made on a part of the data."
    for text, letter in letters.items():
        yield f"[{letter}] {text}."


_OURS = (
    "Ours: mean (standard error of the mean) over runs that differ in seed and class order; acc and aaa are "
    "sample-weighted, as the released code reports them."
)
_COST = (
    "Ours: means over runs. GFLOPs: floating-point operations of one prediction, two per multiply-add, adapters merged "
    "where possible; trained: largest number of parameters trained in any stage, head included; stored: all numbers "
    "stored in addition to the frozen backbone after the last task, adapters and head included."
)


def _seeds(count: int) -> str:
    return f"{count} per cell" if count > 1 else "1 per cell, so no standard error"


def _protocol(protocol: Protocol, precision: str) -> str:
    return f"{protocol.digest} (weights {protocol.weights[:8]}, split {protocol.split[:8]}, {precision})"
