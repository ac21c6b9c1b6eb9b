"""Downloads from a real server that misbehaves in every way, and archives that are broken or mean harm."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.errors import UserError
from cl_bench.streams import archives, download

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
QUICK: dict[str, Any] = {"waits": (0.01, 0.01, 0.01), "timeout": 60.0}
PAGE = "https://example.org/data"


@dataclass
class Site:
    """One file on a server, and how the server behaves.

    Attributes:
        answers: of the coming requests, one each: a status to answer with, or after how many bytes of the body to hang
            up; afterwards all goes well.
        ranges: `If-Range` is kept, only `Range` is, neither, or another part is sent than the one asked for.
        length: how the end is told: by `Content-Length`, by chunks, or by closing the connection.
        hold: after so many bytes the body waits until `released`.
        seen: the headers of all requests.
    """

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    answers: list[tuple[Literal["status", "bytes"], int]] = field(default_factory=list)
    ranges: Literal["if-range", "range", "none", "other"] = "if-range"
    length: Literal["header", "chunks", "close"] = "header"
    extra: dict[str, str] = field(default_factory=dict)
    hold: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def asked(self) -> list[str | None]:
        """The `Range` of every request."""
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

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        # A client that was killed does not say good-bye.
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of its own for the test; change its behaviour at any time."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = served  # type: ignore[attr-defined]
        served.url = f"http://127.0.0.1:{server.server_address[1]}/set.bin"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.released.set()
        server.shutdown()
        thread.join()


class Told:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.done = 0

    def total(self, units: int | None) -> None:
        self.totals.append(units)
        self.done = 0

    def advance(self, units: int) -> None:
        assert units >= 0
        self.done += units


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lay_part(target: Path, site: Site, length: int) -> None:
    """What a download leaves behind that broke off after `length` bytes."""
    site.answers = [("bytes", length)]
    with pytest.raises(UserError, match="ended after|read"):
        download.download(site.url, target, waits=())
    assert target.with_name("set.bin.part").read_bytes() == site.content[:length]
    site.seen.clear()


@pytest.mark.parametrize("length", ["header", "chunks", "close"])
@pytest.mark.parametrize("checksum", [None, SHA256, MD5, SHA256.upper()])
def test_a_download_is_whole(tmp_path: Path, site: Site, length: Any, checksum: str | None) -> None:
    site.length = length
    told, target = Told(), tmp_path / "new" / "deep" / "set.bin"
    download.download(site.url, target, size=len(CONTENT), checksum=checksum, progress=told, **QUICK)
    assert target.read_bytes() == CONTENT
    assert files_in(target.parent) == ["set.bin"]
    assert (told.totals, told.done) == ([len(CONTENT)], len(CONTENT))
    assert site.seen[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("length", ["header", "chunks"])
def test_a_download_of_which_nothing_is_known(tmp_path: Path, site: Site, length: Any) -> None:
    site.length = length
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_download_that_could_end_anywhere_is_refused(tmp_path: Path, site: Site) -> None:
    site.length = "close"
    with pytest.raises(UserError, match="without its length"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert files_in(tmp_path) == []


def test_an_empty_file(tmp_path: Path, site: Site) -> None:
    site.content = b""
    download.download(site.url, tmp_path / "set.bin", size=0, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == b""


def test_an_encoded_answer_is_kept_as_it_is(tmp_path: Path, site: Site) -> None:
    """Servers send `.tgz` files so; a decoded one has neither the right length nor the right checksum."""
    site.content = gzip.compress(CONTENT)
    site.extra = {"Content-Encoding": "gzip"}
    download.download(site.url, tmp_path / "set.tgz", size=len(site.content), **QUICK)
    assert (tmp_path / "set.tgz").read_bytes() == site.content


@pytest.mark.parametrize("length", ["header", "chunks"])
@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}, {"checksum": SHA256}])
def test_a_dropped_connection_is_taken_up_where_it_broke(
    tmp_path: Path, site: Site, length: Any, known: dict[str, Any]
) -> None:
    site.length = length
    site.answers = [("bytes", 100_000), ("bytes", 0), ("bytes", 0), ("bytes", 100_000), ("bytes", 0), ("bytes", 0)]
    told, target = Told(), tmp_path / "set.bin"
    download.download(site.url, target, progress=told, **known, **QUICK)
    assert target.read_bytes() == CONTENT
    once, twice = "bytes=100000-", "bytes=200000-"
    assert site.asked == [None, once, once, once, twice, twice, twice]
    assert [headers.get("If-Range") for headers in site.seen] == [None, *['"one"'] * 6]
    assert told.done == len(CONTENT)
    assert files_in(tmp_path) == ["set.bin"]


def test_the_validator_is_a_strong_one(tmp_path: Path, site: Site) -> None:
    site.etag, site.modified = 'W/"weak"', "Mon, 06 Jan 2020 10:00:00 GMT"
    site.answers = [("bytes", 1000)]
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert site.seen[1]["If-Range"] == site.modified
    assert site.asked == [None, "bytes=1000-"]


def test_a_part_is_kept_for_the_next_call(tmp_path: Path, site: Site) -> None:
    site.answers = [("bytes", 100_000), ("bytes", 0), ("bytes", 0), ("bytes", 0), ("bytes", 0)]
    target = tmp_path / "set.bin"
    with pytest.raises(UserError) as caught:
        download.download(site.url, target, size=len(CONTENT), page=PAGE, **QUICK)
    for word in (site.url, "100000 bytes are kept", "set.bin.part", PAGE, str(target)):
        assert word in str(caught.value)
    assert len(site.seen) == 1 + len(QUICK["waits"])
    assert not target.exists()
    site.answers.clear()
    site.seen.clear()
    download.download(site.url, target, size=len(CONTENT), checksum=SHA256, **QUICK)
    assert target.read_bytes() == CONTENT
    assert site.asked == ["bytes=100000-"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_part_of_a_killed_process_is_taken_up(tmp_path: Path, site: Site, how: signal.Signals) -> None:
    site.hold = 200_000
    target = tmp_path / "set.bin"
    code = (
        "import pathlib, signal\n"
        "from cl_bench.streams.download import download\n"
        # Processes in the background are often started deaf to Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"download('{site.url}', pathlib.Path('set.bin'))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE)
    part = tmp_path / "set.bin.part"
    while not part.exists() or part.stat().st_size < 3 << 16:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(how)
    _, err = child.communicate()
    assert child.returncode == -how or b"KeyboardInterrupt" in err
    site.released.set()
    site.hold = None
    length = part.stat().st_size
    assert length == 3 << 16
    told = Told()
    download.download(site.url, target, checksum=SHA256, progress=told, **QUICK)
    assert target.read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={length}-"]
    assert told.done == len(CONTENT)
    assert files_in(tmp_path) == ["set.bin"]


def test_a_server_without_ranges_sends_all_again(tmp_path: Path, site: Site) -> None:
    site.ranges = "none"
    site.answers = [("bytes", 100_000)]
    told = Told()
    download.download(site.url, tmp_path / "set.bin", checksum=SHA256, progress=told, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-"]
    assert (told.totals, told.done) == ([len(CONTENT)] * 2, len(CONTENT))


def test_a_server_that_sends_another_part_is_not_believed(tmp_path: Path, site: Site) -> None:
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.ranges = "other"
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.asked == ["bytes=100000-", None]


def test_a_server_that_always_breaks_at_the_same_byte_is_given_up(tmp_path: Path, site: Site) -> None:
    site.ranges = "none"
    site.answers = [("bytes", 100_000)] * 20
    with pytest.raises(UserError, match="cannot be downloaded"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert len(site.seen) == 1 + len(QUICK["waits"])


OTHER = bytes(reversed(CONTENT))


@pytest.mark.parametrize("ranges", ["if-range", "range", "none"])
@pytest.mark.parametrize("change", ["etag", "date", "length", "bytes"])
def test_a_file_that_changed_is_got_anew(tmp_path: Path, site: Site, ranges: Any, change: str) -> None:
    """Also from a server that takes `Range` and does not look at `If-Range`."""
    if change == "date":
        site.etag, site.modified = None, "Mon, 06 Jan 2020 10:00:00 GMT"
    if change == "bytes":
        site.etag = None
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.ranges, site.content = ranges, OTHER
    if change == "etag":
        site.etag = '"two"'
    if change == "date":
        site.modified = "Tue, 07 Jan 2020 10:00:00 GMT"
    if change == "length":
        site.content = OTHER[:-1]
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == site.content
    assert files_in(tmp_path) == ["set.bin"]


def test_a_file_that_changed_unseen_is_got_anew_for_its_checksum(tmp_path: Path, site: Site) -> None:
    site.etag, site.content = None, OTHER
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.content = CONTENT
    download.download(site.url, tmp_path / "set.bin", checksum=SHA256, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.asked == ["bytes=100000-", None]


def test_a_file_that_became_shorter_than_the_part_is_got_anew(tmp_path: Path, site: Site) -> None:
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.content, site.ranges = CONTENT[:50], "range"
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT[:50]
    assert site.asked == ["bytes=100000-", None]


def test_a_part_of_another_address_goes_on_only_under_a_checksum(tmp_path: Path, site: Site) -> None:
    target, mirror = tmp_path / "set.bin", site.url.replace("set", "mirror")
    lay_part(target, site, 100_000)
    download.download(mirror, target, checksum=SHA256, **QUICK)
    assert site.asked == ["bytes=100000-"]
    assert "If-Range" not in site.seen[0]
    assert target.read_bytes() == CONTENT
    target.unlink()
    lay_part(target, site, 100_000)
    download.download(mirror, target, size=len(CONTENT), **QUICK)
    assert site.asked == [None]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("note", [None, b"", b"{}", b"[1]", b'{"url": 3}', b"\xff"])
def test_a_part_without_a_good_note_is_not_trusted(tmp_path: Path, site: Site, note: bytes | None) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"of another kind")
    if note is not None:
        (tmp_path / "set.bin.part.json").write_bytes(note)
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert site.asked == [None]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("right", [True, False])
def test_a_part_that_is_whole_needs_no_request_if_it_is_right(tmp_path: Path, site: Site, right: bool) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT if right else OTHER)
    download.download(site.url, tmp_path / "set.bin", size=len(CONTENT), checksum=SHA256, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.asked == ([] if right else [None])


@pytest.mark.parametrize("before", [None, b"older"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_wrong_checksum_keeps_what_was_there_and_nothing_else(
    tmp_path: Path, site: Site, before: bytes | None, resumed: bool
) -> None:
    target = tmp_path / "set.bin"
    if resumed:
        lay_part(target, site, 100_000)
    if before is not None:
        target.write_bytes(before)
    expected = f"sha256:{'0' * 64}"
    with pytest.raises(UserError) as caught:
        download.download(site.url, target, checksum=expected, page=PAGE, **QUICK)
    for word in (site.url, SHA256.replace(":", " "), "expected " + "0" * 64, PAGE):
        assert word in str(caught.value)
    assert files_in(tmp_path) == ([] if before is None else ["set.bin"])
    assert before is None or target.read_bytes() == before
    assert site.asked == (["bytes=100000-", None] if resumed else [None])


def test_what_came_in_one_piece_and_is_wrong_is_not_asked_for_again(tmp_path: Path, site: Site) -> None:
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.ranges = "none"
    with pytest.raises(UserError, match="expected 0000"):
        download.download(site.url, tmp_path / "set.bin", checksum=f"md5:{'0' * 32}", **QUICK)
    assert site.asked == ["bytes=100000-"]


def test_a_file_that_changes_while_it_is_got_is_asked_for_once_more_only(tmp_path: Path, site: Site) -> None:
    class Change(Told):
        def advance(self, units: int) -> None:
            super().advance(units)
            site.etag, site.content = '"two"', OTHER

    lay_part(tmp_path / "set.bin", site, 100_000)
    site.answers = [("bytes", 1000)]
    with pytest.raises(UserError, match="expected"):
        download.download(site.url, tmp_path / "set.bin", checksum=SHA256, progress=Change(), **QUICK)
    assert site.asked == ["bytes=100000-", "bytes=101000-"]
    assert files_in(tmp_path) == []


def test_an_answer_of_the_wrong_length_costs_nothing(tmp_path: Path, site: Site) -> None:
    """A page for logging in, say, in the middle of a long download."""
    target = tmp_path / "set.bin"
    lay_part(target, site, 100_000)
    site.ranges, site.content = "none", b"<!DOCTYPE html>"
    with pytest.raises(UserError, match=f"has 15 bytes, expected {len(CONTENT)}"):
        download.download(site.url, target, size=len(CONTENT), **QUICK)
    site.ranges, site.content = "if-range", CONTENT
    download.download(site.url, target, size=len(CONTENT), **QUICK)
    assert target.read_bytes() == CONTENT
    assert site.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize("length", ["chunks", "close"])
def test_an_answer_longer_than_expected_is_cut_off(tmp_path: Path, site: Site, length: Any) -> None:
    site.length = length
    told = Told()
    with pytest.raises(UserError, match="more than 1000 bytes, expected 1000"):
        download.download(site.url, tmp_path / "set.bin", size=1000, progress=told, **QUICK)
    assert told.done < len(CONTENT)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("length", ["chunks", "close"])
def test_an_answer_shorter_than_expected_is_not_taken(tmp_path: Path, site: Site, length: Any) -> None:
    site.length = length
    with pytest.raises(UserError, match=f"after {len(CONTENT)} of 400000 bytes"):
        download.download(site.url, tmp_path / "set.bin", size=400_000, waits=())
    assert not (tmp_path / "set.bin").exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416])
def test_a_refusal_is_final_and_names_the_page(tmp_path: Path, site: Site, status: int) -> None:
    site.answers = [("status", status)]
    with pytest.raises(UserError, match=rf"HTTP {status} \w+") as caught:
        download.download(site.url, tmp_path / "set.bin", page=PAGE, **QUICK)
    assert site.url in str(caught.value)
    assert PAGE in str(caught.value)
    assert len(site.seen) == 1
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(tmp_path: Path, site: Site, status: int) -> None:
    site.answers = [("bytes", 1000), ("status", status), ("status", status)]
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.asked == [None, *["bytes=1000-"] * 3]


def test_a_server_that_stays_in_trouble_is_given_up(tmp_path: Path, site: Site) -> None:
    site.answers = [("status", 503)] * 9
    with pytest.raises(UserError, match="HTTP 503 Service Unavailable"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert len(site.seen) == 4


def test_a_server_may_say_how_long_to_wait(tmp_path: Path, site: Site) -> None:
    site.answers, site.extra = [("status", 503)], {"Retry-After": "1"}
    slept: list[float] = []
    download.download(site.url, tmp_path / "set.bin", **QUICK, sleep=slept.append)
    assert slept == [1]


def test_a_server_that_falls_silent_counts_as_dropped(tmp_path: Path, site: Site) -> None:
    site.hold = 1000
    with pytest.raises(UserError, match="timed out"):
        download.download(site.url, tmp_path / "set.bin", waits=(0.01,), timeout=0.5)
    assert len(site.seen) == 2


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set.bin"
        with pytest.raises(UserError) as caught:
            download.download(url, tmp_path / "set.bin", page=PAGE, **QUICK)
    assert str(caught.value).startswith(f"'{url}' cannot be downloaded (Connection refused); check the connection")
    assert PAGE in str(caught.value)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("url", ["set.bin", "ftp://example.org/set.bin", "http://", "http://[1/", ""])
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="cannot be downloaded"):
        download.download(url, tmp_path / "set.bin", **QUICK)


@pytest.mark.parametrize("checksum", ["", "sha256:", SHA256[:-1], SHA256[7:], f"sha1:{'0' * 40}", f"md5:{'g' * 32}"])
def test_what_is_no_checksum(tmp_path: Path, checksum: str) -> None:
    with pytest.raises(ValueError, match="no checksum"):
        download.download("http://127.0.0.1:1/", tmp_path / "set.bin", checksum=checksum)


@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}, {"checksum": SHA256}, {"checksum": MD5}])
def test_what_is_there_and_right_is_not_asked_for(tmp_path: Path, site: Site, known: dict[str, Any]) -> None:
    (tmp_path / "set.bin").write_bytes(CONTENT)
    told = Told()
    download.download(site.url, tmp_path / "set.bin", progress=told, **known, **QUICK)
    assert site.seen == []
    assert (told.totals, told.done) == ([len(CONTENT)], len(CONTENT))


@pytest.mark.parametrize("known", [{"size": len(CONTENT)}, {"checksum": SHA256}])
def test_what_is_there_and_wrong_is_replaced(tmp_path: Path, site: Site, known: dict[str, Any]) -> None:
    (tmp_path / "set.bin").write_bytes(CONTENT[:-1])
    download.download(site.url, tmp_path / "set.bin", **known, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, site: Site) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"set.bin' cannot be written \(Permission denied\)"):
            download.download(site.url, tmp_path / "set.bin", **QUICK)
    finally:
        tmp_path.chmod(0o700)
    assert site.seen == []


def test_a_place_where_nothing_can_be_written(tmp_path: Path, site: Site) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"set.bin' cannot be written \((Not a directory|File exists)\)"):
        download.download(site.url, tmp_path / "file" / "set.bin", **QUICK)
    with pytest.raises(UserError, match="is a folder"):
        download.download(site.url, tmp_path, **QUICK)
    assert site.seen == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(tmp_path: Path, site: Site) -> None:
    (tmp_path / "set.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); make room"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert not (tmp_path / "set.bin").exists()


def test_a_file_larger_than_the_disk_is_not_begun(tmp_path: Path, site: Site) -> None:
    site.length, site.extra = "close", {"Content-Length": str(10**17)}
    with pytest.raises(UserError, match=f"needs {10**17} more bytes"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert files_in(tmp_path) == []


def test_two_processes_do_not_write_one_part(tmp_path: Path, site: Site) -> None:
    with FileLock(tmp_path / "set.bin.part.lock"), pytest.raises(UserError, match="another process"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


Tree = dict[str, bytes | None]
"""Content by path; None is an empty folder."""
KINDS = ("zip", "zip-deflated", "zip-bz2", "zip-lzma", "tar", "tar-gnu", "tgz", "tar.bz2", "tar.xz")
PACK: dict[str, Callable[[bytes], bytes]] = {"tgz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
METHODS = {"zip-deflated": zipfile.ZIP_DEFLATED, "zip-bz2": zipfile.ZIP_BZIP2, "zip-lzma": zipfile.ZIP_LZMA}


@dataclass(frozen=True)
class Entry:
    """A member as an attacker writes it: name, kind, and content or what a link stands for."""

    name: str
    data: bytes = b""
    kind: Literal["file", "folder", "symlink", "hardlink", "device", "pipe"] = "file"


def packed(kind: str, entries: list[Entry]) -> bytes:
    """An archive of these members, in this order, whatever they are."""
    memory = io.BytesIO()
    if kind.startswith("zip"):
        modes = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "symlink": stat.S_IFLNK}
        modes |= {"device": stat.S_IFCHR, "pipe": stat.S_IFIFO}
        with zipfile.ZipFile(memory, "w", METHODS.get(kind, zipfile.ZIP_STORED)) as archive:
            for entry in entries:
                info = zipfile.ZipInfo("x")
                info.filename = entry.name + "/" * (entry.kind == "folder")
                info.external_attr = (modes[entry.kind] | 0o755) << 16
                info.compress_type = METHODS.get(kind, zipfile.ZIP_STORED)
                archive.writestr(info, entry.data)
        return memory.getvalue()
    types = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}
    types |= {"hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
    flavour = tarfile.GNU_FORMAT if kind == "tar-gnu" else tarfile.PAX_FORMAT
    with tarfile.open(fileobj=memory, mode="w", format=flavour) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.mode = types[entry.kind], 0o4755
            if entry.kind == "file":
                member.size = len(entry.data)
            else:
                member.linkname = entry.data.decode("utf-8", "surrogateescape")
            archive.addfile(member, io.BytesIO(entry.data))
    return PACK.get(kind, bytes)(memory.getvalue())


def planted(tree: Tree) -> list[Entry]:
    return [Entry(name, data or b"", "folder" if data is None else "file") for name, data in tree.items()]


def tree_in(folder: Path) -> Tree:
    """All files and all empty folders; anything else is an error."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink()
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif not any(path.iterdir()):
            found[path.relative_to(folder).as_posix()] = None
    return found


SMALL: Tree = {"a/one.png": b"1" * 700, "a/b/two.png": bytes(range(256)) * 3, "empty": None, "zero": b""}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str, list[Entry]], Path]:
    """`make("zip", entries)`: the archive, alone in the folder `tmp_path / "in"`."""

    def call(kind: str, entries: list[Entry]) -> Path:
        archive = tmp_path / "in" / f"set.{kind}"
        archive.parent.mkdir(exist_ok=True)
        archive.write_bytes(packed(kind, entries))
        return archive

    return call


Make = Callable[[str, list[Entry]], Path]


def refused(archive: Path, folder: Path, match: str) -> str:
    """The sentence with which an archive is refused; all around it stays as it was."""
    before = tree_in(folder.parent)
    with pytest.raises(UserError, match=match) as caught:
        archives.unpack(archive, folder)
    assert f"'{archive}'" in str(caught.value)
    assert tree_in(folder.parent) == before
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_unpacked(tmp_path: Path, make: Make, kind: str) -> None:
    archive, told = make(kind, planted(SMALL)), Told()
    archives.unpack(archive, tmp_path / "new" / "out", progress=told)
    assert tree_in(tmp_path / "new") == {f"out/{name}": data for name, data in SMALL.items()}
    assert (told.totals, told.done) == ([archive.stat().st_size], archive.stat().st_size)
    for path in (tmp_path / "new").rglob("*"):
        plain = tmp_path / ("plain-folder" if path.is_dir() else "plain-file")
        plain.mkdir(exist_ok=True) if path.is_dir() else plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode


def test_the_members_of_a_zip_in_any_order(tmp_path: Path) -> None:
    archive, told = tmp_path / "set.zip", Told()
    with zipfile.ZipFile(archive, "w") as file:
        for name in "abc":
            file.writestr(name, name * 1000)
        file.filelist.reverse()
    archives.unpack(archive, tmp_path / "out", progress=told)
    assert told.done == archive.stat().st_size
    assert tree_in(tmp_path / "out") == {name: name.encode() * 1000 for name in "abc"}


def test_a_hard_link_counts_from_the_top(tmp_path: Path, make: Make) -> None:
    members = [
        Entry("x", b"top"),
        Entry("a/x", b"deep"),
        Entry("a/hard", b"x", "hardlink"),
        Entry("a/soft", b"x", "symlink"),
    ]
    archives.unpack(make("tar", members), tmp_path / "out")
    assert tree_in(tmp_path / "out") == {"x": b"top", "a/x": b"deep", "a/hard": b"top", "a/soft": b"deep"}


def folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).lower()


STEPS = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\:"), min_size=1, max_size=8
).filter(lambda step: step not in (".", ".."))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Files and empty folders of any names that all disks can hold side by side."""
    tree: Tree = {}
    for path in draw(st.lists(st.lists(STEPS, min_size=1, max_size=4).map("/".join), max_size=8)):
        above = [folded(path).rsplit("/", n)[0] for n in range(path.count("/") + 1)]
        taken = {folded(other).rsplit("/", n)[0]: other.rsplit("/", n)[0] for other in tree for n in range(5)}
        whole = {folded(other) for other in tree}
        spelled = [path.rsplit("/", n)[0] for n in range(path.count("/") + 1)]
        same = all(taken.get(key, own) == own for key, own in zip(above, spelled, strict=True))
        if same and folded(path) not in taken and not whole & set(above):
            tree[path] = draw(st.none() | st.binary(max_size=2000))
    return tree


@settings(max_examples=60, deadline=None)
@given(trees(), st.sampled_from(KINDS))
def test_any_tree_comes_back_out(tree: Tree, kind: str) -> None:
    with TemporaryDirectory() as folder:
        archive = Path(folder, "archive")
        archive.write_bytes(packed(kind, planted(tree)))
        archives.unpack(archive, Path(folder, "out"))
        assert tree_in(Path(folder, "out")) == tree


def test_archives_of_the_usual_tools(tmp_path: Path) -> None:
    """With `./` before every name, a member for the folder itself, and links among the files."""
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "one").write_bytes(b"1")
    (source / "a" / "up").symlink_to("../two")
    (source / "chain").symlink_to("a/up")
    (source / "two").write_bytes(b"2")
    os.link(source / "two", source / "hard")
    subprocess.run(["tar", "czf", tmp_path / "set.tgz", "-C", source, "."], check=True)
    archives.unpack(tmp_path / "set.tgz", tmp_path / "out")
    assert tree_in(tmp_path / "out") == {"a/one": b"1", "a/up": b"2", "chain": b"2", "hard": b"2", "two": b"2"}


ABSOLUTE = ["/etc/x", "//etc/x", "C:/x", "C:x", "\\x", "\\\\host\\share\\x"]
UPWARDS = ["../x", "a/../../x", "a/../b", "..", "a/.."]
ODD = ["a\nb", "a\x1b[2Jb", "a\x7fb", "a\x9bb", "a\\b", "..\\x"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar-gnu", "tgz"])
@pytest.mark.parametrize("name", [*ABSOLUTE, *UPWARDS, *ODD])
def test_a_name_that_leads_elsewhere(tmp_path: Path, make: Make, kind: str, name: str) -> None:
    archive = make(kind, [Entry("good", b"1"), Entry(name, b"2"), Entry("also-good", b"3")])
    sentence = refused(archive, tmp_path / "out", "an absolute path|'..' in its path|control characters|a backslash")
    assert repr(name) in sentence
    assert sentence.isprintable()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["", ".", "./", "a/" * 65 + "b"])
def test_a_name_that_is_none(tmp_path: Path, make: Make, kind: str, name: str) -> None:
    archive = make(kind, [Entry("good", b"1"), Entry(name, b"2")])
    if kind == "zip" and name == "./":
        archives.unpack(archive, tmp_path / "out")
        assert tree_in(tmp_path / "out") == {"good": b"1"}
    else:
        refused(archive, tmp_path / "out", "is no name of a file|more than 64 folders")


def test_a_name_that_is_no_text(tmp_path: Path, make: Make) -> None:
    refused(make("tar-gnu", [Entry("a\udcff", b"1")]), tmp_path / "out", "broken text")


@pytest.mark.parametrize("name", ["a\0b", "a\0/../../x"])
def test_a_name_with_a_nul_in_a_zip(tmp_path: Path, make: Make, name: str) -> None:
    """zipfile itself would cut it there, and look at one name while another is written."""
    archive = make("zip", [Entry(name.replace("\0", "@"), b"1")])
    archive.write_bytes(archive.read_bytes().replace(b"@", b"\0"))
    refused(archive, tmp_path / "out", "control characters")


LINKS = [
    *[("link", target) for target in ("/etc/passwd", "../secret", "a/../../secret", "C:/x", "a\nb", "..\\secret")],
    *[("link", target) for target in ("", ".", "..", "nothing", "folder", "link", "good/deeper")],
    *[("folder/link", target) for target in ("../../secret", "nothing", ".", "..", "../folder")],
]


@pytest.mark.parametrize(("form", "link"), [("zip", "symlink"), ("tar", "symlink"), ("tar", "hardlink")])
@pytest.mark.parametrize(("name", "target"), LINKS)
def test_a_link_to_anything_but_a_file_of_the_archive(
    tmp_path: Path, make: Make, form: str, link: Any, name: str, target: str
) -> None:
    (tmp_path / "secret").write_bytes(b"not yours")
    archive = make(form, [Entry("good", b"1"), Entry("folder", kind="folder"), Entry(name, target.encode(), link)])
    refused(archive, tmp_path / "out", "links to|its path|absolute|control|backslash")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_a_circle(tmp_path: Path, make: Make, kind: str) -> None:
    archive = make(kind, [Entry("a", b"b", "symlink"), Entry("b", b"c", "symlink"), Entry("c", b"b", "symlink")])
    refused(archive, tmp_path / "out", "no file of the archive")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("target", ["outside", "/", "..", "good"])
def test_writing_through_a_link(tmp_path: Path, make: Make, kind: str, target: str) -> None:
    """The classic: a link that leads out, and then a member below it."""
    (tmp_path / "outside").mkdir()
    link = str(tmp_path / target) if target == "outside" else target
    members = [Entry("good", kind="folder"), Entry("link", link.encode(), "symlink"), Entry("link/evil", b"2")]
    refused(make(kind, members), tmp_path / "out", "an absolute path|'..' in its path|both a file and a folder")
    refused(make(kind, members[::-1]), tmp_path / "out", "an absolute path|'..' in its path|both a file and a folder")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("what", ["device", "pipe"])
def test_a_member_that_is_no_file(tmp_path: Path, make: Make, kind: str, what: Any) -> None:
    refused(make(kind, [Entry("good", b"1"), Entry("bad", b"", what)]), tmp_path / "out", "neither a file, a folder")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("again", ["a/x", "./a/x", "a//x"])
def test_a_member_that_comes_twice(tmp_path: Path, make: Make, kind: str, again: str) -> None:
    for data in (b"2", b"", b"12", b"1" * 70_000):
        refused(make(kind, [Entry("a/x", b"1"), Entry(again, data)]), tmp_path / "out", "twice with different content")
    archives.unpack(make(kind, [Entry("a/x", b"1"), Entry(again, b"1")]), tmp_path / "out")
    assert tree_in(tmp_path / "out") == {"a/x": b"1"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_link_that_comes_twice(tmp_path: Path, make: Make, kind: str) -> None:
    files = [Entry("one", b"1"), Entry("two", b"2"), Entry("link", b"one", "symlink")]
    refused(make(kind, [*files, Entry("link", b"two", "symlink")]), tmp_path / "out", "links to different files")
    refused(make(kind, [*files, Entry("link", b"2")]), tmp_path / "out", "twice with different content")
    archives.unpack(make(kind, [*files, Entry("link", b"one", "symlink"), Entry("link", b"1")]), tmp_path / "out")
    assert tree_in(tmp_path / "out") == {"one": b"1", "two": b"2", "link": b"1"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a", "A"), ("x/a", "X/b"), ("caf\u00e9", "cafe\u0301"), ("\u00c4", "\u00e4")])
def test_names_that_many_disks_take_for_one(tmp_path: Path, make: Make, kind: str, names: tuple[str, str]) -> None:
    refused(make(kind, [Entry(name, b"1") for name in names]), tmp_path / "out", "only in case or in how accents")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "entries",
    [
        [Entry("a", b"1"), Entry("a/b", b"2")],
        [Entry("a/b", b"2"), Entry("a", b"1")],
        [Entry("a", b"1"), Entry("a", kind="folder")],
        [Entry("a", kind="folder"), Entry("a", b"1")],
    ],
)
def test_a_name_for_both_a_file_and_a_folder(tmp_path: Path, make: Make, kind: str, entries: list[Entry]) -> None:
    refused(make(kind, entries), tmp_path / "out", "both a file and a folder")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_there_and_the_same_does_not_matter(tmp_path: Path, make: Make, kind: str) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "one.png").write_bytes(b"1" * 700)
    (out / "own").write_bytes(b"own")
    kept = (out / "a" / "one.png").stat()
    for _ in range(2):
        archives.unpack(make(kind, planted(SMALL)), out)
        assert tree_in(out) == SMALL | {"own": b"own"}
    assert (out / "a" / "one.png").stat().st_ino == kept.st_ino
    assert files_in(tmp_path) == ["in", "out"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("stands", ["other", "shorter", "folder", "file", "link", "pipe"])
def test_what_is_there_and_different_stays(tmp_path: Path, make: Make, kind: str, stands: str) -> None:
    archive = make(kind, planted(SMALL))
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    if stands == "other":
        (out / "a" / "one.png").write_bytes(b"2" * 700)
    elif stands == "shorter":
        (out / "a" / "one.png").write_bytes(b"1")
    elif stands == "folder":
        (out / "a" / "one.png").mkdir()
    elif stands == "file":
        (out / "a" / "b").write_bytes(b"")
    elif stands == "link":
        (out / "a" / "one.png").symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(out / "a" / "one.png")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"'{out / 'a'}/(b|one.png)' is there"):
        archives.unpack(archive, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_is_a_file(tmp_path: Path, make: Make) -> None:
    archive = make("zip", planted(SMALL))
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(UserError, match="is there and is no folder"):
        archives.unpack(archive, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"cannot be unpacked to .* \((Not a directory|File exists)\)"):
        archives.unpack(archive, tmp_path / "out" / "deeper")


def test_a_link_to_the_folder_stays_one(tmp_path: Path, make: Make) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    archives.unpack(make("zip", planted(SMALL)), tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert tree_in(tmp_path / "disk") == SMALL
    (tmp_path / "ahead").symlink_to(tmp_path / "disk" / "new")
    archives.unpack(make("zip", planted(SMALL)), tmp_path / "ahead")
    assert tree_in(tmp_path / "disk" / "new") == SMALL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_only_the_folder_itself_may_be_written(tmp_path: Path, make: Make) -> None:
    archive = make("zip", planted(SMALL))
    (tmp_path / "out").mkdir()
    tmp_path.chmod(0o500)
    try:
        archives.unpack(archive, tmp_path / "out")
        with pytest.raises(UserError, match="Permission denied"):
            archives.unpack(archive, tmp_path / "new")
    finally:
        tmp_path.chmod(0o700)
    assert tree_in(tmp_path / "out") == SMALL


def test_no_room_to_unpack(tmp_path: Path, make: Make) -> None:
    """In a process that may write no file of more than 1000 bytes."""
    archives = [str(make(kind, [Entry("small", b"1"), Entry("large", bytes(100_000))])) for kind in KINDS]
    code = (
        "import resource, sys, pathlib\n"
        "from cl_bench.errors import UserError\n"
        "from cl_bench.streams.archives import unpack\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for archive in sys.argv[1:]:\n"
        "    try:\n        unpack(pathlib.Path(archive), pathlib.Path('out'))\n"
        "    except UserError as error:\n        print(error)"
    )
    call = [sys.executable, "-B", "-c", code, *archives]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.count("(File too large); make room") == len(KINDS), done
    assert files_in(tmp_path) == ["in"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, make: Make) -> None:
    archive = make("zip", planted(SMALL))
    (tmp_path / ".out.unpacking" / "a").mkdir(parents=True)
    (tmp_path / ".out.unpacking" / "left").write_bytes(b"half")
    archives.unpack(archive, tmp_path / "out")
    assert tree_in(tmp_path / "out") == SMALL
    assert files_in(tmp_path) == ["in", "out"]


def test_two_processes_do_not_unpack_to_one_folder(tmp_path: Path, make: Make) -> None:
    archive = make("zip", planted(SMALL))
    with FileLock(tmp_path / ".out.unpacking.lock"), pytest.raises(UserError, match="another process"):
        archives.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive(tmp_path: Path, make: Make, kind: str) -> None:
    archive = make(kind, planted(SMALL))
    whole = archive.read_bytes()
    ends = len(whole)
    if kind.startswith("tar") and "." not in kind:
        # The padding of a tar is of no use to anyone.
        ends = len(whole.rstrip(b"\0")) // 512 * 512 + 1024
        assert ends < len(whole)
    for length in {*range(0, ends, 1 + ends // 40), *range(0, ends, 512), ends - 1}:
        archive.write_bytes(whole[:length])
        refused(archive, tmp_path / "out", "truncated, damaged or neither")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("tar", "tar-gnu")])
def test_an_archive_with_a_damaged_byte(tmp_path: Path, make: Make, kind: str) -> None:
    """Which the checksums within find; a plain tar has none over its files."""
    archive = make(kind, [Entry("x", CONTENT[:5000])])
    content = bytearray(archive.read_bytes())
    content[2500] ^= 1
    archive.write_bytes(content)
    refused(archive, tmp_path / "out", "truncated, damaged")


def test_a_zip_that_lost_its_beginning(tmp_path: Path, make: Make) -> None:
    """Its offsets lead before the start of the file."""
    archive = make("zip", planted(SMALL))
    archive.write_bytes(b"PK" + archive.read_bytes()[100:])
    refused(archive, tmp_path / "out", "truncated, damaged")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_archive_ends_in_a_sentence(kind: str, data: st.DataObject) -> None:
    """Whatever bytes are changed: it is refused, or something is unpacked, and nothing ever beside the folder."""
    content = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as folder:
        archive = Path(folder, "archive")
        archive.write_bytes(content)
        try:
            archives.unpack(archive, Path(folder, "out"))
        except UserError as error:
            assert f"'{archive}'" in str(error)
            assert files_in(Path(folder)) == ["archive"]
        else:
            assert files_in(Path(folder)) == ["archive", "out"]


LINKED = [*planted(SMALL), Entry("link", b"a/one.png", "symlink"), Entry("a/" + "long" * 40, b"3")]
WHOLE = {kind: packed(kind, LINKED) for kind in KINDS}


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><title>404</title>", bytes(200), b"PK", b"\x1f\x8b"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(content)
    refused(archive, tmp_path / "out", "truncated, damaged or neither zip nor tar")


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    for archive in (tmp_path / "none.zip", tmp_path):
        refused(archive, tmp_path / "out", r"cannot be read \((No such file|Is a directory)")


def test_a_tar_with_a_damaged_header_in_the_middle(tmp_path: Path, make: Make) -> None:
    """Which tarfile takes for the end."""
    archive = make("tar", [Entry("one", b"1"), Entry("two", b"2")])
    content = bytearray(archive.read_bytes())
    content[1024] ^= 1
    archive.write_bytes(content)
    refused(archive, tmp_path / "out", "the end is missing")


def header(content: bytes, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The first block of a tar with another size (12 bytes) and kind, and a right checksum."""
    block = bytearray(content[:512])
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_tar_member_of_negative_length(tmp_path: Path, make: Make) -> None:
    """tarfile would go back by it, read the same member again, and so for ever."""
    archive = make("tar", [Entry("one", b"1")])
    content = archive.read_bytes()
    archive.write_bytes(content[:1024] + header(content, b"\xff" * 10 + b"\xfe\x00") + bytes(2048))
    refused(archive, tmp_path / "out", "truncated, damaged")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_header_that_asks_for_all_memory(tmp_path: Path, make: Make, kind: bytes) -> None:
    archive = make("tar", [Entry("one", b"1")])
    archive.write_bytes(header(archive.read_bytes(), b"77777777777\0", kind) + bytes(2048))
    refused(archive, tmp_path / "out", "impossible length")


def test_a_tar_member_of_a_type_that_nobody_knows(tmp_path: Path, make: Make) -> None:
    archive = make("tar", [Entry("bad")])
    archive.write_bytes(header(archive.read_bytes(), b"00000000000\0", b"Z") + bytes(1024))
    refused(archive, tmp_path / "out", "neither a file, a folder")


def test_an_encrypted_zip(tmp_path: Path, make: Make) -> None:
    archive = make("zip", [Entry("one", b"1")])
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, tmp_path / "out", "encrypted")
