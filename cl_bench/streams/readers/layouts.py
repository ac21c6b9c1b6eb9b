"""Layouts, and the construction of listings from the images in folders."""

from __future__ import annotations

import errno
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cl_bench.errors import UserError, printable
from cl_bench.streams.readers.folders import image_files, subfolders
from cl_bench.streams.readers.splits import SplitList, read_split
from cl_bench.streams.types import Entry, Listing

Reader = Callable[[Path, Path | None], Listing]
Layout = Callable[[Path, SplitList | None], Listing | None]
"""Reads one layout; returns None if the folder has another layout."""
Files = dict[str, list[tuple[str, str]]]
"""By class: names (relative to the class folder) and paths of its images."""

SPLIT_FOLDERS = """\
{0}/
  train/CLASS/*.jpg
  test/CLASS/*.jpg"""
LISTED_FOLDERS = """\
{0}/
  {1}/CLASS/*.jpg
  NAME_train.yaml, NAME_test.yaml (or .txt, or --split-list FILE)"""
"""Descriptions of layouts that several data sets share; `{0}` is the data set's folder, `{1}` that of its archive."""


class UnknownLayout(Exception):
    """Raised if a folder has none of the known layouts."""


def first_of(*layouts: Layout, lists: bool = True) -> Reader:
    """A reader that tries layouts in turn and uses the first that fits.

    Args:
        lists: whether the user may split the data set by a list; otherwise its own split is fixed.
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
            name = printable(str(error.filename))
            if error.errno == errno.ELOOP:
                raise UserError(f"'{name}' is a symbolic link that leads back to itself; remove it") from error
            raise UserError(f"'{name}' cannot be read ({error.strerror}); check its permissions") from error
        raise UnknownLayout

    return read


def scan_classes(folder: Path, through: str | None = None) -> Files:
    """The images of every class folder, in ImageFolder's order."""
    classes = (name for name in subfolders(folder) if name != through)
    return {name: sorted(image_files(str(folder / name), through)) for name in classes}


def empty_folders(folder: Path, files: Files) -> list[Path]:
    """The class folders without images."""
    return [folder / name for name, images in files.items() if not images]


def listing_of(
    layout: str,
    parts: Sequence[Files],
    unlisted: Sequence[Path] = (),
    not_read: Sequence[Path] = (),
    empty: Sequence[Path] = (),
) -> Listing:
    """A listing of both parts, with the classes in alphabetical order.

    Raises:
        UserError: two class names of one part differ only in how accents are written.
    """
    parts = _with_one_spelling(parts)
    names = tuple(sorted({*parts[0], *parts[1]}))
    train, test = (
        tuple(Entry(name, f"{name}/{file}", Path(path)) for name in names for file, path in sorted(part.get(name, ())))
        for part in parts
    )
    return Listing(train, test, names, layout, None, tuple(unlisted), tuple(not_read), tuple(empty))


def _with_one_spelling(parts: Sequence[Files]) -> list[Files]:
    """The parts, with one spelling of each class name where the two parts use different Unicode forms of it.

    Disks and tools differ in how they write accents: as one character (NFC) or as a letter with a mark (NFD).
    """
    spelling: dict[str, str] = {}
    for part in parts:
        within: Counter[str] = Counter(unicodedata.normalize("NFC", name) for name in part)
        for form, count in within.items():
            if count > 1:
                both = sorted(name for name in part if unicodedata.normalize("NFC", name) == form)
                raise UserError(
                    f"there are {count} folders of the class '{printable(form)}', whose names differ in how accents "
                    f"are written: {', '.join(ascii(name) for name in both)}; put their images into one folder"
                )
        for name in part:
            spelling.setdefault(unicodedata.normalize("NFC", name), name)
    return [{spelling[unicodedata.normalize("NFC", name)]: images for name, images in part.items()} for part in parts]


def tree_tops(folder: Path, inner: Sequence[str]) -> Iterator[Path]:
    """Folders that may contain the tree, innermost first, because an archive's own top folder is not a class."""
    yield from (folder / name for name in inner if (folder / name).is_dir())
    if folder.is_dir():
        yield folder
