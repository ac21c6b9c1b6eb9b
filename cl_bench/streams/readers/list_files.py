"""Readers of files that list images: text, CSV, JSON, YAML."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_bench.errors import UserError, clipped, counted
from cl_bench.files import LIST_BYTES, parse_json, parse_yaml, read_text

PARTS = ("train", "test", "val")
TEXTS = (".txt", ".yaml", ".yml")
"""File endings of lists that are searched for in every folder of a data set."""
TABLES = (".json", ".csv", ".tsv")
"""File endings of lists, but also of other files, such as annotations."""

_PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
_COLUMNS = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "img", "imgpath", "impath", "imagefile"),
    "label": ("label", "target", "labels", "targets", "classid", "classindex", "labelid", "y"),
    "class": ("class", "classname", "category", "labelname"),
    "part": ("split", "part", "set", "subset", "phase", "partition"),
}
"""Accepted column names of a CSV file, in lower case without `_`, `-` and spaces."""
_LABEL = r"(?:\s*[\s,;]\s*([0-9]{1,9}))"
_PART_LINE = re.compile(r"(?:\./)?(train|test|val)[\s/]+(\S.*)")
_QUOTED = re.compile(rf"""(["'])(.+)\1{_LABEL}?""")
_LABELLED = re.compile(rf"(.*[^\s,;]){_LABEL}")
_COMMENT = re.compile(rf"\s#(?!.*\.\w{{2,5}}{_LABEL}?$).*")
"""A comment after a path; a `#` inside the path is part of it."""


class Listed(NamedTuple):
    """An image in a list: its path (with slashes, without empty components), and its label if the list has labels."""

    path: str
    label: int | None = None


def read_part(path: Path) -> list[Listed]:
    """The images of a file that lists one part.

    Raises:
        UserError: the file cannot be read, or is not a list.
    """
    what = f"'{path}'"
    if _is_table(path):
        return [image for _, image in _rows(path, what)]
    if (document := _document(path, what)) is None:
        return [_of_line(line) for _, line in _without_comments(read_text(path, what, LIST_BYTES))]
    return _images(document, what)


def read_parts(path: Path) -> dict[str, list[Listed]]:
    """The images of a file that lists all parts, by `train`, `test` and `val`.

    Raises:
        UserError: the file cannot be read, is not a list, or does not assign each image to a part.
    """
    what = f"the split list '{path}'"
    parts: dict[str, list[Listed]] = {}
    if _is_table(path):
        for part, image in _rows(path, what):
            if part is None:
                raise UserError(
                    f"{what} has no column that says train or test, and there is no second file for the other part; "
                    "add a column 'split', or name the files NAME_train and NAME_test"
                )
            parts.setdefault(part, []).append(image)
    elif (document := _document(path, what)) is not None:
        if not isinstance(document, dict) or "train" not in document or not {"test", "val"} & document.keys():
            raise UserError(
                f"{what} has no keys train and test, and there is no second file for the other part; "
                "add the keys, or name the files NAME_train and NAME_test"
            )
        parts = {part: _images(document[part], what, part) for part in PARTS if part in document}
    else:
        for number, line in _without_comments(read_text(path, what, LIST_BYTES)):
            if (match := _PART_LINE.match(line)) is None:
                raise UserError(
                    f"line {number} of {what} is '{clipped(line)}', expected 'train/CLASS/FILE' or "
                    "'test/CLASS/FILE' (or two files, with train and test in their names)"
                )
            parts.setdefault(match[1], []).append(_of_line(match[2]))
    return parts


def text_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding spaces, and without empty lines.

    Raises:
        UserError: the file is not text.
    """
    return [line for _, line in _numbered(read_text(path, f"'{path}'", LIST_BYTES))]


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    # Not `splitlines`: a name may contain a Unicode line separator.
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield number, line


def _without_comments(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in _numbered(text) if not line.startswith("#"))


def _of_line(line: str) -> Listed:
    """An image from a line of text: a path, optionally in quotes, then optionally a label and a comment."""
    line = _COMMENT.sub("", line).strip().rstrip(",;")
    if match := _QUOTED.fullmatch(line):
        return _listed(match[2], match[3])
    match = _LABELLED.fullmatch(line)
    return _listed(match[1], match[2]) if match else _listed(line)


def _listed(path: str, label: str | int | None = None, name: str | None = None) -> Listed:
    """An image with a normalised path; a bare file name is put below the folder `name` of its class."""
    steps = [step for step in path.strip().replace("\\", "/").split("/") if step not in ("", ".")]
    if name and len(steps) == 1:
        steps.insert(0, name.strip())
    return Listed("/".join(steps), None if label is None else int(label))


# --- JSON and YAML ----------------------------------------------------------------------------------------------


def _document(path: Path, what: str) -> Any:
    """The content of a JSON or YAML file; None for files of other kinds."""
    parse = {".json": parse_json, ".yaml": parse_yaml, ".yml": parse_yaml}.get(path.suffix.lower())
    if parse is None:
        return None
    found = parse(read_text(path, what, LIST_BYTES), what)
    return [] if found is None else found


def _images(found: Any, what: str, key: str = "") -> list[Listed]:
    """Images from a list of paths, `[path, label]` or `[path, label, class]`, or from lists `data` and `targets`."""
    place = f"'{key}' of {what}" if key else what
    labels = None
    if isinstance(found, dict):
        found, labels = found.get("data"), found.get("targets")
    if not isinstance(found, list):
        raise UserError(f"{place} holds no list of paths; write one, plain or under the key 'data'")
    if labels is not None and not (isinstance(labels, list) and len(labels) == len(found)):
        raise UserError(f"{place} has {len(found)} paths under 'data' and another number of 'targets'; correct it")
    rows = found if labels is None else [[path, label] for path, label in zip(found, labels, strict=True)]
    images = []
    for number, row in enumerate(rows, start=1):
        path, *rest = row if isinstance(row, list) and row else [row]
        label, name = (*rest, None, None)[:2]
        if isinstance(label, str) and not label.isdecimal():
            label, name = None, label
        fits = isinstance(path, str) and isinstance(name, str | None) and len(rest) <= 2
        if not fits or isinstance(label, bool) or not isinstance(label, int | str | None):
            raise UserError(
                f"{place} holds no list of paths: entry {number} is {clipped(repr(row))}, expected a path, "
                "[path, label] or [path, label, class]"
            )
        images.append(_listed(path, label, name))
    return images


# --- CSV --------------------------------------------------------------------------------------------------------


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _rows(path: Path, what: str) -> Iterator[tuple[str | None, Listed]]:
    """Part (None without such a column) and image of every row of a CSV file, with or without a header."""
    rows = _cells(read_text(path, what, LIST_BYTES), what)
    columns = _header(rows[0][1]) if rows else {}
    if columns:
        rows = rows[1:]
    elif rows:
        columns = _guessed([row for _, row in rows])
    if "path" not in columns and rows:
        raise UserError(f"{what} has no column of paths; call it 'path' in its first line")
    for number, row in rows:
        cells = {kind: row[column].strip() for kind, column in columns.items()}
        part = _PART_NAMES.get(cells.get("part", "").lower())
        if "part" in cells and part is None:
            raise UserError(f"line {number} of {what} is for '{clipped(cells['part'])}', expected train, test or val")
        label, name = cells.get("label") or None, cells.get("class")
        if label is not None and not re.fullmatch("[0-9]{1,9}", label):
            label, name = None, name or label
        yield part, _listed(cells["path"], label, name)


def _cells(text: str, what: str) -> list[tuple[int, list[str]]]:
    """Rows with line numbers, all of the same width, split at the delimiter that is most frequent in most rows."""
    lines = list(_without_comments(text))
    widths = {}
    for delimiter in (",", ";", "\t"):
        counts = Counter(line.count(delimiter) for _, line in lines)
        widths[delimiter] = counts.most_common(1)[0][0] if counts else 0
    delimiter, width = max(widths.items(), key=lambda item: item[1])
    if width == 0:
        # A delimiter that occurs only in some rows is part of a name.
        return [(number, [line.strip('"')]) for number, line in lines]
    rows = []
    for number, line in lines:
        try:
            (row,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
        except csv.Error as error:
            raise UserError(f"line {number} of {what} is no CSV ({error}); correct it") from error
        rows.append((number, row))
        if len(row) != len(rows[0][1]):
            expected = f"line {rows[0][0]} has {len(rows[0][1])}"
            raise UserError(f"line {number} of {what} has {counted(len(row), 'column')}, {expected}; correct it")
    return rows


def _header(row: Sequence[str]) -> dict[str, int]:
    """Column numbers by kind, if the row is a header; otherwise empty."""
    names = [re.sub(r"[\s_-]", "", cell).lower() for cell in row]
    if not {*names} & {*_COLUMNS["path"]}:
        return {}
    found = {}
    for kind, known in _COLUMNS.items():
        if columns := [column for column, name in enumerate(names) if name in known]:
            found[kind] = columns[0]
    return found


def _guessed(rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """Column numbers by kind, guessed from the cells; the first column holds the paths."""
    found = {"path": 0}
    for column in range(1, len(rows[0])):
        cells = [row[column].strip() for row in rows]
        if all(cell.lower() in _PART_NAMES for cell in cells):
            kind = "part"
        else:
            kind = "label" if all(re.fullmatch("[0-9]{1,9}", cell) for cell in cells) else "class"
        found.setdefault(kind, column)
    return found
