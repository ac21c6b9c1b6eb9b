"""Split lists: which images are for training and which for testing."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_bench.errors import UserError, clipped, counted
from cl_bench.streams.readers.list_files import TABLES, TEXTS, Listed, read_part, read_parts


@dataclass(frozen=True)
class SplitList:
    """Which images are for training and which for testing.

    Attributes:
        path: path of the list, for messages.
        train, test: listed paths, with labels if the list has any.
        validation: number of images listed for validation, which are in neither part.
    """

    path: Path
    train: Sequence[Listed]
    test: Sequence[Listed]
    validation: int = 0

    @property
    def name(self) -> str:
        """Name of the list, for the description of a layout."""
        left = f" (without its {counted(self.validation, 'image')} for validation)" if self.validation else ""
        return f"{self.path.name}{left}"

    def deal(
        self, pool: dict[str, str], top: Path, depth: int
    ) -> tuple[tuple[list[tuple[str, str]], list[tuple[str, str]]], list[Path]]:
        """Both parts as `(key, path)`, missing files included, and the paths of images that the list does not name.

        Args:
            pool: path of each image by its key, `CLASS/FILE` or `DOMAIN/CLASS/FILE`.
            top: folder in which a missing file should be.
            depth: smallest number of components in a key.

        Raises:
            UserError: the list names an image twice, or names a path with too few components.
        """
        taken: dict[str, str] = {}
        parts: list[list[tuple[str, str]]] = []
        composed = {unicodedata.normalize("NFC", key): key for key in pool if not key.isascii()}
        for part, listed in (("train", self.train), ("test", self.test)):
            entries = []
            for text, _ in listed:
                key = _key(text, pool, composed, depth)
                if key is None:
                    wanted = "CLASS/FILE" if depth == 2 else "DOMAIN/CLASS/FILE"
                    shown = clipped(text, 200)
                    raise UserError(
                        f"'{shown}' in the split list '{self.path}' is not of the form {wanted}; correct it"
                    )
                if key in taken:
                    both = part if taken[key] == part else "train and test"
                    shown = clipped(key, 200)
                    raise UserError(f"'{shown}' comes twice in the split list '{self.path}' ({both}); remove one")
                taken[key] = part
                entries.append((key, pool.get(key) or str(top / key)))
            if not entries:
                raise UserError(f"the split list '{self.path}' names no image for {part}ing; it needs both parts")
            parts.append(entries)
        left = [Path(path) for key, path in sorted(pool.items()) if key not in taken]
        return (parts[0], parts[1]), left

    def order(self) -> tuple[str, ...] | None:
        """Class names in the order of their labels; None if the list has no labels.

        Raises:
            UserError: a class has two labels or a label two classes.
        """
        labels: dict[str, int | None] = {}
        for text, label in (*self.train, *self.test):
            name = text.split("/")[-2]
            if labels.setdefault(name, label) != label:
                raise UserError(
                    f"class '{name}' has the labels {labels[name]} and {label} in '{self.path}'; correct it"
                )
        numbers = {name: label for name, label in labels.items() if label is not None}
        if not numbers:
            return None
        if len({*numbers.values()}) < len(labels):
            raise UserError(f"two classes share a label, or have none, in '{self.path}'; correct it")
        return tuple(sorted(labels, key=lambda name: numbers[name]))


def _key(text: str, pool: dict[str, str], composed: dict[str, str], depth: int) -> str | None:
    """The longest trailing part of a path that is a key of the pool, else its last `depth` components.

    Args:
        composed: keys of the pool by their composed Unicode form (NFC), because file systems and editors differ in it.
    """
    steps = text.split("/")
    ends = ["/".join(steps[start:]) for start in range(len(steps) - depth + 1)]
    for end in ends:
        if end in pool:
            return end
        if composed and (key := composed.get(unicodedata.normalize("NFC", end))):
            return key
    return ends[-1] if ends and ends[-1] else None


def read_split(path: Path) -> SplitList:
    """Read a split list: a file with both parts, or one of two, named with `train` and `test` (or `val`).

    A file of one part is a text file with a path, and optionally a label, on each line; a CSV file with such columns;
    or a JSON or YAML list of paths or of `[path, label]`, plain or under `data` as in CODA-Prompt. A file of both parts
    has lines that begin with `train` or `test`, a CSV column with these words, or the keys `train` and `test`. Without
    `test`, `val` is the test part.

    Raises:
        UserError: the file does not exist, or has none of these forms.
    """
    if not os.path.lexists(path):
        raise UserError(f"there is no split list '{path}'; name a text, CSV, JSON or YAML file")
    if (pair := _pair(path)) is not None:
        return SplitList(path, read_part(pair[0]), read_part(pair[1]))
    parts = read_parts(path)
    tests = parts.get("test") or parts.get("val", [])
    return SplitList(path, parts.get("train", []), tests, len(parts.get("val", [])) if parts.get("test") else 0)


def _pair(path: Path, tests: Sequence[str] = ("test", "val")) -> tuple[Path, Path] | None:
    """The files of the training and the test part, if `path` is one of such a pair; otherwise None."""
    for mine in ("train", *tests):
        head, found, tail = path.name.rpartition(mine)
        for other in tests if mine == "train" else ("train",):
            partner = path.with_name(head + other + tail)
            if found and partner.is_file():
                return (path, partner) if mine == "train" else (partner, path)
    return None


def find_split(folders: Iterable[Path], needed: bool = False) -> SplitList | None:
    """The only split list in these folders, or None.

    Args:
        needed: whether there is no other split. If so, CSV and JSON files and `NAME_val` count as split lists, too;
            next to a tree that is already split, they may be anything.

    Raises:
        UserError: there are several split lists.
    """
    found = set()
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            ending, stem = path.suffix.lower(), path.stem
            if ending not in (*TEXTS, *TABLES) or not path.is_file():
                continue
            if pair := _pair(path) if needed else _pair(path, ("test",)) if ending in TEXTS else None:
                found.add(pair[0])
            elif stem in ("split", "split_list"):
                found.add(path)
    if len(found) > 1:
        names = ", ".join(f"'{path}'" for path in sorted(found))
        raise UserError(
            f"there are several split lists: {names}; choose one with --split-list, or move the others away"
        )
    return read_split(found.pop()) if found else None
