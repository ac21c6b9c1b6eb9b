"""Decoded images on disk: made once, whole or not there, and mapped into memory by every process that reads them.

A file holds the pixels of `RaggedImages`, then their sizes (int32 [N, 2]), then a JSON object, then a fixed end with
the length and the checksum of what describes the pixels. So a file that was cut off has no end, and is no cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cl_bench.data.decoding import BadImage
from cl_bench.data.images import RaggedImages, flat_pixels, window_bytes
from cl_bench.errors import UserError, reason
from cl_bench.files import sync_folder

VARIABLE = "CL_BENCH_CACHE"
_FORMAT = 2
"""Raised whenever the same image files give other bytes."""
_AS_IN_FORMAT_1 = (".jpg", ".jpeg")
"""Files of which format 1 had the same bytes: they hold 8 bits."""
_CHUNK = 1 << 26
"""Bytes under one checksum."""
_MAGIC = b"clbench\n"
_END = struct.Struct(f"<QI{len(_MAGIC)}s")

OnProgress = Callable[[int, int], None]
"""Called with the number of images decoded so far and the number of all images."""


class _Damaged(Exception):
    """A file that is not what was written."""


def folder() -> Path:
    """Where decoded images are kept: CL_BENCH_CACHE, else ~/.cache/cl-bench."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "cl-bench"


def cache_path(dataset: str, part: str, stored: str, names: Sequence[str], paths: Sequence[Path]) -> Path:
    """The file for the images of a part of a data set: another one for other names, or files that have changed.

    Args:
        dataset: its name, for whoever looks into the folder.
        part: `train` or `test`.
        stored: how the images are kept (see `Experiment.storage`).

    Raises:
        BadImage: one is not there.
    """
    same = all(path.name.lower().endswith(_AS_IN_FORMAT_1) for path in paths)
    digest = hashlib.sha256(f"{1 if same else _FORMAT} {stored}".encode())
    for name, path in zip(names, paths, strict=True):
        try:
            status = path.stat()
        except OSError as error:
            raise BadImage(path, "missing") from error
        digest.update(f"\n{name}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    # Of `folder:PATH` the last step, so that a folder can be moved.
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", dataset.rpartition("/")[2])[-60:].lstrip(".")
    return folder() / f"{readable}-{part}-{stored.replace(':', '')}-{digest.hexdigest()[:16]}.images"


def images(
    file: Path, count: int, decode: Callable[[], Iterator[NDArray[np.uint8]]], on_progress: OnProgress
) -> RaggedImages:
    """Images in a file of the cache, which is made if it is not there or damaged.

    Processes that ask at the same time wait for the first, and read what it has made.

    Args:
        count: how many there are.
        decode: gives all images [H, W, 3], in their order.

    Raises:
        UserError: the folder cannot be written, or its disk is full; an image that cannot be decoded.
    """
    try:
        with suppress(FileNotFoundError, _Damaged):
            return _read(file, count)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            with suppress(FileNotFoundError, _Damaged):
                return _read(file, count)
            for left in file.parent.glob(f".{file.name}-*"):
                # Of a process that was killed: no other one is in here.
                left.unlink(missing_ok=True)
            _write(file, count, decode(), on_progress)
            return _read(file, count)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in '{file.parent}' ({reason(error)}); name a folder with room in "
            f"the environment variable {VARIABLE}, or have files decoded whenever they are read, with --images files"
        ) from error
    except _Damaged as error:
        raise UserError(
            f"decoded images do not come back from '{file.parent}' as they were written ({error}); name a folder on "
            f"another disk in the environment variable {VARIABLE}"
        ) from error


def is_there(file: Path) -> bool:
    """Whether such a file has been made; it may be damaged."""
    return file.is_file()


def _write(file: Path, count: int, decoded: Iterator[NDArray[np.uint8]], on_progress: OnProgress) -> None:
    """Write a temporary file beside, flush it to the disk, rename it into place."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            pixels = _Checked(stream)
            sizes = np.empty((count, 2), dtype="<i4")
            for i, image in enumerate(decoded):
                sizes[i] = image.shape[:2]
                pixels.write(flat_pixels(image).data)
                on_progress(i + 1, count)
            # See `RaggedImages.flat`.
            pixels.write(bytes(window_bytes(sizes.astype(np.int64))))
            facts = json.dumps({"count": count, "chunks": pixels.sums()}).encode()
            described = sizes.tobytes() + facts
            stream.write(described)
            stream.write(_END.pack(len(facts), zlib.crc32(described), _MAGIC))
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


class _Checked:
    """Writes bytes and sums up every `_CHUNK` of them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sums: list[int] = []
        self._room = 0

    def write(self, content: memoryview | bytes) -> None:
        self._stream.write(content)
        view = memoryview(content).cast("B")
        while len(view):
            if not self._room:
                self._sums.append(0)
                self._room = _CHUNK
            part, view = view[: self._room], view[self._room :]
            self._sums[-1] = zlib.crc32(part, self._sums[-1])
            self._room -= len(part)

    def sums(self) -> list[int]:
        return self._sums


def _sum(pixels: NDArray[np.uint8]) -> int:
    return zlib.crc32(pixels.data)


def _read(file: Path, count: int) -> RaggedImages:
    """Map a file into memory, after a look at all of it.

    Raises:
        FileNotFoundError: it is not there.
        _Damaged: it is not what was written.
    """
    size = file.stat().st_size
    if size < _END.size:
        raise _Damaged("it has no end")
    # Copied when it is written to, which nobody does: torch takes no memory that may not be written.
    mapped = np.memmap(file, dtype=np.uint8, mode="c")
    length, checksum, magic = _END.unpack(mapped[-_END.size :].tobytes())
    start = size - _END.size - length - 8 * count
    if magic != _MAGIC or start <= 0 or zlib.crc32(mapped[start : size - _END.size].data) != checksum:
        raise _Damaged("it has no end")
    facts = json.loads(mapped[size - _END.size - length : size - _END.size].tobytes())
    sizes = np.frombuffer(mapped[start : start + 8 * count].tobytes(), dtype="<i4").reshape(count, 2).astype(np.int64)
    pixels = np.asarray(mapped[:start])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = (pixels[at : at + _CHUNK] for at in range(0, start, _CHUNK))
        if facts["count"] != count or list(pool.map(_sum, chunks)) != facts["chunks"]:
            raise _Damaged("its pixels have changed")
    return RaggedImages(pixels, sizes)
