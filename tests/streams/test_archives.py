"""Archives are unpacked whole, next to what is there already."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.errors import UserError
from cl_bench.streams import archives
from tests.helpers.archives import KINDS, SMALL, Entry, Make, Tree, packed, planted, tree_in
from tests.helpers.downloads import RecordedProgress, files_in


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_unpacked(tmp_path: Path, make: Make, kind: str) -> None:
    archive, progress = make(kind, planted(SMALL)), RecordedProgress()
    archives.unpack(archive, tmp_path / "new" / "out", progress=progress)
    assert tree_in(tmp_path / "new") == {f"out/{name}": data for name, data in SMALL.items()}
    assert (progress.totals, progress.done) == ([archive.stat().st_size], archive.stat().st_size)
    for path in (tmp_path / "new").rglob("*"):
        plain = tmp_path / ("plain-folder" if path.is_dir() else "plain-file")
        plain.mkdir(exist_ok=True) if path.is_dir() else plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode


def test_the_members_of_a_zip_in_any_order(tmp_path: Path) -> None:
    archive, progress = tmp_path / "set.zip", RecordedProgress()
    with zipfile.ZipFile(archive, "w") as file:
        for name in "abc":
            file.writestr(name, name * 1000)
        file.filelist.reverse()
    archives.unpack(archive, tmp_path / "out", progress=progress)
    assert progress.done == archive.stat().st_size
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
    with pytest.raises(UserError, match=f"'{out / 'a'}/(b|one.png)' exists"):
        archives.unpack(archive, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_is_a_file(tmp_path: Path, make: Make) -> None:
    archive = make("zip", planted(SMALL))
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists and is not a folder"):
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
