"""Readers of trees of class folders, split by folders or by a list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cl_bench.errors import UserError
from cl_bench.streams.readers.folders import image_files, not_read, subfolders
from cl_bench.streams.readers.layouts import Files, Layout, empty_folders, listing_of, scan_classes, tree_tops
from cl_bench.streams.readers.list_files import Listed, text_lines
from cl_bench.streams.readers.splits import SplitList, find_split
from cl_bench.streams.types import Listing


def class_folders(
    layout: str,
    test: str = "test",
    inner: Sequence[str] = (),
    through: str | None = None,
    known: tuple[str, ...] = (),
) -> Layout:
    """Reads `train/CLASS/` and `test/CLASS/`; no split list is used.

    Args:
        layout: name of the layout.
        test: name of the test folder.
        inner: names of folders that may contain the tree.
        through: name of a folder below a class folder that is not part of image names.
        known: see `not_read`.
    """

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in tree_tops(folder, inner):
            if (top / "train").is_dir() and (top / test).is_dir():
                trees = {name: scan_classes(top / name, through) for name in ("train", test)}
                left = not_read(top, trees, _paths(trees.values()), known, beside=False)
                return listing_of(layout, [*trees.values()], not_read=left, empty=_empty(top, trees))
        return None

    return read


def class_trees(
    inner: Sequence[str] = (),
    tests: Sequence[str] = ("test",),
    own: Callable[[Path], SplitList | None] | None = None,
    hint: str = "",
) -> Layout:
    """Reads a tree of class folders that is split by a list or by `train/` and `test/` folders.

    The first of these decides: the user's list, a list in the folder, `train/` and `test/`, the list in the data set's
    archive. A list assigns all images on disk, including those in `train/` and `test/`.

    Args:
        inner: names of folders that may contain the tree.
        tests: accepted names of the test folder.
        own: finds the split list that comes with the data set's archive.
        hint: end of the error message for folders without a split: another way to read them.
    """

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        tops = list(tree_tops(folder, inner))
        split = split or find_split([folder, folder / "splits", *tops])
        for top in tops:
            for test in tests:
                if not ((top / "train").is_dir() and (top / test).is_dir()):
                    continue
                trees = {name: scan_classes(top / name) for name in ("train", test)}
                left = not_read(top, trees, _paths(trees.values()))
                layout = f"train/ and {test}/ folders"
                if split is None:
                    return listing_of(layout, [*trees.values()], not_read=left, empty=_empty(top, trees))
                return _deal(f"{layout}, split by {split.name}", top, [*trees.values()], split, left)
        for top in tops:
            files = {name: images for name, images in scan_classes(top).items() if images}
            chosen = split or (own(folder) if own is not None else None)
            if not files or (chosen is None and "train" in files):
                continue
            chosen = chosen or find_split([folder, folder / "splits", top], needed=True)
            if chosen is None:
                raise UserError(
                    f"'{top}' has class folders, but neither train/ and test/ nor a split list; name a list with "
                    "--split-list, or put one there: NAME_train.txt and NAME_test.txt with lines CLASS/FILE, or .csv, "
                    f".json or .yaml{hint}"
                )
            left = not_read(top, subfolders(top), _paths([files]))
            return _deal(f"class folders, split by {chosen.name}", top, [files], chosen, left)
        return None

    return read


def _paths(trees: Iterable[Files]) -> set[str]:
    return {path for files in trees for images in files.values() for _, path in images}


def _empty(top: Path, trees: dict[str, Files]) -> list[Path]:
    return [folder for name, files in trees.items() for folder in empty_folders(top / name, files)]


def _deal(layout: str, top: Path, trees: Sequence[Files], split: SplitList, left: Sequence[Path]) -> Listing:
    """The images of all trees, split by a list.

    Args:
        left: see `Listing.not_read`.
    """
    pool: dict[str, str] = {}
    for files in trees:
        for label, images in files.items():
            for name, path in images:
                if pool.setdefault(f"{label}/{name}", path) != path:
                    raise UserError(
                        f"'{path}' and '{pool[f'{label}/{name}']}' have the same name, so that {split.path.name} "
                        "could mean either of them; rename or remove one"
                    )
    dealt, unlisted = split.deal(pool, top, 2)
    parts: list[Files] = [{}, {}]
    for part, entries in zip(parts, dealt, strict=True):
        for key, path in entries:
            label, _, name = key.partition("/")
            part.setdefault(label, []).append((name, path))
    return listing_of(layout, parts, unlisted, left)


TINY_FILES = ("_boxes.txt", "val_annotations.txt")
"""Name endings of the other files among the images of the original archive."""


def tiny_imagenet(inner: Sequence[str]) -> Layout:
    """Reads the original tree: `train/CLASS/images/`, and `val/images/` with `val/val_annotations.txt` for testing."""

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in tree_tops(folder, inner):
            annotations, images = top / "val" / "val_annotations.txt", top / "val" / "images"
            if not ((top / "train").is_dir() and annotations.is_file() and images.is_dir()):
                continue
            found = dict(image_files(str(images)))
            test: Files = {}
            for number, line in enumerate(text_lines(annotations), start=1):
                fields = line.split("\t")
                if len(fields) < 2:
                    raise UserError(
                        f"line {number} of '{annotations}' is '{line}', expected a file and a class; restore the file"
                    )
                path = found.pop(fields[0], str(images / fields[0]))
                test.setdefault(fields[1], []).append((fields[0], path))
            unlisted = [Path(path) for path in sorted(found.values())]
            train = scan_classes(top / "train", "images")
            left = not_read(top, ["train"], _paths([train]), TINY_FILES, beside=False)
            empty = empty_folders(top / "train", train)
            return listing_of("original tree", [train, test], unlisted, left, empty)
        return None

    return read


def cub_lists(folder: Path) -> SplitList | None:
    """The official split in the archive of CUB-200-2011: `images.txt` and `train_test_split.txt`."""
    for top in tree_tops(folder, ("CUB_200_2011",)):
        images, chosen = top / "images.txt", top / "train_test_split.txt"
        if images.is_file() and chosen.is_file():
            paths, in_train = _numbered(images), _numbered(chosen)
            if paths.keys() != in_train.keys() or not {*in_train.values()} <= {"0", "1"}:
                raise UserError(f"'{images}' and '{chosen}' do not match; restore both from the archive")
            train, test = ([Listed(paths[i]) for i in paths if in_train[i] == flag] for flag in ("1", "0"))
            return SplitList(chosen, train, test)
    return None


def _numbered(path: Path) -> dict[str, str]:
    rows = {}
    for line in text_lines(path):
        number, _, value = line.partition(" ")
        if not value:
            raise UserError(f"'{path}' has the line '{line}', expected a number and a value; restore the file")
        rows[number] = value
    return rows
