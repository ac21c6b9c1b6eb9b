"""A process that removes the remains of a Ray cluster on this host after the driver that started it has ended.

If a driver is killed, most of Ray's processes end with it, but its agents stay for a minute and its temporary folder
for ever. This file is executed as a script, without importing the package.
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
"""Seconds to wait until no process writes into the folder any more."""


def guard(folder: Path) -> None:
    """Wait until the driver closes the standard input; then kill the cluster's processes and delete its folder."""
    driver = os.getppid()
    sys.stdin.read()
    until = time.monotonic() + PATIENCE
    while folder.exists() and time.monotonic() < until:
        for pid in _processes_of(folder):
            # The driver is still alive if it has only left the cluster.
            if pid != driver:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _processes_of(folder: Path) -> Iterator[int]:
    """Processes with an open file in the folder; all processes of Ray write logs there."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(file.readlink()).startswith(f"{folder}/") for file in (process / "fd").iterdir()):
                yield int(process.name)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
