"""Result tables: one per protocol, as data that every output format shares."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cl_bench import metrics
from cl_bench.errors import counted
from cl_bench.experiment import BUDGET, RECIPES_IN_WORDS, Value
from cl_bench.reporting import precision
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.runs import Run, Section
from cl_bench.reporting.text_tables import (
    DAGGER,
    DASH,
    DOUBLE_DAGGER,
    SECTION_SIGN,
    TIMES,
    Column,
    TextTable,
    by_row,
)
from cl_bench.stats import Summary, summarise

TABLE_METRICS = ("acc", "aaa", "forgetting")
"""The metrics (see `cl_bench.metrics.METRICS`) that have a column, after the method's and before `COST_COLUMNS`."""
COST_COLUMNS: Mapping[str, str] = {
    "seeds": "number of different seeds",
    "minutes": "wall time of training and evaluation of one run, comparable only on the same hardware",
    "trainable": "largest number of parameters trained in any stage",
    "tuning": "minutes of all runs of the hyper-parameter search",
}
"""The last columns of a table, with a description of each."""
HEADER = ("method", *(metrics.METRICS[name].title for name in TABLE_METRICS), *COST_COLUMNS)
LEAKY_MARK = DAGGER
"""Marks rows whose predictions depend on other samples of the batch."""
MIXED_MARK = DOUBLE_DAGGER
"""Marks rows with a run that was resumed in another environment."""
EXEMPLAR_MARK = SECTION_SIGN
"""Marks rows of methods that keep images of past tasks."""


@dataclass(frozen=True)
class ResultRow:
    """One method in one configuration, over its seeds.

    Attributes:
        metrics: each of `TABLE_METRICS` as a fraction, by name; None where undefined, as forgetting of joint training.
        minutes: wall-clock minutes of training and evaluation, per run.
        trainable: largest number of parameters trained in any stage.
        tuning_trials, tuning_minutes: settings tried in the hyper-parameter search, and minutes of all its runs.
        seeds, class_orders: one entry per run, in the same order.
        origins: names of the results folders that hold the runs.
        hardware: devices that the runs were made on.
        recipes: sources of the hyper-parameters, e.g. `tuned`.
        sequential: whether the tasks were learned one after the other.
        leaky: whether predictions depend on other samples of the batch, as in released code with a known fault.
        mixed: one text per run that was resumed in another environment: what changed between its sessions.
        precision: resolved precision of the backbone, the same in all runs.
        exemplar_mb: size of the memory of past images in MB; 0: exemplar-free.
    """

    label: str
    metrics: Mapping[str, Summary | None]
    minutes: Summary
    trainable: int
    tuning_trials: int
    tuning_minutes: float
    seeds: tuple[int, ...]
    class_orders: tuple[str, ...]
    origins: tuple[str, ...]
    hardware: tuple[str, ...]
    recipes: tuple[str, ...]
    method: str
    revision: int | str
    hyperparameters: dict[str, Value]
    sequential: bool
    leaky: bool
    mixed: tuple[str, ...]
    precision: str
    exemplar_mb: float = 0.0

    @property
    def acc(self) -> Summary:
        """Final accuracy as a fraction; defined for every run."""
        summary = self.metrics["acc"]
        assert summary is not None
        return summary

    @property
    def name(self) -> str:
        """The label, with `EXEMPLAR_MARK`, `LEAKY_MARK` and `MIXED_MARK` where they apply."""
        marks = ((EXEMPLAR_MARK, self.exemplar_mb), (LEAKY_MARK, self.leaky), (MIXED_MARK, self.mixed))
        return " ".join([self.label, *(mark for mark, applies in marks if applies)])

    @property
    def seeds_and_orders(self) -> str:
        """Seeds and class orders of the runs, in words."""
        distinct = sorted(set(self.seeds))
        seeds = f"seed{'s' if len(distinct) > 1 else ''} {_ranges(distinct)}"
        orders = sorted({order_text(order) for order in self.class_orders})
        if all(order == f"permutation:{seed}" for seed, order in zip(self.seeds, self.class_orders, strict=True)):
            return f"{seeds}, each of which also sets the class order" if len(distinct) > 1 else f"{seeds}, {orders[0]}"
        return f"{seeds}, class order{'s' if len(orders) > 1 else ''} {', '.join(orders)}"


@dataclass(frozen=True)
class ResultTable:
    """Rows of one protocol, best final accuracy first or in the order of the user, with caption and notes.

    Attributes:
        slug: common part of the names of the protocol's files.
        caption: the protocol in one sentence.
        notes: sentences below the table: definitions, the meaning of ±, seeds and class orders, origins.
    """

    protocol: Protocol
    slug: str
    rows: tuple[ResultRow, ...]
    caption: str
    notes: tuple[str, ...]


def build(section: Section) -> ResultTable:
    """Build the table of one protocol, sorted by final accuracy unless the user chose the rows."""
    rows = [_row(label, runs) for label, runs in section.rows.items()]
    if not section.chosen:
        rows.sort(key=lambda row: (-row.acc.mean, row.label))
    notes = [*_notes(rows), *filter(None, [precision.note(section)])]
    return ResultTable(section.protocol, section.slug, tuple(rows), _caption(section), tuple(notes))


def text_table(table: ResultTable) -> TextTable:
    """Convert to a `TextTable`; its CSV has fractions in full precision, a column per statistic, empty if undefined."""
    columns = tuple(Column(title, numeric=number > 0) for number, title in enumerate(HEADER))
    rows = tuple(cells(row) for row in table.rows)
    return TextTable(table.slug, table.caption, columns, rows, table.notes, data=_csv_data(table))


def frame(tables: Sequence[ResultTable]) -> pd.DataFrame:
    """Combine tables into one data frame of numbers, one line per row, in the units of the column heads.

    Columns:
        `method`: label of the row, with its options.
        per metric of `TABLE_METRICS`: the mean (e.g. `acc, %`) and the half-width of its 95 % interval in percentage
            points (e.g. `acc ±`); both NaN where the metric is undefined, the half-width also for a single run.
        `COST_COLUMNS`: number of seeds, minutes per run, parameters trained, minutes of the hyper-parameter search (NaN
            without one).
        `benchmark`, `scenario`, `tasks`, `backbone`, `precision`, `protocol`: the conditions of the row, and the digest
            of the protocol, which identifies the table.
    """
    rows = [
        {
            "method": row.name,
            **{title: value for name in TABLE_METRICS for title, value in _in_percent(name, row.metrics[name]).items()},
            "seeds": len(set(row.seeds)),
            "minutes": row.minutes.mean,
            "trainable": row.trainable,
            "tuning": row.tuning_minutes if row.tuning_trials else math.nan,
            "benchmark": table.protocol.benchmark,
            "scenario": table.protocol.scenario,
            "tasks": table.protocol.num_tasks,
            "backbone": table.protocol.backbone,
            "precision": row.precision,
            "protocol": table.protocol.digest,
        }
        for table in tables
        for row in table.rows
    ]
    heads = [title for name in TABLE_METRICS for title in _in_percent(name, None)]
    shared = ("benchmark", "scenario", "tasks", "backbone", "precision", "protocol")
    return pd.DataFrame(rows, columns=["method", *heads, *COST_COLUMNS, *shared])


def _in_percent(name: str, summary: Summary | None) -> dict[str, float]:
    """The two columns of a metric in `frame`."""
    mean = math.nan if summary is None else 100 * summary.mean
    half = math.nan if summary is None or summary.half_width is None else 100 * summary.half_width
    return {metrics.METRICS[name].title: mean, f"{name} \N{PLUS-MINUS SIGN}": half}


def cells(row: ResultRow) -> tuple[str, ...]:
    """Texts of a row in the columns of `HEADER`, e.g. `77.12 ± 0.31` in percent."""
    return (
        row.name,
        *(percent(row.metrics[name]) for name in TABLE_METRICS),
        str(len(set(row.seeds))),
        _minutes(row.minutes.mean),
        human_count(row.trainable),
        _minutes(row.tuning_minutes) if row.tuning_trials else DASH,
    )


def percent(summary: Summary | None) -> str:
    """Format a fraction as percent with the half-width of its interval, two decimals each."""
    if summary is None:
        return DASH
    mean = f"{100 * summary.mean:.2f}"
    return mean if summary.half_width is None else f"{mean} ± {100 * summary.half_width:.2f}"


def human_count(number: int) -> str:
    """Format a count with a unit prefix: `0.37 M`, `7.7 k`, `512`."""
    for unit, size, least, decimals in (
        ("G", 10**9, 10**9, 2),
        ("M", 10**6, 10**5, 2),
        ("k", 10**3, 10**3, 1),
    ):
        if number >= least:
            return f"{number / size:.{decimals}f} {unit}"
    return str(number)


def _minutes(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _row(label: str, runs: Sequence[Run]) -> ResultRow:
    records, first = [run.record for run in runs], runs[0].record.experiment

    def over_runs(name: str) -> Summary | None:
        values = [metrics.value(name, record.correct, record.total) for record in records]
        defined = [value for value in values if not math.isnan(value)]
        return summarise(defined) if defined else None

    return ResultRow(
        label=label,
        metrics={name: over_runs(name) for name in TABLE_METRICS},
        minutes=summarise([record.seconds / 60 for record in records]),
        trainable=max(max(record.trainable, default=0) for record in records),
        tuning_trials=max(record.tuning_trials for record in records),
        tuning_minutes=max(record.tuning_minutes for record in records),
        seeds=tuple(record.experiment.seed for record in records),
        class_orders=tuple(record.experiment.class_order for record in records),
        origins=tuple(sorted({run.origin for run in runs})),
        hardware=tuple(sorted({run.hardware for run in runs})),
        recipes=tuple(sorted({record.recipe for record in records})),
        method=first.method,
        revision=first.revision,
        hyperparameters=first.hyperparameters,
        sequential=runs[0].sequential,
        leaky=first.leaky,
        exemplar_mb=max(record.exemplar_mb for record in records),
        mixed=tuple(dict.fromkeys(f"seed {run.record.experiment.seed}: {run.mixed}" for run in runs if run.mixed)),
        precision=runs[0].precision,
    )


def _csv_data(table: ResultTable) -> pd.DataFrame:
    protocol = table.protocol
    rows = []
    for row in table.rows:
        flat: dict[str, object] = {"label": row.label}
        for name, summary in {**row.metrics, "minutes": row.minutes}.items():
            flat |= {f"{name}_{part}": getattr(summary, part, None) for part in ("mean", "low", "high", "n")}
        flat |= {
            "trainable": row.trainable,
            "tuning_trials": row.tuning_trials,
            "tuning_minutes": row.tuning_minutes,
            "seeds": " ".join(map(str, row.seeds)),
            "class_orders": " ".join(row.class_orders),
            "origins": " ".join(row.origins),
            "recipes": " ".join(row.recipes),
            "method": row.method,
            "revision": row.revision,
            "hyperparameters": json.dumps(row.hyperparameters, sort_keys=True),
            "benchmark": protocol.benchmark,
            "scenario": protocol.scenario,
            "tasks": protocol.num_tasks,
            "classes": protocol.classes,
            "backbone": protocol.backbone,
            "weights": protocol.weights,
            "split": protocol.split,
            "precision": row.precision,
            "transforms": protocol.transforms.model_dump_json(),
            "limits": protocol.limits.model_dump_json(exclude_none=True),
        }
        rows.append(flat)
    frame = pd.DataFrame(rows)
    counts = [name for name in frame.columns if name.endswith("_n")]
    return frame.astype(dict.fromkeys(counts, "Int64"))


def _caption(section: Section) -> str:
    protocol = section.protocol
    size = protocol.transforms.size
    limits = protocol.limits_text()
    return (
        f"{protocol.benchmark}, {protocol.scenario}, {protocol.shape}; "
        f"backbone {protocol.backbone} at {size} {TIMES} {size} (weights {protocol.weights[:8]}), "
        f"split {protocol.split[:8]}, {precision.text(section)} (protocol {protocol.digest})."
        + (f" A cut-down trial: {limits}." if limits else "")
    )


def _notes(rows: Sequence[ResultRow]) -> list[str]:
    repeats = {row.acc.n for row in rows}
    spread = "Mean ± half-width of the 95 % Student-t interval of the mean over " + (
        f"{repeats.pop()} runs per row" if len(repeats) == 1 else "the runs of the row"
    )
    alone = [row.label for row in rows if row.acc.n == 1]
    notes = [
        "; ".join(f"{name}: {metrics.METRICS[name].description}" for name in TABLE_METRICS) + ".",
        "One run per row: no intervals." if len(alone) == len(rows) else f"{spread}.",
    ]
    if alone and len(alone) < len(rows):
        notes.append(f"One run only, no interval: {', '.join(alone)}.")
    notes.append(by_row("Runs", [(row.label, row.seeds_and_orders) for row in rows]))
    joint = [row.label for row in rows if not row.sequential]
    if joint:
        undefined = [name for name in TABLE_METRICS if metrics.METRICS[name].sequential]
        notes.append(f"{', '.join(joint)}: trained on all tasks at once, so {_and(undefined)} are not defined.")
    if single := [name for name in TABLE_METRICS if any(row.sequential and row.metrics[name] is None for row in rows)]:
        notes.append(f"A single task is learned, so {_and(single)} {'is' if len(single) == 1 else 'are'} not defined.")
    if any(row.exemplar_mb for row in rows):
        sizes = ", ".join(f"{row.label} {row.exemplar_mb:g} MB" for row in rows if row.exemplar_mb)
        notes.append(f"{EXEMPLAR_MARK}: keeps exemplars, images of past tasks; size of the memory: {sizes}.")
    if any(row.leaky for row in rows):
        notes.append(
            f"{LEAKY_MARK}: predictions depend on the other samples of the batch, in training or at test, as in "
            "released code with a known fault; not comparable with the other rows."
        )
    if any(row.mixed for row in rows):
        differing = [(row.label, " | ".join(row.mixed)) for row in rows if row.mixed]
        notes.append(
            f"{MIXED_MARK}: a run was interrupted and resumed in another environment, so its numbers belong to neither "
            f"of the two. {by_row('Differences', differing)}"
        )
    notes.append("; ".join(f"{name}: {text}" for name, text in COST_COLUMNS.items() if name != "seeds") + ".")
    notes.append(by_row("Hyper-parameters", [(row.label, _provenance(row)) for row in rows]))
    notes.append(by_row("Hardware", [(row.label, ", ".join(row.hardware)) for row in rows]))
    notes.append(by_row("Origin", [(row.label, ", ".join(row.origins)) for row in rows]))
    return notes


def _and(names: Sequence[str]) -> str:
    """Join names: `a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _provenance(row: ResultRow) -> str:
    """Source of a row's hyper-parameters and its training budget, in words."""
    if not row.hyperparameters:
        return "none"
    trials = f", best of {counted(row.tuning_trials, 'setting')}" if row.tuning_trials else ""
    budget = "".join(f", {name}={row.hyperparameters[name]}" for name in BUDGET if name in row.hyperparameters)
    return f"{', '.join(RECIPES_IN_WORDS.get(name, name) for name in row.recipes)}{trials}{budget}"


def order_text(class_order: str) -> str:
    """Short text of a class order; an explicit list of classes becomes `list` and the start of its hash."""
    listed = class_order.startswith("order:")
    return f"list {hashlib.sha256(class_order.encode()).hexdigest()[:8]}" if listed else class_order


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted distinct integers as ranges, e.g. `0-4, 7` with an en dash."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}{DASH}{run[-1]}" for run in runs)
