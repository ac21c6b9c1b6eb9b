"""Memory of this host or container: its size, and whether its exhaustion caused an error or killed a process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cl_bench.errors import first_line

_MESSAGES = (
    *("allocate memory", "bad_alloc", "not enough memory", "out of memory"),
    *("start new thread", "failed to map segment"),
)
"""Texts in errors of allocators (torch on a CPU and a GPU, C++, the system), of threads and of library loading."""


def is_exhausted(error: BaseException) -> bool:
    """Whether an error means that the memory of the host or a GPU is exhausted."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch has no exception class for memory errors on a CPU.
    return isinstance(error, RuntimeError | ImportError) and any(text in str(error).lower() for text in _MESSAGES)


def describe(error: BaseException) -> str:
    """An out-of-memory error in one line."""
    reason = first_line(error)
    return reason if reason.startswith("out of memory") else f"out of memory ({reason})"


def total_bytes() -> int:
    """Bytes that all processes may use together: the memory of this host, or the limit of its container if smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder, version in _cgroups():
        with suppress(OSError, ValueError):
            # An unlimited group says "max" here, which is not a number.
            name = "memory.max" if version == 2 else "memory.limit_in_bytes"
            total = min(total, int((folder / name).read_text()))
    return total


def address_space_is_limited() -> bool:
    """Whether `ulimit -v` is set. Libraries that hit this limit end a process in many different ways."""
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def count_kills() -> int | None:
    """Number of processes that the system has killed so far because memory ran out; None if it does not count them.

    Counted in this process's control group if that has a counter, else on the whole host.
    """
    for folder, version in _cgroups():
        with suppress(OSError, KeyError, ValueError):
            return _counter(folder / ("memory.events" if version == 2 else "memory.oom_control"))
    with suppress(OSError, KeyError, ValueError):
        return _counter(Path("/proc/vmstat"))
    return None


def _counter(path: Path) -> int:
    return int(dict(line.split(" ", 1) for line in path.read_text().splitlines())["oom_kill"])


def _cgroups() -> Iterator[tuple[Path, int]]:
    """Folders of the control groups that limit this process's memory, innermost first, each with its cgroup version."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path("/sys/fs/cgroup", "memory" if controllers else "")
        # In a container the name may be that of the host, where only the top folder exists.
        inner = top / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top):
                yield folder, 1 if controllers else 2
