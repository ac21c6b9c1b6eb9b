"""Processes of their own on this host, in which runs go on side by side."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")
"""Fresh processes: a fork would copy threads of torch that hold locks."""


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
    made = ProcessPoolExecutor(jobs, CONTEXT, _prepare, (threads, prepare, arguments))
    try:
        yield made
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        made.shutdown(cancel_futures=True)


def _prepare(threads: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(threads)
    # Ctrl-C is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare is not None:
        prepare(*arguments)
