"""Whole runs a minute, side by side on one GPU: `python -m benchmarks.throughput`.

Runs of one method with several seeds on a stream of CIFAR-100's size (random pixels) by `cl-bench run --jobs N`, for
several N. The time of the start, in which workers import and compile, is told apart: it is paid once for any number of
runs.
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

from rich.console import Console
from rich.table import Table

from benchmarks.reference import NETWORKS
from benchmarks.whole import synthetic
from cl_bench.running.device import pick_device
from cl_bench.store import Store
from cl_bench.studies import bench


def measure(
    data: Path, methods: str, network: str, epochs: int, jobs: int, seeds: int, more: list[str]
) -> dict[str, float]:
    """Seconds of a sweep, and runs a minute once all workers are at work."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name) / "results"
        command = [sys.executable, "-m", "cl_bench", "run", "--methods", methods, "--benchmark", "cifar100"]
        command += [*NETWORKS[network].flags, "--results", str(results), "--seeds", f"0-{seeds - 1}"]
        command += ["--set", f"epochs={epochs}", "--set", "batch_size=128", "--jobs", str(jobs), *more]
        began = time.time()
        environment = os.environ | {"CL_BENCH_DATA": str(data)}
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        wall = time.time() - began
        stored = sorted(path.stat().st_mtime - began for path in results.rglob("*.json"))
        records = list(Store(results).records(sys.exit))
    # From the end of the first run of each worker on, nothing is started any more.
    steady = stored[jobs - 1 :]
    rate = 60 * (len(steady) - 1) / (steady[-1] - steady[0]) if len(steady) > 1 else float("nan")
    inside = sum(sum(record.train_seconds) + sum(record.eval_seconds) for record in records) / len(records)
    return {
        "seconds": wall,
        "runs": len(records),
        "runs a minute": rate,
        "first run ends": stored[0],
        "of a run": inside,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--methods", default="sdlora")
    parser.add_argument("--network", choices=NETWORKS, default="ViT-S/14 at 112")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--runs-per-job", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("throughput.json"))
    chosen, more = parser.parse_known_args()
    where = bench.device_name(pick_device("auto"))
    heads = ["seconds", "runs", "runs a minute", "first run ends", "of a run"]
    table = Table("--jobs", *heads, title=f"{chosen.methods}, {chosen.network}, {chosen.epochs} epochs, on {where}")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        synthetic(data / "cifar100")
        for jobs in chosen.jobs:
            row = measure(data, chosen.methods, chosen.network, chosen.epochs, jobs, jobs * chosen.runs_per_job, more)
            rows[jobs] = row
            print(jobs, {head: round(value, 2) for head, value in row.items()}, flush=True)
            table.add_row(str(jobs), *(f"{row[head]:.1f}" for head in heads))
    Console(width=120).print(table)
    chosen.out.write_text(json.dumps({"device": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
