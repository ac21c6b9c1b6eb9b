"""Atomic writes, safe opening of untrusted files, and parsing of text files that users wrote.

User files are read by `read_text` and parsed by `parse_yaml`, `parse_json` or `parse_toml`. Whatever a file holds, the
result is plain values or one error sentence, in bounded time and memory.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from cl_bench.errors import UserError, clipped, reason

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EACCES}

TEXT_BYTES = 2**20
"""Largest settings file in bytes; the shipped recipes have 11,000."""
LIST_BYTES = 2**28
"""Largest list of images in bytes; CODA-Prompt's list of DomainNet has 30 MB."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks and their encodings; UTF-32's little-endian mark begins with UTF-16's, so it comes first."""

_DEEPEST = 20
_REPEATED = 10_000
"""Largest number of values that aliases of a YAML file may expand to; twenty short lines can mean a billion."""
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){50}""")


def write_atomically(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a temporary file in the same folder, flush it to disk, rename it into place, flush the folder.

    Args:
        replace: whether an existing file is replaced.

    Raises:
        FileExistsError: the file exists and `replace` is false.
        OSError: the folder cannot be written, or the disk is full; an existing file is then unchanged.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        if replace:
            Path(temporary).replace(path)
        else:
            _rename_to_new(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush renames in a folder to disk, so that they survive a power cut where the file system supports this."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def open_regular(path: Path, limit: int) -> BufferedReader:
    """Open a file from an untrusted source; pipes, devices, folders and files above `limit` bytes are refused.

    Raises:
        OSError: the file cannot be opened, or is refused.
    """
    # A pipe without a writer would block for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"Larger than {limit:,} bytes", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def kind_of(path: Path) -> str:
    """Kind of a path after following links: `file`, `folder`, `pipe`, `socket` or `device`; empty if nothing is there.

    Raises:
        OSError: the kind cannot be determined, e.g. because links form a cycle.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ""
    kinds = {"file": stat.S_ISREG, "folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((kind for kind, fits in kinds.items() if fits(mode)), "device")


def read_text(path: Path, what: str, limit: int = TEXT_BYTES) -> str:
    r"""Read a text file that a user wrote: UTF-8, or the encoding of its byte-order mark, with lines ended by `\n`.

    Args:
        path: file to read.
        what: description of the file that begins every message, e.g. `suite 'mine.yaml'`.
        limit: largest accepted size in bytes.

    Raises:
        UserError: the file cannot be opened, is a folder or pipe, is too large, or is not text (naming line and byte).
    """
    try:
        with open_regular(path, limit) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{what} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{what} cannot be read (no file can have this name)") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + len(re.findall(rb"\r\n?|\n", error.object[: error.start]))
        raise UserError(
            f"{what} cannot be read as text: line {line} has the byte 0x{error.object[error.start]:02x}, which is not "
            f"{encoding.removesuffix('-sig').upper()}; save it as UTF-8"
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (place := text.find("\0")) >= 0:
        raise UserError(
            f"{what} cannot be read as text: line {1 + text.count(chr(10), 0, place)} has a zero byte; "
            "save it as UTF-8 (as UTF-16 it needs a byte-order mark)"
        )
    # Concatenated files have marks after the first, too.
    return re.sub("^\ufeff+", "", text, flags=re.MULTILINE)


def parse_json(text: str, what: str) -> Any:
    """Parse a JSON text.

    Raises:
        UserError: the text is not JSON, or has a repeated key, a number that is not finite or has too many digits, or
            lists that are nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise UserError(f"{what} has the key '{clipped(_first_twice(keys))}' twice; remove one")
        return found

    try:
        return _plain(json.loads(text, object_pairs_hook=unique), what)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is no JSON: line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is no JSON: {_fault(error)}") from error


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """Parse a TOML text.

    Raises:
        UserError: the text is not TOML, or has a date, a number that is not finite or has too many digits, or lists
            that are nested too deeply.
    """
    try:
        # The standard library needs quadratic time in the length of a key.
        if found := _LONG_KEY.search(text):
            raise UserError(f"{what}: line {1 + text.count(chr(10), 0, found.start())} has a key of 50 parts or more")
        values: dict[str, Any] = _plain(tomllib.loads(text), what)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is no TOML: {_fault(error)}") from error
    return values


def parse_yaml(text: str, what: str) -> Any:
    """Parse a YAML text: lists, mappings with text keys, texts, whole numbers, true, false, null.

    PyYAML only tokenises the text; its own construction would turn `010` into 8, `1:30` into 90 and `on` into true,
    keep the last of two equal keys, and crash on lists nested ten thousand deep. Here, such scalars stay texts, and
    the rest is refused.

    Raises:
        UserError: the text is not YAML, or has a repeated key, a tag, several documents, lists that are nested too
            deeply, or aliases that expand to too many values; the message names the line.
    """
    import yaml  # type: ignore[import-untyped]

    document = _Document()
    try:
        # The C parser is ten times as fast, which matters for lists of 100,000 lines.
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            try:
                document.take(event)
            except ValueError as error:
                raise UserError(f"{what} is no YAML: line {event.start_mark.line + 1}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{what} is no YAML: {place}{error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{what} is no YAML: {_fault(error)}") from error
    return document.value


@dataclass
class _Open:
    """A list or mapping that is still being read.

    Attributes:
        value: items read so far.
        anchor: name under which aliases refer to it; None if it has none.
        key: key whose value comes next; None if a key comes next.
        merged: mappings whose fields are merged into this one (`<<`).
        size: number of values inside.
    """

    value: list[Any] | dict[str, Any]
    anchor: str | None
    key: str | None = None
    merged: list[dict[str, Any]] = field(default_factory=list)
    size: int = 1


class _Document:
    """Builds values from the events of a YAML parser; raises ValueError for what is refused."""

    def __init__(self) -> None:
        self.value: Any = None
        self._documents = 0
        self._repeated = 0
        self._open: list[_Open] = []
        self._anchored: dict[str, tuple[Any, int]] = {}

    def take(self, event: Any) -> None:
        """Process the next event."""
        kind = type(event).__name__
        if kind == "ScalarEvent":
            self._put(self._scalar(event), 1, event.anchor)
        elif kind == "AliasEvent":
            if event.anchor not in self._anchored:
                raise ValueError(f"there is no '&{clipped(event.anchor)}' before '*{clipped(event.anchor)}'")
            value, size = self._anchored[event.anchor]
            self._repeated += size
            if self._repeated > _REPEATED:
                raise ValueError(f"aliases stand for more than {_REPEATED:,} values")
            self._put(value, size)
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            if event.tag not in (None, "!", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
                raise ValueError(f"the tag '{clipped(event.tag)}' is unknown")
            if len(self._open) == _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} deep")
            self._open.append(_Open([] if kind == "SequenceStartEvent" else {}, event.anchor))
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            done = self._open.pop()
            if isinstance(done.value, dict):
                for other in done.merged:
                    done.value = {**other, **done.value}
            self._put(done.value, done.size, done.anchor)
        elif kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise ValueError("a second document begins")

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if "\0" in text:
            raise ValueError("a text has a zero byte")
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise ValueError(f"the tag '{clipped(event.tag)}' is unknown")
        plain = event.implicit[0] and not event.tag
        if not plain or (self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None):
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        return int(text) if _WHOLE_NUMBER.fullmatch(text) else text

    def _put(self, value: Any, size: int, anchor: str | None = None) -> None:
        if anchor is not None:
            self._anchored[anchor] = value, size
        if not self._open:
            self.value = value
            return
        into = self._open[-1]
        into.size += size
        if isinstance(into.value, list):
            into.value.append(value)
        elif into.key is None:
            if not isinstance(value, str):
                raise ValueError("a key must be a text, not a list or a mapping")
            if value in into.value:
                raise ValueError(f"the key '{clipped(value)}' comes twice; remove one")
            into.key = value
        elif into.key == "<<":
            several = value if isinstance(value, list) else [value]
            if not all(isinstance(one, dict) for one in several):
                raise ValueError("'<<' takes a mapping or a list of them")
            into.merged += several
            into.key = None
        else:
            into.value[into.key] = value
            into.key = None


def _plain(value: Any, what: str) -> Any:
    """Return the value if it is shallow and consists of texts, finite numbers, booleans, null, lists and dicts.

    Raises:
        UserError: it is not; the message names the place.
    """
    left: list[tuple[Any, tuple[Any, ...], int]] = [(value, (), 0)]
    while left:
        one, place, depth = left.pop()
        if isinstance(one, list | dict):
            if depth == _DEEPEST:
                raise UserError(f"{what} is nested more than {_DEEPEST} deep; expected lists and mappings of values")
            items = one.items() if isinstance(one, dict) else enumerate(one, start=1)
            left += [(inner, (place, key), depth + 1) for key, inner in items]
        elif problem := _problem(one):
            keys: list[str] = []
            while place:
                place, key = place
                keys.append(clipped(str(key)))
            raise UserError(f"{what}: {'.'.join(keys[::-1])} is {problem}; expected a text, a finite number, yes or no")
    return value


def _problem(value: Any) -> str:
    """Reason why a single value is refused; empty if it is accepted."""
    if isinstance(value, str):
        return "a text with a zero byte or half a character" if re.search("[\0\ud800-\udfff]", value) else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value}"
    if isinstance(value, int):
        return "" if value.bit_length() < 64 else "a number of more than 18 digits"
    return "" if value is None else f"a {type(value).__name__}"


def _first_twice(keys: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _fault(error: Exception) -> str:
    """Reason why a parser of the standard library or PyYAML refused a text."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "integer string conversion" in str(error) else reason(error)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename, or fail if the target exists; atomic where the file system has hard links."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)
    else:
        temporary.unlink()
