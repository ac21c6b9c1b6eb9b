"""Safe unpacking of archives from untrusted sources."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from cl_bench.errors import UserError, reason
from cl_bench.streams.archive_members import Limits, Member, Refused, members
from cl_bench.streams.transfer import SILENT, TransferProgress, locked

_CHUNK = 1 << 16
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
"""Errors of the standard library's readers; some occur only for archives that no tool would write."""


def unpack(archive: Path, folder: Path, *, progress: TransferProgress = SILENT) -> None:
    """Safely unpack a zip or tar archive (plain, gz, bz2 or xz, recognised by its content).

    Members are first written to a temporary folder, which is then renamed to `folder`. If `folder` exists, missing
    files are moved into it after a check for conflicts; existing files are never changed. Only plain files and folders
    are created: modes, owners and times are dropped, and a link to a file of the same archive becomes a copy.

    Args:
        archive: the archive file.
        folder: destination of the archive's top level; its parents are created.
        progress: receives the number of archive bytes read.

    Raises:
        UserError: the archive cannot be read, is truncated, damaged or of another kind; a member has an absolute
            path, `..`, a backslash or control characters in its name, is a device, a link out of the archive, or
            differs from another only in case or content; the archive would grow to more than 100 times its size (and
            more than 100 MiB), hold far too many files for its size, or fill the disk; an existing file has other
            content; nothing can be written; or another process is unpacking there now.
    """
    # Resolved, so that a link to a folder on another disk remains a link.
    folder = Path(os.path.realpath(folder))
    try:
        raw = archive.open("rb")
    except OSError as error:
        raise UserError(
            f"'{archive}' cannot be read ({reason(error)}); name the archive that you downloaded"
        ) from error
    with raw:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = _place(folder) / f".{folder.name}.unpacking"
            with locked(work.with_name(f"{work.name}.lock"), str(folder)):
                _unpack(raw, work, folder, progress)
        except Refused as refused:
            raise UserError(
                f"'{archive}' is not unpacked, because its member {refused}; make sure that it is the official file"
            ) from refused
        except _DAMAGE as error:
            raise _damaged(archive, error) from error
        except OSError as error:
            # Decompressors report damage without an error number; a damaged offset may point before the start (EINVAL).
            if error.filename is None and error.errno in (None, errno.EINVAL):
                raise _damaged(archive, error) from error
            raise UserError(
                f"'{archive}' cannot be unpacked to '{folder}' ({reason(error)}); "
                "make room, or choose a folder that you may write to"
            ) from error


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(
        f"'{archive}' is truncated, damaged or neither zip nor tar ({reason(error)}); delete it and download it again"
    )


def _place(folder: Path) -> Path:
    """The folder for temporary files: the parent of `folder`, or `folder` itself if renaming from there would fail."""
    parent = folder.parent
    if folder.is_dir() and (folder.stat().st_dev != parent.stat().st_dev or not os.access(parent, os.W_OK)):
        return folder
    return parent


def _unpack(raw: IO[bytes], work: Path, folder: Path, progress: TransferProgress) -> None:
    if work.exists():
        # Left by a process that was killed: no other process holds the lock.
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


def _extract(raw: IO[bytes], top: Path, progress: TransferProgress) -> None:
    """Write all members below the empty folder `top`."""
    size, done = os.fstat(raw.fileno()).st_size, 0
    progress.begin(size)

    def tick() -> None:
        nonlocal done
        here = raw.tell()
        # Members of a zip may be stored in another order than its directory lists them.
        if here > done:
            progress.advance(here - done)
            done = here

    limits = Limits(size, top)
    names: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}
    links = []
    for member in members(raw, limits):
        _claim(member, names)
        limits.count(member.name, len(names))
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
            raise Refused(link.name, "comes twice and links to different files")
    for link in links:
        path, passed = link.path, set()
        while path in targets and path not in passed:
            passed.add(path)
            path = targets[path]
        if not top.joinpath(*path).is_file():
            raise Refused(link.name, f"links to {'/'.join(link.target)!r}, which is no file of the archive")
        limits.add(link.name, top.joinpath(*path).stat().st_size)
        with top.joinpath(*path).open("rb") as source:
            _write(link, source, top, tick)
    progress.advance(size - done)


def _claim(member: Member, names: dict[tuple[str, ...], tuple[tuple[str, ...], str]]) -> None:
    """Record the names that a member uses; refuse it if another member uses one of them differently."""
    if not member.path and member.kind != "folder":
        raise Refused(member.name, "is not the name of a file")
    for depth in range(1, len(member.path) + 1):
        path = member.path[:depth]
        kind = "folder" if depth < len(member.path) or member.kind == "folder" else "file"
        # The strictest rule for all disks: on many, names that differ only in this way are the same file.
        folded = tuple(unicodedata.normalize("NFC", step).lower() for step in path)
        first, kind_of_first = names.setdefault(folded, (path, kind))
        if first != path:
            raise Refused(member.name, f"differs from {'/'.join(first)!r} only in case or in how accents are written")
        if kind_of_first != kind:
            raise Refused(member.name, "needs one name for both a file and a folder")


def _write(member: Member, source: IO[bytes], top: Path, tick: Callable[[], None]) -> None:
    """Write a file; if it exists already, refuse other content."""
    path = top.joinpath(*member.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb") as file:
            if not _same(source, file):
                raise Refused(member.name, "comes twice with different content")
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


def _compare(source: Path, target: Path) -> None:
    """Raise `UserError` if `target` has another file where the folder `source` has one, or is not a folder."""
    if not target.is_dir():
        raise UserError(f"'{target}' exists and is not a folder; move it away or choose another folder")
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
            raise UserError(f"'{other}' exists with other content; move it away or choose another folder")


def _merge(source: Path, target: Path) -> None:
    """Move everything that the folder `target` lacks from the folder `source`."""
    for entry in source.iterdir():
        other = target / entry.name
        if not os.path.lexists(other):
            entry.rename(other)
        elif entry.is_dir():
            _merge(entry, other)
