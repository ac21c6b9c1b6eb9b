"""Checks and decoding of the image files of a data set, in the order of their entries."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cl_bench.data.decoding import BadImage, decode
from cl_bench.streams.types import Entry

T = TypeVar("T")
_CHUNK = 64


def look_at(path: Path) -> BadImage | None:
    """A fault that shows without decoding: the file is missing, empty or not a regular file; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return BadImage(path, "missing")
    except OSError as error:
        return BadImage(path, "unreadable", str(error.strerror))
    if not stat.S_ISREG(status.st_mode):
        return BadImage(path, "unreadable", "not a file")
    return None if status.st_size else BadImage(path, "zero-byte")


def for_each_image(entries: Sequence[Entry], use: Callable[[Entry, NDArray[np.uint8]], T]) -> Iterator[T | BadImage]:
    """Decode the files of all entries in threads.

    Args:
        entries: entries that have paths.
        use: called with each entry and its pixels [H, W, 3].

    Yields:
        For each entry, in order: the result of `use`, or why the image cannot be read.
    """

    def work(chunk: Sequence[Entry]) -> list[T | BadImage]:
        results: list[T | BadImage] = []
        for entry in chunk:
            assert entry.path is not None
            try:
                results.append(use(entry, decode(entry.path)))
            except BadImage as bad:
                results.append(bad)
        return results

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and palettes.
        warnings.filterwarnings("ignore", module="PIL")
        try:
            chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
            for results in pool.map(work, chunks):
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)
