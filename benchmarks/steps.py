"""Milliseconds and memory of a training step, ours and the released computation: `python -m benchmarks.steps`.

ViT-B/16 at 224, batch 128, random weights, images on the device, medians of timed steps after warming up. The reference
(`benchmarks/reference.py`) is timed in fp32 as shipped, and with TF32 switched on; ours as `cl-bench run` runs it.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import reference
from cl_bench import registry
from cl_bench.method import Method, Task
from cl_bench.randomness import seeded

OURS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sdlora, task 1": ("sdlora", {}, 1),
    "sdlora, task 10": ("sdlora", {}, 10),
    "inflora": ("inflora", {}, 1),
    "coda": ("coda", {}, 1),
    "dualprompt": ("dualprompt", {}, 1),
    "l2p": ("l2p", {}, 1),
    "l2p, prefix": ("l2p", {"prompts": "prefix"}, 1),
    "finetune": ("finetune", {}, 1),
}
"""Method, options, and the number of tasks after which a step is timed."""


class OneBatch:
    """A task's images that are one batch: what designs subspaces and prompts may look at."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, augmented: bool = False) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.images, self.labels)]

    def collect(self, function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return function(self.images), self.labels


def our_step(method: Method, tasks: int, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """A step of the last phase of a method on its task number `tasks`, as the strategy's loop takes it."""
    device = images.device
    with seeded(("steps",)):
        model = method.create(timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0), 100)
    model.to(device)
    classes = tuple(range(10))
    for index in range(tasks):
        task = Task(index, classes, classes, 100, 10 if method.needs_num_tasks else None, model, ("steps", index))
        with torch.no_grad():
            method.before_task(task, OneBatch(images, labels))  # type: ignore[arg-type]
        model.to(device)
        phase = method.phases(task)[-1]
    model.requires_grad_(False)
    for parameter in phase.trainable():
        parameter.requires_grad_(True)
    optimizer = phase.optimizer(phase.parameters)
    forward = phase.forward or model

    def run() -> None:
        optimizer.zero_grad()
        outputs = forward(images)
        phase.loss(outputs, labels).mean().backward()
        optimizer.step()

    return run


def timed(run: Callable[[], object], steps: int, warm: int = 3) -> tuple[float, float]:
    """Median milliseconds of a step, and peak GiB."""
    cuda = torch.cuda.is_available()

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    for _ in range(warm):
        run()
    wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - began)
    return 1000 * median(seconds), torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")


def precision(tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(OURS), help="rows, e.g. coda")
    parser.add_argument("--out", type=Path, default=Path("steps.json"))
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.standard_normal((chosen.batch, 3, 224, 224), dtype=np.float32)).to(device)
    labels = torch.from_numpy(random.integers(0, 10, chosen.batch)).to(device)
    found: dict[str, dict[str, float]] = {}
    for name in chosen.only:
        row = found.setdefault(name, {})
        jobs: list[tuple[str, bool, Callable[[], Callable[[], object]]]] = []
        if name in reference.REFERENCES:
            make = reference.REFERENCES[name]
            for kind, tf32 in (("reference fp32", False), ("reference TF32", True)):
                jobs.append((kind, tf32, lambda make=make: reference.step(make().to(device), images, labels)))  # type: ignore[misc]
        method, options, tasks = OURS[name]
        created = registry.find(method).create(options)
        jobs.append(("ours fp32", False, lambda m=created, t=tasks: our_step(m, t, images, labels)))  # type: ignore[misc]
        for kind, tf32, build in jobs:
            precision(tf32)
            row[f"{kind}, ms"], row[f"{kind}, GiB"] = timed(build(), chosen.steps)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    table = Table("step", *(head for head in next(iter(found.values()))), title=f"batch {chosen.batch} on {where}")
    for name, row in found.items():
        table.add_row(name, *(f"{row.get(head, float('nan')):.1f}" for head in next(iter(found.values()))))
    Console(width=160).print(table)
    chosen.out.write_text(json.dumps({"device": where, "batch": chosen.batch, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
