"""Downloads from a real server: whole ones, and parts that are taken up or given up."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cl_bench.errors import UserError
from cl_bench.streams import download
from tests.helpers.downloads import CONTENT, MD5, OTHER, PAGE, QUICK, SHA256, RecordedProgress, Site, files_in, lay_part


@pytest.mark.parametrize("length", ["header", "chunks", "close"])
@pytest.mark.parametrize("checksum", [None, SHA256, MD5, SHA256.upper()])
def test_a_download_is_whole(tmp_path: Path, site: Site, length: Any, checksum: str | None) -> None:
    site.length = length
    progress, target = RecordedProgress(), tmp_path / "new" / "deep" / "set.bin"
    download.download(site.url, target, size=len(CONTENT), checksum=checksum, progress=progress, **QUICK)
    assert target.read_bytes() == CONTENT
    assert files_in(target.parent) == ["set.bin"]
    assert (progress.totals, progress.done) == ([len(CONTENT)], len(CONTENT))
    assert site.seen[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("length", ["header", "chunks"])
def test_a_download_of_which_nothing_is_known(tmp_path: Path, site: Site, length: Any) -> None:
    site.length = length
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_download_that_could_end_anywhere_is_refused(tmp_path: Path, site: Site) -> None:
    site.length = "close"
    with pytest.raises(UserError, match="without a length"):
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
    progress, target = RecordedProgress(), tmp_path / "set.bin"
    download.download(site.url, target, progress=progress, **known, **QUICK)
    assert target.read_bytes() == CONTENT
    once, twice = "bytes=100000-", "bytes=200000-"
    assert site.requested_ranges == [None, once, once, once, twice, twice, twice]
    assert [headers.get("If-Range") for headers in site.seen] == [None, *['"one"'] * 6]
    assert progress.done == len(CONTENT)
    assert files_in(tmp_path) == ["set.bin"]


def test_the_validator_is_a_strong_one(tmp_path: Path, site: Site) -> None:
    site.etag, site.modified = 'W/"weak"', "Mon, 06 Jan 2020 10:00:00 GMT"
    site.answers = [("bytes", 1000)]
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert site.seen[1]["If-Range"] == site.modified
    assert site.requested_ranges == [None, "bytes=1000-"]


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
    assert site.requested_ranges == ["bytes=100000-"]


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
    progress = RecordedProgress()
    download.download(site.url, target, checksum=SHA256, progress=progress, **QUICK)
    assert target.read_bytes() == CONTENT
    assert site.requested_ranges == [None, f"bytes={length}-"]
    assert progress.done == len(CONTENT)
    assert files_in(tmp_path) == ["set.bin"]


def test_a_server_without_ranges_sends_all_again(tmp_path: Path, site: Site) -> None:
    site.ranges = "none"
    site.answers = [("bytes", 100_000)]
    progress = RecordedProgress()
    download.download(site.url, tmp_path / "set.bin", checksum=SHA256, progress=progress, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.requested_ranges == [None, "bytes=100000-"]
    assert (progress.totals, progress.done) == ([len(CONTENT)] * 2, len(CONTENT))


def test_a_server_that_sends_another_part_is_not_believed(tmp_path: Path, site: Site) -> None:
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.ranges = "other"
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.requested_ranges == ["bytes=100000-", None]


def test_a_server_that_always_breaks_at_the_same_byte_is_given_up(tmp_path: Path, site: Site) -> None:
    site.ranges = "none"
    site.answers = [("bytes", 100_000)] * 20
    with pytest.raises(UserError, match="cannot be downloaded"):
        download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert len(site.seen) == 1 + len(QUICK["waits"])


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
    assert site.requested_ranges == ["bytes=100000-", None]


def test_a_file_that_became_shorter_than_the_part_is_got_anew(tmp_path: Path, site: Site) -> None:
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.content, site.ranges = CONTENT[:50], "range"
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT[:50]
    assert site.requested_ranges == ["bytes=100000-", None]


def test_a_part_of_another_address_goes_on_only_under_a_checksum(tmp_path: Path, site: Site) -> None:
    target, mirror = tmp_path / "set.bin", site.url.replace("set", "mirror")
    lay_part(target, site, 100_000)
    download.download(mirror, target, checksum=SHA256, **QUICK)
    assert site.requested_ranges == ["bytes=100000-"]
    assert "If-Range" not in site.seen[0]
    assert target.read_bytes() == CONTENT
    target.unlink()
    lay_part(target, site, 100_000)
    download.download(mirror, target, size=len(CONTENT), **QUICK)
    assert site.requested_ranges == [None]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("note", [None, b"", b"{}", b"[1]", b'{"url": 3}', b"\xff"])
def test_a_part_without_a_good_note_is_not_trusted(tmp_path: Path, site: Site, note: bytes | None) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"of another kind")
    if note is not None:
        (tmp_path / "set.bin.part.json").write_bytes(note)
    download.download(site.url, tmp_path / "set.bin", **QUICK)
    assert site.requested_ranges == [None]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("right", [True, False])
def test_a_part_that_is_whole_needs_no_request_if_it_is_right(tmp_path: Path, site: Site, right: bool) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT if right else OTHER)
    download.download(site.url, tmp_path / "set.bin", size=len(CONTENT), checksum=SHA256, **QUICK)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert site.requested_ranges == ([] if right else [None])
