"""The embedded icons: one packed file, checked by hash; the stream, the tuning stream, the pre-training part."""

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
SHA256 = "c5317387a937470af90bd4712b45da81542a9c6e42bc179853b718d5204a4a66"


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
    names = data["classes"][data["class_part"] == PARTS.index(part)]

    def store(split: int) -> ImageStore:
        rows = np.flatnonzero(inside & (data["split"] == split))
        targets = data["label"][rows].astype(np.int64)
        sets = data["sets"][data["set"][rows]]
        files = tuple(f"{names[c]}/{s}:{row}" for c, s, row in zip(targets, sets, rows, strict=True))
        return ImageStore(data["images"][rows][..., None], targets, files, groups=sets)

    return store(0), store(1), tuple(str(name) for name in names)
