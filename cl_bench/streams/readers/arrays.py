"""Data sets that come as arrays of images of one size: CIFAR pickles and idx files."""

from __future__ import annotations

import codecs
import gzip
import math
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_bench.errors import UserError, reason
from cl_bench.streams.archive_members import most_bytes
from cl_bench.streams.readers.layouts import Layout, tree_tops
from cl_bench.streams.readers.splits import SplitList
from cl_bench.streams.types import Entry, Listing


def _empty_array(kind: object, shape: object, code: object) -> NDArray[Any]:
    """Replaces numpy's `_reconstruct`, which would allocate an array of any size before reading its content."""
    return np.empty(0, dtype=np.uint8)


class _Unpickler(pickle.Unpickler):
    """Reads arrays no larger than the file's content, and refuses everything that could run code."""

    _ALLOWED: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        # Only an argument of `_reconstruct`; never called.
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:
        # A damaged pickle can raise anything.
        raise _no_cifar(path, reason(error)) from error
    if not isinstance(content, dict):
        raise _no_cifar(path, "it holds no dict")
    return content


def _no_cifar(path: Path, why: str) -> UserError:
    return UserError(f"'{path}' is not a file of cifar-100-python ({why}); unpack the official archive again")


def cifar_pickles(folder: Path, split: SplitList | None) -> Listing | None:
    """`train`, `test` and `meta` of cifar-100-python, as torchvision unpacks it."""
    for top in tree_tops(folder, ("cifar-100-python",)):
        if all((top / name).is_file() for name in ("train", "test", "meta")):
            classes = _class_names(top / "meta")
            (train, images), (test, others) = (_cifar_part(top / part, classes) for part in ("train", "test"))
            return Listing(train, test, classes, "cifar-100-python", (images, others))
    return None


def _class_names(path: Path) -> tuple[str, ...]:
    names = _unpickle(path).get("fine_label_names")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _no_cifar(path, "it has no list of class names")
    return tuple(names)


def _cifar_part(path: Path, classes: tuple[str, ...]) -> tuple[tuple[Entry, ...], NDArray[np.uint8]]:
    content = _unpickle(path)
    data, labels, files = (content.get(key) for key in ("data", "fine_labels", "filenames"))
    if not (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * 32 * 32
    ):
        raise _no_cifar(path, "it has no uint8 data of 3072 values per image")
    if not (isinstance(labels, list) and isinstance(files, list) and len(labels) == len(files) == len(data)):
        raise _no_cifar(path, "it does not have one label and one file name per image")
    if not all(isinstance(label, int) and 0 <= label < len(classes) for label in labels):
        raise _no_cifar(path, f"it has labels beyond the {len(classes)} class names of 'meta'")
    order = sorted(range(len(data)), key=lambda i: (labels[i], str(files[i])))
    entries = tuple(Entry(classes[labels[i]], f"{classes[labels[i]]}/{files[i]}") for i in order)
    return entries, np.ascontiguousarray(data.reshape(-1, 3, 32, 32)[order].transpose(0, 2, 3, 1))


def idx_files(classes: Sequence[str]) -> Layout:
    """Reads `train-images-idx3-ubyte` and its three companion files, plain or as `.gz`."""

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in tree_tops(folder, ("FashionMNIST/raw", "raw")):
            paths = {}
            for part in ("train", "t10k"):
                for kind in ("images-idx3", "labels-idx1"):
                    plain = top / f"{part}-{kind}-ubyte"
                    paths[part, kind] = plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")
            if not any(path.is_file() for path in paths.values()):
                continue
            parts = []
            for part, prefix in (("train", "train"), ("t10k", "test")):
                images, labels = _idx(paths[part, "images-idx3"], 3), _idx(paths[part, "labels-idx1"], 1)
                if len(images) != len(labels) or labels.max(initial=0) >= len(classes):
                    raise UserError(
                        f"'{paths[part, 'labels-idx1']}' does not fit its images; download both files again"
                    )
                order = np.argsort(labels, kind="stable")
                # One class of Fashion-MNIST has a slash in its name.
                folders = [name.replace("/", "-") for name in classes]
                entries = tuple(
                    Entry(classes[labels[i]], f"{folders[labels[i]]}/{prefix}-{i:05d}") for i in order.tolist()
                )
                parts.append((entries, images[order][..., None]))
            return Listing(parts[0][0], parts[1][0], tuple(classes), "idx-ubyte", (parts[0][1], parts[1][1]))
        return None

    return read


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an array in MNIST's format: magic number, sizes (big-endian), bytes."""
    damaged = UserError(f"'{path}' is damaged or not an idx{dimensions}-ubyte file; download it again")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4 + 4 * dimensions)
            magic, *sizes = np.frombuffer(start, ">u4").tolist() if len(start) == 4 + 4 * dimensions else (0,)
            count = math.prod(sizes)
            if magic != 0x800 + dimensions or count > most_bytes(path.stat().st_size):
                raise damaged
            # Reading one byte more reaches the end, so that gzip checks its checksum.
            content = file.read(count + 1)
    except FileNotFoundError as error:
        raise UserError(f"'{path}' is missing; all four idx files are needed") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged ({reason(error)}); download it again") from error
    if len(content) != count:
        raise damaged
    return np.frombuffer(content, np.uint8).reshape(sizes)
