"""Facts about the field's data sets fit each other, other libraries and the documentation."""

from __future__ import annotations

import re

import pytest
import torchvision
from torchvision.datasets.folder import IMG_EXTENSIONS

from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.readers.folders import EXTENSIONS
from cl_bench.streams.types import DataSet
from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("nowhere")

ALL = [catalogue.find(name) for name in catalogue.names()]


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
    assert EXTENSIONS[: len(IMG_EXTENSIONS)] == IMG_EXTENSIONS


def test_an_unknown_data_set_is_refused_with_a_guess() -> None:
    with pytest.raises(UserError, match="unknown data set 'imagenetr'.*Did you mean 'imagenet-r'"):
        catalogue.find("imagenetr")
    with pytest.raises(UserError, match="names no folder"):
        catalogue.find("folder:")


@pytest.mark.parametrize("dataset", ALL, ids=lambda dataset: dataset.name)
def test_the_page_on_data_sets_has_the_same_facts(dataset: DataSet) -> None:
    text = (ROOT / "docs" / "data-sets.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{dataset.name}`") and dataset.page in line)
    assert f"| {dataset.classes} | {dataset.train:,} / {dataset.test:,} |" in row and dataset.checked in row
    known = [digits for hashes in dataset.split_hashes.values() for digits in hashes]
    assert all(digits[:12] in text for digits in [*known, *([dataset.content_hash] if dataset.content_hash else [])])
