"""Descriptions of data sets: source, size, layouts on disk, and lists of images. Readers are in `readers/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cl_bench.experiment import Scenario


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a data set.

    Attributes:
        label: class name.
        name: identity `class/file`, part of the split hash.
        path: image file; None for data sets that come as arrays.
        domain: domain of the image (photo, sketch, ...); None for data sets without domains.
    """

    label: str
    name: str
    path: Path | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Listing:
    """All images of a data set, as found on disk.

    Attributes:
        train, test: the two parts, sorted by class, then by name.
        classes: class names in natural class order (alphabetical, as in ImageFolder).
        layout: name of the layout that was found.
        pixels: uint8 [N, H, W, C] of train and test, for data sets that come as arrays of images of one size.
        unlisted: paths of images on disk that are in neither part of the split list.
        not_read: paths of other files among the images, and of images outside the folders that are read.
        empty: class folders without images.
        domains: domain names in alphabetical order, if `DataSet.domains` does not give them.
        left_out: paths of unreadable images that were left out on request (`--skip-bad`).
    """

    train: tuple[Entry, ...]
    test: tuple[Entry, ...]
    classes: tuple[str, ...]
    layout: str
    pixels: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
    unlisted: tuple[Path, ...] = ()
    not_read: tuple[Path, ...] = ()
    empty: tuple[Path, ...] = ()
    domains: tuple[str, ...] = ()
    left_out: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Archive:
    """A file to download, with what is needed to check it.

    Attributes:
        url: direct address.
        file: file name in the data set's folder.
        checksum: `sha256:...` or `md5:...`; None if not published.
        size: size in bytes; None if not published.
        unpack: whether the file is an archive that is unpacked in the data set's folder.
    """

    url: str
    file: str
    checksum: str | None = None
    size: int | None = None
    unpack: bool = True


@dataclass(frozen=True)
class DataSet:
    """A data set as the user names it.

    Attributes:
        name: as in `--benchmark`.
        title: one-line description for `cl-bench ls benchmarks`.
        licence: licence of the data, in a few words.
        page: official source; empty for a folder of the user's.
        classes, train, test: numbers of classes, training images and test images; 0 (unknown) for a user's folder.
        layouts: description (an indented tree) of each layout that is read, by name.
        read: `read(folder, split_list)` lists the images of a folder, split by that file (None: as the folder itself
            says); raises UnknownLayout if the folder has none of the layouts, UserError if its content is faulty.
        tasks: default number of class-incremental tasks; 0 if none is published.
        folders: accepted names of its folder below the data root; `cl-bench data prepare` creates the first.
        archives: files that `cl-bench data prepare` downloads; empty if the licence or the source forbids it.
        manual: instructions for what must, or may, be downloaded by hand.
        splits: published task splits, tasks x classes per task.
        domains: domain names, in their published order.
        scenario: default scenario.
        balanced: whether all classes have the same number of images in each part.
        split_hashes: by name of a published split, SHA-256 of its sorted training names and of its sorted test names,
            each joined by newlines.
        content_hash: hash of decoded pixels and labels, if known.
        checked: `files` if the reader was checked on the real files, `layout` if only on an imitation of the layout.
        citations: keys of papers in cl-bench's bibliography, for `cl-bench cite`.
        bibtex: BibTeX entries of papers that are not in the bibliography; all of them are cited.
    """

    name: str
    title: str
    licence: str
    page: str
    classes: int
    train: int
    test: int
    layouts: dict[str, str]
    read: Callable[[Path, Path | None], Listing]
    tasks: int
    folders: tuple[str, ...]
    splits: tuple[tuple[int, int], ...] = ()
    archives: tuple[Archive, ...] = ()
    manual: str = ""
    domains: tuple[str, ...] = ()
    scenario: Scenario = "class-incremental"
    balanced: bool = False
    split_hashes: dict[str, tuple[str, str]] = field(default_factory=dict)
    content_hash: str | None = None
    checked: Literal["files", "layout"] = "layout"
    citations: tuple[str, ...] = ()
    bibtex: str = ""
