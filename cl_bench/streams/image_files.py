"""The image files of a data set, looked at or decoded, in the order of their entries."""

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
    """What is wrong with an image file at first sight: it is missing, empty or no file."""
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
        entries: with paths.
        use: called with each image.

    Yields:
        What `use` returned, or what is wrong with the image, in the order of the entries.
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
        # Remarks on metadata and palettes.
        warnings.filterwarnings("ignore", module="PIL")
        try:
            chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
            for results in pool.map(work, chunks):
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)
