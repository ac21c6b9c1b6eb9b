"""Whether a copy of a data set is whole: counts, split, every single image, content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cl_bench.data.cache import OnProgress
from cl_bench.data.decoding import KINDS, BadImage
from cl_bench.errors import UserError
from cl_bench.streams.catalogue import class_faults, domain_faults, locate, read, split_of, without
from cl_bench.streams.image_files import for_each_image, look_at
from cl_bench.streams.readers.folders import by_ending
from cl_bench.streams.types import DataSet, Listing

_STEP = 1000
"""Images between two reports of progress."""


@dataclass(frozen=True)
class Finding:
    """Something about a copy that is not as it should be, or (no `fault`) worth knowing.

    Attributes:
        kind: `count`, `classes`, `domains`, `empty`, a kind of `BadImage`, `content`, `duplicate`, `unlisted`,
            `not read` or `file`.
        text: names the image or file, or says what is wrong.
    """

    kind: str
    text: str
    fault: bool = True


@dataclass(frozen=True)
class Verification:
    """What a copy of a data set was found to be.

    Attributes:
        folder, layout: where and how it lies.
        classes, train, test: how many there are.
        split: name of the split, or its hash.
        published: whether the split is a known one.
        content: hash of pixels and labels; None if not every image was read.
        findings: in the order in which they matter.
        not_read: the files that are not read by the ending of their names; empty if there are none.
    """

    folder: Path
    layout: str
    classes: int
    train: int
    test: int
    split: str
    published: bool
    content: str | None
    findings: tuple[Finding, ...]
    not_read: str

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with the copy."""
        return not any(finding.fault for finding in self.findings)


def verify(
    dataset: DataSet,
    root: Path | None = None,
    skip_bad: bool = False,
    split_list: Path | None = None,
    quick: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Verification:
    """Look at everything.

    Args:
        root, split_list: as for `catalogue.load`.
        skip_bad: images that cannot be read are no fault, as a run with `--skip-bad` leaves them out.
        quick: do not decode; images that are missing or empty are found nevertheless.
        on_progress: called with the images decoded and the images in all, after every 1,000.

    Raises:
        UserError: the data set is not there or has no known layout.
    """
    folder = locate(dataset, root)
    listing = read(dataset, folder, split_list)
    split, published = split_of(dataset, listing)
    entries = listing.train + listing.test
    looks: list[str | BadImage | None]
    if quick:
        looks = [look_at(entry.path) if entry.path else None for entry in entries]
    else:
        looks = list(_digests(listing, on_progress))
    bad = [found for found in looks if isinstance(found, BadImage)]
    digests = [(entry.label, found) for entry, found in zip(entries, looks, strict=True) if isinstance(found, str)]
    content = content_hash(digests) if len(digests) == len(entries) else None

    findings = list(_counts(dataset, listing, published))
    remaining = without(listing, {found.path for found in bad}) if skip_bad else listing
    findings += [Finding("classes", text) for text in class_faults(dataset, remaining)]
    findings += _domains(dataset, remaining)
    findings += [Finding("empty", str(path), False) for path in listing.empty]
    # By kind, as they are shown.
    bad.sort(key=lambda found: KINDS.index(found.kind))
    findings += [Finding(found.kind, _image(found), not skip_bad) for found in bad]
    if content and dataset.content_hash not in (None, content):
        known = f"{dataset.content_hash}"[:12]
        findings.append(Finding("content", f"pixels and labels have the hash {content[:12]}, expected {known}"))
    findings += [Finding("duplicate", text, False) for text in _duplicates(listing, looks)]
    findings += [Finding("unlisted", str(path), False) for path in listing.unlisted]
    findings += [Finding("not read", str(path), False) for path in listing.not_read]
    findings += [Finding("file", text, False) for text in _other_files(dataset, folder)]
    sizes = len(listing.classes), len(listing.train), len(listing.test)
    not_read = by_ending(listing.not_read, folder)
    return Verification(folder, listing.layout, *sizes, split, published, content, tuple(findings), not_read)


@dataclass(frozen=True)
class Presence:
    """Whether a data set is there.

    Attributes:
        folder: where it is, whole or not.
        fault: what is wrong with it first, as a sentence; None if nothing is at first sight.
    """

    folder: Path | None
    fault: str | None = None

    @property
    def state(self) -> Literal["yes", "partly", "no"]:
        if self.folder is None:
            return "no"
        return "partly" if self.fault else "yes"


def presence(dataset: DataSet, root: Path | None = None) -> Presence:
    """Whether a data set is there, at first sight: images are not decoded."""
    try:
        folder = locate(dataset, root)
    except UserError:
        return Presence(None)
    try:
        findings = verify(dataset, root, quick=True).findings
    except UserError as error:
        return Presence(folder, str(error).splitlines()[0])
    return Presence(folder, next((f"{found.kind}: {found.text}" for found in findings if found.fault), None))


def content_hash(images: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the sorted lines `DIGEST LABEL`: it depends neither on files, nor on their order, nor on the split.

    Args:
        images: class name and digest of the pixels of each image.
    """
    return hashlib.sha256("\n".join(sorted(f"{digest} {label}" for label, digest in images)).encode()).hexdigest()


def pixel_digest(pixels: NDArray[Any]) -> str:
    """SHA-256 of an image's size and its uint8 pixels [H, W, C]."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _digests(listing: Listing, on_progress: OnProgress) -> Iterator[str | BadImage]:
    """The digest of each image, training part first, or what is wrong with it."""
    entries = listing.train + listing.test
    if listing.pixels is None:
        found = for_each_image(entries, lambda entry, pixels: pixel_digest(pixels))
    else:
        found = (pixel_digest(image) for part in listing.pixels for image in part)
    for number, digest in enumerate(found, start=1):
        if number % _STEP == 0 or number == len(entries):
            on_progress(number, len(entries))
        yield digest


def _counts(dataset: DataSet, listing: Listing, published: bool) -> Iterator[Finding]:
    """Numbers of images that differ from the published ones; another split of the same images is no fault."""
    sizes = {"training": (len(listing.train), dataset.train), "test": (len(listing.test), dataset.test)}
    total = dataset.train + dataset.test
    if not total or published:
        return
    if len(listing.train) + len(listing.test) != total:
        found, expected = (" and ".join(f"{size[i]:,} {part}" for part, size in sizes.items()) for i in (0, 1))
        yield Finding("count", f"{found} images, expected {expected}")
    if dataset.balanced:
        for entries, part in ((listing.train, "training"), (listing.test, "test")):
            each = sizes[part][1] // dataset.classes
            for name, size in Counter(entry.label for entry in entries).items():
                if size != each:
                    yield Finding("count", f"{size:,} {part} images of class '{name}', expected {each:,}")


def _domains(dataset: DataSet, listing: Listing) -> Iterator[Finding]:
    """Domains without images, a fault where each is a task, and those that lack a class."""
    wrong, gaps = domain_faults(dataset, listing)
    for text in wrong:
        yield Finding("domains", text, dataset.scenario == "domain-incremental")
    for text in gaps:
        yield Finding("domains", text, False)


def _image(found: BadImage) -> str:
    return f"{found.path}{f' ({found.detail})' if found.detail else ''}"


def _duplicates(listing: Listing, looks: Iterable[str | BadImage | None]) -> Iterator[str]:
    """Groups of images with the same pixels."""
    groups: dict[str, list[str]] = {}
    entries = [f"{part}/{entry.name}" for part in ("train", "test") for entry in getattr(listing, part)]
    for name, digest in zip(entries, looks, strict=True):
        if isinstance(digest, str):
            groups.setdefault(digest, []).append(name)
    return (" = ".join(names) for names in groups.values() if len(names) > 1)


def _other_files(dataset: DataSet, folder: Path) -> Iterator[str]:
    """Published files, other than archives, that are there with other content."""
    for archive in dataset.archives:
        path = folder / archive.file
        if not archive.unpack and archive.checksum and path.is_file():
            algorithm, _, expected = archive.checksum.partition(":")
            found = hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest()
            if found != expected:
                yield f"{path} is not the published file ({algorithm} {found[:12]}, expected {expected[:12]})"
