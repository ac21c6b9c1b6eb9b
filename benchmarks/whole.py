"""Time of a whole run compared with its training steps alone: `python -m benchmarks.whole`.

The whole run is `cl-bench run` of a method on 10 tasks with a ViT-B/16 at 224 pixels and random weights, timed from
start to exit, including imports, compilation, data and evaluation. It is compared with the number of steps times the
duration of one step, as measured by `cl-bench bench`. The images are random, of CIFAR-100's number and size (50,000 for
training and 10,000 for tests, 32x32 pixels) or of ImageNet-R's (24,000 and 6,000, as JPEG files of 256x256 pixels).
With `--warm`, a run of one epoch comes first: it leaves compiled graphs and decoded images behind.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from cl_bench.contract import registry
from cl_bench.running import plan
from cl_bench.running.device import pick_device, resolve_precision
from cl_bench.running.runner import Settings
from cl_bench.store import Store
from cl_bench.studies import bench


def synthetic(folder: Path) -> None:
    """Write a data set in the layout of CIFAR-100's archive, with random pixels."""
    (folder / "cifar-100-python").mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, images in (("train", 50_000), ("test", 10_000)):
        content = {
            "data": random.integers(0, 256, (images, 3072), dtype=np.uint8),
            "fine_labels": (np.arange(images) % 100).tolist(),
            "filenames": [f"{i:05d}.png" for i in range(images)],
        }
        (folder / "cifar-100-python" / part).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"class{i}" for i in range(100)]}
    (folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps(names))


def class_folders(folder: Path) -> None:
    """Write JPEG files of ImageNet-R's number of classes and images, with random coarse pixels."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(_class_folder, folder), range(200)))


def _class_folder(folder: Path, label: int) -> None:
    random = np.random.default_rng(label)
    for part, images in (("train", 120), ("test", 30)):
        place = folder / part / f"class{label}"
        place.mkdir(parents=True)
        for number in range(images):
            coarse = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            coarse.resize((256, 256)).save(place / f"{number}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--method", default="sdlora")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", choices=["cifar100", "imagenet-r"], default="cifar100", help="number and size")
    parser.add_argument("--warm", action="store_true", help="make a run of one epoch before the timed one")
    parser.add_argument("--out", type=Path, default=Path("whole.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data, results = Path(name) / "data", Path(name) / "results"
        os.environ["CL_BENCH_DATA"] = str(data)
        benchmark = "cifar100"
        if chosen.images == "cifar100":
            synthetic(data / "cifar100")
        else:
            class_folders(data / "images")
            benchmark = f"folder:{data / 'images'}"
        command = [sys.executable, "-m", "cl_bench", "run", "--methods", chosen.method, "--benchmark", benchmark]
        command += [
            "--tasks",
            "10",
            "--backbone",
            "vit_base_patch16_224",
            "--pretrained",
            "no",
            "--set",
            f"batch_size={chosen.batch}",
        ]
        if chosen.warm:
            first = [*command, "--set", "epochs=1", "--results", str(Path(name) / "first")]
            subprocess.run(first, check=True, stdout=subprocess.DEVNULL)
        command += ["--set", f"epochs={chosen.epochs}", "--results", str(results)]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        (record,) = Store(results).records(sys.exit)
        device = pick_device("auto")
        spec = plan.RunSpec(
            method=registry.find(chosen.method),
            options={"batch_size": chosen.batch},
            benchmark=benchmark,
            tasks=10,
            backbone="vit_base_patch16_224",
            pretrained=False,
            precision=resolve_precision("auto", device),
        )
        (run,) = plan.plan([spec])
        speed = bench.measure(run, device, Settings())
    steps = sum(-(-samples // (chosen.batch * chosen.epochs)) * chosen.epochs for samples in record.train_samples)
    seconds = {
        "whole run": wall,
        "training": sum(record.train_seconds),
        "evaluation": sum(record.eval_seconds),
        f"{steps:,} steps of {1000 * speed.step:.1f} ms": steps * speed.step,
    }
    where = bench.device_name(device)
    table = Table("what", "seconds", "of the steps", title=f"{chosen.method}, {chosen.epochs} epochs, on {where}")
    for what, value in seconds.items():
        table.add_row(what, f"{value:.1f}", f"{value / (steps * speed.step):.2f}")
    Console().print(table)
    chosen.out.write_text(json.dumps({"device": where, "steps": steps, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
