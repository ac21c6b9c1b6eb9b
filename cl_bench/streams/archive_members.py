"""Members of zip and tar archives, each checked before it is unpacked, and limits on their total size."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Literal, cast

_CHUNK = 1 << 16
_DEEPEST = 64
_LONGEST_READ = 1 << 20
_TIMES, _ALWAYS = 100, 100 << 20
"""Largest growth of an archive, as a factor, and in bytes for small ones: images hardly compress any further."""
_BYTES_PER_NAME, _NAMES = 32, 100_000
"""An archive may hold one file or folder per 32 of its bytes, plus 100,000."""


class Refused(Exception):
    """Raised for a member that must not be unpacked."""

    def __init__(self, name: str, reason: str) -> None:
        # repr, because a name may hold control sequences of a terminal.
        super().__init__(f"{name!r} {reason}")


@dataclass(frozen=True)
class Member:
    """A file, a folder or a link in an archive of any kind.

    Attributes:
        name: name as stored in the archive.
        path: path components from the top of the archive.
        target: path components of what a link points to.
        open: opens the content of a file.
    """

    name: str
    path: tuple[str, ...]
    kind: Literal["file", "folder", "link"]
    target: tuple[str, ...] = ()
    open: Callable[[], IO[bytes]] = io.BytesIO


def most_bytes(size: int) -> int:
    """Largest allowed size in bytes of the content of a compressed file of images, from the size of the file."""
    return max(_TIMES * size, _ALWAYS)


class Limits:
    """Limits on what an archive may unpack to, against small files that would fill a disk (zip bombs).

    Args:
        size: size of the archive in bytes.
        folder: folder on the disk that the archive is unpacked to.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self._most = most_bytes(size)
        self._most_names = _NAMES + size // _BYTES_PER_NAME
        self._folder = folder
        self._free = shutil.disk_usage(folder).free
        self._bytes = 0

    def add(self, name: str, size: int) -> None:
        """Count `size` bytes that are written for a member.

        Raises:
            Refused: the archive exceeds its limit.
            OSError: the archive needs more bytes than the disk has left.
        """
        self._bytes += size
        if self._bytes > self._most:
            raise Refused(name, f"makes it larger than {self._most:,} bytes, unlike any archive of images of its size")
        if self._bytes > self._free:
            raise OSError(errno.ENOSPC, f"it needs more than the {self._free:,} bytes that are free", str(self._folder))

    def count(self, name: str, names: int) -> None:
        """Check the number `names` of files and folders, this member included.

        Raises:
            Refused: the number exceeds the limit.
        """
        if names > self._most_names:
            raise Refused(
                name, f"is one of more than {self._most_names:,} files and folders, too many for an archive of its size"
            )


def members(raw: IO[bytes], limits: Limits) -> Iterator[Member]:
    """The members of a zip or tar archive (plain, gz, bz2 or xz, recognised by its content), in stored order.

    Raises:
        Refused: a member must not be unpacked, or a limit is exceeded.
        OSError: the members would fill the disk, or a decompressor finds damage. The standard library's readers raise
            further errors about damage.
    """
    is_zip = raw.read(2) == b"PK"
    raw.seek(0)
    yield from _zip_members(raw, limits) if is_zip else _tar_members(raw, limits)


def _zip_members(raw: IO[bytes], limits: Limits) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as archive:
        # All sizes before anything is written; zipfile never returns more bytes of a member than it states here.
        for info in archive.infolist():
            limits.add(info.orig_filename, info.file_size)
        for info in archive.infolist():
            yield _zip_member(archive, info)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    # Not `filename`, which zipfile has normalised and cut at a NUL.
    name = info.orig_filename
    path = _inside(name, name)
    mode = stat.S_IFMT(info.external_attr >> 16)
    if name.endswith("/") or stat.S_ISDIR(mode):
        return Member(name, path, "folder")
    if stat.S_ISLNK(mode):
        with archive.open(info) as content:
            target = content.read(_CHUNK).decode("utf-8", "surrogateescape")
        return Member(name, path, "link", _inside(name, target, path[:-1]))
    if mode and not stat.S_ISREG(mode):
        raise Refused(name, "is neither a file, a folder nor a link")
    return Member(name, path, "file", open=lambda: archive.open(info))


class _Tape:
    """A stream that remembers the last block read: tarfile takes a damaged or missing header for the end, too."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self.stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            # Only a damaged header of a long name requests this much, and memory would be allocated for it.
            raise tarfile.ReadError("a header has an impossible length")
        self.last = self.stream.read(size)
        return self.last


def _tar_members(raw: IO[bytes], limits: Limits) -> Iterator[Member]:
    stream = _decompressed(raw)
    tape = _Tape(stream)
    with tarfile.open(fileobj=cast("IO[bytes]", tape), mode="r:", encoding="utf-8") as archive:
        for info in archive:
            if info.size < 0:
                # tarfile would seek back by as much and loop for ever.
                raise tarfile.ReadError("a member has a negative length")
            # Holes of a sparse file included.
            limits.add(info.name, info.size)
            yield _tar_member(archive, info)
        if tape.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end is missing")
    # Read to the end: the checksum of a compressed stream comes last.
    while rest := stream.read(_CHUNK):
        limits.add("what follows the last one", len(rest))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    name = info.name
    path = _inside(name, name)
    if info.isdir():
        return Member(name, path, "folder")
    if info.issym():
        return Member(name, path, "link", _inside(name, info.linkname, path[:-1]))
    if info.islnk():
        return Member(name, path, "link", _inside(name, info.linkname))
    if not info.isreg():
        raise Refused(name, "is neither a file, a folder nor a link")
    return Member(name, path, "file", open=lambda: cast("IO[bytes]", archive.extractfile(info)))


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
    """The components of a path inside an archive.

    Args:
        name: the member that is named in a refusal.
        path: path as stored in the archive.
        start: folder that the target of a symbolic link is relative to; only such a path may contain `..`.

    Raises:
        Refused: the path is absolute, leaves the archive, is too deep or has forbidden characters.
    """
    subject = "has" if path == name else f"links to {path!r}, which has"
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path):
        raise Refused(name, f"{subject} control characters or broken text in its name")
    windows = PureWindowsPath(path)
    if windows.drive or windows.root:
        raise Refused(name, f"{subject} an absolute path")
    if "\\" in path:
        raise Refused(name, f"{subject} a backslash in its name")
    steps = list(start or ())
    for step in path.split("/"):
        if step == "..":
            if start is None or not steps:
                raise Refused(name, f"{subject} '..' in its path and could leave the folder")
            steps.pop()
        elif step not in ("", "."):
            steps.append(step)
    if len(steps) > _DEEPEST:
        raise Refused(name, f"{subject} more than {_DEEPEST} folders in its path")
    return tuple(steps)
