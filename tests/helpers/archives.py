"""Archives as well-behaved tools and attackers write them, and the files on disk after unpacking."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from cl_bench.errors import UserError
from cl_bench.streams import archives

Tree = dict[str, bytes | None]
"""Content of files by path; None for an empty folder."""
KINDS = ("zip", "zip-deflated", "zip-bz2", "zip-lzma", "tar", "tar-gnu", "tgz", "tar.bz2", "tar.xz")
PACK: dict[str, Callable[[bytes], bytes]] = {"tgz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
METHODS = {"zip-deflated": zipfile.ZIP_DEFLATED, "zip-bz2": zipfile.ZIP_BZIP2, "zip-lzma": zipfile.ZIP_LZMA}


@dataclass(frozen=True)
class Entry:
    """A member of an archive, valid or not; for a link, `data` is its target."""

    name: str
    data: bytes = b""
    kind: Literal["file", "folder", "symlink", "hardlink", "device", "pipe"] = "file"


def packed(kind: str, entries: list[Entry]) -> bytes:
    """An archive of these members in this order, without any check of them."""
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
    """All files and empty folders below a folder; a symbolic link is an error."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink()
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif not any(path.iterdir()):
            found[path.relative_to(folder).as_posix()] = None
    return found


SMALL: Tree = {"a/one.png": b"1" * 700, "a/b/two.png": bytes(range(256)) * 3, "empty": None, "zero": b""}
Make = Callable[[str, list[Entry]], Path]


def refused(archive: Path, folder: Path, match: str) -> str:
    """Assert that unpacking is refused and changes nothing on disk; returns the error sentence."""
    before = tree_in(folder.parent)
    with pytest.raises(UserError, match=match) as caught:
        archives.unpack(archive, folder)
    assert f"'{archive}'" in str(caught.value)
    assert tree_in(folder.parent) == before
    return str(caught.value)
