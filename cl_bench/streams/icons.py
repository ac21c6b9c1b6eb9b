"""The embedded icons: one packed file, checked by hash, with the stream, the tuning stream and the pre-training part."""

from __future__ import annotations

import hashlib
import io
import lzma
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cl_bench.data.images import ImageStore
from cl_bench.errors import UserError

Part = Literal["stream", "tune", "pretrain"]
PARTS: tuple[Part, ...] = ("stream", "tune", "pretrain")
ASSET = "icons.npz.xz"
SHA256 = "0" * 64


@cache
def _arrays() -> dict[str, NDArray[Any]]:
    packed = (files("cl_bench") / "assets" / ASSET).read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise UserError(
            f"the embedded icons ({ASSET}) are damaged: SHA-256 {found[:16]}..., expected {SHA256[:16]}...; "
            "reinstall cl-bench or restore the file"
        )
    with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def load(part: Part) -> tuple[ImageStore, ImageStore, tuple[str, ...]]:
    """Training and test images of a part, and its class names in alphabetical order.

    Raises:
        UserError: the packed file is not the one that was published (wrong hash).
    """
    data = _arrays()
    inside = data["part"] == PARTS.index(part)
    stores = []
    for split in (0, 1):
        rows = np.flatnonzero(inside & (data["split"] == split))
        classes = data["classes"][data["label"][rows]]
        stems = [f"{c}/{s}" for c, s in zip(classes, data["sets"][data["set"][rows]], strict=True)]
        stores.append((rows, classes, stems))
    names = tuple(str(name) for name in np.unique(np.concatenate([classes for _, classes, _ in stores])))
    train, test = (
        ImageStore(
            data["images"][rows][..., None],
            np.searchsorted(names, classes).astype(np.int64),
            tuple(f"{stem}:{row}" for stem, row in zip(stems, rows, strict=True)),
        )
        for rows, classes, stems in stores
    )
    return train, test, names
