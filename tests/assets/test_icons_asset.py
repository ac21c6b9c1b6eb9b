"""The packed icons asset keeps what its description promises; needs only numpy and the files."""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import tomllib
from collections.abc import Iterable

import numpy as np
import pytest

from tests.helpers import ROOT

ASSETS = ROOT / "cl_bench" / "assets"
PACKED = ASSETS / "icons.npz.xz"
CURATION = ROOT / "tools" / "icons_curation.toml"
STREAM, TUNE, PRETRAIN = 0, 1, 2
TRAIN, TEST = 0, 1
LICENCES = {"MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "Unlicense"}

# Pre-training classes chosen by a person that share a word with a stream or tune class but not its drawing.
REVIEWED = {
    "face-mask",  # smile has face-smile
    "hard-hat",  # hard-drive
    "paint-roller",  # brush has paint-brush
    "phone",  # a receiver; mobile has mobile-phone
    "pie-chart",  # bar-chart
    "piggy-bank",  # bank
    "power",  # plug has power-plug
    "shopping-bag",  # shopping-cart
    "toilet-paper",  # paperclip has paper-clip
    "traffic-cone",  # ice-cream has ice-cream-cone
}

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def icons() -> Arrays:
    """Return all arrays of the packed file."""
    with np.load(io.BytesIO(lzma.decompress(PACKED.read_bytes())), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def class_names(icons: Arrays, part: int) -> list[str]:
    """Return the class names of a part, in label order."""
    return [str(name) for name in icons["classes"][icons["class_part"] == part]]


def counts(icons: Arrays, part: int, split: int) -> np.ndarray:
    """Return the number of images of each class of a part."""
    rows = (icons["part"] == part) & (icons["split"] == split)
    return np.bincount(icons["label"][rows], minlength=len(class_names(icons, part)))


def words(names: Iterable[str]) -> set[str]:
    """Return all words of some names, without a plural s."""
    found = {word for name in names for word in name.split("-")}
    return {w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found}


def test_file_is_small() -> None:
    assert PACKED.stat().st_size <= 4 * 1024 * 1024


def test_arrays(icons: Arrays) -> None:
    n = len(icons["images"])
    assert icons["images"].shape == (n, 32, 32)
    assert icons["images"].dtype == np.uint8
    assert not (icons["images"] % 17).any()
    assert icons["images"].any(axis=(1, 2)).all()
    for name in ("label", "set", "part", "split"):
        assert icons[name].shape == (n,)
    assert set(np.unique(icons["part"])) == {STREAM, TUNE, PRETRAIN}
    assert set(np.unique(icons["split"])) == {TRAIN, TEST}


def test_classes(icons: Arrays) -> None:
    names = [class_names(icons, part) for part in (STREAM, TUNE, PRETRAIN)]
    assert [len(names[STREAM]), len(names[TUNE])] == [100, 40]
    assert all(part == sorted(part) for part in names)
    assert len({name for part in names for name in part}) == sum(len(part) for part in names)


@pytest.mark.parametrize("part", [STREAM, TUNE])
def test_caps_and_minimums(icons: Arrays, part: int) -> None:
    train, test = counts(icons, part, TRAIN), counts(icons, part, TEST)
    assert train.min() >= 30 and train.max() <= 50
    assert test.min() >= 10 and test.max() <= 25


def test_every_pretrain_class_has_images(icons: Arrays) -> None:
    assert counts(icons, PRETRAIN, TRAIN).min() >= 5


def test_pretrain_shares_no_word_with_the_streams(icons: Arrays) -> None:
    curation = tomllib.loads(CURATION.read_text(encoding="utf-8"))
    rules = curation["pretrain"]
    protected = class_names(icons, STREAM) + class_names(icons, TUNE)
    assert set(rules["related"]) <= set(protected)
    named = words(name for cls in protected for name in (cls, *curation["classes"][cls]))
    named -= words(rules["generic"])
    related = named | words(name for names in rules["related"].values() for name in names)
    pretrain = class_names(icons, PRETRAIN)
    assert {name for name in pretrain if words([name]) & named} == REVIEWED
    by_rule = [name for name in pretrain if name not in curation["classes"]]
    assert by_rule
    assert not [name for name in by_rule if words([name]) & related]
    assert not set(by_rule) & set(rules["names"])
    refused = {*rules["brands"], *rules["glyphs"], *rules["mirrored"]}
    assert not [name for name in by_rule if set(name.split("-")) & refused]


def test_streams_are_of_classes_chosen_by_a_person(icons: Arrays) -> None:
    curation = tomllib.loads(CURATION.read_text(encoding="utf-8"))
    assert set(class_names(icons, STREAM) + class_names(icons, TUNE)) <= set(curation["classes"])


def test_no_set_is_in_both_splits(icons: Arrays) -> None:
    train, test = (set(icons["set"][icons["split"] == split]) for split in (TRAIN, TEST))
    assert not train & test


def test_no_image_is_repeated(icons: Arrays) -> None:
    """No exact duplicate anywhere, so none between the train and test images of a class."""
    assert len(np.unique(icons["images"].reshape(len(icons["images"]), -1), axis=0)) == len(icons["images"])


def test_published_lists_agree(icons: Arrays) -> None:
    published = tomllib.loads((ASSETS / "icons_classes.toml").read_text(encoding="utf-8"))
    assert published["sha256"] == hashlib.sha256(PACKED.read_bytes()).hexdigest()
    for part, name in ((STREAM, "stream"), (TUNE, "tune"), (PRETRAIN, "pretrain")):
        assert list(published[name]) == class_names(icons, part)
        train, test = counts(icons, part, TRAIN), counts(icons, part, TEST)
        for label, numbers in enumerate(published[name].values()):
            assert (numbers["train"], numbers["test"]) == (train[label], test[label])
    for split, name in ((TRAIN, "train_groups"), (TEST, "test_groups")):
        listed = {prefix for prefixes in published[name].values() for prefix in prefixes}
        assert listed == {str(icons["sets"][i]) for i in set(icons["set"][icons["split"] == split])}


def test_every_set_is_attributed_and_permitted(icons: Arrays) -> None:
    page = (ASSETS / "ICONS_ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    listed = {row[0]: row for row in rows[1:]}
    used = np.bincount(icons["set"], minlength=len(icons["sets"]))
    assert set(listed) == {str(prefix) for prefix in icons["sets"]}
    for prefix, number in zip(icons["sets"], used, strict=True):
        _, name, author, licence, images = listed[str(prefix)]
        assert name and author
        assert re.sub(r"^\[(.*?)\].*", r"\1", licence) in LICENCES
        assert int(images) == number
