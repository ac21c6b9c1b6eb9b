"""Archives unpacked so that they can do no harm."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Literal, cast

from cl_bench.errors import UserError
from cl_bench.streams.transfer import SILENT, Progress, locked

_CHUNK = 1 << 16
_DEEPEST = 64
_LONGEST_READ = 1 << 20


class _Refused(Exception):
    """A member that must not be unpacked."""

    def __init__(self, name: str, reason: str) -> None:
        # repr: a name may hold what a terminal takes for commands.
        super().__init__(f"{name!r} {reason}")


@dataclass(frozen=True)
class _Member:
    """A file, a folder, or a link, of an archive of any kind.

    Attributes:
        name: as the archive has it.
        path: its steps from the top of the archive.
        target: of a link: the steps to what it stands for.
        open: of a file: its content.
    """

    name: str
    path: tuple[str, ...]
    kind: Literal["file", "folder", "link"]
    target: tuple[str, ...] = ()
    open: Callable[[], IO[bytes]] = io.BytesIO


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    MemoryError,
)
"""What the readers of the standard library raise; some of it only for archives that no tool writes."""


def unpack(archive: Path, folder: Path, *, progress: Progress = SILENT) -> None:
    """Unpack a zip or tar archive (plain, gz, bz2 or xz, told by its content) so that it can do no harm.

    All goes to a temporary folder first, which becomes `folder` when everything is there. If there is a folder, what
    it lacks is moved into it, after a look whether anything stands in the way; files in it are never changed.
    Only plain files and folders come to be: modes, owners and times are not kept, and a link to a file of the same
    archive becomes a copy.

    Args:
        archive: the file.
        folder: where the archive's top will be; its parents are made.
        progress: told the bytes of the archive.

    Raises:
        UserError: the archive cannot be read, is truncated, damaged or of another kind; a member has an absolute
            path, `..`, a backslash or control characters in its name, is a device, a link out of the archive, or
            differs from another only in case or content; a file there has other content; nothing can be written; or
            another process is unpacking there now.
    """
    # So that a link to a folder on another disk stays one.
    folder = Path(os.path.realpath(folder))
    try:
        raw = archive.open("rb")
    except OSError as error:
        raise UserError(
            f"'{archive}' cannot be read ({error.strerror or error}); name the archive that you downloaded"
        ) from error
    with raw:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = _place(folder) / f".{folder.name}.unpacking"
            with locked(work.with_name(f"{work.name}.lock"), str(folder)):
                _unpack(raw, work, folder, progress)
        except _Refused as refused:
            raise UserError(
                f"'{archive}' is not unpacked, because its member {refused}; make sure that it is the official file"
            ) from refused
        except _DAMAGE as error:
            raise _damaged(archive, error) from error
        except OSError as error:
            # What the decompressors raise about the data has no number; a damaged offset may lead before the start.
            if error.filename is None and error.errno in (None, errno.EINVAL):
                raise _damaged(archive, error) from error
            raise UserError(
                f"'{archive}' cannot be unpacked to '{folder}' ({error.strerror or error}); "
                "make room, or choose a folder that you may write to"
            ) from error


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(
        f"'{archive}' is truncated, damaged or neither zip nor tar ({str(error) or type(error).__name__}); "
        "delete it and get it again"
    )


def _place(folder: Path) -> Path:
    """Where the temporary folder goes: beside the folder, or inside where it could not be renamed from there."""
    parent = folder.parent
    if folder.is_dir() and (folder.stat().st_dev != parent.stat().st_dev or not os.access(parent, os.W_OK)):
        return folder
    return parent


def _unpack(raw: IO[bytes], work: Path, folder: Path, progress: Progress) -> None:
    if work.exists():
        # Of a process that was killed, as the lock is ours.
        shutil.rmtree(work)
    try:
        work.mkdir()
        _extract(raw, work, progress)
        if os.path.lexists(folder):
            _compare(work, folder)
            _merge(work, folder)
        else:
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(raw: IO[bytes], top: Path, progress: Progress) -> None:
    """Write all members below `top`, an empty folder."""
    size, done = os.fstat(raw.fileno()).st_size, 0
    progress.total(size)

    def tick() -> None:
        nonlocal done
        here = raw.tell()
        # Members of a zip need not lie in the order of its directory.
        if here > done:
            progress.advance(here - done)
            done = here

    is_zip = raw.read(2) == b"PK"
    raw.seek(0)
    names: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}
    links = []
    for member in _zip_members(raw) if is_zip else _tar_members(raw):
        _claim(member, names)
        if member.kind == "folder":
            top.joinpath(*member.path).mkdir(parents=True, exist_ok=True)
        elif member.kind == "link":
            links.append(member)
        else:
            with member.open() as source:
                _write(member, source, top, tick)
    targets: dict[tuple[str, ...], tuple[str, ...]] = {}
    for link in links:
        if targets.setdefault(link.path, link.target) != link.target:
            raise _Refused(link.name, "comes twice and links to different files")
    for link in links:
        path, passed = link.path, set()
        while path in targets and path not in passed:
            passed.add(path)
            path = targets[path]
        if not top.joinpath(*path).is_file():
            raise _Refused(link.name, f"links to {'/'.join(link.target)!r}, which is no file of the archive")
        with top.joinpath(*path).open("rb") as source:
            _write(link, source, top, tick)
    progress.advance(size - done)


def _claim(member: _Member, names: dict[tuple[str, ...], tuple[tuple[str, ...], str]]) -> None:
    """Note the names that a member takes; refuse it where another has one of them for something else."""
    if not member.path and member.kind != "folder":
        raise _Refused(member.name, "is no name of a file")
    for depth in range(1, len(member.path) + 1):
        path = member.path[:depth]
        kind = "folder" if depth < len(member.path) or member.kind == "folder" else "file"
        # One rule for all disks: on many, names that differ in no more than this are the same file.
        folded = tuple(unicodedata.normalize("NFC", step).lower() for step in path)
        first, kind_of_first = names.setdefault(folded, (path, kind))
        if first != path:
            raise _Refused(member.name, f"differs from {'/'.join(first)!r} only in case or in how accents are written")
        if kind_of_first != kind:
            raise _Refused(member.name, "needs one name for both a file and a folder")


def _write(member: _Member, source: IO[bytes], top: Path, tick: Callable[[], None]) -> None:
    """Write a file, or make sure that it is the same as the one that is there."""
    path = top.joinpath(*member.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb") as file:
            if not _same(source, file):
                raise _Refused(member.name, "comes twice with different content")
        return
    with path.open("xb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            tick()


def _same(one: IO[bytes], other: IO[bytes]) -> bool:
    while chunk := one.read(_CHUNK):
        if other.read(len(chunk)) != chunk:
            return False
    return not other.read(1)


def _zip_members(raw: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            yield _zip_member(archive, info)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    # `filename` is what zipfile has made of it, cut at a NUL.
    name = info.orig_filename
    path = _inside(name, name)
    mode = stat.S_IFMT(info.external_attr >> 16)
    if name.endswith("/") or stat.S_ISDIR(mode):
        return _Member(name, path, "folder")
    if stat.S_ISLNK(mode):
        with archive.open(info) as content:
            target = content.read(_CHUNK).decode("utf-8", "surrogateescape")
        return _Member(name, path, "link", _inside(name, target, path[:-1]))
    if mode and not stat.S_ISREG(mode):
        raise _Refused(name, "is neither a file, a folder nor a link")
    return _Member(name, path, "file", open=lambda: archive.open(info))


class _Tape:
    """A stream that remembers what was read last: tarfile takes a damaged header, or none, for the end as well."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self.stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            # Only a damaged header of a long name asks for this, and memory would be set aside for it.
            raise tarfile.ReadError("a header has an impossible length")
        self.last = self.stream.read(size)
        return self.last


def _tar_members(raw: IO[bytes]) -> Iterator[_Member]:
    stream = _decompressed(raw)
    tape = _Tape(stream)
    with tarfile.open(fileobj=cast("IO[bytes]", tape), mode="r:", encoding="utf-8") as archive:
        for info in archive:
            if info.size < 0:
                # Before tarfile goes back by as much, and round and round.
                raise tarfile.ReadError("a member has a negative length")
            yield _tar_member(archive, info)
        if tape.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end is missing")
    # The checksum of a compressed stream comes last.
    while stream.read(_CHUNK):
        pass


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    name = info.name
    path = _inside(name, name)
    if info.isdir():
        return _Member(name, path, "folder")
    if info.issym():
        return _Member(name, path, "link", _inside(name, info.linkname, path[:-1]))
    if info.islnk():
        return _Member(name, path, "link", _inside(name, info.linkname))
    if not info.isreg():
        raise _Refused(name, "is neither a file, a folder nor a link")
    return _Member(name, path, "file", open=lambda: cast("IO[bytes]", archive.extractfile(info)))


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(4)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if start.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if start.startswith(b"\xfd7zX"):
        return lzma.LZMAFile(raw)
    return raw


def _inside(name: str, path: str, start: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The steps of a path from the top of an archive.

    Args:
        name: the member to blame.
        path: as in the archive.
        start: of a symbolic link: the folder from which its path leads, where it may go up by `..`.
    """
    subject = "has" if path == name else f"links to {path!r}, which has"
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path):
        raise _Refused(name, f"{subject} control characters or broken text in its name")
    windows = PureWindowsPath(path)
    if windows.drive or windows.root:
        raise _Refused(name, f"{subject} an absolute path")
    if "\\" in path:
        raise _Refused(name, f"{subject} a backslash in its name")
    steps = list(start or ())
    for step in path.split("/"):
        if step == "..":
            if start is None or not steps:
                raise _Refused(name, f"{subject} '..' in its path and could leave the folder")
            steps.pop()
        elif step not in ("", "."):
            steps.append(step)
    if len(steps) > _DEEPEST:
        raise _Refused(name, f"{subject} more than {_DEEPEST} folders in its path")
    return tuple(steps)


def _compare(source: Path, target: Path) -> None:
    """Raise `UserError` if anything in `target` stands in the way of what is in `source`; both are folders."""
    if not target.is_dir():
        raise UserError(f"'{target}' is there and is no folder; move it away or choose another folder")
    for entry in source.iterdir():
        other = target / entry.name
        if not os.path.lexists(other):
            continue
        if entry.is_dir():
            _compare(entry, other)
            continue
        equal = other.is_file() and other.stat().st_size == entry.stat().st_size
        if equal:
            with entry.open("rb") as one, other.open("rb") as two:
                equal = _same(one, two)
        if not equal:
            raise UserError(f"'{other}' is there with other content; move it away or choose another folder")


def _merge(source: Path, target: Path) -> None:
    """Move what `target` lacks; both are folders."""
    for entry in source.iterdir():
        other = target / entry.name
        if not os.path.lexists(other):
            entry.rename(other)
        elif entry.is_dir():
            _merge(entry, other)
