"""Search of a folder: its images, its other files, and protection against circular links."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from cl_bench.errors import UserError, printable

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".jpe", ".jfif", ".gif", ".pbm", ".pnm", ".avif",
)  # fmt: skip
"""Endings of image file names, in upper or lower case: those of torchvision's ImageFolder (first line), and further
endings of the formats in `data.decoding.FORMATS`."""
_OF_THE_DISK = frozenset({"lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"})
"""Folders that operating systems create at the top of a disk or next to any file."""


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in ImageFolder's order, without those that tools create."""
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if not e.name.startswith((".", "__MACOSX")) and e.name not in _OF_THE_DISK and e.is_dir()
        )


def image_files(folder: str, through: str | None = None) -> Iterator[tuple[str, str]]:
    """Names and paths of the images at any depth; folders named `through` are left out of the names.

    Raises:
        UserError: a symbolic link points to a folder that contains it.
    """
    return (found for found in _files(folder, through=through) if is_image(found[0]))


def is_image(name: str) -> bool:
    """Whether a file is read as an image, judged by its name."""
    name = name.rpartition("/")[2]
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _files(
    folder: str, prefix: str = "", through: str | None = None, hidden: bool = False, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Names and paths of all files at any depth, following symbolic links.

    Args:
        prefix: put before all names.
        through: name of folders that are left out of the names.
        hidden: include files and folders whose names begin with a dot, and folders of the operating system.
        above: resolved paths of this folder and its parents, up to the folder where the search began.
    """
    above = above or (_real(folder, os.path.realpath(Path(folder).parent)),)
    with os.scandir(folder) as entries:
        for entry in entries:
            odd = entry.name.startswith(".") or entry.name in _OF_THE_DISK
            if odd and not hidden:
                continue
            if not entry.is_dir():
                yield prefix + entry.name, entry.path
            elif odd:
                # Links are not followed there, and unreadable folders hold no data.
                for place, _, names in os.walk(entry.path):
                    yield from ((name, f"{place}{os.sep}{name}") for name in names)
            else:
                here = f"{above[-1].rstrip(os.sep)}{os.sep}{entry.name}"
                place = _real(entry.path, *above) if entry.is_symlink() else here
                below = prefix if entry.name == through else f"{prefix}{entry.name}/"
                yield from _files(entry.path, below, through, hidden, (*above, place))


def _real(folder: str, *above: str) -> str:
    """The resolved path of a folder.

    Args:
        above: resolved paths of the folders that contain it.

    Raises:
        UserError: the folder is a link to one of these, or to a parent of one.
    """
    place = os.path.realpath(folder)
    if any(f"{one}{os.sep}".startswith(f"{place.rstrip(os.sep)}{os.sep}") for one in above):
        raise UserError(
            f"'{printable(folder)}' is a symbolic link to '{printable(place)}', a folder that contains it, so "
            "the search would never end; remove the link"
        )
    return place


def not_read(
    top: Path, parts: Iterable[str], read: Collection[str], known: tuple[str, ...] = (), beside: bool = True
) -> tuple[Path, ...]:
    """The files below `top` that look like data but are not read.

    Args:
        parts: names of folders in which every file should be an image: those of the parts, or of the classes.
        read: paths of the images that are read, or reported elsewhere as left out.
        known: name endings of other files that an official archive has among its images.
        beside: include images outside these folders.
    """
    parts = list(parts)
    found = [path for part in parts for _, path in _files(str(top / part), hidden=True) if path not in read]
    if beside and (others := list(_images_beside(top, parts))):
        # Images that links point to are read through the links.
        linked = {_identity(path) for path in read}
        found += [path for path in others if _identity(path) not in linked]
    left = (Path(path) for path in sorted(found) if not path.endswith(known))
    # Files that the Finder of macOS creates hold no data.
    return tuple(path for path in left if path.name != ".DS_Store" and not path.name.startswith("._"))


def _images_beside(top: Path, parts: Collection[str]) -> Iterator[str]:
    """Paths of the images in a folder that are in none of its parts."""
    with os.scandir(top) as entries:
        others = [entry for entry in entries if entry.name not in parts and not entry.name.startswith(".")]
    for entry in others:
        if not entry.is_dir():
            yield from [entry.path] if is_image(entry.name) else []
        elif not entry.is_symlink():
            for place, _, names in os.walk(entry.path):
                yield from (f"{place}{os.sep}{name}" for name in names if is_image(name))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def by_ending(paths: Iterable[Path], top: Path) -> str:
    """Numbers of files by name ending, as text: "24 .png in val/, 2 .txt".

    Args:
        paths: paths of the files, below `top`.
    """
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for path in paths:
        steps = path.relative_to(top).parts if path.is_relative_to(top) else path.parts
        hidden = any(step.startswith(".") for step in steps)
        ending = path.suffix.lower() or (path.name if path.name.startswith(".") else "without an ending")
        # Images are grouped by place, because that is why they are not read; other files are not read anywhere.
        place = steps[0] if is_image(path.name) else ""
        groups.setdefault((hidden, ending, place), []).append("/".join(steps[:-1]))
    texts = []
    for (hidden, ending, _), folders in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        common = os.path.commonpath(folders) if all(folders) else ""
        what = f"{'hidden ' if hidden else ''}{printable(ending)}"
        texts.append(f"{len(folders):,} {what}{f' in {printable(common)}/' if common else ''}")
    return ", ".join(texts)
