"""Small copies of the field's data sets, in exactly the layout of the real ones on disk, and ways to damage them."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from cl_bench.streams import catalogue
from cl_bench.streams.split_hash import names_hash
from cl_bench.streams.types import DataSet

WNIDS = ("n01443537", "n01484850", "n01494475")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
THINGS = ("apple", "aquarium_fish", "baby", "bear")
"""Fine labels of CIFAR-100."""
DOMAINNET = ("cello", "cell_phone", "The_Eiffel_Tower")
"""Sorted by label in the lists, which is not the alphabetical order."""
PACS = ("dog", "elephant", "house")


def small(dataset: DataSet, classes: int, train: int, test: int, **changes: Any) -> DataSet:
    """A data set with other numbers of classes and images, and without the hashes of the real files."""
    plain: dict[str, Any] = {"split_hashes": {}, "content_hash": None, "archives": ()}
    return replace(dataset, classes=classes, train=train, test=test, **(plain | changes))


CIFAR100 = small(catalogue.find("cifar100"), 4, 20, 8)
IMAGENET_R = small(catalogue.find("imagenet-r"), 3, 12, 6)
IMAGENET_A = small(catalogue.find("imagenet-a"), 3, 12, 6)
CUB200 = small(catalogue.find("cub200"), 3, 12, 6)
DOMAINNET_SET = small(catalogue.find("domainnet"), 3, 36, 18)
TINY_IMAGENET = small(catalogue.find("tiny-imagenet"), 3, 12, 6)
PACS_SET = small(catalogue.find("pacs"), 3, 36, 12)
FASHION_MNIST = small(catalogue.find("fashion-mnist"), 10, 30, 20)


def picture(name: str, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] that depend on the name alone and differ between names."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, name: str | None = None, size: tuple[int, int] = (40, 48)) -> Path:
    """Save an image file; images of the same name have the same pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(name or path.as_posix(), size)).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return path


# The layouts; each function returns the folder of the data set.


def _cifar_names(part: str) -> list[tuple[int, str]]:
    """Labels and file names in mixed order, as in the pickles."""
    each = 5 if part == "train" else 2
    files = [(label, f"{name}_s_{each * 100 + i:06d}.png") for i in range(each) for label, name in enumerate(THINGS)]
    return files[::-1]


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """A pickler that writes text and bytes as byte strings, as Python 2 did."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        short = len(data) < 256
        self.write(
            pickle.SHORT_BINSTRING + bytes([len(data)]) if short else pickle.BINSTRING + struct.pack("<i", len(data))
        )
        self.write(data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content: object) -> bytes:
    """A pickle as Python 2 wrote it in 2009, including arrays."""
    file = BytesIO()
    _Python2(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_pickles(root: Path) -> Path:
    folder = root / "cifar100"
    inner = folder / "cifar-100-python"
    inner.mkdir(parents=True)
    for part in ("train", "test"):
        names = _cifar_names(part)
        content = {
            "filenames": [file for _, file in names],
            "batch_label": f"{part}ing batch 1 of 1",
            "fine_labels": [label for label, _ in names],
            "coarse_labels": [0 for _ in names],
            "data": np.stack([picture(file).transpose(2, 0, 1).reshape(-1) for _, file in names]),
        }
        (inner / part).write_bytes(python2_pickle(content))
    meta = {"fine_label_names": list(THINGS), "coarse_label_names": ["all"]}
    (inner / "meta").write_bytes(python2_pickle(meta))
    return folder


def cifar_png(root: Path) -> Path:
    folder = root / "cifar100"
    for part in ("train", "test"):
        for label, file in _cifar_names(part):
            save(folder / part / THINGS[label] / file, file, (32, 32))
    return folder


def part_names(classes: Sequence[str], part: str) -> list[str]:
    """Names `CLASS/FILE` of a part: four images per class for training, two for testing."""
    numbers = range(4) if part == "train" else range(4, 6)
    return [f"{name}/art_{i}.jpg" for name in classes for i in numbers]


def pre_split(root: Path, name: str = "imagenet-r", classes: Sequence[str] = WNIDS) -> Path:
    for part in ("train", "test"):
        for file in part_names(classes, part):
            save(root / name / part / file, file)
    return root / name


def original(root: Path, name: str = "imagenet-r", lists: bool = True) -> Path:
    """The files of the archive, with lists in the format of CODA-Prompt next to them."""
    folder = root / name
    for part in ("train", "test"):
        files = part_names(WNIDS, part)
        for file in files:
            save(folder / name / file, file)
        if lists:
            coda_list(folder / f"{name}_{part}.yaml", files)
    (folder / name / "README.txt").write_text("ImageNet-R(endition)\n")
    return folder


def coda_list(path: Path, files: Iterable[str]) -> Path:
    """A list in the format of CODA-Prompt's `splits/`: unsorted paths, and labels."""
    shuffled = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
    labels = sorted({file.split("/")[0] for file in shuffled})
    targets = [labels.index(file.split("/")[0]) for file in shuffled]
    path.write_text(yaml.dump({"data": [f"data/imagenet-r/{file}" for file in shuffled], "targets": targets}))
    return path


def cub(root: Path) -> Path:
    """The files of the archive; the official split puts half of the images of each class into each part."""
    top = root / "cub200" / "CUB_200_2011"
    files = sorted(part_names(BIRDS, "train") + part_names(BIRDS, "test"))
    for file in files:
        save(top / "images" / file, file)
    lines = {
        "images.txt": [f"{i} {file}" for i, file in enumerate(files, 1)],
        "train_test_split.txt": [f"{i} {i % 2}" for i in range(1, len(files) + 1)],
        "image_class_labels.txt": [f"{i} {BIRDS.index(f.split('/')[0]) + 1}" for i, f in enumerate(files, 1)],
        "classes.txt": [f"{i} {name}" for i, name in enumerate(BIRDS, 1)],
        "README": ["The Caltech-UCSD Birds-200-2011 Dataset"],
    }
    for name, content in lines.items():
        (top / name).write_text("\n".join(content) + "\n")
    (top.parent / "attributes.txt").write_text("1 has_bill_shape::curved_(up_or_down)\n")
    return top.parent


def domainnet(root: Path, lists: str = "") -> Path:
    """All domains; `lists` is the subfolder with the lists."""
    folder = root / "domainnet"
    (folder / lists).mkdir(parents=True, exist_ok=True)
    for domain in catalogue.find("domainnet").domains:
        for part, numbers in (("train", (1, 2)), ("test", (3,))):
            lines = []
            for label, name in enumerate(DOMAINNET):
                for i in numbers:
                    file = f"{domain}/{name}/{domain}_{label + 1:03d}_{i:06d}.jpg"
                    save(folder / file, file)
                    lines.append(f"{file} {label}\n")
            (folder / lists / f"{domain}_{part}.txt").write_text("".join(lines))
    return folder


def pacs(root: Path, lists: bool = True) -> Path:
    folder = root / "pacs"
    for domain in catalogue.find("pacs").domains:
        for part, numbers in (("train", (1, 2, 3)), ("crossval", (4,))):
            lines = []
            for label, name in enumerate(PACS, 1):
                for i in numbers:
                    # All domains have the same file names, as some of the real ones do.
                    file = f"{domain}/{name}/pic_{i:03d}.{'png' if domain == 'sketch' else 'jpg'}"
                    save(folder / file, file)
                    lines.append(f"{file} {label}\n")
            if lists:
                (folder / f"{domain}_{part}_kfold.txt").write_text("".join(lines))
                # This list has the whole domain, for use as the held-out domain.
                with (folder / f"{domain}_test_kfold.txt").open("a") as file_:
                    file_.writelines(lines)
    return folder


def tiny_original(root: Path) -> Path:
    top = root / "tiny-imagenet" / "tiny-imagenet-200"
    lines = []
    for label, name in enumerate(WNIDS):
        for i in range(4):
            save(top / "train" / name / "images" / f"{name}_{i}.JPEG", f"{name}_{i}", (64, 64))
        (top / "train" / name / f"{name}_boxes.txt").write_text("")
        for i in (label, label + 3):
            save(top / "val" / "images" / f"val_{i}.JPEG", f"val_{i}", (64, 64))
            lines.append(f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    save(top / "test" / "images" / "test_0.JPEG", "test_0", (64, 64))
    (top / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    return top.parent


def tiny_folders(root: Path, inner: str = "") -> Path:
    folder = root / "tiny-imagenet"
    for label, name in enumerate(WNIDS):
        for i in range(4):
            save(folder / "train" / name / inner / f"{name}_{i}.JPEG", f"{name}_{i}", (64, 64))
        for i in (label, label + 3):
            save(folder / "val" / name / inner / f"val_{i}.JPEG", f"val_{i}", (64, 64))
    return folder


def fashion(root: Path, inner: str = "fashion-mnist", packed: bool = True) -> Path:
    folder = root / inner
    folder.mkdir(parents=True)
    for part, each in (("train", 3), ("t10k", 2)):
        labels = np.arange(10 * each, dtype=np.uint8)[::-1] % 10
        images = np.stack([picture(f"{part}{i}", (28, 28))[..., 0] for i in range(len(labels))])
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape)
            raw = header + array.tobytes()
            name = f"{part}-{kind}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)
    return folder


def hashes(train: Iterable[str], test: Iterable[str]) -> tuple[str, str]:
    """The hashes of a known split, in the form that `DataSet` stores."""
    return names_hash(train), names_hash(test)


# Faults


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def truncate(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def make_text(path: Path) -> Path:
    path.write_text("<html>404 not found</html>")
    return path


def remove(path: Path) -> Path:
    path.unlink()
    return path
