"""A process that ends what is left of a Ray cluster on this host when the driver that started it has ended.

Most of Ray ends with a driver that was killed; its agents stay for a minute, and its temporary folder for good.
Executed as a script, without the package.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PATIENCE = 60
"""Seconds in which the folder must become free of processes that write into it."""


def guard(folder: Path) -> None:
    """Wait for the driver, which has the other end of the standard input; then end the processes and the folder."""
    driver = os.getppid()
    sys.stdin.read()
    until = time.monotonic() + PATIENCE
    while folder.exists() and time.monotonic() < until:
        for pid in _processes_of(folder):
            # The driver may only have left the cluster.
            if pid != driver:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _processes_of(folder: Path) -> Iterator[int]:
    """Processes with an open file in a folder: all of Ray's write logs there."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(file.readlink()).startswith(f"{folder}/") for file in (process / "fd").iterdir()):
                yield int(process.name)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
