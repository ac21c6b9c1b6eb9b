"""A real HTTP server with faults that a test chooses, and helpers for tests of downloads."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

import pytest

from cl_bench.errors import UserError
from cl_bench.streams import download

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
QUICK: dict[str, Any] = {"waits": (0.01, 0.01, 0.01), "timeout": 60.0}
PAGE = "https://example.org/data"


@dataclass
class Site:
    """One file on a server, and how the server behaves.

    Attributes:
        answers: one entry per coming request: a status to answer with, or the number of bytes of the body after which
            the connection is closed or reset. Later requests are answered without fault.
        ranges: whether `If-Range` is respected, only `Range` is, neither is, or a part other than the requested one is
            sent.
        length: how the end of the body is signalled: by `Content-Length`, by chunks, or by closing the connection.
        hold: number of bytes after which the body waits for `released`.
        seen: headers of all requests so far.
    """

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    answers: list[tuple[Literal["status", "bytes", "reset"], int]] = field(default_factory=list)
    ranges: Literal["if-range", "range", "none", "other"] = "if-range"
    length: Literal["header", "chunks", "close"] = "header"
    extra: dict[str, str] = field(default_factory=dict)
    hold: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def requested_ranges(self) -> list[str | None]:
        """The `Range` header of every request."""
        return [headers.get("Range") for headers in self.seen]


class Handler(BaseHTTPRequestHandler):
    """Serves `server.site`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        site.seen.append(dict(self.headers))
        kind, number = site.answers.pop(0) if site.answers else ("bytes", len(site.content))
        self.close_connection = True
        if kind == "status":
            self.send_response(number)
            for name, value in site.extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"sorry")
            return
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if site.ranges != "none" else None
        first = int(span[1]) if span else 0
        condition = self.headers.get("If-Range")
        if site.ranges == "if-range" and condition not in (None, site.etag, site.modified):
            first, span = 0, None
        if span and site.ranges == "other":
            first += 1000
        if span and first >= len(site.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = site.content[first:]
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{len(site.content) - 1}/{len(site.content)}")
        for name, text in {"ETag": site.etag, "Last-Modified": site.modified, **site.extra}.items():
            if text is not None:
                self.send_header(name, text)
        if site.length == "header":
            self.send_header("Content-Length", str(len(body)))
        elif site.length == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        sent = body[:number]
        if site.hold is not None:
            self.wfile.write(sent[: site.hold])
            site.released.wait(20)
            sent = sent[site.hold :]
        if site.length == "chunks":
            for start in range(0, len(sent), 50_000):
                piece = sent[start : start + 50_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if number >= len(body):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)
        if kind == "reset":
            # A reset without the closing handshake, as routers send it.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        # A killed client ends the connection without closing it.
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


class RecordedProgress:
    """Records the totals and the units of a download or an unpacking."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.done = 0

    def begin(self, total: int | None) -> None:
        self.totals.append(total)
        self.done = 0

    def advance(self, size: int) -> None:
        assert size >= 0
        self.done += size


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lay_part(target: Path, site: Site, length: int) -> None:
    """Leave the partial file of a download that broke off after `length` bytes."""
    site.answers = [("bytes", length)]
    with pytest.raises(UserError, match="ended after|read"):
        download.download(site.url, target, waits=())
    assert target.with_name("set.bin.part").read_bytes() == site.content[:length]
    site.seen.clear()


OTHER = bytes(reversed(CONTENT))
