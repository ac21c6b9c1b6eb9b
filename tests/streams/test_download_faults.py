"""Downloads that go wrong: checksums, lengths, refusals, silence, full disks."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cl_bench.errors import UserError
from cl_bench.streams import download
from tests.helpers.downloads import CONTENT, MD5, OTHER, PAGE, QUICK, SHA256, RecordedProgress, Site, files_in, lay_part


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
    assert site.requested_ranges == (["bytes=100000-", None] if resumed else [None])


def test_what_came_in_one_piece_and_is_wrong_is_not_asked_for_again(tmp_path: Path, site: Site) -> None:
    lay_part(tmp_path / "set.bin", site, 100_000)
    site.ranges = "none"
    with pytest.raises(UserError, match="expected 0000"):
        download.download(site.url, tmp_path / "set.bin", checksum=f"md5:{'0' * 32}", **QUICK)
    assert site.requested_ranges == ["bytes=100000-"]


def test_a_file_that_changes_while_it_is_got_is_asked_for_once_more_only(tmp_path: Path, site: Site) -> None:
    class Change(RecordedProgress):
        def advance(self, units: int) -> None:
            super().advance(units)
            site.etag, site.content = '"two"', OTHER

    lay_part(tmp_path / "set.bin", site, 100_000)
    site.answers = [("bytes", 1000)]
    with pytest.raises(UserError, match="expected"):
        download.download(site.url, tmp_path / "set.bin", checksum=SHA256, progress=Change(), **QUICK)
    assert site.requested_ranges == ["bytes=100000-", "bytes=101000-"]
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
    assert site.requested_ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize("length", ["chunks", "close"])
def test_an_answer_longer_than_expected_is_cut_off(tmp_path: Path, site: Site, length: Any) -> None:
    site.length = length
    progress = RecordedProgress()
    with pytest.raises(UserError, match="more than 1000 bytes, expected 1000"):
        download.download(site.url, tmp_path / "set.bin", size=1000, progress=progress, **QUICK)
    assert progress.done < len(CONTENT)
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
    assert site.requested_ranges == [None, *["bytes=1000-"] * 3]


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
    # On a busy machine the server gets to the second one later.
    while len(site.seen) < 2:
        time.sleep(0.01)
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
    progress = RecordedProgress()
    download.download(site.url, tmp_path / "set.bin", progress=progress, **known, **QUICK)
    assert site.seen == []
    assert (progress.totals, progress.done) == ([len(CONTENT)], len(CONTENT))


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
