"""Splits: published ones, lists of one's own, and lists that are wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.readers.splits import read_split
from cl_bench.streams.split_hash import names_hash
from cl_bench.streams.verify import verify
from tests.helpers import trees
from tests.helpers.layouts import made, names_of

pytestmark = pytest.mark.usefixtures("nowhere")


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
    for text, message in (("1 1\n", "do not match"), ("1\n", "expected a number and a value")):
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
        (["train/x/a.jpg", "train/x/a.jpg", "test/x/b.jpg"], r"'x/a.jpg' comes twice .* \(train\)"),
        (["train/x/a.jpg", "test/x/a.jpg"], r"'x/a.jpg' comes twice .* \(train and test\)"),
        (["train/a.jpg", "test/x/a.jpg"], "'a.jpg' in the split list .* is not of the form CLASS/FILE"),
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
        ("keys.yaml", b"data: [a/b.jpg]", "has no keys train and test, and there is no second file for the other part"),
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


def test_names_are_hashed_without_their_order() -> None:
    assert names_hash(["b/1", "a/2"]) == names_hash(["a/2", "b/1"])
    assert names_hash(["a/2", "b/1"]) == hashlib.sha256(b"a/2\nb/1").hexdigest()
    assert names_hash(json.loads('["a/2"]')) != names_hash(["a/2", "b/1"])
