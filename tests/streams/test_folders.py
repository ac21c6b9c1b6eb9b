"""What lies in a folder and is not read is counted and named; links, names and empty folders say what they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cl_bench import streams
from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.verify import verify
from tests.helpers import trees
from tests.helpers.layouts import LAYOUTS, made, names_of

pytestmark = pytest.mark.usefixtures("nowhere")

CLASSES = ("ant", "bee")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Two classes in train/ and test/."""
    return trees.pre_split(tmp_path, "mine", CLASSES)


def found(folder: Path) -> tuple[str, set[str]]:
    """The files that are not read: by their endings, and their paths."""
    report = verify(catalogue.find(f"folder:{folder}"), quick=True)
    paths = {finding.text.removeprefix(f"{folder}/") for finding in report.findings if finding.kind == "not read"}
    return report.not_read, paths


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["gif", "jfif", "jpe", "JPG", "Png", "bmp", "TIFF", "tif", "webp", "avif", "ppm"])
def test_images_of_every_ending_are_read(ending: str, mine: Path) -> None:
    shutil.copyfile(mine / "train/ant/art_0.jpg", mine / f"train/ant/x.{ending}")
    listing = catalogue.load(catalogue.find(f"folder:{mine}"))
    assert f"ant/x.{ending}" in names_of(listing)[0] and not listing.not_read


def test_files_that_are_not_read_are_counted_by_their_ending(mine: Path) -> None:
    for i in range(10):
        (mine / f"train/ant/{i}.heic").write_bytes(b"x")
    for name in ("train/bee/1.txt", "train/bee/2.TXT", "train/bee/a.JPEG.crdownload", "train/bee/Thumbs.db"):
        (mine / name).write_bytes(b"x")
    (mine / "test/ant/deep").mkdir()
    (mine / "test/ant/deep/README").write_bytes(b"x")
    # Beside both parts only images count, and what the Finder leaves behind never does.
    for name in ("README.md", "train/.DS_Store", "train/ant/._art_0.jpg"):
        (mine / name).write_bytes(b"x")
    text, paths = found(mine)
    assert text == (
        "10 .heic in train/ant/, 2 .txt in train/bee/, 1 .crdownload in train/bee/, 1 .db in train/bee/, "
        "1 without an ending in test/ant/deep/"
    )
    assert len(paths) == 15 and {"train/bee/2.TXT", "train/ant/0.heic", "test/ant/deep/README"} <= paths


def test_images_where_none_are_looked_for_are_counted(mine: Path) -> None:
    for name in ("val/ant/1.png", "val/bee/2.png", "train/loose.jpg", "extra.jpg", "train/ant/.hidden.png"):
        trees.save(mine / name)
    trees.save(mine / "train/.ipynb_checkpoints/art_0.jpg")
    text, paths = found(mine)
    assert text == (
        "2 .png in val/, 1 .jpg, 1 .jpg in train/, 1 hidden .jpg in train/.ipynb_checkpoints/, "
        "1 hidden .png in train/ant/"
    )
    assert len(paths) == 6
    # Below a class folder, images are read at any depth.
    trees.save(mine / "train/ant/deep/er/1.jpg")
    assert found(mine)[0] == text
    assert "ant/deep/er/1.jpg" in names_of(catalogue.load(catalogue.find(f"folder:{mine}")))[0]


def test_one_tree_with_a_list_counts_too(mine: Path) -> None:
    for part in ("train", "test"):
        lines = [f"{path.parent.name}/{path.name}\n" for path in sorted((mine / part).rglob("*.jpg"))]
        (mine / f"own_{part}.txt").write_text("".join(lines))
    shutil.copytree(mine / "test", mine / "train", dirs_exist_ok=True)
    shutil.rmtree(mine / "test")
    for name in CLASSES:
        (mine / "train" / name).rename(mine / name)
    (mine / "train").rmdir()
    (mine / "ant/x.heic").write_bytes(b"x")
    trees.save(mine / "loose.jpg")
    trees.save(mine / "bee/unlisted.jpg")
    text, _ = found(mine)
    assert text == "1 .heic in ant/, 1 .jpg"
    listing = catalogue.load(catalogue.find(f"folder:{mine}"))
    assert [path.name for path in listing.unlisted] == ["unlisted.jpg"]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "pickles" not in name and "fashion" not in name])
def test_only_what_an_official_archive_does_not_hold_is_counted(layout: str, tmp_path: Path) -> None:
    dataset, _ = made(layout, tmp_path)
    assert not verify(dataset, tmp_path, quick=True).not_read
    image = catalogue.load(dataset, tmp_path).train[0].path
    assert image is not None
    image.with_suffix(".heic").write_bytes(b"x")
    assert verify(dataset, tmp_path, quick=True).not_read.startswith("1 .heic in ")


# --- links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/again", "../ant"),
        ("train/ant/again", "."),
        ("train/ant/deep/again", "../.."),
        ("train/again", "."),
        ("train/ant/again", "/"),
        ("test/bee/again", "../../.."),
    ],
)
def test_a_link_to_a_folder_that_it_lies_in_is_named(link: str, target: str, mine: Path) -> None:
    (mine / link).parent.mkdir(exist_ok=True)
    (mine / link).symlink_to(target)
    with pytest.raises(UserError, match=f"'{mine / link}' is a symbolic link to '.*never end; remove the link"):
        catalogue.load(catalogue.find(f"folder:{mine}"))


def test_links_to_each_other_are_named(mine: Path) -> None:
    (mine / "train/ant/other").symlink_to("../bee")
    (mine / "train/bee/other").symlink_to("../ant")
    with pytest.raises(UserError, match="'.*/train/ant/other/other' is a symbolic link to '.*/train/ant'"):
        catalogue.load(catalogue.find(f"folder:{mine}"))


@pytest.mark.parametrize("link", ["train/ant/x.jpg", "train/ant/x", "train/x", "x.jpg"])
def test_a_link_to_itself_is_named(link: str, mine: Path) -> None:
    (mine / link).symlink_to(Path(link).name)
    with pytest.raises(UserError, match=f"'{mine / link}' is a symbolic link that leads back to itself; remove it"):
        catalogue.load(catalogue.find(f"folder:{mine}"))


def test_links_to_classes_and_images_elsewhere_are_followed(mine: Path) -> None:
    plain = names_of(catalogue.load(catalogue.find(f"folder:{mine}")))
    (mine / "train/ant").rename(mine / "store")
    (mine / "train/ant").symlink_to("../store")
    listing = catalogue.load(catalogue.find(f"folder:{mine}"))
    # What they lead to is read, if by another name.
    assert names_of(listing) == plain and not listing.not_read
    (mine / "train/ant/gone.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(UserError, match="gone.jpg' is missing"):
        catalogue.load(catalogue.find(f"folder:{mine}"))


def test_a_pipe_among_the_images_is_named(mine: Path) -> None:
    os.mkfifo(mine / "train/ant/x.jpg")
    report = verify(catalogue.find(f"folder:{mine}"))
    assert [(finding.kind, finding.text) for finding in report.findings] == [
        ("unreadable", f"{mine}/train/ant/x.jpg (not a file)")
    ]


# --- names -----------------------------------------------------------------------------------------------------


def add_names(folder: Path, names: list[bytes]) -> None:
    try:
        for name in names:
            shutil.copyfile(folder / "art_0.jpg", os.fsencode(folder) + b"/" + name)
    except OSError:
        pytest.skip("the file system takes no such names")


def test_only_the_names_that_are_no_text_are_named(mine: Path) -> None:
    add_names(mine / "train/bee", [b"ma\xf1ana.jpg"])
    with pytest.raises(UserError) as caught:
        verify(catalogue.find(f"folder:{mine}"))
    assert str(caught.value) == r"the file name 'bee/ma\xf1ana.jpg' is not valid UTF-8; rename the file"
    add_names(mine / "train/bee", [b"\xff%d\x1b.jpg" % i for i in range(4)])
    with pytest.raises(UserError) as caught:
        streams.find(f"folder:{mine}").source().split  # noqa: B018
    assert str(caught.value) == (
        r"the file names 'bee/ma\xf1ana.jpg', 'bee/\xff0\x1b.jpg', 'bee/\xff1\x1b.jpg' and 2 more are not valid UTF-8; "
        "rename the files"
    )


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("train", [COMPOSED, DECOMPOSED])
def test_a_class_in_another_unicode_form_is_the_same_class(train: str, mine: Path) -> None:
    test = {COMPOSED: DECOMPOSED, DECOMPOSED: COMPOSED}[train]
    (mine / "train/ant").rename(mine / "train" / train)
    (mine / "test/ant").rename(mine / "test" / test)
    if (mine / "test" / train).exists():
        pytest.skip("the file system has one form for all names")
    listing = catalogue.load(catalogue.find(f"folder:{mine}"))
    assert listing.classes == ("bee", train)
    assert {entry.name for entry in listing.test if entry.label == train} == {
        f"{train}/art_4.jpg",
        f"{train}/art_5.jpg",
    }
    assert all(entry.path and entry.path.is_file() for entry in listing.test)


def test_two_unicode_forms_in_one_part_are_named(mine: Path) -> None:
    (mine / "train/ant").rename(mine / "train" / COMPOSED)
    if (mine / "train" / DECOMPOSED).exists():
        pytest.skip("the file system has one form for all names")
    shutil.copytree(mine / "train" / COMPOSED, mine / "train" / DECOMPOSED)
    with pytest.raises(
        UserError, match=r"2 folders of the class 'café'.*accents.*'cafe\\u0301', 'caf\\xe9'; put their"
    ):
        catalogue.load(catalogue.find(f"folder:{mine}"))


# --- empty folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir", ".Trash-0"])
def test_folders_of_the_disk_are_no_classes(name: str, mine: Path) -> None:
    plain = catalogue.load(catalogue.find(f"folder:{mine}"))
    for part in ("train", "test", "."):
        (mine / part / name).mkdir()
    assert catalogue.load(catalogue.find(f"folder:{mine}")) == plain
    for folder in ("train", "train/ant", "test/bee"):
        trees.save(mine / folder / name / "1.jpg")
    assert names_of(catalogue.load(catalogue.find(f"folder:{mine}"))) == names_of(plain)
    assert found(mine)[1] == {f"{folder}/{name}/1.jpg" for folder in ("train", "train/ant", "test/bee")}


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class_folder_is_named(part: str, mine: Path) -> None:
    (mine / part / "none").mkdir()
    dataset = catalogue.find(f"folder:{mine}")
    with pytest.raises(
        UserError, match=f"no training images of class 'none'.*remove or fill the empty folder '{mine}/{part}/none'$"
    ):
        catalogue.load(dataset)
    report = verify(dataset)
    assert ("empty", f"{mine}/{part}/none") in [(finding.kind, finding.text) for finding in report.findings]
    assert not report.good


def test_a_class_of_files_that_are_not_read_is_explained(mine: Path) -> None:
    for path in (mine / "train/bee").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(
        UserError,
        match=r"no training images of class 'bee'; remove or fill the empty .* \(not read: 4 .heic in train/bee/\)$",
    ):
        catalogue.load(catalogue.find(f"folder:{mine}"))


def test_parts_without_classes_are_refused(mine: Path) -> None:
    for path in sorted(mine.rglob("*.jpg")):
        path.rename(path.parents[1] / path.name)
    for folder in mine.glob("*/*/"):
        folder.rmdir()
    dataset = catalogue.find(f"folder:{mine}")
    with pytest.raises(
        UserError,
        match=r"no class folders with images; put .* folder of its own \(not read: 4 .jpg in train/, 2 .jpg in test/",
    ):
        catalogue.load(dataset)
    assert [finding.text for finding in verify(dataset).findings if finding.fault] == ["no class folders with images"]
