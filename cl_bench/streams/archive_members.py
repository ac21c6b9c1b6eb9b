"""The members of zip and tar archives, each looked at before it is unpacked, and how much they may come to."""

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
"""An archive may become so many times as large as it is, or so many bytes: images are hardly compressed any further."""
_BYTES_PER_NAME, _NAMES = 32, 100_000
"""It may hold a file or folder for each so many of its bytes, and so many besides."""


class Refused(Exception):
    """A member that must not be unpacked."""

    def __init__(self, name: str, reason: str) -> None:
        # repr: a name may hold what a terminal takes for commands.
        super().__init__(f"{name!r} {reason}")


@dataclass(frozen=True)
class Member:
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


def most_bytes(size: int) -> int:
    """Bytes that a compressed file of images may become, at most, by its own size in bytes."""
    return max(_TIMES * size, _ALWAYS)


class Limits:
    """How large an archive may become: bombs are small files that fill a disk.

    Args:
        size: bytes of the archive.
        folder: on whose disk it is unpacked.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self._most = most_bytes(size)
        self._most_names = _NAMES + size // _BYTES_PER_NAME
        self._folder = folder
        self._free = shutil.disk_usage(folder).free
        self._bytes = 0

    def add(self, name: str, size: int) -> None:
        """So many bytes are written for a member.

        Raises:
            Refused: that makes too many.
            OSError: more than the disk has room for.
        """
        self._bytes += size
        if self._bytes > self._most:
            raise Refused(name, f"makes it larger than {self._most:,} bytes, unlike any archive of images of its size")
        if self._bytes > self._free:
            raise OSError(errno.ENOSPC, f"{self._free:,} bytes are free, and it needs more", str(self._folder))

    def count(self, name: str, names: int) -> None:
        """So many files and folders are there with this member.

        Raises:
            Refused: these are too many.
        """
        if names > self._most_names:
            raise Refused(
                name, f"is one of more than {self._most_names:,} files and folders, too many for an archive of its size"
            )


def members(raw: IO[bytes], limits: Limits) -> Iterator[Member]:
    """The members of a zip or tar archive (plain, gz, bz2 or xz, told by its content), in their order.

    Raises:
        Refused: one must not be unpacked, or there is too much of them.
        OSError: they would fill the disk; or what the decompressors raise. The readers of the standard library raise
            others about damage.
    """
    is_zip = raw.read(2) == b"PK"
    raw.seek(0)
    yield from _zip_members(raw, limits) if is_zip else _tar_members(raw, limits)


def _zip_members(raw: IO[bytes], limits: Limits) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as archive:
        # All before anything is written; zipfile gives no more bytes of a member than are stated here.
        for info in archive.infolist():
            limits.add(info.orig_filename, info.file_size)
        for info in archive.infolist():
            yield _zip_member(archive, info)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    # `filename` is what zipfile has made of it, cut at a NUL.
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


def _tar_members(raw: IO[bytes], limits: Limits) -> Iterator[Member]:
    stream = _decompressed(raw)
    tape = _Tape(stream)
    with tarfile.open(fileobj=cast("IO[bytes]", tape), mode="r:", encoding="utf-8") as archive:
        for info in archive:
            if info.size < 0:
                # Before tarfile goes back by as much, and round and round.
                raise tarfile.ReadError("a member has a negative length")
            # Of a sparse file, with its holes.
            limits.add(info.name, info.size)
            yield _tar_member(archive, info)
        if tape.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end is missing")
    # The checksum of a compressed stream comes last.
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
    """The steps of a path from the top of an archive.

    Args:
        name: the member to blame.
        path: as in the archive.
        start: of a symbolic link: the folder from which its path leads, where it may go up by `..`.
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
