"""Tables of the stored predictions of one row: flow of errors, confused pairs, forgotten classes and images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from cl_bench.errors import counted, printable
from cl_bench.reporting.confusions.measures import ForgottenImage, RowErrors
from cl_bench.reporting.confusions.predicted import KINDS
from cl_bench.reporting.text_tables import DASH, Column, TextTable
from cl_bench.stats import summarise


def flow(row: RowErrors) -> TextTable:
    """Where predictions go after each stage, in percent of the images so far, mean over runs with its interval.

    Stages without an image are left out, e.g. those before the only task that is counted.

    Raises:
        NoPredictions: the stream is domain-incremental.
    """
    shares = row.shares()
    rows, data = [], []
    for stage in np.flatnonzero(np.isfinite(shares).all(axis=(0, 2))).tolist():
        found = [summarise(shares[:, stage, kind]) for kind in range(len(KINDS))]
        tested = sum(int(run.class_tested[stage].sum()) for run in row.runs)
        learned = str(stage + 1) if row.sequential else "all"
        rows.append((learned, f"{tested:,}", *(f"{one.mean:.1f}" + _half(one.half_width) for one in found)))
        data += [
            {"stage": stage + 1, "images": tested, "kind": kind, "share": one.mean, "low": one.low, "high": one.high}
            for kind, one in zip(KINDS, found, strict=True)
        ]
    notes = ["Errors inside the task name another class of it; older and newer are tasks learned before and after it."]
    if not row.sequential:
        notes.append(
            "All tasks were learned at once, so older and newer are only places in the order: both are equally likely."
        )
    columns = (Column("tasks learned"), Column("images"), *map(Column, KINDS))
    caption = f"{_of(row)}: where predictions go, % of the images of the tasks so far"
    return _table("flow", caption, columns, rows, data, notes)


def flow_by_task(row: RowErrors) -> TextTable:
    """Where predictions on each task go after the last stage, in percent of its images.

    Raises:
        NoPredictions: the stream is domain-incremental.
    """
    shares, rows, data = row.shares_by_task(), list[tuple[str, ...]](), list[dict[str, Any]]()
    for task in np.flatnonzero(np.isfinite(shares).all(axis=(0, 2))).tolist():
        found = [summarise(shares[:, task, kind]) for kind in range(len(KINDS))]
        rows.append((str(task + 1), *(f"{one.mean:.1f}" + _half(one.half_width) for one in found)))
        data += [
            {"task": task + 1, "kind": kind, "share": one.mean, "low": one.low, "high": one.high}
            for kind, one in zip(KINDS, found, strict=True)
        ]
    caption = f"{_of(row)}: where predictions on each task go after the last stage, % of its images"
    return _table("flow-by-task", caption, (Column("true task"), *map(Column, KINDS)), rows, data)


def pairs(row: RowErrors, top: int) -> TextTable:
    """The most confused pairs of classes after the last stage."""
    found = row.pairs(top)
    tasks = any(pair.tasks for pair in found)
    rows = [
        (
            printable(pair.true), printable(pair.predicted), f"{pair.images:,}", _share(pair.share),
            _share(pair.reverse), *((f"{pair.tasks[0]} → {pair.tasks[1]}",) if pair.tasks else ()),
        )
        for pair in found
    ]  # fmt: skip
    columns = (
        Column("true class", numeric=False), Column("predicted as", numeric=False), Column("images"),
        Column("% of the class"), Column("% the other way"), *((Column("tasks"),) if tasks else ()),
    )  # fmt: skip
    caption = f"{_of(row)}: most confused pairs of classes after the last stage"
    return _table("pairs", caption, columns, rows, [_numbers(asdict(pair)) for pair in found])


def forgotten_classes(row: RowErrors, top: int) -> TextTable:
    """The classes that lost most accuracy since they were learned."""
    found = row.forgotten_classes(top)
    tasks = any(item.task for item in found)
    rows = [
        (
            printable(item.name), *((str(item.task),) if tasks else ()), f"{item.images:,}", _share(item.learned),
            _share(item.final), f"−{item.learned - item.final:.1f}", printable(item.taken_for), _share(item.share),
        )
        for item in found
    ]  # fmt: skip
    columns = (
        Column("class", numeric=False), *((Column("task"),) if tasks else ()), Column("images"),
        Column("% when learned"), Column("% at the end"), Column("change"), Column("now taken for", numeric=False),
        Column("% of the class"),
    )  # fmt: skip
    caption = f"{_of(row)}: the classes that were forgotten most"
    return _table("forgotten-classes", caption, columns, rows, [asdict(item) for item in found])


def forgotten_images(row: RowErrors, images: Sequence[ForgottenImage], files: Sequence[str] = ()) -> TextTable:
    """The images that most runs have forgotten.

    Args:
        files: name of each image in the data set; empty where the data are not at hand.
    """
    named = [*files] or [""] * len(images)
    rows = [
        (
            printable(_place(item)), *((printable(file),) if files else ()), f"{item.forgotten} of {item.tested}",
            str(item.stages_wrong), printable(item.taken_for),
        )
        for item, file in zip(images, named, strict=True)
    ]  # fmt: skip
    columns = (
        Column("image", numeric=False), *((Column("file", numeric=False),) if files else ()), Column("runs"),
        Column("stages"), Column("taken for", numeric=False),
    )  # fmt: skip
    notes = (
        "Right after the stage that learned them, wrong after the last one, in so many runs; and the stages in which "
        "they were wrong since then, over all runs. Logits are not stored, so nothing tells how sure a prediction was.",
    )
    data = [asdict(item) | {"file": file} for item, file in zip(images, named, strict=True)]
    return _table("forgotten-images", f"{_of(row)}: the images that were forgotten most", columns, rows, data, notes)


def counts(row: RowErrors) -> dict[str, pd.DataFrame]:
    """All counts behind the tables, for CSV: `confusion` (cells above 0), and `classes` by run and stage."""
    places = row.by_class.nonzero()
    confusion = pd.DataFrame(
        {
            "true": [row.classes[i] for i in places[0]],
            "predicted": [row.classes[j] for j in places[1]],
            "images": row.by_class[places],
        }
    )
    classes = [
        {
            "key": run.run.record.key, "seed": run.run.record.experiment.seed, "class": run.classes[label],
            "task": "" if run.task_of_class is None else int(run.task_of_class[label]) + 1, "stage": stage + 1,
            "right": int(run.class_right[stage, label]), "images": int(run.class_tested[stage, label]),
        }
        for run in row.runs
        for stage, label in zip(*run.class_tested.nonzero(), strict=True)
    ]  # fmt: skip
    return {"confusion": confusion, "classes": pd.DataFrame(classes)}


def _numbers(pair: dict[str, Any]) -> dict[str, Any]:
    """The fields of a pair with a column for each of its tasks."""
    tasks = pair.pop("tasks") or ("", "")
    return pair | {"true_task": tasks[0], "predicted_task": tasks[1]}


def _of(row: RowErrors) -> str:
    seeds = sorted({run.run.record.experiment.seed for run in row.runs})
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{row.label}, {counted(len(row.runs), 'run')} ({named})"


def _place(item: ForgottenImage) -> str:
    """Name of an image: its class, and its number among the test images of the class, from 1."""
    return f"{item.name}{f' in {item.domain}' if item.domain else ''} {item.rank + 1}"


def _share(percent: float) -> str:
    return DASH if math.isnan(percent) else f"{percent:.1f}"


def _half(half_width: float | None) -> str:
    return "" if half_width is None else f" ± {half_width:.1f}"


def _table(
    name: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[str, ...]],
    data: Sequence[dict[str, Any]],
    notes: Sequence[str] = (),
) -> TextTable:
    return TextTable(name, caption, tuple(columns), tuple(rows), tuple(notes), data=pd.DataFrame(list(data)))
