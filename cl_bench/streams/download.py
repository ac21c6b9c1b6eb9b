"""Getting data sets: files that are whole and checked, downloads that resume, archives that cannot write elsewhere."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import http.client
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import IO, Literal, Protocol, cast

import requests
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict
from urllib3.exceptions import HTTPError

from cl_bench import __version__
from cl_bench.errors import UserError
from cl_bench.files import write_atomically

_CHUNK = 1 << 16
_LONGEST_WAIT = 60.0
_DEEPEST = 64
_LONGEST_READ = 1 << 20


class Progress(Protocol):
    """Told how far a download or an unpacking is, in bytes (of the archive, when one is unpacked)."""

    def total(self, units: int | None) -> None:
        """The work begins, or begins anew, from zero; `units` is all of it, None if nobody knows."""

    def advance(self, units: int) -> None:
        """So much more is done; what an earlier call has left counts too, right after `total`."""


class _Silent:
    def total(self, units: int | None) -> None:
        pass

    def advance(self, units: int) -> None:
        pass


SILENT: Progress = _Silent()


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    page: str | None = None,
    progress: Progress = SILENT,
    waits: Sequence[float] = (1.0, 3.0, 10.0),
    timeout: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Get a file over HTTP, whole and checked, or not at all.

    The bytes go to `<target>.part`, with `<target>.part.json` saying which version of the file they are of. Whatever
    ends the process leaves both, and the next call asks for the rest only, unless the server cannot send a part or
    has another version by now. What is already there and right is not asked for; with neither size nor checksum,
    any file there is taken for right. One that is wrong is replaced only by one that is right.

    Args:
        url: where the file is, `http://` or `https://`.
        target: the file to write; its folder is made.
        size: how many bytes the file has, if known.
        checksum: `"sha256:<hex digits>"` or `"md5:<hex digits>"` of the file, if known.
        page: the official page of the data set, for those whom this download fails.
        progress: told the bytes.
        waits: seconds before each further try after a dropped connection; they start over whenever bytes have come.
        timeout: seconds without a single byte until a connection counts as dropped.
        sleep: waits for so many seconds between two tries.

    Raises:
        UserError: the file cannot be had, is not the expected one, or cannot be written; or another process is
            getting it now.
        ValueError: `checksum` is none.
    """
    if checksum is not None:
        checksum = checksum.lower()
        if not re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", checksum):
            raise ValueError(f"'{checksum}' is no checksum; write 'sha256:' or 'md5:' and all hexadecimal digits")
    if target.is_dir():
        raise UserError(f"'{target}' is a folder, and a file is to be written there; choose another place")
    job = _Download(url, target, size, checksum, page, progress, waits, timeout, sleep)
    try:
        # Looked at before the lock, so that complete data in a read-only folder will do.
        if job.present():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(Path(f"{job.part}.lock"), str(target)):
            if not job.present():
                job.get()
    except OSError as error:
        raise UserError(
            f"'{target}' cannot be written ({error.strerror or error}); "
            "make room, or choose a folder that you may write to"
        ) from error


class _Dropped(Exception):
    """A request failed in a way that another may not; `wait` is how many seconds the server asks to be left alone."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Version(BaseModel):
    """What tells one version of a file on a server from another; the content of `.part.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What `If-Range` may carry: a weak ETag promises the same meaning, not the same bytes."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag


@dataclass
class _Download:
    url: str
    target: Path
    size: int | None
    checksum: str | None
    page: str | None
    progress: Progress
    waits: Sequence[float]
    timeout: float
    sleep: Callable[[float], None]
    part: Path = field(init=False)
    note: Path = field(init=False)
    pieced: bool = field(init=False, default=False)
    """Whether the part holds bytes of more than one request."""

    def __post_init__(self) -> None:
        self.part = self.target.with_name(f"{self.target.name}.part")
        self.note = self.target.with_name(f"{self.part.name}.json")

    def present(self) -> bool:
        if not self.target.is_file() or self._fault(self.target):
            return False
        length = self.target.stat().st_size
        self.progress.total(length)
        self.progress.advance(length)
        return True

    def get(self) -> None:
        self._transfer()
        fault = self._fault(self.part)
        if fault and self.pieced:
            # Not every server can tell versions apart, so the pieces may be of two.
            self._forget()
            self._transfer()
            fault = self._fault(self.part)
        if fault:
            self._forget()
            raise self._other(fault)
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        self.part.replace(self.target)
        self.note.unlink(missing_ok=True)

    def _fault(self, path: Path) -> str | None:
        """What is wrong with a file that should be the whole one."""
        if self.size is not None and (length := path.stat().st_size) != self.size:
            # A transfer ends as soon as it is too long, so that the full length is not known.
            return f"has {length if length < self.size else f'more than {self.size}'} bytes, expected {self.size}"
        if self.checksum is not None:
            algorithm, _, expected = self.checksum.partition(":")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
            if found != expected:
                return f"has {algorithm} {found}, expected {expected}"
        return None

    def _transfer(self) -> None:
        """Ask until the part is whole, as far as the server's word goes."""
        failures, furthest = 0, 0
        while True:
            try:
                return self._request()
            except _Dropped as dropped:
                length = self._length()
                if length > furthest:
                    failures, furthest = 0, length
                if failures == len(self.waits):
                    kept = f"; {length} bytes are kept in '{self.part}' for the next time" if length else ""
                    raise UserError(
                        f"'{self.url}' cannot be downloaded ({dropped}){kept}; check the connection and try again, "
                        f"or {self._by_hand()}"
                    ) from dropped
                self.sleep(max(self.waits[failures], dropped.wait))
                failures += 1

    def _request(self) -> None:
        """Ask once: for the rest if there is a part to go on from, else for the whole.

        Raises:
            _Dropped: the part is not whole yet.
        """
        known = self._version()
        # Nothing else would tell that the rest is of the same version as the part.
        have = self._length() if self.checksum or (known and known.validator) else 0
        total = self.size if self.size is not None else known and known.total
        if have and have == total:
            self.pieced = True
            self.progress.total(total)
            self.progress.advance(have)
            return
        headers = {"User-Agent": f"cl-bench/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if known and known.validator:
                headers["If-Range"] = known.validator
        with self._open(headers) as response:
            status = response.status_code
            if status == 200:
                return self._receive(response, 0, _number(response.headers.get("Content-Length")))
            if have and status == 206 and (rest := _rest(response, have, known)):
                self.pieced = True
                return self._receive(response, have, rest.total)
            if status in (408, 425, 429) or status >= 500:
                wait = _number(response.headers.get("Retry-After")) or 0
                raise _Dropped(_status(status), min(wait, _LONGEST_WAIT))
            if not have or status not in (206, 416):
                raise UserError(f"'{self.url}' cannot be downloaded ({_status(status)}); {self._by_hand()}")
        # The server has no rest that fits the part, so the part is of no use.
        self._forget()
        self._request()

    def _open(self, headers: dict[str, str]) -> requests.Response:
        try:
            return requests.get(self.url, headers=headers, stream=True, timeout=self.timeout)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            HTTPError,
        ) as error:
            raise _Dropped(_reason(error)) from error
        except (OSError, ValueError) as error:
            raise UserError(f"'{self.url}' cannot be downloaded ({error}); {self._by_hand()}") from error

    def _receive(self, response: requests.Response, have: int, total: int | None) -> None:
        """Add the body to the `have` bytes in the part; the server says that `total` will be all."""
        if self.size is not None and total is not None and total != self.size:
            raise self._other(f"has {total} bytes, expected {self.size}")
        whole = self.size if total is None else total
        if whole is None and self.checksum is None and "Transfer-Encoding" not in response.headers:
            raise UserError(
                f"'{self.url}' comes without its length, so that a part could not be told from the whole; "
                f"{self._by_hand()}"
            )
        free = shutil.disk_usage(self.part.parent).free
        if whole is not None and whole - have > free:
            raise UserError(
                f"'{self.url}' needs {whole - have} more bytes, and the disk of '{self.target}' has {free} left; "
                "make room, or choose another folder"
            )
        if not have:
            # After all reasons to refuse: an answer of the wrong length must not cost what has come before.
            self._begin(response)
        self.progress.total(whole)
        self.progress.advance(have)
        length = have
        with self.part.open("ab") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                length += len(chunk)
                self.progress.advance(len(chunk))
                if self.size is not None and length > self.size:
                    return
        if whole is not None and length < whole:
            raise _Dropped(f"the connection ended after {length} of {whole} bytes")

    def _begin(self, response: requests.Response) -> None:
        """An empty part, and a note of the version that will fill it."""
        self.pieced = False
        # In this order: at no time does the note speak of other bytes than those in the part.
        self.part.open("wb").close()
        self.note.unlink(missing_ok=True)
        version = _Version(
            url=self.url,
            etag=response.headers.get("ETag"),
            modified=response.headers.get("Last-Modified"),
            total=_number(response.headers.get("Content-Length")),
        )
        write_atomically(self.note, version.model_dump_json().encode())

    def _length(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _version(self) -> _Version | None:
        """What the bytes in the part are of, or None if that is not known."""
        try:
            version = _Version.model_validate_json(self.note.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return version if version.url == self.url else None

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _other(self, fault: str) -> UserError:
        return UserError(
            f"what '{self.url}' sends {fault}, so it is another file or was altered on the way, and is not kept; "
            f"{self._by_hand()}"
        )

    def _by_hand(self) -> str:
        source = f"see {self.page} for it" if self.page else "look for it elsewhere"
        return f"{source} and put it at '{self.target}'"


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it was sent.

    Not decoded: checksums are published for the archive, and servers call a `.tgz` an "encoded" file.
    """
    try:
        yield from response.raw.stream(_CHUNK, decode_content=False)
    except (HTTPError, OSError) as error:
        raise _Dropped(_reason(error)) from error


def _rest(response: requests.Response, have: int, known: _Version | None) -> _Version | None:
    """The version that a 206 answer is of, or None if its body cannot follow the `have` bytes that are there."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not span or int(span[1]) != have:
        return None
    total = _number(span[2])
    if known is None:
        return _Version(url=response.url, etag=None, modified=None, total=total)
    # Compared here as well, because there are servers that take `Range` and ignore `If-Range`.
    headers = response.headers
    etag, modified = headers.get("ETag", known.etag), headers.get("Last-Modified", known.modified)
    same = (etag, modified) == (known.etag, known.modified) and (known.total is None or total in (None, known.total))
    return known.model_copy(update={"total": known.total if total is None else total}) if same else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _status(code: int) -> str:
    return f"HTTP {code} {http.client.responses.get(code, '')}".rstrip()


def _reason(error: BaseException) -> str:
    """The innermost cause, which is the one that a person can do something about."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__


@contextmanager
def _alone(lock: Path, what: str) -> Iterator[None]:
    """Keep other processes out; the lock goes with the process, however that ends.

    Raises:
        UserError: another process is in.
    """
    try:
        held = FileLock(lock).acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"another process is writing '{what}' now; wait for it and try again") from error
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


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
            with _alone(work.with_name(f"{work.name}.lock"), str(folder)):
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
