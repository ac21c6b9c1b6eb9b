"""What a data set is: where it comes from, how large it is, how it lies on disk. Readers are in `readers/`."""

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
        name: identity `class/file`, as it enters the split hash.
        path: of the image file; None where images lie in arrays.
        domain: of data sets that have domains (photo, sketch, ...).
    """

    label: str
    name: str
    path: Path | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Listing:
    """All images of a data set, as found below a root.

    Attributes:
        train, test: the two parts, in the order of their classes, then of their names.
        classes: class names in the data set's own (alphabetical, as ImageFolder) order: natural class order.
        layout: which of the layouts was found.
        pixels: uint8 [N, H, W, C] of train and test, for data sets that come as arrays of images of one size.
        unlisted: paths of images that are there, but in neither part of the split list.
        not_read: paths of other files that lie among the images, and of images where none are looked for.
        empty: class folders without images.
        domains: names of the domains where the data set does not say them, in alphabetical order.
        left_out: paths of images that cannot be read, which the user wants left out.
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
    """A file to download: where from, as what, and how to know that it is right.

    Attributes:
        url: direct address.
        file: name below the data set's folder.
        checksum: `sha256:...` or `md5:...`, as published.
        size: bytes, if published.
        unpack: whether it is an archive to be unpacked there.
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
        title: one line for `cl-bench ls benchmarks`.
        licence: under which it is given, in a few words.
        page: official source.
        classes, train, test: how many there are; 0 for a folder of the user's, where nobody knows.
        layouts: names and descriptions (an indented tree) of the layouts that are read.
        read: finds the images below a folder, split as the list of a file says (None: as the folder itself does);
            raises UnknownLayout if there is no known layout there, UserError if there is something wrong with it.
        tasks: the default number of class-incremental tasks; 0 where nobody has published one.
        folders: names that its folder below the root may have; the first is the one that `prepare` makes.
        archives: what `prepare` downloads; empty where the licence or the source forbids it.
        manual: what a person has to download, or may, and where to put it.
        splits: published task splits, tasks x classes per task.
        domains: names of its domains, in their published order.
        scenario: the usual one.
        balanced: whether all classes have the same number of images in each part.
        split_hashes: SHA-256 of the sorted training and of the sorted test names, newline-joined, by the name of a
            known split.
        content_hash: of decoded pixels and labels, if known.
        checked: whether the reader was checked on the real `files` or on the `layout` only.
        citations: keys of papers in the bibliography of cl-bench, for `cl-bench cite`.
        bibtex: BibTeX entries of papers that are not in there; all of them are cited.
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
