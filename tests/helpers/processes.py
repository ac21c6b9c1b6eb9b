"""The command line and scripts in real processes; they start fast, forked from a server that imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["cl_bench.cli.run", "cl_bench.running.runner", "cl_bench.reporting.report", "cl_bench.streams"]
)


def start(
    folder: Path, *arguments: str, largest_file: int | None = None, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `cl-bench ARGUMENTS` in a folder and in its own session; the output goes to the file `log` there.

    Args:
        largest_file: limit of the size of a file in bytes; writing more fails, as on a full disk.
        environment: additional environment variables.
    """
    process = _CONTEXT.Process(target=_work, args=(str(folder), arguments, largest_file, environment or {}))
    process.start()
    return process


def _work(folder: str, arguments: Sequence[str], largest_file: int | None, environment: Mapping[str, str]) -> None:
    import torch

    from cl_bench import cli

    # One thread: several give the same numbers, but wait for each other on busy cores.
    torch.set_num_threads(1)
    os.chdir(folder)
    os.setsid()
    os.environ.update(environment)
    # Children of the fork server ignore Ctrl-C by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests that `nohup` started ignore SIGHUP, and so would this process.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["cl-bench", *arguments]
    with Path("log").open("a", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        # The consoles of the command line keep the streams with which they were created.
        cli.out.file = cli.err.file = log
        cli.main()


def run_script(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT` in a folder, with the environment of this process. Exit handlers do not run."""
    with tempfile.TemporaryDirectory() as streams:
        out, err = Path(streams) / "out", Path(streams) / "err"
        process = _CONTEXT.Process(target=_run_script, args=(script, folder, (out, err), dict(os.environ)))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess([str(script)], process.exitcode, out.read_text(), err.read_text())


def _run_script(script: Path, folder: Path, streams: tuple[Path, Path], environment: Mapping[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    for descriptor, path in enumerate(streams, start=1):
        # At the level of descriptors, so that the output of child processes goes there too.
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [str(script)]
    runpy.run_path(str(script), run_name="__main__")


def in_sessions(sessions: Collection[int]) -> list[int]:
    """Ids of the running processes in these sessions."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX" and int(session) in sessions:
                found.append(int(process.name))
    return found


def command_of(pid: int) -> bytes:
    """Command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def workers_of(session: int) -> list[int]:
    """Ids of the worker processes in a session."""
    return [pid for pid in in_sessions([session]) if b"spawn_main" in command_of(pid)]
