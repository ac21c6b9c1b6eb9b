"""Every layout is read, on small trees that lie as the real ones do."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision.datasets.folder import pil_loader

from cl_bench.data.decoding import decode
from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.image_files import for_each_image
from cl_bench.streams.types import DataSet
from cl_bench.streams.verify import content_hash, pixel_digest, presence, verify
from tests.helpers import trees
from tests.helpers.layouts import LAYOUTS, made, names_of

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(layout: str, tmp_path: Path) -> None:
    dataset, folder = made(layout, tmp_path)
    listing = catalogue.load(dataset, tmp_path)
    assert len(listing.classes) == dataset.classes == len({*listing.classes})
    position = {name: i for i, name in enumerate(listing.classes)}
    for part in (listing.train, listing.test):
        keys = [(position[entry.label], entry.name) for entry in part]
        assert keys == sorted(keys) and len({*keys}) == len(keys)
        assert {entry.label for entry in part} == {*listing.classes}
        for entry in part:
            assert entry.name.split("/")[0] == entry.label.replace("/", "-")
            assert (entry.path is None) == (listing.pixels is not None)
            assert entry.path is None or (entry.path.is_file() and folder in entry.path.parents)
            assert entry.domain in (dataset.domains or (None,))
            assert not dataset.domains or entry.name.split("/")[1] == entry.domain
    report = verify(dataset, tmp_path)
    assert report.layout == listing.layout and (report.train, report.test) == (len(listing.train), len(listing.test))
    assert report.good and not report.findings and report.content and not report.published
    if listing.pixels is not None:
        for part, pixels in zip((listing.train, listing.test), listing.pixels, strict=True):
            assert pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == len(part)


@pytest.mark.parametrize("layout", ["cifar png", "imagenet-r pre-split", "cub pre-split"])
def test_classes_and_images_come_as_from_image_folder(layout: str, tmp_path: Path) -> None:
    dataset, folder = made(layout, tmp_path)
    listing = catalogue.load(dataset, tmp_path)
    for part, entries in (("train", listing.train), ("test", listing.test)):
        reference = torchvision.datasets.ImageFolder(str(folder / part))
        assert tuple(reference.classes) == listing.classes
        assert [(str(e.path), listing.classes.index(e.label)) for e in entries] == reference.samples


def test_cifar_pickles_come_as_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = trees.cifar_pickles(tmp_path) / "cifar-100-python"
    digest = {name: hashlib.md5((inner / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    reference_class = torchvision.datasets.CIFAR100
    monkeypatch.setattr(reference_class, "train_list", [["train", digest["train"]]])
    monkeypatch.setattr(reference_class, "test_list", [["test", digest["test"]]])
    monkeypatch.setattr(reference_class, "meta", reference_class.meta | {"md5": digest["meta"]})
    listing = catalogue.load(trees.CIFAR100, tmp_path)
    assert listing.pixels is not None
    for train, entries, pixels in ((True, listing.train, listing.pixels[0]), (False, listing.test, listing.pixels[1])):
        reference = reference_class(str(tmp_path / "cifar100"), train=train)
        assert tuple(reference.classes) == listing.classes
        ours = sorted((listing.classes.index(e.label), x.tobytes()) for e, x in zip(entries, pixels, strict=True))
        theirs = zip(reference.targets, reference.data, strict=True)
        assert ours == sorted((label, image.tobytes()) for label, image in theirs)


def test_both_layouts_of_cifar_agree(tmp_path: Path) -> None:
    trees.cifar_pickles(tmp_path / "a")
    trees.cifar_png(tmp_path / "b")
    one, other = (catalogue.load(trees.CIFAR100, tmp_path / name) for name in "ab")
    assert one.classes == other.classes == trees.THINGS and names_of(one) == names_of(other)
    reports = [verify(trees.CIFAR100, tmp_path / name) for name in "ab"]
    assert reports[0].content == reports[1].content and reports[0].split == reports[1].split
    assert reports[0].layout != reports[1].layout
    known = replace(
        trees.CIFAR100, content_hash=reports[0].content, split_hashes={"official": trees.hashes(*names_of(one))}
    )
    for name in "ab":
        report = verify(known, tmp_path / name)
        assert report.good and report.published and report.split == "official"


def test_the_content_hash_is_what_it_says(tmp_path: Path) -> None:
    trees.cifar_png(tmp_path)
    lines = []
    for path in (tmp_path / "cifar100").rglob("*.png"):
        pixels = np.asarray(Image.open(path))
        lines.append(f"{hashlib.sha256(b'32x32x3' + bytes([10]) + pixels.tobytes()).hexdigest()} {path.parent.name}")
    expected = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    assert verify(trees.CIFAR100, tmp_path).content == expected
    images = [("a", "1" * 64), ("b", "2" * 64)]
    hashes = {content_hash(images), content_hash([("b", "1" * 64), ("a", "2" * 64)]), content_hash(images[:1])}
    assert content_hash(images[::-1]) in hashes and len(hashes) == 3
    assert pixel_digest(np.zeros((2, 3, 1), np.uint8)) != pixel_digest(np.zeros((3, 2, 1), np.uint8))


@pytest.mark.parametrize("inner", ["FashionMNIST/raw"])
def test_fashion_comes_as_from_torchvision(inner: str, tmp_path: Path) -> None:
    trees.fashion(tmp_path, inner, packed=False)
    listing = catalogue.load(trees.FASHION_MNIST, tmp_path)
    assert listing.pixels is not None
    for part, train in enumerate((True, False)):
        reference = torchvision.datasets.FashionMNIST(str(tmp_path), train=train)
        assert tuple(reference.classes) == listing.classes
        order = np.argsort(reference.targets.numpy(), kind="stable")
        np.testing.assert_array_equal(reference.data.numpy()[order], listing.pixels[part][..., 0])
        assert [listing.classes[i] for i in np.sort(reference.targets.numpy())] == [
            entry.label for entry in (listing.train, listing.test)[part]
        ]


def test_the_layouts_of_tiny_imagenet_agree(tmp_path: Path) -> None:
    trees.tiny_original(tmp_path / "a")
    trees.tiny_folders(tmp_path / "b")
    trees.tiny_folders(tmp_path / "c", "images")
    first, *others = (catalogue.load(trees.TINY_IMAGENET, tmp_path / name) for name in "abc")
    contents = {verify(trees.TINY_IMAGENET, tmp_path / name).content for name in "abc"}
    assert len(contents) == 1 and all(names_of(other) == names_of(first) for other in others)
    assert first.test[0].name == "n01443537/val_0.JPEG"


def test_what_tools_leave_behind_is_no_data(tmp_path: Path) -> None:
    folder = trees.pre_split(tmp_path)
    (folder / "train" / ".DS_Store").write_text("")
    (folder / "train" / trees.WNIDS[0] / "._art_0.jpg").write_text("")
    (folder / "train" / trees.WNIDS[0] / "notes.txt").write_text("")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (folder / "train" / name).mkdir()
    assert verify(trees.IMAGENET_R, tmp_path).good


def test_decoding_is_torchvisions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for mode, suffix in (("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png")):
        bands = len(Image.new(mode, (1, 1)).getbands())
        shape = (20, 30, bands) if bands > 1 else (20, 30)
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), "L" if bands == 1 else mode).convert(mode)
        path = tmp_path / f"{mode}.{suffix}"
        image.save(path)
        np.testing.assert_array_equal(decode(path), np.asarray(pil_loader(str(path))))


def test_images_are_decoded_in_order(tmp_path: Path) -> None:
    trees.pre_split(tmp_path)
    listing = catalogue.load(trees.IMAGENET_R, tmp_path)
    many = listing.train * 40
    found = list(for_each_image(many, lambda entry, pixels: entry.name))
    assert found == [entry.name for entry in many]
    stopped = for_each_image(many, lambda entry, pixels: entry.name)
    assert next(stopped) == many[0].name
    stopped.close()


def test_any_tree_of_class_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("zebra", "ant", "train"):
            trees.save(tmp_path / "mine" / part / name / "deep" / "x.jpg")
            trees.save(tmp_path / "mine" / part / name / "y.PNG".lower())
    dataset = catalogue.find(f"folder:{tmp_path / 'mine'}")
    listing = catalogue.load(dataset)
    assert listing.classes == ("ant", "train", "zebra") and listing.layout == "train/ and val/ folders"
    assert listing.train[0].name == "ant/deep/x.jpg" and len(listing.test) == 6
    assert verify(dataset).good and presence(dataset).state == "yes"
    assert catalogue.load(catalogue.find("folder:mine")) == listing


def test_one_tree_with_a_list(tmp_path: Path) -> None:
    files = [f"{name}/deep/er/{i}.jpg" for name in ("a", "b") for i in range(3)]
    for file in files:
        trees.save(tmp_path / "mine" / file)
    dataset = catalogue.find("folder:mine")
    with pytest.raises(UserError, match="neither train/ and test/ nor a split list"):
        catalogue.load(dataset)
    (tmp_path / "mine" / "split.txt").write_text("".join(f"{'test' if '0' in f else 'train'}/{f}\n" for f in files))
    listing = catalogue.load(dataset)
    assert (len(listing.train), len(listing.test)) == (4, 2) and listing.classes == ("a", "b")
    assert {name for names in names_of(listing) for name in names} == {*files}
    for content in (["train", "val"], []):
        shutil.rmtree(tmp_path / "mine")
        for name in content[:1]:
            trees.save(tmp_path / "mine" / name / "a" / "x.jpg")
        (tmp_path / "mine").mkdir(exist_ok=True)
        with pytest.raises(
            UserError, match="has none of the known layouts of folder:mine; arrange it as\nPATH/\n  train/"
        ):
            catalogue.load(dataset)
    with pytest.raises(UserError, match="there is no folder '.*nowhere'"):
        catalogue.load(catalogue.find("folder:nowhere"))


def test_the_data_folder_is_the_given_one_or_the_environments_or_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("given", "environment", "data"):
        trees.pre_split(tmp_path / name)
    where = lambda root=None: catalogue.locate(trees.IMAGENET_R, root)  # noqa: E731
    assert where() == Path("data/imagenet-r")
    monkeypatch.setenv(catalogue.ROOT_VARIABLE, str(tmp_path / "environment"))
    assert where() == tmp_path / "environment" / "imagenet-r"
    assert where(tmp_path / "given") == tmp_path / "given" / "imagenet-r"
    with pytest.raises(UserError, match=r"data folder 'none' \(--root\) does not exist"):
        where(Path("none"))
    monkeypatch.setenv(catalogue.ROOT_VARIABLE, "nowhere")
    with pytest.raises(UserError, match=r"data folder 'nowhere' \(CL_BENCH_DATA\) does not exist"):
        where()


def test_a_data_set_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder 'data/cifar100'; 'cl-bench data prepare cifar100' downloads it"):
        catalogue.load(trees.CIFAR100)
    trees.pre_split(tmp_path)
    with pytest.raises(UserError, match="for the folder '.*imagenet-r' itself, name its parent"):
        catalogue.load(trees.IMAGENET_R, tmp_path / "imagenet-r")


@pytest.mark.parametrize("dataset", [LAYOUTS[name][1] for name in LAYOUTS], ids=[*LAYOUTS])
@pytest.mark.parametrize("content", ["nothing", "images", "half"])
def test_another_layout_is_refused_with_the_expected_trees(dataset: DataSet, content: str, tmp_path: Path) -> None:
    folder = tmp_path / dataset.folders[0]
    folder.mkdir()
    if content == "images":
        trees.save(folder / "1.jpg")
    elif content == "half":
        trees.save(folder / "train" / "a" / "1.jpg")
    with pytest.raises(UserError) as caught:
        catalogue.load(dataset, tmp_path)
    assert f"has none of the known layouts of {dataset.name}; arrange it as\n" in str(caught.value)
    assert all(tree in str(caught.value) for tree in dataset.layouts.values())
