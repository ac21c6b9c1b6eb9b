"""Plausible experiments and run records without any training, for every test that needs stored results."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cl_bench.experiment import Experiment, ImageTransforms, Value
from cl_bench.store import Arrays, RunRecord, Store

SPLIT = "5b" * 32
WEIGHTS = "c4" * 32
TRANSFORMS = ImageTransforms(size=32, crop_scale=(0.7, 1.0), mean=(0.5,) * 3, std=(0.5,) * 3)
DEFAULTS: dict[str, Value] = {"epochs": 20, "lr": 0.01, "rank": 4}


def experiment(method: str = "alpha", seed: int = 0, **changes: Any) -> Experiment:
    """An experiment on a stream of 10 tasks; `changes` are fields of `Experiment`.

    `hyperparameters` in `changes` are added to `DEFAULTS`.
    """
    fields: dict[str, Any] = {
        "method": method,
        "revision": 1,
        "defaults": DEFAULTS,
        "benchmark": "icons-100",
        "tasks": 10,
        "class_order": f"permutation:{seed}",
        "split": SPLIT,
        "transforms": TRANSFORMS,
        "backbone": "vit_tiny_patch8_32.icons",
        "weights": WEIGHTS,
        "seed": seed,
    } | changes
    fields["hyperparameters"] = DEFAULTS | changes.get("hyperparameters", {})
    return Experiment(**fields)


def record(
    method: str = "alpha",
    seed: int = 0,
    *,
    label: str | None = None,
    classes_per_task: int = 10,
    joint: bool = False,
    first: float = 0.9,
    drop: float = 0.04,
    origin: str = "tuned",
    **changes: Any,
) -> RunRecord:
    """A record with random counts that depend on the arguments alone.

    Args:
        label: name of the row; by default that of the method.
        joint: make one stage that learns all tasks, as joint training does.
        first: accuracy on a task right after learning it.
        drop: accuracy lost with each further task.
        changes: fields of `Experiment`.
    """
    run = experiment(method, seed, **changes)
    random = np.random.default_rng([zlib.crc32(repr((method, label)).encode()), seed])
    tasks = run.limits.tasks or run.tasks
    total = [int(n) for n in random.integers(5 * classes_per_task, 8 * classes_per_task, size=tasks)]
    stages = [list(range(tasks))] if joint else [[task] for task in range(tasks)]
    learned = [stage[-1] for stage in stages]
    level = first + random.normal(0, 0.02, size=tasks)
    rate = np.array(
        [
            [level[j] - drop * (0 if joint else max(t - j, 0)) * random.uniform(0.6, 1.4) for j in range(tasks)]
            for t in learned
        ]
    )
    hits = np.clip(np.rint(rate * total), 0, total).astype(int)
    aware = np.minimum(total, hits + random.integers(0, 6, size=hits.shape))
    count = len(stages)
    return RunRecord(
        key=run.key,
        label=label or method,
        recipe=origin,
        experiment=run,
        stages=stages,
        correct=[[int(hits[i, j]) if j <= t else None for j in range(tasks)] for i, t in enumerate(learned)],
        correct_task_aware=aware.tolist(),
        total=total,
        classes=[f"class-{i}" for i in range(run.tasks * classes_per_task)],
        train_seconds=[float(s) for s in random.uniform(8, 12, size=count)],
        eval_seconds=[float(s) for s in random.uniform(0.5, 1, size=count)],
        train_samples=[4000] * count,
        eval_samples=[sum(total)] * count,
        trainable=[36_900 + 1_930 * t for t in range(count)],
        stored=[1_930 * (t + 1) for t in range(count)],
        flops_per_image=36_000_000,
        forward_passes=1,
        peak_memory_bytes=700_000_000,
        environment={"python": "3.11.2", "torch": "2.9.0", "device": "cpu", "threads": 2},
    )


def arrays(run: RunRecord, variant: int = 0) -> Arrays:
    """Per-sample arrays that agree with the counts of `run`.

    The first images of each task are the hits; all others are predicted as the class `1 + variant` after their own.

    Returns:
        `label`, `task` [images]; `predicted`, `predicted_task_aware` [stages, images], -1 where not evaluated.
    """
    task = np.repeat(np.arange(len(run.total)), run.total)
    per_task = len(run.classes) // run.experiment.tasks
    within = np.concatenate([np.arange(n) for n in run.total])
    label = task * per_task + within % per_task

    def predict(counts: list[list[int | None]]) -> np.ndarray[Any, Any]:
        hits = np.array([[-1 if c is None else c for c in row] for row in counts])[:, task]
        wrong = (label + 1 + variant) % len(run.classes)
        return np.where(hits < 0, -1, np.where(within < hits, label, wrong))

    return {
        "label": label,
        "task": task,
        "predicted": predict(run.correct),
        "predicted_task_aware": predict([list(row) for row in run.correct_task_aware]),
    }


def variant(number: int, seconds: float = 1.0) -> tuple[RunRecord, Arrays]:
    """A record of the same run, with arrays, that is different for each number."""
    update = {"train_samples": [number] * 10, "train_seconds": [seconds] * 10}
    return record().model_copy(update=update), arrays(record(), number)


def write(folder: Path, *runs: RunRecord) -> list[Path]:
    """Store the runs in `folder`; returns the paths of their JSON files."""
    return [Store(folder).write(run, arrays(run)) for run in runs]


def npz(path: Path) -> Path:
    """The only npz that belongs to a JSON file."""
    (found,) = path.parent.glob(f"{path.stem}-*.npz")
    return found


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool) -> None:
    """Change the fields of a stored JSON in place; `sealed` also updates checksum and npz name, as a forger would."""
    data = json.loads(path.read_text())
    change(data)
    if sealed:
        rest = {name: value for name, value in data.items() if name != "checksum"}
        data["checksum"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        npz(path).rename(path.with_name(f"{path.stem}-{data['arrays_sha256'][:8]}.npz"))
    path.write_text(json.dumps(data))
