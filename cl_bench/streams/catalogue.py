"""Data sets by name, from `streams/datasets/` and from installed packages, and their folders on disk."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import cl_bench.streams.datasets
from cl_bench.data.decoding import BadImage
from cl_bench.errors import NotHere, UserError, counted, named, printable, unknown_name
from cl_bench.streams.config import ROOT_VARIABLE, existing_root
from cl_bench.streams.image_files import for_each_image, look_at
from cl_bench.streams.readers import UnknownLayout, class_trees, first_of, own_domain_folders
from cl_bench.streams.readers.folders import by_ending
from cl_bench.streams.split_hash import names_hash, split_hash
from cl_bench.streams.types import DataSet, Listing

ENTRY_POINTS = "cl_bench.datasets"
FOLDER = "folder:"
OWN = "own split"

_ANY_FOLDER = DataSet(
    name=f"{FOLDER}PATH",
    title="any tree of class folders",
    licence="your own",
    page="",
    classes=0,
    train=0,
    test=0,
    layouts={
        "train/ and test/ folders": "PATH/\n  train/CLASS/* (any depth)\n  test/CLASS/* (or val/CLASS/*)",
        "class folders and a split list": (
            "PATH/\n  CLASS/* (any depth)\n  NAME_train.txt, NAME_test.txt (or .yaml, or --split-list FILE)"
        ),
    },
    read=first_of(
        class_trees(
            tests=("test", "val"), hint="; if its folders are domains with class folders: --scenario domain-incremental"
        )
    ),
    tasks=0,
    folders=(),
)
_ANY_DOMAINS = replace(
    _ANY_FOLDER,
    title="any tree of domain folders with class folders",
    layouts={
        "domain folders, split by a list or by name": (
            "PATH/\n  DOMAIN/CLASS/* (any depth)\n  NAME_train.txt, NAME_test.txt (or --split-list FILE), optional"
        ),
        "domain folders with both parts": "PATH/\n  DOMAIN/train/CLASS/*\n  DOMAIN/test/CLASS/* (or val/)",
        "parts with domain folders": "PATH/\n  train/DOMAIN/CLASS/*\n  test/DOMAIN/CLASS/* (or val/)",
    },
    read=first_of(own_domain_folders(tests=("test", "val"))),
    scenario="domain-incremental",
)


@cache
def shipped() -> dict[str, DataSet]:
    """The data sets defined in `streams/datasets/`, by name: `imagenet_r.py` defines `imagenet-r`.

    Raises:
        UserError: a file does not define exactly one data set, or one of another name.
    """
    package = cl_bench.streams.datasets
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        name = info.name.replace("_", "-")
        where = f"data set file streams/datasets/{info.name}.py"
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except Exception as error:
            raise UserError(f"{where} does not import: {type(error).__name__}: {error}; mend or remove it") from error
        found[name] = _only_data_set(module, name, where)
    return found


def names() -> list[str]:
    """Names of all data sets, including those of installed packages, without `folder:PATH`."""
    return sorted({*shipped(), *_of_packages()})


def find(name: str, domains: bool = False) -> DataSet:
    """The data set with this name, or `folder:PATH`; a data set of an installed package takes precedence over ours.

    For `folder:PATH`, the sizes of the data set are 0 (unknown).

    Args:
        domains: whether the folders of `folder:PATH` are domains rather than classes.

    Raises:
        UserError: the name is unknown (the closest one is suggested), or the entry point of a package does not import
            or defines no data set of this name.
    """
    if name.startswith(FOLDER):
        path = name.removeprefix(FOLDER)
        if not path:
            raise UserError(f"'{name}' names no folder; write {FOLDER}PATH")
        dataset = _ANY_DOMAINS if domains else _ANY_FOLDER
        return replace(dataset, name=name, folders=(str(Path(path).expanduser().absolute()),))
    points = _of_packages()
    if name in points:
        return _load_entry_point(points[name])
    if name not in shipped():
        known = [*shipped(), *points, f"{FOLDER}PATH"]
        raise unknown_name("data set", name, known, "'cl-bench data list' describes them.")
    return shipped()[name]


def _of_packages() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load_entry_point(point: EntryPoint) -> DataSet:
    try:
        value = point.load()
    except Exception as error:
        raise UserError(
            f"data set '{point.name}' (entry point {point.value}) does not import: {type(error).__name__}: {error}; "
            "repair or uninstall its package"
        ) from error
    return _only_data_set(value, point.name, f"data set '{point.name}' (entry point {point.value})")


def _only_data_set(value: object, name: str, where: str) -> DataSet:
    """`value` itself if it is a data set, or the only data set defined in a module.

    Args:
        name: required name of the data set.
        where: beginning of an error message, names the file or entry point.
    """
    values = list(vars(value).values()) if isinstance(value, ModuleType) else [value]
    found = [one for one in values if isinstance(one, DataSet)]
    if len(found) != 1:
        raise UserError(
            f"{where} holds {len(found) or 'no'} cl_bench.streams.types.DataSet, expected one; "
            f"define one named '{name}' there, or uninstall the package that it is in"
        )
    if found[0].name != name:
        raise UserError(f"{where} holds the data set '{found[0].name}'; give both the same name")
    return found[0]


def locate(dataset: DataSet, root: Path | None = None) -> Path:
    """The folder of a data set: the first of its accepted names that exists below the root.

    Raises:
        UserError: no such folder exists.
    """
    if dataset.name.startswith(FOLDER):
        (folder,) = map(Path, dataset.folders)
        try:
            there = folder.is_dir()
        except (OSError, ValueError):
            # The path is too long, or has characters that no path can have.
            there = False
        if not there:
            raise UserError(f"there is no folder '{folder}' ({dataset.name}); name an existing one")
        return folder
    top = existing_root(root)
    for name in dataset.folders:
        if (top / name).is_dir():
            return top / name
    parent = f" (for the folder '{top}' itself, name its parent)" if top.name in dataset.folders else ""
    raise NotHere(
        f"{dataset.name} is not there: no folder '{top / dataset.folders[0]}'; 'cl-bench data prepare {dataset.name}' "
        f"downloads it or says how to get it; --root or {ROOT_VARIABLE} names another data folder{parent}"
    )


def read(dataset: DataSet, folder: Path, split_list: Path | None = None) -> Listing:
    """The images in a folder, complete or not.

    Raises:
        UserError: the folder has an unknown layout, or its content is faulty.
    """
    try:
        return dataset.read(folder, split_list)
    except UnknownLayout as error:
        trees = "\nor\n".join(dataset.layouts.values())
        raise UserError(
            f"'{folder}' has none of the known layouts of {dataset.name}; arrange it as\n{trees}"
        ) from error


def class_faults(dataset: DataSet, listing: Listing) -> list[str]:
    """Faults of the classes, as sentences: a wrong number, none at all, or a class without images."""
    if not listing.classes and not dataset.classes:
        return ["no class folders with images"]
    faults = []
    present = [{entry.label for entry in part} for part in (listing.train, listing.test)]
    if dataset.classes and len(listing.classes) != dataset.classes:
        odd = sorted(present[0] ^ present[1])
        hint = f"; in one part only: {named(odd)}" if odd else ""
        faults.append(f"{len(listing.classes)} classes, expected {dataset.classes}{hint}")
    for part, labels in zip(("training", "test"), present, strict=True):
        if empty := [name for name in listing.classes if name not in labels]:
            faults.append(f"no {part} images of class {named(empty)}")
    return faults


def domain_faults(dataset: DataSet, listing: Listing) -> tuple[list[str], list[str]]:
    """Faults of the domains (no images), and remarks on them (classes that a domain lacks), as sentences."""
    faults, gaps = [], []
    for part, entries in (("training", listing.train), ("test", listing.test)):
        pairs = {(entry.domain, entry.label) for entry in entries}
        for domain in dataset.domains or listing.domains:
            lacking = [label for label in listing.classes if (domain, label) not in pairs]
            if len(lacking) == len(listing.classes):
                faults.append(f"domain '{printable(domain)}' has no {part} images")
            elif lacking:
                gaps.append(f"domain '{printable(domain)}' has no {part} images of class {named(lacking)}")
    return faults, gaps


def load(dataset: DataSet, root: Path | None = None, skip_bad: bool = False, split_list: Path | None = None) -> Listing:
    """The images of a data set, checked as far as possible without decoding them.

    Args:
        root: folder with the data sets, see `config.data_root`.
        skip_bad: leave out images that cannot be decoded; all images are decoded to find these.
        split_list: see `readers.splits.read_split`.

    Raises:
        UserError: the data set is missing or has another layout, a wrong number of classes, a class without images,
            or (without `skip_bad`) an image that is missing or empty. Images with damaged content are found later, by
            `data.decoding.decode`.
    """
    folder = locate(dataset, root)
    listing = read(dataset, folder, split_list)
    if listing.pixels is None:
        files = listing.train + listing.test
        if skip_bad:
            seen = for_each_image(files, lambda entry, pixels: None)
            bad = [found for found in seen if isinstance(found, BadImage)]
            listing = without(listing, {found.path for found in bad})
        elif bad := [found for entry in files if entry.path and (found := look_at(entry.path))]:
            more = f" (and {len(bad) - 1} more: 'cl-bench data verify {dataset.name}' names them)" if bad[1:] else ""
            raise UserError(f"{dataset.name}: {bad[0]}{more}")
    if faults := class_faults(dataset, listing):
        raise UserError(
            f"{dataset.name} in '{folder}' ({listing.layout}): {'; '.join(faults)}; {_way_out(listing, folder)}"
        )
    return listing


def _way_out(listing: Listing, folder: Path) -> str:
    """What to do about faulty classes, with the numbers of files that were not read or left out."""
    others = [f"not read: {by_ending(listing.not_read, folder)}"] if listing.not_read else []
    others += [f"left out: {counted(len(listing.left_out), 'image')}"] if listing.left_out else []
    if not listing.classes:
        way_out = "put the images of each class into a folder of its own"
    elif listing.empty:
        way_out = f"remove or fill the empty folder {named([str(path) for path in listing.empty])}"
    else:
        way_out = "get it again or restore it"
    return f"{way_out} ({'; '.join(others)})" if others else way_out


def without(listing: Listing, bad: set[Path]) -> Listing:
    """A listing without the images `bad`, which it names in `left_out`."""
    train, test = (tuple(entry for entry in part if entry.path not in bad) for part in (listing.train, listing.test))
    return replace(listing, train=train, test=test, left_out=tuple(sorted(bad)))


def split_of(dataset: DataSet, listing: Listing) -> tuple[str, bool]:
    """Name of the split, and whether it is a published one; another split is named by its hash."""
    names = [[entry.name for entry in part] for part in (listing.train, listing.test)]
    found = tuple(map(names_hash, names))
    for name, known in dataset.split_hashes.items():
        if found == known:
            return name, True
    return f"{OWN} {split_hash(*names)[:8]}", False
