"""Archives that mean harm: names, links and members that lead elsewhere."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cl_bench.streams import archive_members, archives
from tests.helpers.archives import Entry, Make, packed, refused, tree_in

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
        refused(archive, tmp_path / "out", "is not the name of a file|more than 64 folders")


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


# --- too much --------------------------------------------------------------------------------------------------


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million bytes and 100 names in any case: real bombs take seconds."""
    monkeypatch.setattr(archive_members, "_ALWAYS", 1_000_000)
    monkeypatch.setattr(archive_members, "_NAMES", 100)


def test_a_bomb(tmp_path: Path, make: Make) -> None:
    archive = make("zip-deflated", [Entry("good", b"1"), Entry("zeros", bytes(101 << 20))])
    sentence = refused(archive, tmp_path / "out", "'zeros' makes it larger than 104,857,600 bytes")
    assert "make sure that it is the official file" in sentence


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", ["zip-deflated", "zip-bz2", "zip-lzma", "tgz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("members", [1, 11])
def test_a_bomb_of_any_kind(tmp_path: Path, make: Make, kind: str, members: int) -> None:
    entries = [Entry(f"zeros{i}", bytes(1_100_000 // members)) for i in range(members)]
    refused(make(kind, entries), tmp_path / "out", f"'zeros{members - 1}' makes it larger than 1,000,000 bytes")


def test_a_sparse_file_counts_with_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "in" / "holes"
    source.parent.mkdir()
    with source.open("wb") as file:
        file.truncate(1 << 40)
    command = ["tar", "--sparse", "-cf", tmp_path / "in" / "set.tar", "-C", source.parent, "holes"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("tar knows no sparse files")
    source.unlink()
    refused(tmp_path / "in" / "set.tar", tmp_path / "out", "'holes' makes it larger than 104,857,600 bytes")


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_links_count_as_the_copies_that_they_become(tmp_path: Path, make: Make, link: Any) -> None:
    links = [Entry(f"link{i}", b"zeros", link) for i in range(2)]
    archive = make("tgz", [Entry("zeros", bytes(400_000)), *links])
    refused(archive, tmp_path / "out", "'link1' makes it larger")


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_too_many_files_and_folders(tmp_path: Path, make: Make, kind: str) -> None:
    """Folders count that are only in the paths of files."""
    archive = make(kind, [Entry("/".join([str(i), *"a" * 60]), b"x") for i in range(9)])
    refused(archive, tmp_path / "out", "is one of more than ... files and folders")


@pytest.mark.usefixtures("low_limits")
def test_what_follows_the_last_member_counts(tmp_path: Path) -> None:
    archive = tmp_path / "in" / "set.tgz"
    archive.parent.mkdir()
    archive.write_bytes(gzip.compress(packed("tar", [Entry("a", b"1")]) + bytes(1_100_000)))
    refused(archive, tmp_path / "out", "'what follows the last one' makes it larger")


def test_an_archive_that_the_disk_has_no_room_for(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    sentence = refused(make("zip", [Entry("a", bytes(600)), Entry("b", bytes(600))]), tmp_path / "out", "make room")
    assert "(it needs more than the 1,000 bytes that are free)" in sentence


@pytest.mark.usefixtures("low_limits")
def test_real_archives_are_far_from_the_limits(tmp_path: Path, make: Make) -> None:
    """Ten times as large as packed, as lists may be, and many small files."""
    random = np.random.default_rng(0)
    entries = [Entry(f"{i}/x", random.bytes(700) * 10) for i in range(200)]
    archives.unpack(make("tgz", entries), tmp_path / "out")
    assert len(tree_in(tmp_path / "out")) == 200
