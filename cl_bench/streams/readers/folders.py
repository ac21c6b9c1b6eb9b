"""How a folder is looked through: the images in it, the other files, and links without an end."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from cl_bench.errors import UserError, printable

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".jpe", ".jfif", ".gif", ".pbm", ".pnm", ".avif",
)  # fmt: skip
"""How the name of an image file ends, in any case: as for torchvision's ImageFolder (first line), and further names of
what `data.decoding.FORMATS` has."""
_OF_THE_DISK = frozenset({"lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"})
"""Folders that operating systems put at the top of a disk or beside any file."""


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in the order of ImageFolder, without those that tools put there."""
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if not e.name.startswith((".", "__MACOSX")) and e.name not in _OF_THE_DISK and e.is_dir()
        )


def image_files(folder: str, through: str | None = None) -> Iterator[tuple[str, str]]:
    """Names and paths of the images at any depth; folders called `through` do not count in the name.

    Raises:
        UserError: a symbolic link leads to a folder that it lies in.
    """
    return (found for found in _files(folder, through=through) if is_image(found[0]))


def is_image(name: str) -> bool:
    """Whether a file is one of the images that are read, by its name."""
    name = name.rpartition("/")[2]
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _files(
    folder: str, prefix: str = "", through: str | None = None, hidden: bool = False, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Names and paths of all files at any depth, also through symbolic links.

    Args:
        hidden: with those whose names, or whose folders' names, begin with a dot, and what systems put there.
        above: where this folder and those above it really are, from the one that was asked for.
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
                # No links are followed there, and what cannot be read is no data.
                for place, _, names in os.walk(entry.path):
                    yield from ((name, f"{place}{os.sep}{name}") for name in names)
            else:
                here = f"{above[-1].rstrip(os.sep)}{os.sep}{entry.name}"
                place = _real(entry.path, *above) if entry.is_symlink() else here
                below = prefix if entry.name == through else f"{prefix}{entry.name}/"
                yield from _files(entry.path, below, through, hidden, (*above, place))


def _real(folder: str, *above: str) -> str:
    """Where a folder really is.

    Args:
        above: where the folders really are that it lies in.

    Raises:
        UserError: it is a link to one of these, or to one above them.
    """
    place = os.path.realpath(folder)
    if any(f"{one}{os.sep}".startswith(f"{place.rstrip(os.sep)}{os.sep}") for one in above):
        raise UserError(
            f"'{printable(folder)}' is a symbolic link to '{printable(place)}', a folder that it lies in, so that "
            "there is no end to what is in it; remove the link"
        )
    return place


def not_read(
    top: Path, parts: Iterable[str], read: Collection[str], known: tuple[str, ...] = (), beside: bool = True
) -> tuple[Path, ...]:
    """The files below `top` that look like data and are not read.

    Args:
        parts: folders in it in which every file should be an image: those of the parts, or of the classes.
        read: paths of the images that are read, or named elsewhere as left out.
        known: how names of files end that an official archive has among its images.
        beside: with the images that lie beside those folders, or in other ones.
    """
    parts = list(parts)
    found = [path for part in parts for _, path in _files(str(top / part), hidden=True) if path not in read]
    if beside and (others := list(_images_beside(top, parts))):
        # Those to which links lead are read there.
        linked = {_identity(path) for path in read}
        found += [path for path in others if _identity(path) not in linked]
    left = (Path(path) for path in sorted(found) if not path.endswith(known))
    # What the Finder of macOS leaves behind holds no data.
    return tuple(path for path in left if path.name != ".DS_Store" and not path.name.startswith("._"))


def _images_beside(top: Path, parts: Collection[str]) -> Iterator[str]:
    """Paths of the images in a folder that lie in none of its parts."""
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
    """How many files there are by the ending of their names, as text: "24 .png in val/, 2 .txt".

    Args:
        paths: of the files, below `top`.
    """
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for path in paths:
        steps = path.relative_to(top).parts if path.is_relative_to(top) else path.parts
        hidden = any(step.startswith(".") for step in steps)
        ending = path.suffix.lower() or (path.name if path.name.startswith(".") else "without an ending")
        # An image is not read for where it is, another file for what it is.
        place = steps[0] if is_image(path.name) else ""
        groups.setdefault((hidden, ending, place), []).append("/".join(steps[:-1]))
    texts = []
    for (hidden, ending, _), folders in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        common = os.path.commonpath(folders) if all(folders) else ""
        what = f"{'hidden ' if hidden else ''}{printable(ending)}"
        texts.append(f"{len(folders):,} {what}{f' in {printable(common)}/' if common else ''}")
    return ", ".join(texts)
