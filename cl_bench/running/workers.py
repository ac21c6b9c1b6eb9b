"""Processes of their own on this host, in which runs go on side by side."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CONTEXT = multiprocessing.get_context("spawn")
"""Fresh processes: a fork would copy threads of torch that hold locks."""

_number = 0
"""Of a worker process in its pool."""


@contextmanager
def pool(
    jobs: int, threads: int, prepare: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """So many processes; whoever leaves by an exception, Ctrl-C among them, ends those that still work.

    Args:
        jobs: how many.
        threads: of torch, in each.
        prepare: called once in each, with the arguments.
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


def own(device: torch.device) -> torch.device:
    """What a worker takes for `device`: of several GPUs, where none is named, its own, so that a pool uses them all."""
    import torch

    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", _number % torch.cuda.device_count())


def _prepare(counter: Any, threads: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    import torch

    global _number
    with counter.get_lock():
        _number = counter.value
        counter.value += 1
    torch.set_num_threads(threads)
    # Ctrl-C is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare is not None:
        prepare(*arguments)
