"""Time and memory of a training step, and images predicted per second: `python -m benchmarks.steps`.

A backbone with random weights, batches of 128, images on the device. The reference (`benchmarks/reference.py`) is timed
step by step, because it reads its loss in every step, in fp32 as released and with TF32. Ours is timed as by `cl-bench
bench`, with the default precision and code path of `cl-bench run`; with `--paths`, also without CUDA graphs and without
compiling.
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

PATHS = {
    "default": Settings(),
    "no graphs": Settings(graphs=False),
    "no compile": Settings(compiled=False),
    "neither": Settings(compiled=False, graphs=False),
}
"""Ways of executing the same step."""


def reference_step(
    name: str, network: reference.Network, batch: int, tf32: bool, steps: int, device: torch.device
) -> tuple[float, float]:
    """Median milliseconds of a step of the reference, and its peak memory in GiB."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    vit = network.vit()
    images = torch.randn(batch, vit.patch_embed.proj.in_channels, *vit.patch_embed.img_size, device=device)
    labels = torch.arange(batch, device=device) % 10
    run = reference.step(reference.REFERENCES[name](vit).to(device), images, labels)
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


def described(speed: bench.Speed) -> dict[str, float]:
    """What the table says of one path."""
    row = {"ms": 1000 * speed.step, "share, %": 100 * speed.share, "first step, s": speed.start}
    row |= {"GiB": speed.memory / 2**30, "predicted, img/s": speed.prediction, "data, img/s": speed.data}
    row["waits"] = float(bool(speed.waits))
    if speed.regime is not None:
        row |= {"busy, %": 100 * speed.regime.busy, "products, %": 100 * speed.regime.products}
    return row | {"replayed": float(not speed.graph_refusal)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--network", choices=reference.NETWORKS, default="ViT-B/16 at 224")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--paths", nargs="*", choices=PATHS, default=["default"], help="ways of executing our step")
    parser.add_argument("--no-reference", action="store_true", help="time only our own steps")
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
    network = reference.NETWORKS[chosen.network]
    for name in chosen.only:
        row = rows.setdefault(name, {})
        for kind, tf32 in () if chosen.no_reference else (("reference fp32", False), ("reference TF32", True)):
            row[f"{kind}, ms"], row[f"{kind}, GiB"] = reference_step(
                name, network, chosen.batch, tf32, chosen.steps, device
            )
            gc.collect()
            torch.cuda.empty_cache()
        method, options, task = OURS[name]
        spec = plan.RunSpec(
            method=registry.find(method),
            options={**options, "batch_size": chosen.batch},
            backbone=network.backbone,
            size=network.size,
            pretrained=network.pretrained,
            precision=precision,
        )
        (run,) = plan.plan([spec])
        for path in chosen.paths:
            speed = bench.measure(run, device, PATHS[path], task=task, ceiling=top)
            row |= {f"{path}: {head}": value for head, value in described(speed).items()}
            torch.cuda.empty_cache()
        for kind in ("fp32", "TF32") if not chosen.no_reference else ():
            row[f"x {kind}"] = row[f"reference {kind}, ms"] / row[f"{chosen.paths[0]}: ms"]
        print(name, {head: round(value, 2) for head, value in row.items()}, flush=True)
    where = bench.device_name(device)
    title = f"{chosen.network}, batch {chosen.batch}, {precision}, on {where}; ceiling {top / 1e12:.0f} TFLOP/s"
    table = Table("", *rows, title=title)
    for head in next(iter(rows.values())):
        cells = [row.get(head, float("nan")) for row in rows.values()]
        table.add_row(head, *(f"{cell:,.0f}" if cell >= 1000 else f"{cell:.1f}" for cell in cells))
    Console(width=160).print(table)
    result = {"device": where, "network": chosen.network, "batch": chosen.batch, "ceiling": top, "rows": rows}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
