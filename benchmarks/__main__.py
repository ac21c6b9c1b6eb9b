"""All benchmarks that suit this machine, one after the other: `python -m benchmarks --out FOLDER`.

On a GPU: training steps, long streams, runs side by side, kernels, data, whole runs and the loop, about an hour on an
H200. Otherwise: steps of the embedded network in both precisions, data, the loop, the store and reports. Each writes
its numbers to a JSON file in the folder; what it prints is shown. A benchmark that fails is named at the end, and the
others are measured all the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

SMALL = ("ViT-S/14 at 112", "ViT-Ti/8 at 32")
PATHS = ("default", "no graphs", "no compile", "neither")
ON_GPU: dict[str, list[str]] = {
    "steps": ["steps"],
    **{f"steps-small-{n}": ["steps", "--network", network, "--paths", *PATHS] for n, network in enumerate(SMALL)},
    "long": ["long", "--run", "1"],
    "throughput": ["throughput"],
    "kernels": ["kernels"],
    "data": ["data"],
    "whole": ["whole"],
    "whole-imagenet-r": ["whole", "--images", "imagenet-r", "--warm"],
    "loop": ["loop"],
}
_EMBEDDED = ["steps", "--network", "ViT-Ti/8 at 32", "--batch", "32", "--no-reference", "--only"]
_EMBEDDED += ["sdlora, task 10", "coda"]
ON_CPU: dict[str, list[str]] = {
    "steps-fp32": [*_EMBEDDED, "--precision", "fp32"],
    "steps-bf16": [*_EMBEDDED, "--precision", "bf16"],
    "data": ["data"],
    "loop": ["loop"],
    "store": ["store"],
    "report": ["report"],
}
"""Name of the JSON file, and module with its arguments."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("speed"), help="folder of the JSON files")
    parser.add_argument("--only", nargs="*", help="names of the benchmarks to run, e.g. steps data")
    chosen = parser.parse_args()
    suited = ON_GPU if torch.cuda.is_available() else ON_CPU
    if unknown := sorted(set(chosen.only or ()) - set(suited)):
        parser.error(f"no benchmark '{unknown[0]}' for this machine; there are {', '.join(suited)}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (module, *arguments) in suited.items():
        if chosen.only and name not in chosen.only:
            continue
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--out", str(chosen.out / f"{name}.json")]
        print(f"\n# {name}: python -m benchmarks.{module} {' '.join(arguments)}", flush=True)
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
