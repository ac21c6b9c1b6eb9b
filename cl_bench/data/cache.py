"""Cache of decoded images on disk: files are written once, atomically, and memory-mapped by all their readers.

A file holds the pixels of `RaggedImages`, then their sizes (int32 [N, 2]), then a JSON object, then a trailer of fixed
length with the length of the JSON and the checksum of sizes and JSON. A truncated file has no trailer and is ignored.
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
"""Version of the decoding; increased whenever the same image files give other bytes."""
_AS_IN_FORMAT_1 = (".jpg", ".jpeg")
"""Files with 8 bits per channel, which formats 1 and 2 decode to the same bytes."""
_CHUNK = 1 << 26
"""Bytes covered by one checksum."""
_MAGIC = b"clbench\n"
_END = struct.Struct(f"<QI{len(_MAGIC)}s")

OnProgress = Callable[[int, int], None]
"""Called with the number of images decoded so far and the number of all images."""


class _Damaged(Exception):
    """Raised for a cache file whose content is not what was written."""


def folder() -> Path:
    """Folder of the cache: CL_BENCH_CACHE, else ~/.cache/cl-bench."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "cl-bench"


def cache_path(dataset: str, part: str, stored: str, names: Sequence[str], paths: Sequence[Path]) -> Path:
    """Path of the cache file for one part of a data set; it depends on the names, sizes and times of the image files.

    Args:
        dataset: name of the data set, which makes the file name readable.
        part: `train` or `test`.
        stored: how the images are stored (see `Experiment.storage`).
        names, paths: [N] names and paths of the images.

    Raises:
        BadImage: an image file is missing.
    """
    same = all(path.name.lower().endswith(_AS_IN_FORMAT_1) for path in paths)
    digest = hashlib.sha256(f"{1 if same else _FORMAT} {stored}".encode())
    for name, path in zip(names, paths, strict=True):
        try:
            status = path.stat()
        except OSError as error:
            raise BadImage(path, "missing") from error
        digest.update(f"\n{name}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    # For `folder:PATH`, only the last component, so that the folder can be moved.
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", dataset.rpartition("/")[2])[-60:].lstrip(".")
    return folder() / f"{readable}-{part}-{stored.replace(':', '')}-{digest.hexdigest()[:16]}.images"


def images(
    file: Path, count: int, decode: Callable[[], Iterator[NDArray[np.uint8]]], on_progress: OnProgress
) -> RaggedImages:
    """The images of a cache file, which is written first if it is missing or damaged.

    If several processes need the same file, one writes it and the others wait.

    Args:
        count: number of images.
        decode: yields all images [H, W, 3], in order.
        on_progress: called after each decoded image.

    Raises:
        UserError: the cache folder cannot be written, its disk is full, or an image cannot be decoded.
    """
    try:
        with suppress(FileNotFoundError, _Damaged):
            return _read(file, count)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            with suppress(FileNotFoundError, _Damaged):
                return _read(file, count)
            for left in file.parent.glob(f".{file.name}-*"):
                # Left by a process that was killed: no other process holds the lock.
                left.unlink(missing_ok=True)
            _write(file, count, decode(), on_progress)
            return _read(file, count)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in '{file.parent}' ({reason(error)}); name a folder with free space in "
            f"the environment variable {VARIABLE}, or decode files on every access with --images files"
        ) from error
    except _Damaged as error:
        raise UserError(
            f"decoded images read back from '{file.parent}' differ from those written ({error}); name a folder on "
            f"another disk in the environment variable {VARIABLE}"
        ) from error


def is_there(file: Path) -> bool:
    """Whether a cache file exists; it may be damaged."""
    return file.is_file()


def _write(file: Path, count: int, decoded: Iterator[NDArray[np.uint8]], on_progress: OnProgress) -> None:
    """Write a temporary file in the same folder, flush it to disk, rename it into place."""
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
    """Writes bytes and computes a checksum of every `_CHUNK` of them."""

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
    """Map a cache file into memory, after verifying all its checksums.

    Raises:
        FileNotFoundError: the file does not exist.
        _Damaged: its content is not what was written.
    """
    size = file.stat().st_size
    if size < _END.size:
        raise _Damaged("it is truncated")
    # Copy-on-write, although nothing writes to it: torch refuses read-only memory.
    mapped = np.memmap(file, dtype=np.uint8, mode="c")
    length, checksum, magic = _END.unpack(mapped[-_END.size :].tobytes())
    start = size - _END.size - length - 8 * count
    if magic != _MAGIC or start <= 0 or zlib.crc32(mapped[start : size - _END.size].data) != checksum:
        raise _Damaged("it is truncated")
    facts = json.loads(mapped[size - _END.size - length : size - _END.size].tobytes())
    sizes = np.frombuffer(mapped[start : start + 8 * count].tobytes(), dtype="<i4").reshape(count, 2).astype(np.int64)
    pixels = np.asarray(mapped[:start])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = (pixels[at : at + _CHUNK] for at in range(0, start, _CHUNK))
        if facts["count"] != count or list(pool.map(_sum, chunks)) != facts["chunks"]:
            raise _Damaged("its pixels have changed")
    return RaggedImages(pixels, sizes)
