"""The command line in real processes that are forked from one which has imported everything: they start at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["cl_bench.cli.run", "cl_bench.running.runner", "cl_bench.reporting.report", "cl_bench.streams"]
)


def start(folder: Path, *arguments: str, largest_file: int | None = None) -> BaseProcess:
    """`cl-bench ARGUMENTS` in a folder, its output in `log` there.

    Args:
        largest_file: bytes; writing beyond fails, as on a full disk.
    """
    process = _CONTEXT.Process(target=_work, args=(str(folder), arguments, largest_file))
    process.start()
    return process


def _work(folder: str, arguments: Sequence[str], largest_file: int | None) -> None:
    import torch

    from cl_bench import cli

    # The numbers of several threads are the same in every run, too, but wait for each other where cores are busy.
    torch.set_num_threads(1)
    os.chdir(folder)
    # A server's children ignore Ctrl-C unless told otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["cl-bench", *arguments]
    with Path("log").open("a", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        # The consoles of the command line hold the streams that they were made with.
        cli.out.file = cli.err.file = log
        cli.main()


def descendants(pid: int) -> list[int]:
    """Processes that this one has started, and those that they have."""
    found = []
    for path in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_of(pid: int) -> bytes:
    """Its command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
