"""The field's data sets: every layout read, every fault named, on small trees that lie as the real ones do."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
import yaml
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader
from typer.testing import CliRunner

from cl_bench.cli.data import app
from cl_bench.data.decoding import BadImage, decode
from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.image_files import for_each_image
from cl_bench.streams.readers.layouts import EXTENSIONS
from cl_bench.streams.readers.splits import read_split
from cl_bench.streams.split_hash import names_hash
from cl_bench.streams.types import Archive, DataSet, Listing
from cl_bench.streams.verify import Report, content_hash, pixel_digest, presence, verify
from tests.helpers import ROOT, trees
from tests.helpers.command import Outcome

LAYOUTS: dict[str, tuple[Callable[[Path], Path], DataSet]] = {
    "cifar pickles": (trees.cifar_pickles, trees.CIFAR100),
    "cifar png": (trees.cifar_png, trees.CIFAR100),
    "imagenet-r pre-split": (trees.pre_split, trees.IMAGENET_R),
    "imagenet-r archive": (trees.original, trees.IMAGENET_R),
    "imagenet-a pre-split": (partial(trees.pre_split, name="imagenet-a"), trees.IMAGENET_A),
    "imagenet-a archive": (partial(trees.original, name="imagenet-a"), trees.IMAGENET_A),
    "cub pre-split": (partial(trees.pre_split, name="cub", classes=trees.BIRDS), trees.CUB200),
    "cub archive": (trees.cub, trees.CUB200),
    "domainnet": (trees.domainnet, trees.DOMAINNET_SET),
    "domainnet txt": (partial(trees.domainnet, lists="txt"), trees.DOMAINNET_SET),
    "pacs": (trees.pacs, trees.PACS_SET),
    "pacs without lists": (partial(trees.pacs, lists=False), trees.PACS_SET),
    "tiny original": (trees.tiny_original, trees.TINY_IMAGENET),
    "tiny folders": (trees.tiny_folders, trees.TINY_IMAGENET),
    "tiny folders images": (partial(trees.tiny_folders, inner="images"), trees.TINY_IMAGENET),
    "fashion": (trees.fashion, trees.FASHION_MNIST),
    "fashion torchvision": (partial(trees.fashion, inner="FashionMNIST/raw", packed=False), trees.FASHION_MNIST),
}
ALL = [catalogue.find(name) for name in catalogue.names()]


def made(layout: str, root: Path) -> tuple[DataSet, Path]:
    builder, dataset = LAYOUTS[layout]
    return dataset, builder(root)


def names_of(listing: Listing) -> tuple[list[str], list[str]]:
    return [entry.name for entry in listing.train], [entry.name for entry in listing.test]


def kinds(report: Report) -> Counter[str]:
    return Counter(finding.kind for finding in report.findings)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data of whoever runs the tests."""
    monkeypatch.delenv(catalogue.ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`data("list", "--root", ...)`: `cl-bench data ...`; a `UserError` ends as it does there."""

    def call(*arguments: object, columns: int = 200) -> Outcome:
        monkeypatch.setenv("COLUMNS", str(columns))
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, UserError):
            return Outcome(2, result.stdout, f"error: {result.exception}")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[DataSet], None]:
    """Put a small data set in the place of the real one."""
    return lambda dataset: monkeypatch.setitem(catalogue.shipped(), dataset.name, dataset)


# Facts


@pytest.mark.parametrize("dataset", ALL, ids=lambda dataset: dataset.name)
def test_the_facts_fit_each_other(dataset: DataSet) -> None:
    assert dataset.title and dataset.licence and dataset.layouts and dataset.folders[0] == dataset.name
    assert re.match("https?://", dataset.page)
    assert dataset.classes and dataset.train > dataset.test > dataset.classes
    for tasks, each in dataset.splits:
        assert tasks * each == dataset.classes
    # PACS is published by domain only.
    by_domain = dataset.scenario == "domain-incremental" and bool(dataset.domains) and not dataset.splits
    assert by_domain or dataset.tasks in {tasks for tasks, _ in dataset.splits}
    assert dataset.archives or dataset.manual
    for archive in dataset.archives:
        algorithm, _, digits = str(archive.checksum).partition(":")
        assert len(digits) == {"md5": 32, "sha256": 64}[algorithm] and re.match("https?://", archive.url)
        assert archive.unpack == archive.file.endswith((".tar", ".tgz", ".tar.gz", ".zip"))
    for known in dataset.split_hashes.values():
        assert all(re.fullmatch("[0-9a-f]{64}", digits) for digits in known)
    if dataset.balanced:
        assert not dataset.train % dataset.classes and not dataset.test % dataset.classes


def test_checksums_are_torchvisions_where_it_has_them() -> None:
    cifar, fashion = torchvision.datasets.CIFAR100, torchvision.datasets.FashionMNIST
    (archive,) = catalogue.find("cifar100").archives
    assert (archive.url, archive.checksum) == (cifar.url, f"md5:{cifar.tgz_md5}")
    assert [(a.file, a.checksum) for a in catalogue.find("fashion-mnist").archives] == [
        (name, f"md5:{digits}") for name, digits in fashion.resources
    ]
    assert EXTENSIONS == IMG_EXTENSIONS


def test_an_unknown_data_set_is_refused_with_a_guess() -> None:
    with pytest.raises(UserError, match="unknown data set 'imagenetr'.*Did you mean 'imagenet-r'"):
        catalogue.find("imagenetr")
    with pytest.raises(UserError, match="names no folder"):
        catalogue.find("folder:")


# Layouts


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
    seen: list[int] = []
    found = list(for_each_image(many, lambda entry, pixels: entry.name, seen.append))
    assert found == [entry.name for entry in many] and sum(seen) == len(many)
    stopped = for_each_image(many, lambda entry, pixels: entry.name)
    assert next(stopped) == many[0].name
    stopped.close()


# Splits


def test_coda_prompts_list_is_recognised_by_its_hash(tmp_path: Path) -> None:
    trees.original(tmp_path)
    parts = [trees.part_names(trees.WNIDS, part) for part in ("train", "test")]
    # The definition in the published value: sorted names, joined with newlines.
    assert trees.hashes(*parts)[0] == hashlib.sha256("\n".join(sorted(parts[0])).encode()).hexdigest()
    known = replace(trees.IMAGENET_R, split_hashes={"CODA-Prompt": trees.hashes(*parts)})
    report = verify(known, tmp_path)
    assert (report.split, report.published, report.good) == ("CODA-Prompt", True, True)
    # The same split, however it comes.
    trees.pre_split(tmp_path / "pre")
    assert verify(known, tmp_path / "pre").split == "CODA-Prompt"
    # One image changes its part: another split, and no fault.
    moved = tmp_path / "pre" / "imagenet-r" / "train" / trees.WNIDS[0] / "art_0.jpg"
    moved.rename(moved.parents[2] / "test" / trees.WNIDS[0] / "art_0.jpg")
    report = verify(known, tmp_path / "pre")
    assert re.fullmatch("own split [0-9a-f]{8}", report.split) and not report.published and report.good
    # Both parts count.
    swapped = replace(known, split_hashes={"CODA-Prompt": trees.hashes(*parts[::-1])})
    assert not verify(swapped, tmp_path).published


def test_an_own_split_is_called_as_in_the_tables(tmp_path: Path) -> None:
    from cl_bench.data.images import ImageStore
    from cl_bench.streams import Source

    trees.original(tmp_path)
    listing = catalogue.load(trees.IMAGENET_R, tmp_path)
    train, test = (
        ImageStore(np.zeros((len(names), 1, 1, 1), np.uint8), np.zeros(len(names), np.int64), tuple(names))
        for names in names_of(listing)
    )
    expected = Source(train, test, listing.classes).split
    assert catalogue.split_of(trees.IMAGENET_R, listing) == (f"own split {expected[:8]}", False)


def one_text(folder: Path, train: list[str], test: list[str]) -> Path:
    path = folder / "one.txt"
    path.write_text("".join(f"train/{name}\n" for name in train) + "\n" + "".join(f"test {name}\n" for name in test))
    return path


def two_texts(folder: Path, train: list[str], test: list[str]) -> Path:
    (folder / "own_train.txt").write_text("".join(f"imagenet-r\\{name} 7\n".replace("/", "\\") for name in train))
    (folder / "own_test.txt").write_text("\n".join(test))
    return folder / "own_test.txt"


def one_yaml(folder: Path, train: list[str], test: list[str]) -> Path:
    path = folder / "one.yml"
    path.write_text(yaml.dump({"train": train, "test": [f"some/where/{name}" for name in test]}))
    return path


def two_yamls(folder: Path, train: list[str], test: list[str]) -> Path:
    trees.coda_list(folder / "test_list.yaml", test)
    (folder / "train_list.yaml").write_text(yaml.dump(train))
    return folder / "train_list.yaml"


@pytest.mark.parametrize("write", [one_text, two_texts, one_yaml, two_yamls])
@pytest.mark.parametrize("layout", ["imagenet-r archive", "imagenet-r pre-split"])
def test_a_list_of_ones_own_deals_out_the_images(write: Any, layout: str, tmp_path: Path) -> None:
    dataset, folder = made(layout, tmp_path)
    everything = [name for part in ("train", "test") for name in trees.part_names(trees.WNIDS, part)]
    test = [name for name in everything if name.endswith("_0.jpg")]
    train = [name for name in everything if name not in test]
    (tmp_path / "lists").mkdir()
    path = write(tmp_path / "lists", train, test)
    listing = catalogue.load(dataset, tmp_path, split_list=path)
    assert [sorted(names) for names in names_of(listing)] == [sorted(train), sorted(test)]
    assert listing.layout.endswith(f"split by {path.name}") and not listing.unlisted
    assert verify(dataset, tmp_path, split_list=path).good


def test_a_list_in_the_folder_comes_before_train_and_test(tmp_path: Path) -> None:
    folder = trees.pre_split(tmp_path)
    train, test = trees.part_names(trees.WNIDS, "test"), trees.part_names(trees.WNIDS, "train")[1:]
    (folder / "splits").mkdir()
    for part, names in (("train", train), ("test", test)):
        (folder / "splits" / f"mine_{part}.txt").write_text("\n".join(names))
    report = verify(trees.IMAGENET_R, tmp_path)
    assert (report.train, report.test) == (6, 11)
    left = folder / "train" / trees.part_names(trees.WNIDS, "train")[0]
    assert [(f.kind, f.text) for f in report.findings if not f.fault] == [("unlisted", str(left))]
    (folder / "split.txt").write_text("train/a/b.jpg\n")
    with pytest.raises(UserError, match="several split lists: .*mine_train.txt.*choose one with --split-list"):
        catalogue.load(trees.IMAGENET_R, tmp_path)


def test_cub_has_its_official_split_unless_told_otherwise(tmp_path: Path) -> None:
    folder = trees.cub(tmp_path)
    files = sorted(trees.part_names(trees.BIRDS, "train") + trees.part_names(trees.BIRDS, "test"))
    listing = catalogue.load(trees.CUB200, tmp_path)
    assert names_of(listing) == (files[::2], files[1::2]) and listing.layout.endswith("train_test_split.txt")
    known = replace(trees.CUB200, split_hashes={"official": trees.hashes(files[::2], files[1::2])})
    assert verify(known, tmp_path).split == "official"
    for part in ("train", "test"):
        (folder / f"pilot_{part}.txt").write_text("\n".join(trees.part_names(trees.BIRDS, part)))
    report = verify(known, tmp_path)
    assert (report.train, report.test, report.published) == (12, 6, False) and report.good


def test_a_spoilt_official_split_of_cub_is_named(tmp_path: Path) -> None:
    chosen = trees.cub(tmp_path) / "CUB_200_2011" / "train_test_split.txt"
    for text, message in (("1 1\n", "do not fit each other"), ("1\n", "expected a number and a value")):
        chosen.write_text(text)
        with pytest.raises(UserError, match=message):
            catalogue.load(trees.CUB200, tmp_path)


def test_domainnets_classes_are_in_the_order_of_the_labels(tmp_path: Path) -> None:
    folder = trees.domainnet(tmp_path)
    listing = catalogue.load(trees.DOMAINNET_SET, tmp_path)
    assert listing.classes == trees.DOMAINNET != tuple(sorted(trees.DOMAINNET))
    assert {entry.domain for entry in listing.train} == {*catalogue.find("domainnet").domains}
    path = folder / "clipart_test.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[1:], lines[0].replace(" 0", " 2")]))
    with pytest.raises(UserError, match="class 'cello' has the labels 0 and 2"):
        catalogue.load(trees.DOMAINNET_SET, tmp_path)
    for file in folder.glob("*.txt"):
        file.write_text(re.sub(r" \d$", "", file.read_text(), flags=re.M))
    assert catalogue.load(trees.DOMAINNET_SET, tmp_path).classes == tuple(sorted(trees.DOMAINNET))


def test_all_domains_are_needed_unless_a_list_does_without(tmp_path: Path) -> None:
    folder = trees.domainnet(tmp_path)
    # CODA-Prompt's list has no quickdraw.
    for part in ("train", "test"):
        files = [line for path in sorted(folder.glob(f"*_{part}.txt")) for line in path.read_text().splitlines()]
        files = [f"data/DomainNet/{line.split()[0]}" for line in files if not line.startswith("quickdraw")]
        labels = [trees.DOMAINNET.index(file.split("/")[3]) for file in files]
        (tmp_path / f"domainnet_{part}.yaml").write_text(yaml.dump({"data": files, "targets": labels}))
    shutil.rmtree(folder / "quickdraw")
    with pytest.raises(UserError, match="has no folder quickdraw; all domains are needed"):
        catalogue.load(trees.DOMAINNET_SET, tmp_path)
    listing = catalogue.load(trees.DOMAINNET_SET, tmp_path, split_list=tmp_path / "domainnet_train.yaml")
    assert len(listing.train) == 30 and len(listing.test) == 15 and listing.classes == trees.DOMAINNET


@pytest.mark.parametrize("layout, name", [("domainnet", "real_test.txt"), ("pacs", "photo_crossval_kfold.txt")])
def test_a_missing_list_of_a_domain_is_named(layout: str, name: str, tmp_path: Path) -> None:
    dataset, folder = made(layout, tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}' is missing; the split needs a training and a test list"):
        catalogue.load(dataset, tmp_path)


def test_domainnet_without_any_list_is_refused(tmp_path: Path) -> None:
    for path in trees.domainnet(tmp_path).glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="no split lists; put clipart_train.txt and clipart_test.txt there"):
        catalogue.load(trees.DOMAINNET_SET, tmp_path)


def test_pacs_is_split_by_its_lists_or_by_name(tmp_path: Path) -> None:
    trees.pacs(tmp_path / "a")
    trees.pacs(tmp_path / "b", lists=False)
    listed, by_name = (catalogue.load(trees.PACS_SET, tmp_path / name) for name in "ab")
    assert {Path(entry.name).stem for entry in listed.test} == {"pic_004"}
    assert sorted(sum(names_of(listed), [])) == sorted(sum(names_of(by_name), []))
    expected = set()
    for domain in catalogue.find("pacs").domains:
        for name in trees.PACS:
            end = "png" if domain == "sketch" else "jpg"
            keys = [f"{domain}/{name}/pic_{i:03d}.{end}" for i in range(1, 5)]
            first = min(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
            expected.add(f"{name}/{domain}/{first.rpartition('/')[2]}")
    assert {entry.name for entry in by_name.test} == expected


@pytest.mark.parametrize(
    "lines, message",
    [
        (["train/x/a.jpg", "oops"], "line 2 of the split list .* is 'oops', expected 'train/CLASS/FILE'"),
        (["train/x/a.jpg", "train/x/a.jpg", "test/x/b.jpg"], r"'x/a.jpg' is twice .* \(train\)"),
        (["train/x/a.jpg", "test/x/a.jpg"], r"'x/a.jpg' is twice .* \(train and test\)"),
        (["train/a.jpg", "test/x/a.jpg"], "'a.jpg' in the split list .* is not CLASS/FILE"),
        (["train/x/a.jpg"], "names no image for testing"),
        ([], "names no image for training"),
    ],
)
def test_a_wrong_list_is_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    trees.original(tmp_path, lists=False)
    path = tmp_path / "own.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        catalogue.load(trees.IMAGENET_R, tmp_path, split_list=path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.txt", None, "there is no split list '.*none.txt'"),
        ("bytes.txt", b"\xff\xfe\x00", "cannot be read as text"),
        ("broken.yaml", b"train: [", "is no YAML"),
        ("keys.yaml", b"data: [a/b.jpg]", "has no keys train and test, and there is no file for the other"),
        ("kinds.yaml", b"{train: [1, 2], test: [3]}", "holds no list of paths"),
        ("code.yaml", b"!!python/object/apply:os.system ['false']", "is no YAML"),
    ],
)
def test_a_file_that_is_no_list_is_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / name)


@pytest.mark.parametrize("layout", ["cifar png", "tiny original", "fashion"])
def test_a_fixed_split_takes_no_list(layout: str, tmp_path: Path) -> None:
    dataset, _ = made(layout, tmp_path)
    (tmp_path / "split.txt").write_text("")
    with pytest.raises(UserError, match="is fixed; it cannot take the split list"):
        catalogue.load(dataset, tmp_path, split_list=tmp_path / "split.txt")


# Folders of the user's


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
            UserError, match="has no layout of folder:mine that is known; arrange it as\nPATH/\n  train/"
        ):
            catalogue.load(dataset)
    with pytest.raises(UserError, match="there is no folder '.*nowhere'"):
        catalogue.load(catalogue.find("folder:nowhere"))


# Where the data is


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
    with pytest.raises(UserError, match=r"data folder 'none' \(--root\) is not there"):
        where(Path("none"))
    monkeypatch.setenv(catalogue.ROOT_VARIABLE, "nowhere")
    with pytest.raises(UserError, match=r"data folder 'nowhere' \(CL_BENCH_DATA\) is not there"):
        where()


def test_a_data_set_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder 'data/cifar100'; 'cl-bench data prepare cifar100' gets it"):
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
    assert f"has no layout of {dataset.name} that is known; arrange it as\n" in str(caught.value)
    assert all(tree in str(caught.value) for tree in dataset.layouts.values())


# Faults


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "pickles" not in name and "fashion" not in name])
def test_planted_faults_are_found(layout: str, tmp_path: Path) -> None:
    """One of each kind, in images of both parts."""
    dataset, _ = made(layout, tmp_path)
    listing = catalogue.load(dataset, tmp_path)
    paths = [
        entry.path for entry in (listing.train[0], listing.train[-1], listing.test[0], listing.test[-1]) if entry.path
    ]
    trees.empty(paths[0])
    trees.truncate(paths[1])
    trees.make_text(paths[2])
    shutil.copyfile(listing.train[1].path or "", paths[3])
    report = verify(dataset, tmp_path)
    assert not report.good and report.content is None
    found = {finding.kind: finding.text for finding in report.findings}
    assert found.keys() == {"zero-byte", "truncated", "unreadable", "duplicate"}
    assert found["zero-byte"] == str(paths[0]) and found["truncated"].startswith(f"{paths[1]} (")
    assert found["unreadable"] == f"{paths[2]} (not an image)"
    assert found["duplicate"] == f"train/{listing.train[1].name} = test/{listing.test[-1].name}"
    quick = verify(dataset, tmp_path, quick=True)
    assert [(finding.kind, finding.text) for finding in quick.findings] == [("zero-byte", str(paths[0]))]
    with pytest.raises(
        UserError, match=f"image '{paths[0]}' is zero-byte; restore it, or leave it out with --skip-bad"
    ):
        catalogue.load(dataset, tmp_path)
    skipped = catalogue.load(dataset, tmp_path, skip_bad=True)
    assert {*names_of(listing)[0]} - {*names_of(skipped)[0]} == {listing.train[0].name, listing.train[-1].name}
    assert {*names_of(listing)[1]} - {*names_of(skipped)[1]} == {listing.test[0].name}
    assert verify(dataset, tmp_path, skip_bad=True).good
    for path, kind in zip(paths[:3], ("zero-byte", "truncated", "unreadable"), strict=True):
        with pytest.raises(BadImage, match=f"image '{path}' is {kind}"):
            decode(path)


@pytest.mark.parametrize("layout", ["imagenet-r archive", "cub archive", "domainnet", "pacs", "tiny original"])
def test_a_listed_image_that_is_missing_is_named(layout: str, tmp_path: Path) -> None:
    dataset, _ = made(layout, tmp_path)
    listing = catalogue.load(dataset, tmp_path)
    gone = [entry.path for entry in (listing.test[0], listing.test[-1]) if entry.path]
    for path in gone:
        trees.remove(path)
    report = verify(dataset, tmp_path)
    assert [(f.kind, Path(f.text).name) for f in report.findings] == [("missing", path.name) for path in gone]
    assert kinds(verify(dataset, tmp_path, quick=True)) == {"missing": 2}
    with pytest.raises(UserError, match=r"is missing; .*\(and 1 more: 'cl-bench data verify"):
        catalogue.load(dataset, tmp_path)
    assert names_of(catalogue.load(dataset, tmp_path, skip_bad=True))[1] == names_of(listing)[1][1:-1]


@pytest.mark.parametrize("layout", ["cifar png", "tiny folders"])
def test_a_class_with_fewer_images_is_named(layout: str, tmp_path: Path) -> None:
    dataset, _ = made(layout, tmp_path)
    listing = catalogue.load(dataset, tmp_path)
    trees.remove(listing.train[0].path or Path())
    report = verify(dataset, tmp_path)
    each = dataset.train // dataset.classes
    assert [finding.text for finding in report.findings] == [
        f"{dataset.train - 1} training and {dataset.test} test images, "
        f"expected {dataset.train} training and {dataset.test} test",
        f"{each - 1} training images of class '{listing.train[0].label}', expected {each}",
    ]
    assert not report.good
    # A run with a limit on the number of images works on less than everything.
    assert len(catalogue.load(dataset, tmp_path).train) == dataset.train - 1


@pytest.mark.parametrize("layout", ["cifar png", "imagenet-r pre-split", "cub pre-split", "tiny folders"])
def test_an_extra_an_empty_and_a_lacking_class(layout: str, tmp_path: Path) -> None:
    dataset, folder = made(layout, tmp_path)
    (folder / "train" / "aaa").mkdir()
    with pytest.raises(
        UserError, match=f"{dataset.classes + 1} classes, expected {dataset.classes}; no training images of class 'aaa'"
    ):
        catalogue.load(dataset, tmp_path)
    trees.save(folder / "train" / "aaa" / "1.jpg")
    with pytest.raises(UserError, match="in one part only: 'aaa'; no test images of class 'aaa'"):
        catalogue.load(dataset, tmp_path)
    assert kinds(verify(dataset, tmp_path)) == {"classes": 2, "count": 2 if dataset.balanced else 1}
    shutil.rmtree(folder / "train" / "aaa")
    shutil.rmtree(next((folder / "train").iterdir()))
    with pytest.raises(UserError, match=f"{dataset.name} in '{folder}' .*: no training images of class '"):
        catalogue.load(dataset, tmp_path)


def test_other_content_is_seen(tmp_path: Path) -> None:
    trees.cifar_png(tmp_path)
    known = replace(trees.CIFAR100, content_hash=verify(trees.CIFAR100, tmp_path).content)
    path = next((tmp_path / "cifar100").rglob("*.png"))
    pixels = decode(path).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    report = verify(known, tmp_path)
    assert kinds(report) == {"content": 1} and not report.good
    assert kinds(verify(known, tmp_path, quick=True)) == {}


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_pickle_is_refused(name: str, tmp_path: Path) -> None:
    path = trees.cifar_pickles(tmp_path) / "cifar-100-python" / name
    whole = path.read_bytes()
    wrong = {"fine_label_names": ["one"]} if name == "meta" else {"data": np.zeros((2, 3)), "fine_labels": [0, 1]}
    for content in (whole[: len(whole) // 2], b"", b"garbage", pickle.dumps([1]), pickle.dumps(wrong, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not as in cifar-100-python .*unpack the official archive again"):
            catalogue.load(trees.CIFAR100, tmp_path)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    path = trees.cifar_pickles(tmp_path) / "cifar-100-python" / "meta"
    for protocol in range(6):
        path.write_bytes(pickle.dumps({"fine_label_names": Harm(tmp_path / "harm")}, protocol=protocol))
        with pytest.raises(UserError, match="it asks for .*mkdir"):
            catalogue.load(trees.CIFAR100, tmp_path)
    assert not (tmp_path / "harm").exists()


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    folder = trees.fashion(tmp_path)
    labels, images = folder / "t10k-labels-idx1-ubyte.gz", folder / "t10k-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    short = gzip.compress(gzip.decompress(whole)[:-1])
    for content in (whole[: len(whole) // 2], short, b"", b"plain", labels.read_bytes()):
        images.write_bytes(content)
        with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz' is damaged"):
            catalogue.load(trees.FASHION_MNIST, tmp_path)
    images.write_bytes((folder / "train-images-idx3-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match="does not fit its images"):
        catalogue.load(trees.FASHION_MNIST, tmp_path)
    images.unlink()
    with pytest.raises(UserError, match="is missing; all four idx files are needed"):
        catalogue.load(trees.FASHION_MNIST, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder = trees.pre_split(tmp_path) / "train" / trees.WNIDS[0]
    folder.chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be read .*check its permissions"):
            catalogue.load(trees.IMAGENET_R, tmp_path)
    finally:
        folder.chmod(0o755)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = trees.pre_split(tmp_path) / "train" / trees.WNIDS[0]
    try:
        shutil.copyfile(folder / "art_0.jpg", os.fsencode(folder) + b"/\xff.jpg")
    except OSError:
        pytest.skip("the file system takes no such names")
    with pytest.raises(UserError, match="is not valid UTF-8; rename the file"):
        verify(trees.IMAGENET_R, tmp_path)


# The command line


def test_the_list_says_what_is_there(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    for dataset in (trees.CIFAR100, trees.IMAGENET_R, trees.TINY_IMAGENET):
        use(dataset)
    trees.cifar_png(tmp_path)
    trees.original(tmp_path, lists=False)
    trees.empty(next(trees.tiny_folders(tmp_path).rglob("*.JPEG")))
    result = data("list", "--root", tmp_path)
    assert result.code == 0
    rows = {line.split()[0]: line for line in result.out.splitlines() if line}
    assert re.search(r"yes: cifar100 +files", rows["cifar100"]) and "20/8" in rows["cifar100"]
    assert "partly: imagenet-r" in rows["imagenet-r"] and "partly: tiny-imagenet" in rows["tiny-imagenet"]
    assert re.search(r"no +layout", rows["cub200"])
    assert "partly there, imagenet-r: '" in result.out and "neither train/ and test/ nor a split list" in result.out
    assert "partly there, tiny-imagenet: zero-byte: " in result.out
    assert data("list", "--root", tmp_path / "none").code == 2
    assert data("list").code == 0


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_loses_nothing_on_a_narrow_terminal(
    columns: int, data: Callable[..., Outcome], tmp_path: Path
) -> None:
    wide = data("list", columns=400).out.splitlines()
    lines = data("list", columns=columns).out.splitlines()
    assert all(len(line) <= columns for line in lines) and "…" not in "".join(lines)
    words = {word for line in wide for word in line.split()}
    assert words <= {word for line in lines for word in line.split()}


def test_verify_says_what_it_found(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    trees.cifar_png(tmp_path)
    known = replace(
        trees.CIFAR100,
        content_hash=verify(trees.CIFAR100, tmp_path).content,
        split_hashes={"official": trees.hashes(*names_of(catalogue.load(trees.CIFAR100, tmp_path)))},
    )
    use(known)
    result = data("verify", "cifar100", "--root", tmp_path)
    assert result.code == 0
    assert result.out.splitlines() == [
        f"cifar100 in {tmp_path / 'cifar100'} (class folders)",
        "4 classes, 20 training and 8 test images",
        "split: official (as published)",
        f"content: {str(known.content_hash)[:12]} (as published)",
        "nothing wrong",
    ]
    path = trees.truncate(next((tmp_path / "cifar100" / "train" / "apple").iterdir()))
    result = data("verify", "cifar100", "--root", tmp_path)
    assert result.code == 1 and "content" not in result.out
    assert f"Truncated images: 1\n  {path} (" in result.out and result.out.endswith("1 fault\n")
    assert data("verify", "cifar100", "--root", tmp_path, "--quick").code == 0
    result = data("verify", "cifar100", "--root", tmp_path, "--skip-bad")
    assert result.code == 0 and str(path) in result.out


def test_many_findings_are_cut_unless_all_are_wanted(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    use(trees.IMAGENET_R)
    folder = trees.original(tmp_path)
    shutil.rmtree(folder / "imagenet-r")
    trees.save(folder / "imagenet-r" / trees.WNIDS[0] / "art_0.jpg")
    for file in (folder / f"imagenet-r_{part}.yaml" for part in ("train", "test")):
        content = yaml.safe_load(file.read_text())
        content["data"] += [f"{name}/more_{file.stem}_{i}.jpg" for name in trees.WNIDS for i in range(2)]
        file.write_text(yaml.dump(content))
    short, full = (data("verify", "imagenet-r", "--root", tmp_path, *more) for more in ((), ("--all",)))
    assert short.code == full.code == 1
    assert "Missing images: 29" in short.out and "... and 9 more (--all names them)" in short.out
    assert full.out.count("\n  ") == 30 and "more (" not in full.out and full.out.endswith("\n30 faults\n")


def test_duplicates_that_are_published_are_only_counted(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    folder = trees.cifar_png(tmp_path)
    one, other = sorted((folder / "train" / "apple").iterdir())[:2]
    shutil.copyfile(one, other)
    use(replace(trees.CIFAR100, content_hash=verify(trees.CIFAR100, tmp_path).content))
    result = data("verify", "cifar100", "--root", tmp_path)
    assert result.code == 0 and "Images with the same pixels: 1 groups, as published" in result.out
    assert f"apple/{one.name} = train/apple/{other.name}" in data("verify", "cifar100", "--root", tmp_path, "--all").out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("verify", "cifar10"), "unknown data set 'cifar10'"),
        (("verify", "cifar100"), "cifar100 is not there"),
        (("verify", "cifar100", "--root", "none"), "data folder 'none' .--root. is not there"),
        (("verify", "folder:none"), "there is no folder"),
        (("verify", "imagenet-a"), "neither train/ and test/ nor a split list"),
        (("verify", "imagenet-r", "--split-list", "none.txt"), "there is no split list 'none.txt'"),
        (("prepare", "imagenet-q"), "unknown data set"),
        (("prepare", "folder:x"), "data of your own"),
    ],
)
def test_bad_input_ends_in_a_sentence(
    arguments: tuple[str, ...], message: str, data: Callable[..., Outcome], tmp_path: Path
) -> None:
    trees.original(tmp_path / "data")
    trees.original(tmp_path / "data", "imagenet-a", lists=False)
    result = data(*arguments)
    assert result.code == 2 and re.search(message, result.err)


def test_a_folder_is_verified_by_name(data: Callable[..., Outcome], tmp_path: Path) -> None:
    trees.pre_split(tmp_path, "mine")
    result = data("verify", "folder:mine")
    assert result.code == 0 and "3 classes, 12 training and 6 test images" in result.out
    assert re.search("split: own split [0-9a-f]{8} .nothing published to compare with.", result.out)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def served(folder: Path, address: str, file: str, **changes: Any) -> Archive:
    content = (folder / file).read_bytes()
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return replace(Archive(f"{address}/{file}", file, checksum, len(content)), **changes)


@pytest.fixture
def imagenet_r(server: tuple[Path, str], use: Any, tmp_path: Path) -> DataSet:
    """ImageNet-R as the server has it: the archive and CODA-Prompt's two lists."""
    folder, address = server
    source = trees.original(tmp_path / "source")
    with tarfile.open(folder / "imagenet-r.tar", "w") as archive:
        archive.add(source / "imagenet-r", "imagenet-r")
    lists = [f"imagenet-r_{part}.yaml" for part in ("train", "test")]
    for name in lists:
        shutil.copyfile(source / name, folder / name)
    dataset = replace(
        trees.IMAGENET_R,
        archives=(
            served(folder, address, "imagenet-r.tar"),
            *(served(folder, address, name, unpack=False) for name in lists),
        ),
        split_hashes={"CODA-Prompt": trees.hashes(*(trees.part_names(trees.WNIDS, p) for p in ("train", "test")))},
    )
    use(dataset)
    return dataset


def test_prepare_downloads_unpacks_and_checks(
    data: Callable[..., Outcome], imagenet_r: DataSet, server: tuple[Path, str], tmp_path: Path
) -> None:
    root = tmp_path / "new" / "data"
    result = data("prepare", "imagenet-r", "--root", root)
    assert result.code == 0, result
    assert imagenet_r.licence in result.err and imagenet_r.page in result.err and imagenet_r.manual in result.err
    assert "split: CODA-Prompt (as published)" in result.out and result.out.endswith("nothing wrong\n")
    assert data("verify", "imagenet-r", "--root", root).code == 0
    # Once more: nothing is asked for.
    for path in server[0].iterdir():
        path.unlink()
    again = data("prepare", "imagenet-r", "--root", root)
    assert again.code == 0 and "is there already" in again.err
    # A lost image comes back from the archive that is still there.
    next((root / "imagenet-r").rglob("*.jpg")).unlink()
    assert data("prepare", "imagenet-r", "--root", root).code == 0
    # Another list under the published name is noticed.
    trees.coda_list(root / "imagenet-r" / "imagenet-r_test.yaml", trees.part_names(trees.WNIDS, "test")[::-1][:5])
    result = data("verify", "imagenet-r", "--root", root, "--quick")
    assert "imagenet-r_test.yaml is not the published file" in result.out and result.code == 1
    assert "not CODA-Prompt; do not compare" in result.out


@pytest.mark.parametrize("fault", ["gone", "other"])
def test_a_download_that_fails_says_what_to_do(
    fault: str, data: Callable[..., Outcome], imagenet_r: DataSet, server: tuple[Path, str], tmp_path: Path
) -> None:
    archive = server[0] / "imagenet-r.tar"
    archive.unlink() if fault == "gone" else archive.write_bytes(bytes(archive.stat().st_size))
    result = data("prepare", "imagenet-r", "--root", tmp_path / "data")
    assert result.code == 2 and f"see {imagenet_r.page} for it and put it at" in result.err
    assert ("HTTP 404" if fault == "gone" else "so it is another file") in result.err


@pytest.mark.parametrize(
    "layout, inner", [("cifar pickles", "cifar-100-python"), ("tiny original", "tiny-imagenet-200")]
)
def test_archives_of_other_kinds_are_prepared(
    layout: str, inner: str, data: Callable[..., Outcome], server: tuple[Path, str], use: Any, tmp_path: Path
) -> None:
    dataset, source = made(layout, tmp_path / "source")
    kind = "gztar" if "cifar" in layout else "zip"
    name = Path(shutil.make_archive(str(server[0] / inner), kind, source, inner)).name
    use(replace(dataset, archives=(served(*server, name),)))
    result = data("prepare", dataset.name, "--root", tmp_path / "data")
    assert result.code == 0 and result.out.endswith("nothing wrong\n")


def test_domainnet_is_prepared_from_an_archive_per_domain_and_lists(
    data: Callable[..., Outcome], server: tuple[Path, str], use: Any, tmp_path: Path
) -> None:
    source = trees.domainnet(tmp_path / "source")
    archives = []
    for domain in catalogue.find("domainnet").domains:
        with zipfile.ZipFile(server[0] / f"{domain}.zip", "w") as archive:
            for path in sorted((source / domain).rglob("*.jpg")):
                archive.write(path, path.relative_to(source))
        archives.append(served(*server, f"{domain}.zip"))
    for path in source.glob("*.txt"):
        shutil.copyfile(path, server[0] / path.name)
        archives.append(served(*server, path.name, unpack=False))
    use(replace(trees.DOMAINNET_SET, archives=tuple(archives)))
    assert data("prepare", "domainnet", "--root", tmp_path / "data").code == 0


def test_what_cannot_be_downloaded_is_explained(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    result = data("prepare", "pacs", "--root", root)
    assert (
        result.code == 1
        and catalogue.find("pacs").manual in result.err
        and f"The folder is '{root / 'pacs'}':\npacs/\n" in result.err
    )
    use(trees.PACS_SET)
    folder = trees.pacs(root)
    assert data("prepare", "pacs", "--root", root).code == 0
    trees.empty(next((folder / "photo").rglob("*.jpg")))
    result = data("prepare", "pacs", "--root", root)
    assert result.code == 1 and "Empty (zero-byte) images: 1" in result.out


def test_a_download_that_is_not_all_ends_with_what_is_left_to_do(
    data: Callable[..., Outcome], server: tuple[Path, str], use: Any, tmp_path: Path
) -> None:
    source = trees.original(tmp_path / "source", "imagenet-a", lists=False)
    shutil.make_archive(str(server[0] / "imagenet-a"), "tar", source, "imagenet-a")
    use(replace(trees.IMAGENET_A, archives=(served(*server, "imagenet-a.tar"),)))
    result = data("prepare", "imagenet-a", "--root", tmp_path / "data")
    assert result.code == 1 and "not ready yet: " in result.err and "nor a split list" in result.err
    assert catalogue.find("imagenet-a").manual in result.err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cl_bench.cli import data; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(data.app, ['--help']).exit_code == 0; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_list_and_verify_need_no_torch(tmp_path: Path) -> None:
    trees.pre_split(tmp_path, "mine")
    code = (
        "import sys; from cl_bench.cli import data; from typer.testing import CliRunner; "
        "[CliRunner().invoke(data.app, args) for args in (['list'], ['verify', 'folder:mine'])]; "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout == "False\n"


@pytest.mark.parametrize("dataset", ALL, ids=lambda dataset: dataset.name)
def test_the_page_on_data_sets_has_the_same_facts(dataset: DataSet) -> None:
    text = (ROOT / "docs" / "data-sets.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{dataset.name}`") and dataset.page in line)
    assert f"| {dataset.classes} | {dataset.train:,} / {dataset.test:,} |" in row and dataset.checked in row
    known = [digits for hashes in dataset.split_hashes.values() for digits in hashes]
    assert all(digits[:12] in text for digits in [*known, *([dataset.content_hash] if dataset.content_hash else [])])


def test_names_are_hashed_without_their_order() -> None:
    assert names_hash(["b/1", "a/2"]) == names_hash(["a/2", "b/1"])
    assert names_hash(["a/2", "b/1"]) == hashlib.sha256(b"a/2\nb/1").hexdigest()
    assert names_hash(json.loads('["a/2"]')) != names_hash(["a/2", "b/1"])
