"""Downloads over HTTP: complete and checked, resumed where an earlier download stopped."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests
from pydantic import BaseModel, ConfigDict
from urllib3.exceptions import HTTPError

from cl_bench import __version__
from cl_bench.errors import UserError, reason, root_cause
from cl_bench.files import write_atomically
from cl_bench.streams.transfer import SILENT, TransferProgress, locked

_CHUNK = 1 << 16
_LONGEST_WAIT = 60.0
_DEEPEST = 64
_LONGEST_READ = 1 << 20


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    page: str | None = None,
    progress: TransferProgress = SILENT,
    waits: Sequence[float] = (1.0, 3.0, 10.0),
    timeout: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download a file over HTTP, complete and checked, or fail and leave no file.

    Bytes are written to `<target>.part`; `<target>.part.json` records the version of the file on the server. Both
    survive the end of the process, and the next call requests only the rest, unless the server cannot send a range or
    has another version by now. A correct file at `target` is not requested again; with neither size nor checksum, any
    file there counts as correct. A wrong file is replaced only by a correct one.

    Args:
        url: address of the file, `http://` or `https://`.
        target: the file to write; its folder is created.
        size: expected size in bytes, if known.
        checksum: `"sha256:<hex digits>"` or `"md5:<hex digits>"` of the file, if known.
        page: official page of the data set, named in the message if the download fails.
        progress: receives the number of bytes.
        waits: seconds before each retry after a dropped connection; the list starts over whenever bytes have arrived.
        timeout: seconds without a single byte after which a connection counts as dropped.
        sleep: called with the seconds to wait before a retry.

    Raises:
        UserError: the file cannot be downloaded, is not the expected one, or cannot be written; or another process is
            downloading it now.
        ValueError: `checksum` is malformed.
    """
    if checksum is not None:
        checksum = checksum.lower()
        if not re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", checksum):
            raise ValueError(
                f"'{checksum}' is no checksum; write 'sha256:' or 'md5:' followed by all hexadecimal digits"
            )
    if target.is_dir():
        raise UserError(f"'{target}' is a folder, but the download is a file; choose another place")
    job = _Download(url, target, size, checksum, page, progress, waits, timeout, sleep)
    try:
        # Checked before locking, so that complete data in a read-only folder is accepted.
        if job.present():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{job.part}.lock"), str(target)):
            if not job.present():
                job.get()
    except OSError as error:
        raise UserError(
            f"'{target}' cannot be written ({reason(error)}); make room, or choose a folder that you may write to"
        ) from error


class _Dropped(Exception):
    """A request failed, but a retry may succeed; `wait` is the number of seconds for which the server asks to wait."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Version(BaseModel):
    """Identifies one version of a file on a server; the content of `.part.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """Value for `If-Range`; never a weak ETag, which promises the same meaning but not the same bytes."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag


@dataclass
class _Download:
    url: str
    target: Path
    size: int | None
    checksum: str | None
    page: str | None
    progress: TransferProgress
    waits: Sequence[float]
    timeout: float
    sleep: Callable[[float], None]
    part: Path = field(init=False)
    note: Path = field(init=False)
    pieced: bool = field(init=False, default=False)
    """Whether the part file holds bytes of more than one request."""

    def __post_init__(self) -> None:
        self.part = self.target.with_name(f"{self.target.name}.part")
        self.note = self.target.with_name(f"{self.part.name}.json")

    def present(self) -> bool:
        if not self.target.is_file() or self._fault(self.target):
            return False
        length = self.target.stat().st_size
        self.progress.begin(length)
        self.progress.advance(length)
        return True

    def get(self) -> None:
        self._transfer()
        fault = self._fault(self.part)
        if fault and self.pieced:
            # Not every server distinguishes versions, so the pieces may come from two.
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
        """Why a file is not the complete, expected one; None if nothing is wrong."""
        if self.size is not None and (length := path.stat().st_size) != self.size:
            # A transfer is cut off as soon as it is too long, so its full length is unknown.
            return f"has {length if length < self.size else f'more than {self.size}'} bytes, expected {self.size}"
        if self.checksum is not None:
            algorithm, _, expected = self.checksum.partition(":")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
            if found != expected:
                return f"has {algorithm} {found}, expected {expected}"
        return None

    def _transfer(self) -> None:
        """Send requests until the part has all bytes that the server announced."""
        failures, furthest = 0, 0
        while True:
            try:
                return self._request()
            except _Dropped as dropped:
                length = self._length()
                if length > furthest:
                    failures, furthest = 0, length
                if failures == len(self.waits):
                    saved = f"; {length} bytes are kept in '{self.part}' for the next time" if length else ""
                    raise UserError(
                        f"'{self.url}' cannot be downloaded ({dropped}){saved}; check the connection and try again, "
                        f"or {self._by_hand()}"
                    ) from dropped
                self.sleep(max(self.waits[failures], dropped.wait))
                failures += 1

    def _request(self) -> None:
        """Send one request: for the rest if there is a part to resume, otherwise for the whole file.

        Raises:
            _Dropped: the part is still incomplete.
        """
        known = self._version()
        # Only these two reveal a rest that belongs to another version than the part.
        have = self._length() if self.checksum or (known and known.validator) else 0
        total = self.size if self.size is not None else known and known.total
        if have and have == total:
            self.pieced = True
            self.progress.begin(total)
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
        # The server has no rest that fits the part: start over.
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
            raise _Dropped(reason(root_cause(error))) from error
        except (OSError, ValueError) as error:
            raise UserError(f"'{self.url}' cannot be downloaded ({reason(error)}); {self._by_hand()}") from error

    def _receive(self, response: requests.Response, have: int, total: int | None) -> None:
        """Append the body to the `have` bytes of the part; `total` is the full size that the server announces."""
        if self.size is not None and total is not None and total != self.size:
            raise self._other(f"has {total} bytes, expected {self.size}")
        whole = self.size if total is None else total
        if whole is None and self.checksum is None and "Transfer-Encoding" not in response.headers:
            raise UserError(
                f"'{self.url}' comes without a length, so a truncated download could not be recognised; "
                f"{self._by_hand()}"
            )
        free = shutil.disk_usage(self.part.parent).free
        if whole is not None and whole - have > free:
            raise UserError(
                f"'{self.url}' needs {whole - have} more bytes, and the disk of '{self.target}' has {free} left; "
                "make room, or choose another folder"
            )
        if not have:
            # Only after all checks: an answer of the wrong length must not cost the bytes of earlier requests.
            self._begin(response)
        self.progress.begin(whole)
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
        """Start with an empty part, and record the version that will fill it."""
        self.pieced = False
        # In this order, so that the record never describes other bytes than those in the part.
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
        """The version that the bytes of the part belong to; None if unknown."""
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
            f"the download of '{self.url}' {fault}, so it is another file or was altered on the way; it is discarded; "
            f"{self._by_hand()}"
        )

    def _by_hand(self) -> str:
        source = f"get the file by hand, see {self.page}," if self.page else "get the file elsewhere"
        return f"{source} and put it at '{self.target}'"


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as sent.

    It is not decoded: checksums refer to the archive, and some servers declare a `.tgz` as an "encoded" file.
    """
    try:
        yield from response.raw.stream(_CHUNK, decode_content=False)
    except (HTTPError, OSError) as error:
        raise _Dropped(reason(root_cause(error))) from error


def _rest(response: requests.Response, have: int, known: _Version | None) -> _Version | None:
    """The version of a 206 answer; None if its body cannot follow the `have` bytes of the part."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not span or int(span[1]) != have:
        return None
    total = _number(span[2])
    if known is None:
        return _Version(url=response.url, etag=None, modified=None, total=total)
    # Compared here as well, because some servers honour `Range` and ignore `If-Range`.
    headers = response.headers
    etag, modified = headers.get("ETag", known.etag), headers.get("Last-Modified", known.modified)
    same = (etag, modified) == (known.etag, known.modified) and (known.total is None or total in (None, known.total))
    return known.model_copy(update={"total": known.total if total is None else total}) if same else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _status(code: int) -> str:
    return f"HTTP {code} {http.client.responses.get(code, '')}".rstrip()
