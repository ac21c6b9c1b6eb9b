"""From the folders, archives and lists in which data sets are given out to lists of their images."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from cl_bench.data.decoding import BadImage, decode
from cl_bench.errors import UserError
from cl_bench.streams.types import Entry, Listing

Reader = Callable[[Path, Path | None], Listing]
Layout = Callable[[Path, "SplitList | None"], Listing | None]
"""Reads one layout; None if the folder has another one."""
Listed = tuple[str, int | None]
"""A path in a split list, and its label if the list has labels."""
Files = dict[str, list[tuple[str, str]]]
"""By class: the names of its images below the class folder, and their paths."""
T = TypeVar("T")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""
_LISTS = (".yaml", ".yml", ".txt")
_PARTS = ("train", "test")
_CHUNK = 64


class UnknownLayout(Exception):
    """The folder has none of the layouts that are read."""


def first_of(*layouts: Layout, lists: bool = True) -> Reader:
    """A reader that tries layouts in turn.

    Args:
        lists: whether the data set may be split by a list of the user's; its own split is fixed otherwise.
    """

    def read(folder: Path, split: Path | None = None) -> Listing:
        if split is not None and not lists:
            raise UserError(f"the split of '{folder}' is fixed; it cannot take the split list '{split}'")
        chosen = read_split(split) if split is not None else None
        try:
            for layout in layouts:
                if (listing := layout(folder, chosen)) is not None:
                    return listing
        except OSError as error:
            raise UserError(f"'{error.filename}' cannot be read ({error.strerror}); check its permissions") from error
        raise UnknownLayout

    return read


# Trees of folders


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in the order of ImageFolder, without those that tools hide there."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith((".", "__MACOSX")) and e.is_dir())


def _images(folder: str, prefix: str = "", through: str | None = None) -> Iterator[tuple[str, str]]:
    """Names and paths of the images at any depth; folders called `through` do not count in the name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(entry.path, prefix if entry.name == through else f"{prefix}{entry.name}/", through)
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.path


def _scan(folder: Path, through: str | None = None) -> Files:
    """The images of every class folder, in the order of ImageFolder."""
    classes = (name for name in _subfolders(folder) if name != through)
    return {name: sorted(_images(str(folder / name), through=through)) for name in classes}


def _listing(layout: str, parts: Sequence[Files], unlisted: Sequence[Path] = ()) -> Listing:
    """Entries of both parts, with the classes in alphabetical order."""
    names = tuple(sorted({*parts[0], *parts[1]}))
    train, test = (
        tuple(Entry(name, f"{name}/{file}", Path(path)) for name in names for file, path in sorted(part.get(name, ())))
        for part in parts
    )
    return Listing(train, test, names, layout, unlisted=tuple(unlisted))


def class_folders(layout: str, test: str = "test", inner: Sequence[str] = (), through: str | None = None) -> Layout:
    """`train/CLASS/` and `test/CLASS/`, with nothing to choose."""

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in _tops(folder, inner):
            if (top / "train").is_dir() and (top / test).is_dir():
                return _listing(layout, [_scan(top / "train", through), _scan(top / test, through)])
        return None

    return read


def class_trees(
    inner: Sequence[str] = (), tests: Sequence[str] = ("test",), own: Callable[[Path], SplitList | None] | None = None
) -> Layout:
    """One tree of class folders, split by a list, or `train/` and `test/`.

    A list of the user's comes first, then one in the folder, then `train/` and `test/`, then the data set's own.
    A list deals out all images that are there, those in `train/` and `test/` as well.

    Args:
        inner: folders in which the tree may lie.
        tests: what the test folder may be called.
        own: finds the list that an archive brings along.
    """

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        tops = list(_tops(folder, inner))
        split = split or _lying_there([folder, folder / "splits", *tops])
        for top in tops:
            for test in tests:
                if not ((top / "train").is_dir() and (top / test).is_dir()):
                    continue
                trees = [_scan(top / "train"), _scan(top / test)]
                if split is None:
                    return _listing(f"train/ and {test}/ folders", trees)
                return _deal(f"train/ and {test}/ folders, split by {split.path.name}", top, trees, split)
        for top in tops:
            files = {name: images for name, images in _scan(top).items() if images}
            chosen = split or (own(folder) if own is not None else None)
            if not files or (chosen is None and "train" in files):
                continue
            if chosen is None:
                raise UserError(
                    f"'{top}' has class folders, but neither train/ and test/ nor a split list; name a list with "
                    "--split-list, or put one there: NAME_train.txt and NAME_test.txt with lines CLASS/FILE, or .yaml"
                )
            return _deal(f"class folders, split by {chosen.path.name}", top, [files], chosen)
        return None

    return read


def _tops(folder: Path, inner: Sequence[str]) -> Iterator[Path]:
    """Folders in which a tree may lie, the innermost first: an archive's own top folder is no class."""
    yield from (folder / name for name in inner if (folder / name).is_dir())
    if folder.is_dir():
        yield folder


def _deal(layout: str, top: Path, trees: Sequence[Files], split: SplitList) -> Listing:
    """The images of trees, as a list splits them."""
    pool: dict[str, str] = {}
    for files in trees:
        for label, images in files.items():
            for name, path in images:
                if pool.setdefault(f"{label}/{name}", path) != path:
                    raise UserError(
                        f"'{path}' and '{pool[f'{label}/{name}']}' have the same name, so that {split.path.name} "
                        "could mean either; rename or remove one"
                    )
    dealt, unlisted = split.deal(pool, top, 2)
    parts: list[Files] = [{}, {}]
    for part, entries in zip(parts, dealt, strict=True):
        for key, path in entries:
            label, _, name = key.partition("/")
            part.setdefault(label, []).append((name, path))
    return _listing(layout, parts, unlisted=unlisted)


def tiny_imagenet(inner: Sequence[str]) -> Layout:
    """The original tree: `train/CLASS/images/`, and `val/images/` with `val/val_annotations.txt` as test part."""

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in _tops(folder, inner):
            annotations, images = top / "val" / "val_annotations.txt", top / "val" / "images"
            if not ((top / "train").is_dir() and annotations.is_file() and images.is_dir()):
                continue
            found = dict(_images(str(images)))
            test: Files = {}
            for number, line in enumerate(_lines(annotations), start=1):
                fields = line.split("\t")
                if len(fields) < 2:
                    raise UserError(
                        f"line {number} of '{annotations}' is '{line}', expected a file and a class; restore the file"
                    )
                path = found.pop(fields[0], str(images / fields[0]))
                test.setdefault(fields[1], []).append((fields[0], path))
            left = [Path(path) for path in sorted(found.values())]
            return _listing("original tree", [_scan(top / "train", "images"), test], unlisted=left)
        return None

    return read


def cub_lists(folder: Path) -> SplitList | None:
    """The official split that lies in the archive of CUB-200-2011: `images.txt` and `train_test_split.txt`."""
    for top in _tops(folder, ("CUB_200_2011",)):
        images, chosen = top / "images.txt", top / "train_test_split.txt"
        if images.is_file() and chosen.is_file():
            paths, in_train = _numbered(images), _numbered(chosen)
            if paths.keys() != in_train.keys() or not {*in_train.values()} <= {"0", "1"}:
                raise UserError(f"'{images}' and '{chosen}' do not fit each other; restore both from the archive")
            parts = [[(paths[i], None) for i in paths if in_train[i] == flag] for flag in ("1", "0")]
            return SplitList(chosen, *parts)
    return None


def _numbered(path: Path) -> dict[str, str]:
    rows = {}
    for line in _lines(path):
        number, _, value = line.partition(" ")
        if not value:
            raise UserError(f"'{path}' has the line '{line}', expected a number and a value; restore the file")
        rows[number] = value
    return rows


def domain_folders(
    domains: Sequence[str],
    lists: tuple[str, str],
    inner: Sequence[str] = (),
    by_label: bool = False,
    test_share: float | None = None,
) -> Layout:
    """`DOMAIN/CLASS/` with a pair of lists for each domain; images are called `CLASS/DOMAIN/FILE`.

    Args:
        lists: names of the lists of a domain, with `{}` for it.
        by_label: classes in the order of the lists' labels, rather than in alphabetical order.
        test_share: if there are no lists, this share of each class in each domain is the test part: the first ones in
            the order of the SHA-256 of `DOMAIN/CLASS/FILE`.
    """

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in _tops(folder, inner):
            there = [domain for domain in domains if (top / domain).is_dir()]
            if not there:
                continue
            pool = {
                f"{domain}/{label}/{name}": path
                for domain in there
                for label, images in _scan(top / domain).items()
                for name, path in images
            }
            if split is None:
                lacking = [domain for domain in domains if domain not in there]
                if lacking:
                    raise UserError(
                        f"'{top}' has no folder {', '.join(lacking)}; all domains are needed: {', '.join(domains)} "
                        "(or a split list that names only the others: --split-list)"
                    )
                split = _domain_lists(domains, lists, [top, *(top / name for name in ("splits", "txt")), folder])
            if split is not None:
                dealt, unlisted = split.deal(pool, top, 3)
                classes = split.order() if by_label else None
                return _with_domains(f"domain folders, split by {split.path.name}", dealt, classes, unlisted)
            if test_share is None:
                names = [name.format(there[0]) for name in lists]
                raise UserError(f"'{top}' has no split lists; put {' and '.join(names)} there, and so for each domain")
            return _with_domains("domain folders, split by name", _by_name(pool, test_share))
        return None

    return read


def _domain_lists(domains: Sequence[str], names: tuple[str, str], folders: Sequence[Path]) -> SplitList | None:
    """The lists of all domains as one; None if there is not a single one."""
    for folder in folders:
        paths = [[folder / name.format(domain) for domain in domains] for name in names]
        lacking = [path for part in paths for path in part if not path.is_file()]
        if len(lacking) == 2 * len(domains):
            continue
        if lacking:
            raise UserError(f"'{lacking[0]}' is missing; the split needs a training and a test list for each domain")
        parts = [[listed for path in part for listed in _read_part(path)] for part in paths]
        return SplitList(folder / names[0].format("*"), *parts)
    return None


def _by_name(pool: dict[str, str], share: float) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    groups: dict[str, list[str]] = {}
    for key in pool:
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    train, test = [], []
    for keys in groups.values():
        keys.sort(key=lambda key: hashlib.sha256(_encoded(key)).digest())
        count = max(round(share * len(keys)), 1)
        test += [(key, pool[key]) for key in keys[:count]]
        train += [(key, pool[key]) for key in keys[count:]]
    return train, test


def _with_domains(
    layout: str,
    parts: Sequence[Sequence[tuple[str, str]]],
    classes: tuple[str, ...] | None = None,
    unlisted: Sequence[Path] = (),
) -> Listing:
    names = classes or tuple(sorted({key.split("/")[1] for part in parts for key, _ in part}))
    position = {name: i for i, name in enumerate(names)}

    def entries(part: Sequence[tuple[str, str]]) -> tuple[Entry, ...]:
        found = []
        for key, path in part:
            domain, label, name = key.split("/", 2)
            found.append(Entry(label, f"{label}/{domain}/{name}", Path(path), domain))
        return tuple(sorted(found, key=lambda entry: (position[entry.label], entry.name)))

    return Listing(entries(parts[0]), entries(parts[1]), names, layout, unlisted=tuple(unlisted))


# Split lists


@dataclass(frozen=True)
class SplitList:
    """Which images are for training and which for testing.

    Attributes:
        path: of the list, for messages.
        train, test: paths as the list has them, and labels if it has any.
    """

    path: Path
    train: Sequence[Listed]
    test: Sequence[Listed]

    def deal(
        self, pool: dict[str, str], top: Path, depth: int
    ) -> tuple[tuple[list[tuple[str, str]], list[tuple[str, str]]], list[Path]]:
        """Both parts as keys and paths, missing files included, and the paths that the list does not name.

        Args:
            pool: path of each image by its key, the steps `CLASS/FILE` or `DOMAIN/CLASS/FILE`.
            top: folder in which a missing file should be.
            depth: the least number of steps in a key.

        Raises:
            UserError: the list names an image twice, or less of a path than is needed.
        """
        taken: dict[str, str] = {}
        parts: list[list[tuple[str, str]]] = []
        for part, listed in zip(_PARTS, (self.train, self.test), strict=True):
            entries = []
            for text, _ in listed:
                key = _key(text, pool, depth)
                if key is None:
                    wanted = "CLASS/FILE" if depth == 2 else "DOMAIN/CLASS/FILE"
                    raise UserError(f"'{text}' in the split list '{self.path}' is not {wanted}; write it like that")
                if key in taken:
                    both = part if taken[key] == part else "train and test"
                    raise UserError(f"'{key}' is twice in the split list '{self.path}' ({both}); remove one")
                taken[key] = part
                entries.append((key, pool.get(key) or str(top / key)))
            if not entries:
                raise UserError(f"the split list '{self.path}' names no image for {part}ing; it needs both parts")
            parts.append(entries)
        left = [Path(path) for key, path in sorted(pool.items()) if key not in taken]
        return (parts[0], parts[1]), left

    def order(self) -> tuple[str, ...] | None:
        """Classes in the order of the labels; None if the list has no labels.

        Raises:
            UserError: a class has two labels or a label two classes.
        """
        labels: dict[str, int | None] = {}
        for text, label in (*self.train, *self.test):
            name = text.split("/")[-2]
            if labels.setdefault(name, label) != label:
                raise UserError(f"class '{name}' has the labels {labels[name]} and {label} in '{self.path}'; mend it")
        numbers = {name: label for name, label in labels.items() if label is not None}
        if not numbers:
            return None
        if len({*numbers.values()}) < len(labels):
            raise UserError(f"two classes share a label, or have none, in '{self.path}'; mend it")
        return tuple(sorted(labels, key=lambda name: numbers[name]))


def _key(text: str, pool: dict[str, str], depth: int) -> str | None:
    """The longest end of a path that names an image of the pool, else its last `depth` steps."""
    steps = text.split("/")
    for start in range(len(steps) - depth + 1):
        if (key := "/".join(steps[start:])) in pool:
            return key
    return "/".join(steps[-depth:]) if len(steps) >= depth and all(steps[-depth:]) else None


def read_split(path: Path) -> SplitList:
    """A split list: one file with both parts, or one of a pair whose names differ in `train` and `test`.

    A part is a text file with a path on each line, which a label may follow, or a YAML list of paths, plain or under
    `data` as CODA-Prompt has it. Both parts in one file are lines that begin with `train` or `test`, or the YAML keys
    `train` and `test`.

    Raises:
        UserError: there is no such file, or it is none of these.
    """
    if not path.is_file():
        raise UserError(f"there is no split list '{path}'; name a text or YAML file")
    if (pair := _pair(path)) is not None:
        return SplitList(path, *(_read_part(part) for part in pair))
    if path.suffix in (".yaml", ".yml"):
        content = _yaml(path)
        if not isinstance(content, dict) or not {*_PARTS} <= content.keys():
            raise UserError(f"the split list '{path}' has no keys train and test, and there is no file for the other")
        return SplitList(path, *(_listed(content[part], None, path) for part in _PARTS))
    parts: dict[str, list[Listed]] = {part: [] for part in _PARTS}
    for number, line in enumerate(_lines(path), start=1):
        match = re.match(r"(?:\./)?(train|test)[\s/]+(\S.*)", line)
        if match is None:
            raise UserError(
                f"line {number} of the split list '{path}' is '{line}', expected 'train/CLASS/FILE' or "
                "'test/CLASS/FILE' (or two files, with train and test in their names)"
            )
        parts[match[1]].append(_with_label(match[2]))
    return SplitList(path, parts["train"], parts["test"])


def _pair(path: Path) -> tuple[Path, Path] | None:
    for mine, other in (_PARTS, _PARTS[::-1]):
        head, found, tail = path.name.rpartition(mine)
        partner = path.with_name(head + other + tail)
        if found and partner.is_file():
            return (path, partner) if mine == "train" else (partner, path)
    return None


def _lying_there(folders: Iterable[Path]) -> SplitList | None:
    """The one split list in these folders, or None."""
    found = set()
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix in _LISTS and path.is_file():
                if pair := _pair(path):
                    found.add(pair[0])
                elif path.stem in ("split", "split_list"):
                    found.add(path)
    if len(found) > 1:
        names = ", ".join(f"'{path}'" for path in sorted(found))
        raise UserError(
            f"there are several split lists: {names}; choose one with --split-list, or move the others away"
        )
    return read_split(found.pop()) if found else None


def _read_part(path: Path) -> list[Listed]:
    if path.suffix not in (".yaml", ".yml"):
        return [_with_label(line) for line in _lines(path)]
    content = _yaml(path)
    if isinstance(content, dict):
        return _listed(content.get("data"), content.get("targets"), path)
    return _listed(content, None, path)


def _listed(paths: object, labels: object, path: Path) -> list[Listed]:
    if not (isinstance(paths, list) and all(isinstance(text, str) for text in paths)):
        raise UserError(f"'{path}' holds no list of paths; write one, plain or under the key 'data'")
    if not (isinstance(labels, list) and len(labels) == len(paths) and all(isinstance(i, int) for i in labels)):
        labels = [None] * len(paths)
    return [(_slashes(text), label) for text, label in zip(paths, labels, strict=True)]


def _with_label(line: str) -> Listed:
    match = re.fullmatch(r"(.*\S)\s+([0-9]+)", line)
    return (_slashes(match[1]), int(match[2])) if match else (_slashes(line), None)


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


def _lines(path: Path) -> list[str]:
    """Lines without spaces around them, and without empty ones.

    Raises:
        UserError: it is no text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' cannot be read as text; restore the file") from error


def _yaml(path: Path) -> object:
    try:
        # The C parser is ten times as fast; lists have 100,000 lines.
        return yaml.load("\n".join(_lines(path)), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is no YAML ({' '.join(str(error).split())}); mend it") from error


def _encoded(text: str) -> bytes:
    """UTF-8 of a name.

    Raises:
        UserError: the file system has a name there that is no text.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {text!r} is not valid UTF-8; rename the file") from error


def split_names_hash(names: Iterable[str]) -> str:
    """SHA-256 of sorted names, joined with newlines: how published split lists are told apart.

    Raises:
        UserError: a name is no text.
    """
    return hashlib.sha256(_encoded("\n".join(sorted(names)))).hexdigest()


# Arrays


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and nothing that could run code."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:
        # A damaged pickle can raise anything.
        raise _no_cifar(path, str(error) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise _no_cifar(path, "it holds no dict")
    return content


def _no_cifar(path: Path, reason: str) -> UserError:
    return UserError(f"'{path}' is not as in cifar-100-python ({reason}); unpack the official archive again")


def cifar_pickles(folder: Path, split: SplitList | None) -> Listing | None:
    """`train`, `test` and `meta` of cifar-100-python, as torchvision unpacks it."""
    for top in _tops(folder, ("cifar-100-python",)):
        if all((top / name).is_file() for name in ("train", "test", "meta")):
            classes = tuple(map(str, _unpickle(top / "meta").get("fine_label_names", ())))
            (train, images), (test, others) = (_cifar_part(top / part, classes) for part in _PARTS)
            return Listing(train, test, classes, "cifar-100-python", (images, others))
    return None


def _cifar_part(path: Path, classes: tuple[str, ...]) -> tuple[tuple[Entry, ...], NDArray[np.uint8]]:
    content = _unpickle(path)
    data, labels, files = (content.get(key) for key in ("data", "fine_labels", "filenames"))
    if not (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * 32 * 32
    ):
        raise _no_cifar(path, "no uint8 data of 3072 values per image")
    if not (isinstance(labels, list) and isinstance(files, list) and len(labels) == len(files) == len(data)):
        raise _no_cifar(path, "not one label and one file name per image")
    if not all(isinstance(label, int) and 0 <= label < len(classes) for label in labels):
        raise _no_cifar(path, f"labels that are not in the {len(classes)} class names of 'meta'")
    order = sorted(range(len(data)), key=lambda i: (labels[i], str(files[i])))
    entries = tuple(Entry(classes[labels[i]], f"{classes[labels[i]]}/{files[i]}") for i in order)
    return entries, np.ascontiguousarray(data.reshape(-1, 3, 32, 32)[order].transpose(0, 2, 3, 1))


def idx_files(classes: Sequence[str]) -> Layout:
    """`train-images-idx3-ubyte` and its three companions, plain or as `.gz`."""

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in _tops(folder, ("FashionMNIST/raw", "raw")):
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
                    raise UserError(f"'{paths[part, 'labels-idx1']}' does not fit its images; get both files again")
                order = np.argsort(labels, kind="stable")
                # A class of Fashion-MNIST has a slash in its name.
                folders = [name.replace("/", "-") for name in classes]
                entries = tuple(
                    Entry(classes[labels[i]], f"{folders[labels[i]]}/{prefix}-{i:05d}") for i in order.tolist()
                )
                parts.append((entries, images[order][..., None]))
            return Listing(parts[0][0], parts[1][0], tuple(classes), "idx-ubyte", (parts[0][1], parts[1][1]))
        return None

    return read


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An array in the format of MNIST: magic number, sizes (big-endian), bytes."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError as error:
        raise UserError(f"'{path}' is missing; all four idx files are needed") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged ({error}); get it again") from error
    start = 4 + 4 * dimensions
    header = np.frombuffer(raw[:start], ">u4") if len(raw) >= start else np.zeros(1)
    if header[0] != 0x800 + dimensions or len(raw) - start != np.prod(header[1:], dtype=np.int64):
        raise UserError(f"'{path}' is damaged or no idx{dimensions}-ubyte file; get it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(header[1:].astype(int))


# Images


def look_at(path: Path) -> BadImage | None:
    """What is wrong with an image file at first sight: it is missing or empty."""
    try:
        return None if path.stat().st_size else BadImage(path, "zero-byte")
    except OSError:
        return BadImage(path, "missing")


def for_each_image(
    entries: Sequence[Entry], use: Callable[[Entry, NDArray[np.uint8]], T], done: Callable[[int], None] = lambda n: None
) -> Iterator[T | BadImage]:
    """Decode the files of all entries in threads.

    Args:
        entries: with paths.
        use: called with each image.
        done: told how many images more have been read.

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
                done(len(results))
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)
