"""The per-sample predictions of a run: packing into an npz, reading with bounded memory, and counting again.

A file is read as data only (no pickle), and only up to the size that follows from the run's counts.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
MAX_BYTES = 2**29
"""Largest total size of the unpacked arrays of a run."""
_HEADER = 1_000
"""Limit of the characters in an array's header; a plain header has about a hundred."""
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack arrays into a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack(file: IO[bytes], stages: int, images: int) -> Arrays:
    """Read `label`, `task` [images] and `predicted`, `predicted_task_aware` [stages, images], integers of any width.

    Raises:
        ValueError: unexpected or missing array, shape or dtype; file cut off; or more than `MAX_BYTES` in all.
    """
    shapes = {
        "label": (images,),
        "task": (images,),
        "predicted": (stages, images),
        "predicted_task_aware": (stages, images),
    }
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(info.filename for info in archive.infolist())
            if names != sorted(f"{name}.npy" for name in shapes):
                raise ValueError(f"holds {_listed(names)} instead of the arrays {', '.join(shapes)}")
            # Decompressors of other methods may allocate any amount of memory.
            if {info.compress_type for info in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ValueError("is compressed in an unusual way")
            arrays, room = {}, MAX_BYTES
            for name, shape in shapes.items():
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = _array(member, name, shape, room)
                room -= arrays[name].nbytes
            return arrays
    except _BROKEN as error:
        raise ValueError(f"is not a whole npz ({error})") from error


def fault(
    arrays: Arrays, total: Sequence[int], classes: int, counts: Mapping[str, Sequence[Sequence[int | None]]]
) -> str:
    """Describe the first contradiction between arrays and the counts of the run; empty if there is none.

    Args:
        arrays: arrays of the shapes that `unpack` checks.
        total: test images per task.
        classes: number of classes; labels must be smaller.
        counts: hits [stages][tasks] of `predicted` and `predicted_task_aware`; None where a task was not evaluated.
    """
    label, task = arrays["label"], arrays["task"]
    for name, values, above in (("label", label, classes), ("task", task, len(total))):
        if values.min() < 0 or values.max() >= above:
            return f"'{name}' goes from {values.min()} to {values.max()}, expected 0 to {above - 1}"
    task = task.astype(np.int64)
    if (images := np.bincount(task, minlength=len(total)).tolist()) != list(total):
        return f"'task' has {images} images per task, the record has {list(total)}"
    for name, rows in counts.items():
        if _agree(arrays[name], label, task, total, classes, rows):
            continue
        for stage, (predicted, row) in enumerate(zip(arrays[name], rows, strict=True)):
            if predicted.min() < -1 or predicted.max() >= classes:
                return f"'{name}' of stage {stage + 1} holds labels outside 0 to {classes - 1}"
            hits = np.bincount(task[predicted == label], minlength=len(total)).tolist()
            evaluated = np.bincount(task[predicted >= 0], minlength=len(total)).tolist()
            for j, count in enumerate(row):
                found = hits[j] if evaluated[j] else None
                if evaluated[j] not in (0, total[j]) or found != count:
                    return (
                        f"'{name}' has {found} hits in task {j + 1} after stage {stage + 1} "
                        f"({evaluated[j]} of {total[j]} images predicted), the record has {count}"
                    )
    return ""


def _agree(
    predicted: NDArray[Any],
    label: NDArray[Any],
    task: NDArray[np.int64],
    total: Sequence[int],
    classes: int,
    rows: Sequence[Sequence[int | None]],
) -> bool:
    """Whether predictions [stages, images] have exactly the counts `rows`; all stages are counted at once."""
    if predicted.min() < -1 or predicted.max() >= classes:
        return False
    stages, tasks = len(predicted), len(total)
    place = task + tasks * np.arange(stages)[:, None]

    def counted(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(place[chosen], minlength=stages * tasks).reshape(stages, tasks)

    tested, hits = counted(predicted >= 0), counted(predicted == label)
    whole = (tested == 0) | (tested == np.array(total))
    expected = np.array([[-1 if count is None else count for count in row] for row in rows])
    return bool(whole.all() and (np.where(tested > 0, hits, -1) == expected).all())


@lru_cache(maxsize=256)
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype that a header of version 1.0 declares; runs of one protocol have the same headers."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(content), max_header_size=_HEADER)


def _array(member: Any, name: str, shape: tuple[int, ...], room: int) -> NDArray[Any]:
    """Read one array of an npz; its header must declare this shape and at most `room` bytes."""
    try:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"format {version}")
        length = member.read(2)
        declared, fortran, dtype = _header(length + member.read(int.from_bytes(length, "little")))
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"'{name}' has no plain header") from error
    if dtype.kind not in "iu" or dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"'{name}' has the dtype {str(dtype)[:60]}, expected integers")
    if declared != shape:
        raise ValueError(f"'{name}' has the shape {_short(declared)}, expected {shape}")
    size = math.prod(shape) * dtype.itemsize
    if size > room:
        raise ValueError(f"'{name}' would take the arrays beyond {MAX_BYTES:,} bytes")
    content = member.read(size)
    if len(content) != size or member.read(1):
        raise ValueError(f"'{name}' is not as long as its header says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _listed(names: Sequence[str]) -> str:
    return _short(", ".join(map(repr, names[:8])) or "nothing")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]} ..."
