"""Result tables: one per protocol, as data that every output format shares."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from cl_bench import metrics
from cl_bench.errors import counted
from cl_bench.experiment import BUDGET, RECIPES_IN_WORDS, Value
from cl_bench.reporting import precision
from cl_bench.reporting.cells import (
    COLUMNS,
    COST_COLUMNS,
    TABLE_METRICS,
    ExtraColumn,
    check_columns,
    human_count,
    minutes,
    order_text,
    percent,
    ranges,
)  # fmt: skip
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.runs import Run, Section, versions_of
from cl_bench.reporting.text_tables import (
    DAGGER,
    DASH,
    DOUBLE_DAGGER,
    SECTION_SIGN,
    TIMES,
    Column,
    TextTable,
    by_row,
    with_columns,
)
from cl_bench.stats import Summary, summarise

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
        metrics: the table's metrics as fractions, by name; None where undefined, as forgetting of joint training.
        minutes: wall-clock minutes of training and evaluation, per run.
        trainable: largest number of parameters trained in any stage.
        tuning_trials, tuning_minutes: settings tried in the hyper-parameter search, and minutes of all its runs.
        seeds, class_orders: one entry per run, in the same order.
        origins: names of the results folders that hold the runs.
        hardware: devices that the runs were made on.
        recipes: sources of the hyper-parameters, e.g. `tuned`.
        versions: versions of cl-bench that made the runs.
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
    versions: tuple[str, ...]
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
        seeds = f"seed{'s' if len(distinct) > 1 else ''} {ranges(distinct)}"
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
        columns: names of the columns after that of the method, in their order.
        extra: columns that the user added.
        highlight: labels of the rows that stand out.
        precision: the precision of the rows without a mark for it.
    """

    protocol: Protocol
    slug: str
    rows: tuple[ResultRow, ...]
    caption: str
    notes: tuple[str, ...]
    columns: tuple[str, ...] = COLUMNS
    extra: tuple[ExtraColumn, ...] = ()
    highlight: tuple[str, ...] = ()
    precision: str = ""

    @property
    def metric_columns(self) -> tuple[str, ...]:
        """The columns that are metrics."""
        return tuple(name for name in self.columns if name in metrics.METRICS)

    @property
    def other_columns(self) -> Mapping[str, str]:
        """Descriptions of the columns that are no metrics, by name."""
        known = {**COST_COLUMNS, **{column.name: column.description for column in self.extra}}
        return {name: known[name] for name in self.columns if name in known}

    @property
    def header(self) -> tuple[str, ...]:
        """The heads of the columns, that of the method first."""
        return ("method", *map(self.title, self.columns))

    def title(self, name: str) -> str:
        """The head of a column."""
        titles = {column.name: column.title for column in self.extra}
        return metrics.METRICS[name].title if name in metrics.METRICS else titles.get(name, name)

    def cells(self, row: ResultRow) -> tuple[str, ...]:
        """Texts of a row: its name, then the columns in their order."""
        return (row.name, *(self.cell(row, name) for name in self.columns))

    def competes(self, row: ResultRow) -> bool:
        """Whether a row can be the best of a column: no joint training, which sees more, and no marked row."""
        return row.sequential and row.name == row.label and row.precision == self.precision

    def cell(self, row: ResultRow, name: str) -> str:
        """The text of a row in one column, e.g. `77.12 ± 0.31` in percent."""
        for column in self.extra:
            if column.name == name:
                return column.texts.get(row.label, DASH)
        return cell(row, name)

    def number(self, row: ResultRow, name: str) -> float | None:
        """The number to sort by in one of `other_columns`."""
        for column in self.extra:
            if column.name == name:
                value = column.numbers.get(row.label, {}).get(column.fields[0])
                return value if isinstance(value, float) else None
        values = {"seeds": len(set(row.seeds)), "minutes": row.minutes.mean, "trainable": row.trainable}
        return float(values.get(name, row.tuning_minutes))


def build(section: Section, columns: Sequence[str] = (), extra: Sequence[ExtraColumn] = ()) -> ResultTable:
    """Build the table of one protocol, sorted by final accuracy unless the user chose the rows.

    Args:
        columns: names of metrics (see `cl_bench.metrics.METRICS`), of `COST_COLUMNS` and of `extra`, in their order; by
            default `COLUMNS`, with `extra` after the metrics.
        extra: additional columns; those not named in `columns` come last.

    Raises:
        UserError: unknown column.
    """
    check_columns(columns, [column.name for column in extra])
    names = tuple(dict.fromkeys([*columns, *(column.name for column in extra)]))
    if not columns:
        names = (*TABLE_METRICS, *(column.name for column in extra), *COST_COLUMNS)
    shown = [name for name in names if name in metrics.METRICS]
    rows = [_row(label, runs, dict.fromkeys(["acc", *shown])) for label, runs in section.rows.items()]
    if not section.chosen:
        rows.sort(key=lambda row: (-row.acc.mean, row.label))
    table = ResultTable(
        section.protocol, section.slug, tuple(rows), _caption(section), (), names, tuple(extra), section.highlight,
        precision.usual_of(section),
    )  # fmt: skip
    return replace(table, notes=(*_notes(table), *filter(None, [precision.note(section)])))


def text_table(table: ResultTable) -> TextTable:
    """Convert to a `TextTable`; its CSV has fractions in full precision, a column per statistic, empty if undefined."""
    measured = tuple(dict.fromkeys(["acc", *table.metric_columns]))
    whole = replace(table, columns=(*measured, *COST_COLUMNS, *(column.name for column in table.extra)))
    columns = [Column("method", numeric=False)]
    for name in measured:
        fields = tuple(f"{name}_{part}" for part in _STATISTICS)
        kind = metrics.METRICS[name]
        columns.append(Column(kind.title, name=name, higher=kind.higher, fields=fields))
    columns += [Column(name, name=name, fields=_COST_FIELDS[name]) for name in COST_COLUMNS]
    columns += [Column(column.title, name=column.name, fields=column.fields) for column in table.extra]
    places = range(len(columns))
    made = TextTable(
        table.slug,
        table.caption,
        tuple(columns),
        tuple(whole.cells(row) for row in table.rows),
        table.notes,
        bold=frozenset((r, c) for r, row in enumerate(table.rows) if row.label in table.highlight for c in places),
        unranked=frozenset((r, c) for r, row in enumerate(table.rows) if not table.competes(row) for c in places),
        data=_csv_data(table),
    )
    return with_columns(made, table.columns)


def cell(row: ResultRow, name: str) -> str:
    """The text of a row in the column of one of its metrics or of `COST_COLUMNS`."""
    if name in row.metrics:
        return percent(row.metrics[name])
    texts = {
        "seeds": str(len(set(row.seeds))),
        "minutes": minutes(row.minutes.mean),
        "trainable": human_count(row.trainable),
        "tuning": minutes(row.tuning_minutes) if row.tuning_trials else DASH,
    }
    return texts[name]


def _row(label: str, runs: Sequence[Run], names: Iterable[str]) -> ResultRow:
    records, first = [run.record for run in runs], runs[0].record.experiment

    def over_runs(name: str) -> Summary | None:
        values = [metrics.value(name, record.correct, record.total) for record in records]
        defined = [value for value in values if not math.isnan(value)]
        return summarise(defined) if defined else None

    return ResultRow(
        label=label,
        metrics={name: over_runs(name) for name in names},
        minutes=summarise([record.seconds / 60 for record in records]),
        trainable=max(max(record.trainable, default=0) for record in records),
        tuning_trials=max(record.tuning_trials for record in records),
        tuning_minutes=max(record.tuning_minutes for record in records),
        seeds=tuple(record.experiment.seed for record in records),
        class_orders=tuple(record.experiment.class_order for record in records),
        origins=tuple(sorted({run.origin for run in runs})),
        hardware=tuple(sorted({run.hardware for run in runs})),
        recipes=tuple(sorted({record.recipe for record in records})),
        versions=tuple(versions_of(runs)),
        method=first.method,
        revision=first.revision,
        hyperparameters=first.hyperparameters,
        sequential=runs[0].sequential,
        leaky=first.leaky,
        exemplar_mb=max(record.exemplar_mb for record in records),
        mixed=tuple(dict.fromkeys(f"seed {run.record.experiment.seed}: {run.mixed}" for run in runs if run.mixed)),
        precision=runs[0].precision,
    )


_STATISTICS = ("mean", "low", "high", "n")
_COST_FIELDS = {
    "seeds": (),
    "minutes": tuple(f"minutes_{part}" for part in _STATISTICS),
    "trainable": ("trainable",),
    "tuning": ("tuning_trials", "tuning_minutes"),
}
"""Fields of the CSV by column. The list of seeds always stays: it says what a row is."""


def _csv_data(table: ResultTable) -> pd.DataFrame:
    protocol = table.protocol
    rows = []
    for row in table.rows:
        flat: dict[str, object] = {"label": row.label}
        for name, summary in {**row.metrics, "minutes": row.minutes}.items():
            flat |= {f"{name}_{part}": getattr(summary, part, None) for part in _STATISTICS}
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
        for column in table.extra:
            flat |= {field: column.numbers.get(row.label, {}).get(field) for field in column.fields}
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


def _notes(table: ResultTable) -> list[str]:
    rows, shown = table.rows, table.metric_columns
    repeats = {row.acc.n for row in rows}
    spread = "Mean ± half-width of the 95 % Student-t interval of the mean over " + (
        f"{repeats.pop()} runs per row" if len(repeats) == 1 else "the runs of the row"
    )
    alone = [row.label for row in rows if row.acc.n == 1]
    notes = ["; ".join(f"{name}: {metrics.METRICS[name].description}" for name in shown) + "."] if shown else []
    notes.append("One run per row: no intervals." if len(alone) == len(rows) else f"{spread}.")
    if alone and len(alone) < len(rows):
        notes.append(f"One run only, no interval: {', '.join(alone)}.")
    notes.append(by_row("Runs", [(row.label, row.seeds_and_orders) for row in rows]))
    joint = [row.label for row in rows if not row.sequential]
    if joint:
        undefined = [name for name in shown if metrics.METRICS[name].sequential]
        so = f", so {_and(undefined)} {'is' if len(undefined) == 1 else 'are'} not defined" if undefined else ""
        notes.append(f"{', '.join(joint)}: trained on all tasks at once{so}.")
    if single := [name for name in shown if any(row.sequential and row.metrics[name] is None for row in rows)]:
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
    if others := [f"{table.title(name)}: {text}" for name, text in table.other_columns.items() if name != "seeds"]:
        notes.append("; ".join(others) + ".")
    if "tuning" in table.other_columns and not all(row.tuning_trials for row in rows):
        notes.append(f"tuning {DASH}: no search; the settings are a recipe's or the method's own.")
    notes.append(by_row("Hyper-parameters", [(row.label, _provenance(row)) for row in rows]))
    notes.append(by_row("Hardware", [(row.label, ", ".join(row.hardware)) for row in rows]))
    notes.append(by_row("Origin", [(row.label, ", ".join(row.origins)) for row in rows]))
    versions = by_row("cl-bench versions", [(row.label, ", ".join(row.versions)) for row in rows])
    notes += [versions] if len({version for row in rows for version in row.versions}) > 1 else []
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
