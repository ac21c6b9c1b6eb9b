"""Time to read a results folder of many runs: `python benchmarks/store.py --runs 10000 --out store.json`.

Records are synthetic (10 tasks of 10 classes), in a temporary folder. Every load is a process of its own, and ends with
the data frame from which tables and figures are made. A cold load has no index yet (files are in the page cache).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cl_bench.experiment import Experiment, ImageTransforms, Scalar
from cl_bench.store import RunRecord, Store
from cl_bench.store.index import NAME, SETTLED_NS

TASKS, CLASSES, IMAGES = 10, 10, 60
BACKBONE = "vit_tiny_patch8_32.icons"
LOAD = """
import sys, time
from pathlib import Path
from cl_bench.reporting.frames import run_frame
from cl_bench.reporting.runs import collect
began = time.perf_counter()
found = collect([(Path(sys.argv[1]), "runs")], sys.exit)
read = time.perf_counter()
frame = run_frame(found)
print(len(frame), read - began, time.perf_counter() - began)
"""


def record(
    number: int,
    rows: int = 50,
    benchmark: str = "icons-100",
    backbone: str = BACKBONE,
    tasks: int = TASKS,
    methods: int | None = None,
) -> RunRecord:
    """Synthetic run `number`: one of `rows` rows, with a seed of its own and traces like those of real runs.

    Args:
        methods: number of methods; the rows of a method differ in their rank. None: every row is a method.
    """
    row, seed = number % rows, number // rows
    method, rank = f"method-{row % (methods or rows)}", 4 * (1 + row // (methods or rows))
    random = np.random.default_rng(number)
    experiment = Experiment(
        method=method,
        revision=1,
        hyperparameters={"epochs": 20, "lr": 0.01, "rank": rank},
        defaults={"epochs": 20, "lr": 0.01, "rank": 4},
        benchmark=benchmark,
        tasks=tasks,
        class_order=f"permutation:{seed}",
        split="5b" * 32,
        transforms=ImageTransforms(size=32, crop_scale=(0.7, 1.0), mean=(0.5,) * 3, std=(0.5,) * 3),
        backbone=backbone,
        weights="c4" * 32,
        seed=seed,
    )
    hits = random.integers(IMAGES // 2, IMAGES, (tasks, tasks)).tolist()
    losses: list[dict[str, Scalar]] = [
        {"stage": task, "phase": 0, "epoch": epoch, "loss": random.uniform(0.5, 1.5) / (epoch + 1)}
        for task in range(tasks)
        for epoch in range(4)
    ]
    return RunRecord(
        key=experiment.key,
        label=method if rank == 4 else f"{method}[rank={rank}]",
        recipe="tuned",
        experiment=experiment,
        stages=[[task] for task in range(tasks)],
        correct=[[count if j <= t else None for j, count in enumerate(row)] for t, row in enumerate(hits)],
        correct_task_aware=hits,
        total=[IMAGES] * tasks,
        classes=[f"class-{index}" for index in range(tasks * CLASSES)],
        train_seconds=random.uniform(9, 11, tasks).tolist(),
        eval_seconds=random.uniform(0.9, 1.1, tasks).tolist(),
        train_samples=[4000] * tasks,
        eval_samples=[IMAGES * tasks] * tasks,
        trainable=[36_900] * tasks,
        stored=[1_930] * tasks,
        flops_per_image=36_000_000,
        forward_passes=1,
        peak_memory_bytes=700_000_000,
        environment={"python": "3.11", "torch": "2.11", "device": "cpu", "threads": 2},
        traces={"loss": losses},
    )


def arrays(run: RunRecord) -> dict[str, np.ndarray[Any, Any]]:
    """Predictions that agree with the counts: the first images of a task are hits, the others any other class seen."""
    tasks = len(run.total)
    task = np.repeat(np.arange(tasks), IMAGES)
    within = np.tile(np.arange(IMAGES), tasks)
    label = task * CLASSES + within % CLASSES
    random = np.random.default_rng(run.experiment.seed)
    seen = CLASSES * (1 + np.arange(tasks))[:, None]
    other = (label + random.integers(1, np.broadcast_to(seen, (tasks, len(label))))) % seen

    def predicted(rows: list[list[int | None]]) -> np.ndarray[Any, Any]:
        hits = np.array([[-1 if count is None else count for count in row] for row in rows])[:, task]
        wrong = np.where(other == label, (label + 1) % seen, other)
        return np.where(hits < 0, -1, np.where(within < hits, label, wrong)).astype(np.int16)

    return {
        "label": label.astype(np.int16),
        "task": task.astype(np.int16),
        "predicted": predicted(run.correct),
        "predicted_task_aware": predicted([list(row) for row in run.correct_task_aware]),
    }


def load(folder: Path) -> tuple[float, float]:
    """Seconds to read the runs, and to get the data frame, in a new process."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], check=True, capture_output=True, text=True)
    _, read, frame = done.stdout.split()
    return float(read), float(frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000, help="number of runs (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="warm loads, of which the median is reported (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("store.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, runs = Store(folder), [record(number) for number in range(chosen.runs)]
        began = time.perf_counter()
        for run in runs:
            store.write(run, arrays(run))
        written = time.perf_counter() - began
        # Files that changed only just now are not indexed.
        time.sleep(SETTLED_NS / 1e9 + 0.1)
        cold = load(folder)
        warm = sorted(load(folder) for _ in range(chosen.repeats))[chosen.repeats // 2]
        index = (folder / NAME).stat().st_size if (folder / NAME).exists() else 0
        size = sum(file.stat().st_size for file in folder.iterdir()) - index
    rows = [("write", written), ("cold: records", cold[0]), ("cold: frame", cold[1])]
    rows += [("warm: records", warm[0]), ("warm: frame", warm[1])]
    table = Table("what", "seconds", "runs/s", "of cold", title=f"{chosen.runs:,} runs, {os.cpu_count()} cores")
    for what, seconds in rows:
        table.add_row(what, f"{seconds:.2f}", f"{chosen.runs / seconds:,.0f}", f"{seconds / cold[1]:.2f}")
    Console().print(table, f"files {size / 1e6:.0f} MB, index {index / 1e6:.1f} MB")
    result = {"runs": chosen.runs, "cores": os.cpu_count(), "bytes": size, "index_bytes": index, "seconds": dict(rows)}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
