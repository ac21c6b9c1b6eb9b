"""Faults in a data set are found and named."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cl_bench.data.decoding import BadImage, decode
from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.verify import verify
from tests.helpers import trees
from tests.helpers.layouts import LAYOUTS, kinds, made, names_of

pytestmark = pytest.mark.usefixtures("nowhere")


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
        with pytest.raises(UserError, match="is not a file of cifar-100-python .*unpack the official archive again"):
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


def test_an_idx_file_does_not_become_any_size(tmp_path: Path) -> None:
    folder = trees.fashion(tmp_path)
    for sizes, content in (
        ((1 << 20, 28, 28), bytes(101 << 20)),
        ((0xFFFFFFFF,) * 3, b""),
        ((1, 1, 1), bytes(1 << 20)),
    ):
        packed = gzip.compress(struct.pack(">4I", 0x803, *sizes) + content, 1)
        (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)
        with pytest.raises(UserError, match="train-images-idx3-ubyte.gz' is damaged or not an idx3-ubyte file"):
            catalogue.load(trees.FASHION_MNIST, tmp_path)


def test_a_pickle_makes_no_array_larger_than_its_file(tmp_path: Path) -> None:
    path = trees.cifar_pickles(tmp_path) / "cifar-100-python" / "train"
    for call in ("numpy._core.multiarray _reconstruct", "numpy ndarray"):
        module, name = call.split()
        shape = "((I1000000000000\nt" if name == "ndarray" else "(cnumpy\nndarray\n(I1000000000000\ntS'b'\nt"
        path.write_bytes(f"c{module}\n{name}\n{shape}R.".encode())
        with pytest.raises(UserError, match="is not a file of cifar-100-python"):
            catalogue.load(trees.CIFAR100, tmp_path)


@pytest.mark.parametrize("names", [5, None, [1, 2], {"a": 1}, "text"])
def test_class_names_that_are_no_names(names: object, tmp_path: Path) -> None:
    path = trees.cifar_pickles(tmp_path) / "cifar-100-python" / "meta"
    path.write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    with pytest.raises(UserError, match="no list of class names"):
        catalogue.load(trees.CIFAR100, tmp_path)


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
