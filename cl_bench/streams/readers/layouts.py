"""What a layout is, and how a folder is looked through for images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cl_bench.errors import UserError
from cl_bench.streams.readers.splits import SplitList, read_split
from cl_bench.streams.types import Entry, Listing

Reader = Callable[[Path, Path | None], Listing]
Layout = Callable[[Path, SplitList | None], Listing | None]
"""Reads one layout; None if the folder has another one."""
Files = dict[str, list[tuple[str, str]]]
"""By class: the names of its images below the class folder, and their paths."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""

SPLIT_FOLDERS = """\
{0}/
  train/CLASS/*.jpg
  test/CLASS/*.jpg"""
LISTED_FOLDERS = """\
{0}/
  {1}/CLASS/*.jpg
  NAME_train.yaml, NAME_test.yaml (or .txt, or --split-list FILE)"""
"""How layouts that several data sets have are shown to the user; `{0}` is the data set's folder."""


class UnknownLayout(Exception):
    """The folder has none of the layouts that are read."""


def first_of(*layouts: Layout, lists: bool = True) -> Reader:
    """A reader that tries layouts in turn.

    Args:
        lists: whether the data set may be split by a list of the user's; its own split is fixed otherwise.
    """

    def read(folder: Path, split: Path | None = None) -> Listing:
        if split is not None and not lists:
            raise UserError(f"the split of '{folder}' is fixed; it cannot take the split list '{split}'")
        chosen = read_split(split) if split is not None else None
        try:
            for layout in layouts:
                if (listing := layout(folder, chosen)) is not None:
                    return listing
        except OSError as error:
            raise UserError(f"'{error.filename}' cannot be read ({error.strerror}); check its permissions") from error
        raise UnknownLayout

    return read


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in the order of ImageFolder, without those that tools hide there."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith((".", "__MACOSX")) and e.is_dir())


def image_files(folder: str, prefix: str = "", through: str | None = None) -> Iterator[tuple[str, str]]:
    """Names and paths of the images at any depth; folders called `through` do not count in the name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from image_files(
                    entry.path, prefix if entry.name == through else f"{prefix}{entry.name}/", through
                )
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.path


def scan_classes(folder: Path, through: str | None = None) -> Files:
    """The images of every class folder, in the order of ImageFolder."""
    classes = (name for name in subfolders(folder) if name != through)
    return {name: sorted(image_files(str(folder / name), through=through)) for name in classes}


def listing_of(layout: str, parts: Sequence[Files], unlisted: Sequence[Path] = ()) -> Listing:
    """Entries of both parts, with the classes in alphabetical order."""
    names = tuple(sorted({*parts[0], *parts[1]}))
    train, test = (
        tuple(Entry(name, f"{name}/{file}", Path(path)) for name in names for file, path in sorted(part.get(name, ())))
        for part in parts
    )
    return Listing(train, test, names, layout, unlisted=tuple(unlisted))


def tree_tops(folder: Path, inner: Sequence[str]) -> Iterator[Path]:
    """Folders in which a tree may lie, the innermost first: an archive's own top folder is no class."""
    yield from (folder / name for name in inner if (folder / name).is_dir())
    if folder.is_dir():
        yield folder
