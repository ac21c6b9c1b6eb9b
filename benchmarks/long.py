"""Training steps late in a long stream: `python -m benchmarks.long`.

A stream of one class per task, as long as asked for; earlier tasks are started but not learned. Prints the time and the
memory of a step in some tasks, relative to the first; a second table shows the seconds of each part of a whole run of
100 tasks (`--run`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.reference import NETWORKS
from benchmarks.whole import synthetic
from cl_bench.contract import registry
from cl_bench.data.images import ImageStore
from cl_bench.data.samples import TrainingBatches, samples_of
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.running.device import pick_device, resolve_precision, set_up
from cl_bench.store import Store
from cl_bench.streams import Source
from cl_bench.streams.scenarios import TaskStream, build
from cl_bench.studies import bench
from cl_bench.training.strategy import ContinualStrategy


def stream(tasks: int, batch: int, channels: int, size: int) -> TaskStream:
    """A stream of random pixels with one class, and one batch of images, per task."""
    labels = np.repeat(np.arange(tasks), batch)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, channels), dtype=np.uint8)
    store = ImageStore(images, labels, tuple(f"{label}/{i}" for i, label in enumerate(labels)))
    moments = (0.5,) * channels
    transforms = ImageTransforms(size=size, crop_scale=(0.5, 1.0), mean=moments, std=moments)
    return build(Source(store, store, tuple(map(str, range(tasks)))), tasks, "natural", transforms, Limits())


def steps(method: str, network: str, tasks: list[int], batch: int, graphs: bool) -> dict[int, tuple[float, float]]:
    """Milliseconds of a training step and its peak memory in GiB, by task (from 1)."""
    device = pick_device("auto")
    execution = set_up(resolve_precision("auto", device), device, graphs=graphs)
    vit = NETWORKS[network].vit()
    of_tasks = stream(max(tasks), batch, vit.patch_embed.proj.in_channels, vit.patch_embed.img_size[0])
    strategy = ContinualStrategy(
        plugins=[registry.find(method).configure({"batch_size": batch})],
        backbone=vit,
        num_classes=max(tasks),
        num_tasks=max(tasks),
        device=device,
        execution=execution,
    )
    found = {}
    for index, experience in enumerate(of_tasks.train):
        strategy.tasks_learned = index
        samples = samples_of(experience.dataset)
        phase = bench.first_phase(strategy, samples)
        if index + 1 not in tasks:
            continue
        assert phase is not None
        images, labels, _ = next(iter(TrainingBatches(samples, batch, ("long",), device)))
        _, step = bench.training_step(strategy, phase, images, labels)
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = bench.seconds(step, device, 10)
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
        found[index + 1] = (1000 * seconds, memory)
        print(method, index + 1, f"{1000 * seconds:.2f} ms, {memory:.2f} GiB", flush=True)
        del step
        gc.collect()
    return found


def run(method: str, network: str, epochs: int) -> dict[str, float]:
    """Seconds per task of the parts of a run of 100 tasks with 500 images each, in its first and last ten tasks."""
    with tempfile.TemporaryDirectory() as name:
        data, results = Path(name) / "data", Path(name) / "results"
        synthetic(data / "cifar100")
        os.environ["CL_BENCH_DATA"] = str(data)
        command = [sys.executable, "-m", "cl_bench", "run", "--methods", method, "--benchmark", "cifar100"]
        command += ["--tasks", "100", *NETWORKS[network].flags, "--results", str(results)]
        command += ["--set", f"epochs={epochs}", "--set", "batch_size=128"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        (record,) = Store(results).records(sys.exit)
    parts = {"training": record.train_seconds, "evaluation": record.eval_seconds}
    places = {"tasks 11 to 20": slice(10, 20), "tasks 91 to 100": slice(90, 100)}
    rows = {f"{part}, {place}": median(values[at]) for part, values in parts.items() for place, at in places.items()}
    return rows | {"whole run": wall, "outside training and evaluation": wall - sum(map(sum, parts.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=["sdlora"])
    parser.add_argument("--network", choices=NETWORKS, default="ViT-B/16 at 224")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 10, 100, 300])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--no-graphs", action="store_true", help="without CUDA graphs")
    parser.add_argument("--run", type=int, metavar="EPOCHS", help="also time a run of 100 tasks")
    parser.add_argument("--out", type=Path, default=Path("long.json"))
    chosen = parser.parse_args()
    where = bench.device_name(pick_device("auto"))
    table = Table("method", "task", "step, ms", "of the first", "peak, GiB", title=f"{chosen.network} on {where}")
    result = {"device": where, "network": chosen.network, "steps": {}, "run": {}}
    for method in chosen.methods:
        found = steps(method, chosen.network, chosen.tasks, chosen.batch, not chosen.no_graphs)
        result["steps"][method] = found
        first, _ = found[min(found)]
        for task, (ms, memory) in found.items():
            table.add_row(method, str(task), f"{ms:.2f}", f"{ms / first:.2f}", f"{memory:.2f}")
    console = Console(width=120)
    console.print(table)
    if chosen.run is not None:
        result["run"] = run(chosen.methods[0], chosen.network, chosen.run)
        for part, seconds in result["run"].items():
            console.print(f"{chosen.methods[0]}, {part}: {seconds:.2f} s")
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
