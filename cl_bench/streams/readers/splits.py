"""Split lists: which images are for training and which for testing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from cl_bench.errors import UserError

Listed = tuple[str, int | None]
"""A path in a split list, and its label if the list has labels."""
_LISTS = (".yaml", ".yml", ".txt")
_PARTS = ("train", "test")


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
        return SplitList(path, *(read_part(part) for part in pair))
    if path.suffix in (".yaml", ".yml"):
        content = _yaml(path)
        if not isinstance(content, dict) or not {*_PARTS} <= content.keys():
            raise UserError(f"the split list '{path}' has no keys train and test, and there is no file for the other")
        return SplitList(path, *(_listed(content[part], None, path) for part in _PARTS))
    parts: dict[str, list[Listed]] = {part: [] for part in _PARTS}
    for number, line in enumerate(text_lines(path), start=1):
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


def find_split(folders: Iterable[Path]) -> SplitList | None:
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


def read_part(path: Path) -> list[Listed]:
    if path.suffix not in (".yaml", ".yml"):
        return [_with_label(line) for line in text_lines(path)]
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


def text_lines(path: Path) -> list[str]:
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
        return yaml.load("\n".join(text_lines(path)), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is no YAML ({' '.join(str(error).split())}); mend it") from error
