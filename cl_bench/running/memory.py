"""Memory of this host or container: how much there is, and whether the lack of it ended something."""

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
"""What allocators say: of torch on a CPU and a GPU, of C++, of the system; where a thread or library has no room."""


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or a GPU, is used up."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch has no class of its own for a CPU.
    return isinstance(error, RuntimeError | ImportError) and any(text in str(error).lower() for text in _MESSAGES)


def describe(error: BaseException) -> str:
    """One line for an error that says that memory is used up."""
    reason = first_line(error)
    return reason if reason.startswith("out of memory") else f"out of memory ({reason})"


def total_bytes() -> int:
    """What all processes may take together: the memory of this host, or the limit of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder, version in _cgroups():
        with suppress(OSError, ValueError):
            # Text that is no number: "max".
            name = "memory.max" if version == 2 else "memory.limit_in_bytes"
            total = min(total, int((folder / name).read_text()))
    return total


def address_space_is_limited() -> bool:
    """Whether `ulimit -v` holds, under which libraries end a process in many ways."""
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def count_kills() -> int | None:
    """How many processes the system has ended so far for want of memory; None: it does not say.

    Those of this process's control group where that counts them, else of the whole host.
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
    """Folders of the control groups with a say in this process's memory, the innermost first, and their version."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path("/sys/fs/cgroup", "memory" if controllers else "")
        # In a container the name may be the host's, and only the top be there.
        inner = top / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top):
                yield folder, 1 if controllers else 2
