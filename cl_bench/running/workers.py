"""Pool of worker processes on this host for concurrent runs."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class _Worker(SpawnProcess):
    """A fresh process that does not execute the user's script once more: it needs no `if __name__ == "__main__"`."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = script


class _Context(SpawnContext):
    Process = _Worker


CONTEXT = _Context()
"""Fresh processes: a fork would copy threads of torch that hold locks."""

_worker_index = 0
"""Index of this worker process in its pool."""


@contextmanager
def pool(
    jobs: int, threads: int, prepare: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of worker processes; an exception in the `with` block, Ctrl-C included, ends those that still work.

    Args:
        jobs: number of processes.
        threads: torch threads of each process.
        prepare: called once in each process, with the arguments.
    """
    others = set(multiprocessing.active_children())
    made = ProcessPoolExecutor(jobs, CONTEXT, _prepare, (CONTEXT.Value("i", 0), threads, prepare, arguments))
    try:
        yield made
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        made.shutdown(cancel_futures=True)


def pick_worker_gpu(device: torch.device) -> torch.device:
    """The device of this worker: `cuda` without an index is spread over all GPUs, others stay as they are."""
    import torch

    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", _worker_index % torch.cuda.device_count())


def _prepare(counter: Any, threads: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    import torch

    global _worker_index
    with counter.get_lock():
        _worker_index = counter.value
        counter.value += 1
    torch.set_num_threads(threads)
    # Ctrl-C is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare is not None:
        prepare(*arguments)
