"""The embedded icons: one packed file, checked by hash, with a stream, a tuning stream and a pre-training part."""

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
DESIGNERS = 10
"""Number of domains of the domain-incremental stream."""
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
    """Training images, test images, and class names in alphabetical order, of one part.

    Raises:
        UserError: the packed file has another hash than the published one.
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


def load_designers() -> tuple[ImageStore, ImageStore, tuple[str, ...], tuple[str, ...]]:
    """Training images, test images, class names and designers: the images of `load("stream")` split by designer.

    The designers are the ten whose sets have the most images, most first. If a designer has drawn a class at least
    twice, the last third of these images (rounded down, but at least one) are test images.

    Raises:
        UserError: as for `load`.
    """
    train, test, classes = load("stream")
    assert train.groups is not None and test.groups is not None
    pixels = [part.images for part in (train, test) if isinstance(part.images, np.ndarray)]
    images = np.concatenate(pixels)
    targets = np.concatenate([train.targets, test.targets])
    names = np.array([*train.names, *test.names])
    sets = np.concatenate([train.groups, test.groups])
    found, counts = np.unique(sets, return_counts=True)
    domains = [str(name) for name in found[np.argsort(-counts, kind="stable")][:DESIGNERS]]
    tested = np.zeros(len(targets), dtype=bool)
    for domain in domains:
        for label in range(len(classes)):
            mine = np.flatnonzero((sets == domain) & (targets == label))
            tested[mine[len(mine) - max(len(mine) // 3, int(len(mine) > 1)) :]] = True

    def store(rows: NDArray[np.int64]) -> ImageStore:
        return ImageStore(images[rows], targets[rows], tuple(names[rows].tolist()), domains=sets[rows])

    inside = np.isin(sets, domains)
    return store(np.flatnonzero(inside & ~tested)), store(np.flatnonzero(inside & tested)), classes, tuple(domains)
