"""Orders of classes or domains in the user's files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cl_bench.errors import UserError, clipped
from cl_bench.files import parse_yaml, read_text

_LIST = re.compile(r"(?:\s*#.*\n)*\s*(?:[\w ]+[:=]\s*)?\[")
"""The beginning of a list, alone or after a name: `class_order = [`."""


class FileOrder(NamedTuple):
    """The order in a file.

    Attributes:
        order: the order as a value of `Experiment.class_order`.
        remark: how ambiguous numbers were read (as names or as positions); empty if they are not ambiguous.
    """

    order: str
    remark: str = ""


def read_order(path: Path, classes: Sequence[str], what: Literal["class", "domain"] = "class") -> FileOrder:
    """The order in a file: names, or positions in the data set's own order, counted from 0.

    Entries are on lines, separated by commas or spaces, or in a list of JSON, YAML or Python. Numbers are read as names
    if each of them is the name of a class, otherwise as positions.

    Args:
        classes: names in the data set's own order.
        what: whether these are classes or domains, for messages.

    Raises:
        UserError: the file is unreadable, or does not name every class exactly once.
    """
    where = f"--order file '{path}'"
    plural = {"class": "classes", "domain": "domains"}[what]
    text = read_text(path, where)
    names = {name: number for number, name in enumerate(classes)}
    positions = {str(number): number for number in range(len(classes))}
    index, entries = _entries(text, where, names, positions)
    seen = set()
    for place, entry in entries:
        if entry not in index:
            first = "" if index is names else f" (positions are 0 to {len(classes) - 1})"
            raise UserError(
                f"{where}, {place}: there is no {what} '{clipped(entry)}'{first}; expected one per line, or a list"
            )
        if entry in seen:
            raise UserError(f"{where}, {place}: {what} '{entry}' comes twice; name each one once")
        seen.add(entry)
    if missing := [name for name in index if name not in seen]:
        raise UserError(f"{where} lacks {len(missing)} of {len(classes)} {plural}, e.g. '{missing[0]}'")
    order = [index[entry] for _, entry in entries]
    other = positions if index is names else names
    differ = [entry for _, entry in entries if entry in other and other[entry] != index[entry]]
    if not differ or (index is names and not seen <= positions.keys()):
        return FileOrder(_text(order))
    ways = f"names of {plural}", f"positions in their order, 0 to {len(classes) - 1}"
    taken, left = ways if index is names else ways[::-1]
    example = f"'{differ[0]}' is {what} '{classes[index[differ[0]]]}' at position {index[differ[0]]}"
    return FileOrder(_text(order), f"{where}: its numbers were read as {taken}, not as {left}: {example}")


def _text(order: Sequence[int]) -> str:
    return "order:" + ",".join(map(str, order))


def _entries(
    text: str, where: str, names: dict[str, int], positions: dict[str, int]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The index of the entries (names or positions), and the entries with their places, in the notation that fits."""
    ways = [list(way) for way in (_lines(text, names), _separated(text, ","), _separated(text, None))]
    likely = ways[1] if "," in text else ways[0]
    if _LIST.match(text):
        likely = _list(text, where)
        ways.append(likely)
    for index in (names, positions):
        for way in ways:
            if way and all(entry in index for _, entry in way):
                return index, way
    return (names if any(entry in names for _, entry in likely) else positions), likely


def _lines(text: str, names: dict[str, int]) -> Iterator[tuple[str, str]]:
    """One entry per line; `#` begins a comment, unless the line is the name of a class."""
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip()
        if entry and (entry in names or not entry.startswith("#")):
            yield f"line {number}", entry if entry in names else _bare(entry)


def _separated(text: str, separator: str | None) -> Iterator[tuple[str, str]]:
    """Entries separated by commas, or (None) by spaces, on any number of lines."""
    for place, line in _lines(text, {}):
        for part in line.split(separator):
            if entry := _bare(part.strip()):
                yield place, entry


def _bare(entry: str) -> str:
    return entry[1:-1] if len(entry) > 1 and entry[0] == entry[-1] in "\"'" else entry


def _list(text: str, where: str) -> list[tuple[str, str]]:
    """A list, alone or after a name (`class_order = [...]`); YAML's flow style covers JSON and Python."""
    found = parse_yaml(_LIST.sub("[", text, count=1), where)
    entries = []
    for number, entry in enumerate(found if isinstance(found, list) else [found], start=1):
        if isinstance(entry, bool) or not isinstance(entry, str | int):
            raise UserError(f"{where}, entry {number} is {clipped(repr(entry))}, expected a name or a position")
        entries.append((f"entry {number}", str(entry)))
    return entries
