"""Time and memory of a training step, and images predicted per second: `python -m benchmarks.steps`.

ViT-B/16 at 224 pixels with random weights, batches of 128, images on the device. The reference
(`benchmarks/reference.py`) is timed step by step, because it reads its loss in every step, in fp32 as released and with
TF32. Ours is timed as by `cl-bench bench`, with the default precision and code path of `cl-bench run`.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import reference
from cl_bench.contract import registry
from cl_bench.running import plan
from cl_bench.running.device import pick_device, resolve_precision
from cl_bench.running.runner import Settings
from cl_bench.studies import bench

OURS = {
    "sdlora, task 1": ("sdlora", {}, 0),
    "sdlora, task 10": ("sdlora", {}, 9),
    "inflora": ("inflora", {}, 0),
    "coda": ("coda", {}, 0),
    "dualprompt": ("dualprompt", {}, 0),
    "l2p": ("l2p", {"length": 5, "top": 5}, 0),
    "l2p, prefix": ("l2p", {"prompts": "prefix", "pool": 30, "length": 20}, 0),
    "finetune": ("finetune", {}, 0),
}
"""Method, options, and the task (from 0) in which a step is timed."""


def reference_step(name: str, batch: int, tf32: bool, steps: int, device: torch.device) -> tuple[float, float]:
    """Median milliseconds of a step of the reference, and its peak memory in GiB."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.arange(batch, device=device) % 10
    run = reference.step(reference.REFERENCES[name]().to(device), images, labels)
    for _ in range(2):
        run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(steps):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return 1000 * median(found), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--steps",
        type=int,
        default=6,
        help="timed steps of the reference (default: %(default)s); of ours always five groups of ten",
    )
    parser.add_argument("--only", nargs="*", default=list(OURS), help="names of the rows to measure, e.g. coda")
    parser.add_argument("--precision", default="auto", help="precision of ours (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("steps.json"))
    chosen = parser.parse_args()
    device = pick_device("auto")
    precision = resolve_precision(chosen.precision, device)
    top = bench.ceiling(device, precision)
    rows: dict[str, dict[str, float]] = {}
    for name in chosen.only:
        row = rows.setdefault(name, {})
        for kind, tf32 in (("reference fp32", False), ("reference TF32", True)):
            row[f"{kind}, ms"], row[f"{kind}, GiB"] = reference_step(name, chosen.batch, tf32, chosen.steps, device)
            gc.collect()
            torch.cuda.empty_cache()
        method, options, task = OURS[name]
        spec = plan.RunSpec(
            method=registry.find(method),
            options={**options, "batch_size": chosen.batch},
            backbone="vit_base_patch16_224",
            pretrained=False,
            precision=precision,
        )
        (run,) = plan.plan([spec])
        speed = bench.measure(run, device, Settings(), task=task, ceiling=top)
        row[f"ours {precision}, ms"], row[f"ours {precision}, GiB"] = 1000 * speed.step, speed.memory / 2**30
        row["x fp32"] = row["reference fp32, ms"] / row[f"ours {precision}, ms"]
        row["x TF32"] = row["reference TF32, ms"] / row[f"ours {precision}, ms"]
        row["share, %"] = 100 * speed.share
        row["predicted, img/s"], row["first step, s"] = speed.prediction, speed.start
        row["data, img/s"], row["waits"] = speed.data, float(bool(speed.waits))
        print(name, {head: round(value, 2) for head, value in row.items()}, flush=True)
        torch.cuda.empty_cache()
    where = bench.device_name(device)
    heads = list(next(iter(rows.values())))
    title = f"batch {chosen.batch} on {where}; ceiling {top / 1e12:.0f} TFLOP/s"
    table = Table("step", *heads, title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[head]:,.0f}" if row[head] >= 1000 else f"{row[head]:.1f}" for head in heads))
    Console(width=240).print(table)
    result = {"device": where, "batch": chosen.batch, "ceiling": top, "rows": rows}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
