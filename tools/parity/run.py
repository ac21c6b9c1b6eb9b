r"""Run a released program on one experiment of a suite.

    python -m tools.parity.run ../authors/sdlora sdlora --suite tools/parity/cifar100.yaml --seed 0 \
        --out results/authors

FOLDER is a checkout of the program, outside this repository; a file COMMIT in it may name its commit. Its modules are
imported unchanged. Only the loading of weights and images, paths, the device, and imports missing from current
libraries are replaced; the record lists each replacement. Class order, transforms and hyper-parameters are those of the
experiment that `cl-bench run --suite` plans. The record has the key of that experiment: equal keys on both sides mean
the same experiment.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cl_bench import metrics
from cl_bench.errors import UserError
from cl_bench.files import write_atomically
from tools.parity import cells, shims

PROGRAMS = ("sdlora", "inflora", "coda")


def commit_of(folder: Path) -> str:
    """The commit of a checkout.

    Raises:
        UserError: the folder does not exist, or does not name its commit.
    """
    if (folder / "COMMIT").is_file():
        return (folder / "COMMIT").read_text().strip()
    if not (folder / ".git").exists():
        raise UserError(f"'{folder}' is no checkout: it has neither .git nor a file COMMIT with the commit's hash")
    found = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware."""
    names = ("torch", "torchvision", "timm", "numpy", "scipy", "sklearn")
    found = {name: str(importlib.import_module(name).__version__) for name in names}
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"python": platform.python_version(), **found, **gpu}


def chosen(arguments: argparse.Namespace) -> Any:
    """The planned run selected by the command line.

    Raises:
        UserError: the suite has no such run, or several.
    """
    names = ("backbone", "pretrained", "size", "tasks", "set", "limit_tasks", "limit_train", "limit_test")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    planned = cells.runs_of(arguments.suite, arguments.checkpoint, **given)
    found = [
        run for run in planned if run.experiment.method == arguments.program and run.experiment.seed == arguments.seed
    ]
    if len(found) != 1:
        raise UserError(
            f"suite '{arguments.suite}' has {len(found)} runs of {arguments.program} with seed {arguments.seed}; "
            "expected one"
        )
    return found[0]


def record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the program and return its record."""
    device = torch.device(arguments.device)
    cell = cells.load(chosen(arguments))
    program = importlib.import_module(f"tools.parity.{arguments.program}")
    commit = commit_of(arguments.folder)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work, shims.inside(arguments.folder, Path(work)), shims.printed() as copies:
        outcome = program.run(cell, arguments.folder.absolute(), device, arguments.workers)
    seconds = time.perf_counter() - started
    losses = program.losses("\n".join(copy.getvalue() for copy in copies))
    epochs = cell.experiment.hyperparameters["epochs"]
    if [len(row) for row in losses] != [epochs] * cell.tasks:
        raise ValueError(f"found losses of {[len(row) for row in losses]} epochs, expected {epochs} in each task")
    curve = metrics.accuracy_curve(outcome.correct, cell.total)
    if any(abs(100 * ours - theirs) > 0.01 for ours, theirs in zip(curve, outcome.reported, strict=True)) and (
        len(set(cell.total)) == 1
    ):
        raise ValueError(f"counted {(100 * curve).tolist()}, but the program reports {outcome.reported}")
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "method": arguments.program,
        "repository": program.REPOSITORY,
        "commit": commit,
        "replaced": outcome.replaced,
        "settings": outcome.recipe,
        "key": cell.experiment.key,
        "experiment": cell.experiment.model_dump(mode="json"),
        "correct": outcome.correct,
        "total": cell.total,
        "task_aware": outcome.task_aware or None,
        "task_aware_total": outcome.task_aware_total or (cell.total if outcome.task_aware else None),
        "reported": outcome.reported,
        "losses": losses,
        "acc": metrics.acc(outcome.correct, cell.total),
        "aaa": float(curve.mean()),
        "seconds": seconds,
        "stage_seconds": outcome.seconds,
        "peak_gpu_bytes": peak,
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "environment": environment(device),
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Run a released program on one experiment of a suite.")
    parser.add_argument("folder", type=Path, help="checkout of the program")
    parser.add_argument("program", choices=PROGRAMS, help="which program it is")
    parser.add_argument("--suite", required=True, help="name or YAML file, as for cl-bench run")
    parser.add_argument("--seed", type=int, required=True, help="seed of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the record to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="number of data loader processes (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="weights of the backbone, as for cl-bench run")
    changes = parser.add_argument_group("options that override the suite, as for cl-bench run")
    changes.add_argument("--backbone")
    changes.add_argument("--pretrained", choices=["yes", "no"])
    changes.add_argument("--size", type=int)
    changes.add_argument("--tasks")
    changes.add_argument("--set", action="append", help="replaces all --set values of the suite")
    for name in ("--limit-tasks", "--limit-train", "--limit-test"):
        changes.add_argument(name, type=int)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = parse_arguments(argv)
    try:
        if not arguments.folder.is_dir():
            raise UserError(f"there is no folder '{arguments.folder}'; check out the program there")
        content = record(arguments)
        path = arguments.out / f"{arguments.program}-s{arguments.seed}-{content['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: acc {100 * content['acc']:.2f}, aaa {100 * content['aaa']:.2f}, {content['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
