"""Archives that are truncated, damaged, encrypted or none at all."""

from __future__ import annotations

import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.errors import UserError
from cl_bench.streams import archives
from tests.helpers.archives import KINDS, SMALL, Entry, Make, packed, planted, refused
from tests.helpers.downloads import CONTENT, files_in


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
