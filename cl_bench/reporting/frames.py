"""Stored runs as data frames: one row per run; per run and stage; per run, stage and task; or per row of a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cl_bench import metrics
from cl_bench.reporting.cells import COST_COLUMNS, TABLE_METRICS
from cl_bench.reporting.intransigence import References, intransigence, references
from cl_bench.reporting.result_table import ResultTable
from cl_bench.reporting.runs import Run
from cl_bench.stats import Summary

EXTRA_METRICS: Mapping[str, tuple[str, str, bool]] = {
    "fwt": ("fwt, %", "task-aware accuracy on a task before it is learned, minus chance, mean over tasks", True),
    "intransigence": (
        "intransigence, %",
        "accuracy on a new task by joint training on all tasks up to it, minus that right after learning it, mean over "
        "tasks",
        False,
    ),
}
"""Metrics that need more than the class-incremental counts of one run: title, description, whether more is better."""


def run_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, in the given order.

    Columns:
        fields of the protocol; `label`, `method`, `revision`, `recipe`, `origin`, `key`, `seed`, `class_order`.
        each of `metrics.METRICS` and `EXTRA_METRICS`: a fraction, NaN where undefined.
        `minutes`: of training and evaluation together.
        `trainable`: largest number of parameters trained in any stage.
        `tuning_trials`, `tuning_minutes`: settings tried in the hyper-parameter search, and minutes of all its runs.
    """
    known = references(runs)
    return pd.DataFrame([_flat(run, known) for run in runs])


def table_frame(tables: Sequence[ResultTable]) -> pd.DataFrame:
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


def export_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """`run_frame` for export: each column has one type; adds `hyperparameters` (JSON) and `finished` (UTC or NaT)."""
    frame = run_frame(runs).astype({"revision": str})
    options = (json.dumps(run.record.experiment.hyperparameters, sort_keys=True) for run in runs)
    finished = pd.Series([run.record.finished for run in runs], dtype="datetime64[s, UTC]")
    return frame.assign(hyperparameters=list(options), finished=finished)


def stage_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run and training stage, in the given order.

    Columns:
        `benchmark` to `class_order`: identity of the run, as in `run_frame`.
        `stage`, `tasks_seen`: number of the stage, from 0; number of tasks learned by its end.
        each of `metrics.METRICS`: a fraction, computed as if the stream had ended at this stage. The last row of a run
            has the values that tables show.
        `acc_task_aware`: accuracy on the tasks seen when the task of each image is known.
        `train_seconds`, `eval_seconds`, `train_samples`, `trainable`, `stored`: of this stage alone; `trainable`
            counts the parameters trained, `stored` the numbers kept in addition to the frozen backbone.

    Metrics are NaN where undefined, e.g. forgetting after the first task.
    """
    rows = [
        {**facts, **_at_stage(run, t)} for run in runs for facts in [_facts(run)] for t in range(len(run.record.stages))
    ]
    return pd.DataFrame(rows, columns=[*_FACTS, *_STAGE])


def task_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, stage and task.

    Columns: `key`, `label`, `origin`, `benchmark`, `seed`, `class_order`; `stage` and `task`, both from 0; `total`, the
    test images of the task; the hits `correct` (missing where the task was not evaluated) and `correct_task_aware`.
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


def _at_stage(run: Run, stage: int) -> dict[str, Any]:
    """The columns of `stage_frame` that depend on the stage."""
    record = run.record
    seen = [task for task, hits in enumerate(record.correct[stage]) if hits is not None]
    total = [record.total[task] for task in seen]
    correct = [[row[task] for task in seen] for row in record.correct[: stage + 1]]
    values = metrics.values(correct, total)
    aware = sum(record.correct_task_aware[stage][task] for task in seen) / sum(total)
    per_stage = {name: getattr(record, name)[stage] for name in _OF_A_STAGE}
    return {"stage": stage, "tasks_seen": len(seen), **values, "acc_task_aware": aware, **per_stage}


_OF_A_STAGE = ("train_seconds", "eval_seconds", "train_samples", "trainable", "stored")
_STAGE = ("stage", "tasks_seen", *metrics.METRICS, "acc_task_aware", *_OF_A_STAGE)


def metric_values(run: Run, known: References) -> dict[str, float]:
    """Each of `metrics.METRICS` and `EXTRA_METRICS` of a run: a fraction, NaN where undefined.

    Args:
        known: result of `intransigence.references`.
    """
    return {
        **metrics.values(run.record.correct, run.record.total),
        "fwt": _forward_transfer(run),
        "intransigence": next((sum(v) / len(v) for v in intransigence(run, known).values()), float("nan")),
    }


def _flat(run: Run, known: References) -> dict[str, Any]:
    record = run.record
    return {
        **_facts(run),
        **metric_values(run, known),
        "minutes": record.seconds / 60,
        "trainable": max(record.trainable, default=0),
        "tuning_trials": record.tuning_trials,
        "tuning_minutes": record.tuning_minutes,
    }


def _facts(run: Run) -> dict[str, Any]:
    """Identity and origin of a run: the columns `_FACTS`."""
    record, experiment, protocol = run.record, run.record.experiment, run.protocol
    return {
        "benchmark": protocol.benchmark,
        "scenario": protocol.scenario,
        "tasks": protocol.num_tasks,
        "classes": protocol.classes,
        "split": protocol.split,
        "transforms": protocol.transforms.model_dump_json(),
        "backbone": protocol.backbone,
        "weights": protocol.weights,
        "precision": run.precision,
        "limits": protocol.limits.model_dump_json(exclude_none=True),
        "label": run.label,
        "method": experiment.method,
        "revision": experiment.revision,
        "recipe": record.recipe,
        "origin": run.origin,
        "key": record.key,
        "seed": experiment.seed,
        "class_order": experiment.class_order,
    }


_FACTS = (
    "benchmark", "scenario", "tasks", "classes", "split", "transforms", "backbone", "weights", "precision", "limits",
    "label", "method", "revision", "recipe", "origin", "key", "seed", "class_order",
)  # fmt: skip


def _forward_transfer(run: Run) -> float:
    """`metrics.fwt` relative to chance, 1 / classes of the task: the accuracy of an untrained head."""
    if not run.sequential or run.protocol.scenario != "class-incremental":
        return float("nan")
    tasks = run.protocol.tasks
    sizes = [run.protocol.classes // tasks] * tasks if isinstance(tasks, int) else list(tasks)
    chance = [1 / size for size in sizes[: len(run.record.total)]]
    return metrics.fwt(run.record.correct_task_aware, run.record.total, chance)
