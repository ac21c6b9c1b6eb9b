"""Archives that mean harm: names, links and members that lead elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_bench.streams import archives
from tests.helpers.archives import Entry, Make, refused, tree_in

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
