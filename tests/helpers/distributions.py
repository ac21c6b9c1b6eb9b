"""The wheel and the source distribution of the project, and its commands as run from an unpacked wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path


def build(target: str, source: Path, folder: Path) -> Path:
    """Build the wheel or sdist of the tree `source` into `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (archive,) = folder.iterdir()
    return archive


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into a folder for `PYTHONPATH`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a folder with the package of an unpacked wheel, without settings of whoever tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CL_BENCH_")}
    cache = str(site.parent / f"{site.name}-cache")
    env = kept | {"PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1", "CL_BENCH_CACHE": cache}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
