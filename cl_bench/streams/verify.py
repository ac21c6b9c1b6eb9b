"""Checks of a data set on disk: counts, split, every image decoded, content hash."""

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
    """One fault of a copy of a data set, or (`fault` is False) a remark that is worth knowing.

    Attributes:
        kind: `count`, `classes`, `domains`, `empty`, a kind of `BadImage`, `content`, `duplicate`, `unlisted`,
            `not read` or `file`.
        text: the image or file, or a sentence that describes the problem.
    """

    kind: str
    text: str
    fault: bool = True


@dataclass(frozen=True)
class Verification:
    """Result of checking a copy of a data set.

    Attributes:
        folder, layout: location and layout of the copy.
        classes, train, test: number of classes, training images and test images.
        split: name of the split, or its hash.
        published: whether the split is a published one.
        content: hash of pixels and labels; None unless every image was read.
        findings: the most important first.
        not_read: numbers of files that are not read, by file ending, as text; empty if there are none.
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
        """Whether the copy has no faults."""
        return not any(finding.fault for finding in self.findings)


def verify(
    dataset: DataSet,
    root: Path | None = None,
    skip_bad: bool = False,
    split_list: Path | None = None,
    quick: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Verification:
    """Check a data set on disk.

    Args:
        root, split_list: as for `catalogue.load`.
        skip_bad: do not count unreadable images as faults, because a run with `--skip-bad` leaves them out.
        quick: do not decode images; missing and empty ones are found nevertheless.
        on_progress: called with the images decoded and the images in all, after every 1,000.

    Raises:
        UserError: the data set is missing or has an unknown layout.
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
    # Sorted by kind: each kind is printed under one heading.
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
    """Whether a data set is present.

    Attributes:
        folder: its folder, complete or not; None if there is none.
        fault: the first fault, as a sentence; None if a quick check finds none.
    """

    folder: Path | None
    fault: str | None = None

    @property
    def state(self) -> Literal["yes", "partly", "no"]:
        if self.folder is None:
            return "no"
        return "partly" if self.fault else "yes"


def presence(dataset: DataSet, root: Path | None = None) -> Presence:
    """Whether a data set is present, by a quick check that decodes no images."""
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
    """SHA-256 of the sorted lines `DIGEST LABEL`; independent of file names, their order and the split.

    Args:
        images: class name and pixel digest of each image.
    """
    return hashlib.sha256("\n".join(sorted(f"{digest} {label}" for label, digest in images)).encode()).hexdigest()


def pixel_digest(pixels: NDArray[Any]) -> str:
    """SHA-256 of an image's size and its uint8 pixels [H, W, C]."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _digests(listing: Listing, on_progress: OnProgress) -> Iterator[str | BadImage]:
    """The pixel digest of each image, or why it cannot be read; training images first."""
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
    """Image counts that differ from the published ones; another split of the same images is no fault."""
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
    """Domains without images (a fault where each domain is a task), and domains that lack a class."""
    wrong, gaps = domain_faults(dataset, listing)
    for text in wrong:
        yield Finding("domains", text, dataset.scenario == "domain-incremental")
    for text in gaps:
        yield Finding("domains", text, False)


def _image(found: BadImage) -> str:
    return f"{found.path}{f' ({found.detail})' if found.detail else ''}"


def _duplicates(listing: Listing, looks: Iterable[str | BadImage | None]) -> Iterator[str]:
    """Groups of images with identical pixels, as text `NAME = NAME`."""
    groups: dict[str, list[str]] = {}
    entries = [f"{part}/{entry.name}" for part in ("train", "test") for entry in getattr(listing, part)]
    for name, digest in zip(entries, looks, strict=True):
        if isinstance(digest, str):
            groups.setdefault(digest, []).append(name)
    return (" = ".join(names) for names in groups.values() if len(names) > 1)


def _other_files(dataset: DataSet, folder: Path) -> Iterator[str]:
    """Published files, other than archives, whose content on disk differs from the published one."""
    for archive in dataset.archives:
        path = folder / archive.file
        if not archive.unpack and archive.checksum and path.is_file():
            algorithm, _, expected = archive.checksum.partition(":")
            found = hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest()
            if found != expected:
                yield f"{path} is not the published file ({algorithm} {found[:12]}, expected {expected[:12]})"
