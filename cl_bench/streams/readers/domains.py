"""Readers of trees of domain folders that contain class folders."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cl_bench.errors import UserError, printable
from cl_bench.streams.readers.folders import not_read, subfolders
from cl_bench.streams.readers.layouts import Files, Layout, empty_folders, scan_classes, tree_tops
from cl_bench.streams.readers.list_files import read_part
from cl_bench.streams.readers.splits import SplitList, find_split
from cl_bench.streams.split_hash import encoded
from cl_bench.streams.types import Entry, Listing


def domain_folders(
    domains: Sequence[str],
    lists: tuple[str, str],
    inner: Sequence[str] = (),
    by_label: bool = False,
    test_share: float | None = None,
) -> Layout:
    """Reads `DOMAIN/CLASS/` with a pair of lists for each domain; images are named `CLASS/DOMAIN/FILE`.

    Args:
        domains: names of the domain folders.
        lists: names of the training and the test list of a domain, with `{}` for the domain.
        inner: names of folders that may contain the tree.
        by_label: order classes by the labels in the lists, rather than alphabetically.
        test_share: without lists, the share of each class in each domain that is used for testing: the first images in
            the order of the SHA-256 of `DOMAIN/CLASS/FILE`. None: lists are required.
    """

    def read(folder: Path, split: SplitList | None) -> Listing | None:
        for top in tree_tops(folder, inner):
            there = [domain for domain in domains if (top / domain).is_dir()]
            if not there:
                continue
            pool = {
                f"{domain}/{label}/{name}": path
                for domain in there
                for label, images in scan_classes(top / domain).items()
                for name, path in images
            }
            if split is None:
                lacking = [domain for domain in domains if domain not in there]
                if lacking:
                    raise UserError(
                        f"'{top}' has no folder {', '.join(lacking)}; all domains are needed: {', '.join(domains)} "
                        "(or a split list that names only the domains that are there: --split-list)"
                    )
                split = _domain_lists(domains, lists, [top, *(top / name for name in ("splits", "txt")), folder])
            left = not_read(top, there, {*pool.values()}, beside=False)
            if split is not None:
                dealt, unlisted = split.deal(pool, top, 3)
                classes = split.order() if by_label else None
                listing = _with_domains(f"domain folders, split by {split.name}", dealt, classes, unlisted)
                return replace(listing, not_read=left)
            if test_share is None:
                names = [name.format(there[0]) for name in lists]
                raise UserError(
                    f"'{top}' has no split lists; put {' and '.join(names)} there, and likewise for each domain"
                )
            return replace(_with_domains("domain folders, split by name", _by_name(pool, test_share)), not_read=left)
        return None

    return read


def own_domain_folders(tests: Sequence[str] = ("test",), test_share: float = 0.2) -> Layout:
    """Reads `DOMAIN/CLASS/`, `DOMAIN/{train,test}/CLASS/` or `{train,test}/DOMAIN/CLASS/` with any domain names.

    Domains are in alphabetical order. The first of these decides the split: the user's list, lists in the folder (a
    pair for each domain, or one for all), `train/` and `test/` folders. Without any of these, a share of each class in
    each domain is used for testing, as in `domain_folders`; the only image of a class is used for training.

    Args:
        tests: accepted names of the test folder.
        test_share: share of each class in each domain that is used for testing if nothing else decides.
    """

    def read(top: Path, split: SplitList | None) -> Listing | None:
        trees, empty = _domain_trees(top, tests)
        pools: dict[str, dict[str, str]] = {}
        for tree in trees:
            pool = pools.setdefault(tree.part, {})
            for label, images in tree.files.items():
                pool |= {f"{tree.domain}/{label}/{name}": path for name, path in images}
        if not any(pools.values()):
            return None
        domains = tuple(sorted({tree.domain for tree in trees}))
        _check_domains(top, domains, {key for pool in pools.values() for key in pool})
        split = split or _domain_lists(domains, ("{}_train.txt", "{}_test.txt"), [top, top / "splits", top / "txt"])
        split = split or find_split([top, top / "splits"], needed="" in pools)
        unlisted: Sequence[Path] = ()
        if split is not None:
            layout = f"domain folders, split by {split.name}"
            dealt, unlisted = split.deal(_together(pools, top, split), top, 3)
        elif "" in pools:
            layout, dealt = "domain folders, split by name", _by_name(pools[""], test_share)
        else:
            layout = "domain folders with training and test images"
            dealt = [*pools.get("train", {}).items()], [*pools.get("test", {}).items()]
        used = {path for pool in pools.values() for path in pool.values()}
        tops = sorted({tree.folder.relative_to(top).parts[0] for tree in trees})
        return replace(
            _with_domains(layout, dealt, unlisted=unlisted),
            domains=domains,
            not_read=not_read(top, tops, used),
            empty=tuple(empty),
        )

    return read


class _DomainTree(NamedTuple):
    """The class folders of one domain, or of one part of it.

    Attributes:
        part: `train` or `test`; empty if the folders do not define the split.
        domain: name of the domain.
        folder: folder that contains the class folders.
        files: images by class.
    """

    part: str
    domain: str
    folder: Path
    files: Files


def _domain_trees(top: Path, tests: Sequence[str]) -> tuple[list[_DomainTree], list[Path]]:
    """The class folders of all domains, and the folders without images."""
    found: list[tuple[str, str, Path]] = []
    empty: list[Path] = []
    test = next((test for test in tests if (top / test).is_dir()), None)
    if test and (top / "train").is_dir():
        parts = {"train": top / "train", "test": top / test}
        found = [(part, domain, folder / domain) for part, folder in parts.items() for domain in subfolders(folder)]
    else:
        for domain in subfolders(top):
            inside = subfolders(top / domain)
            if not inside:
                empty += [top / domain] if not any((top / domain).iterdir()) else []
                continue
            parts = {"train": top / domain / "train"} if "train" in inside else {}
            if test := next((test for test in tests if test in inside), None):
                parts["test"] = top / domain / test
            found += [(part, domain, folder) for part, folder in (parts or {"": top / domain}).items()]
        split, whole = ([domain for part, domain, _ in found if bool(part) == cut] for cut in (True, False))
        if split and whole:
            raise UserError(
                f"in '{top}', domain '{printable(split[0])}' has train/ and test/ folders, but domain "
                f"'{printable(whole[0])}' has none; arrange all domains alike"
            )
    trees: list[_DomainTree] = []
    spelling: dict[str, str] = {}
    for part, domain, folder in found:
        files = scan_classes(folder)
        empty += empty_folders(folder, files)
        # Accents have two Unicode forms: use one spelling for each domain and class.
        domain, *labels = (spelling.setdefault(unicodedata.normalize("NFC", name), name) for name in (domain, *files))
        if len({*labels}) < len(labels) or (part, domain) in {(tree.part, tree.domain) for tree in trees}:
            raise UserError(
                f"names of folders in '{printable(str(folder if len({*labels}) < len(labels) else folder.parent))}' "
                "differ only in how accents are written; put their images into one folder"
            )
        trees.append(_DomainTree(part, domain, folder, dict(zip(labels, files.values(), strict=True))))
    return trees, empty


def _check_domains(top: Path, domains: Sequence[str], keys: Iterable[str]) -> None:
    """Raise `UserError` if these folders cannot be domains."""
    if len(domains) < 2:
        raise UserError(
            f"'{top}' has only one domain folder, '{printable(domains[0])}', expected several: DOMAIN/CLASS/FILE; "
            "name the folder that contains all domains"
        )
    labels = Counter(label for _, label in {tuple(key.split("/")[:2]) for key in keys})
    if max(labels.values()) < 2:
        raise UserError(
            f"the folders of '{top}' ({printable(', '.join(domains[:3]))}, ...) have no class in common, so they "
            "cannot be domains; arrange them as DOMAIN/CLASS/FILE, or leave out --scenario if they are classes"
        )


def _together(pools: dict[str, dict[str, str]], top: Path, split: SplitList) -> dict[str, str]:
    """The images of all parts in one pool."""
    pool: dict[str, str] = {}
    for one in pools.values():
        if twice := pool.keys() & one.keys():
            raise UserError(
                f"'{printable(min(twice))}' is in both parts of '{top}', so {split.path.name} could mean either of "
                "them; rename or remove one"
            )
        pool |= one
    return pool


def _domain_lists(domains: Sequence[str], names: tuple[str, str], folders: Sequence[Path]) -> SplitList | None:
    """The lists of all domains as one split list; None if no domain has a list."""
    for folder in folders:
        paths = [[folder / name.format(domain) for domain in domains] for name in names]
        lacking = [path for part in paths for path in part if not path.is_file()]
        if len(lacking) == 2 * len(domains):
            continue
        if lacking:
            raise UserError(f"'{lacking[0]}' is missing; the split needs a training and a test list for each domain")
        train, test = ([listed for path in part for listed in read_part(path)] for part in paths)
        return SplitList(folder / names[0].format("*"), train, test)
    return None


def _by_name(pool: dict[str, str], share: float) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test images of each class in each domain, chosen by the SHA-256 of their names."""
    groups: dict[str, list[str]] = {}
    for key in pool:
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    train, test = [], []
    for keys in groups.values():
        keys.sort(key=lambda key: hashlib.sha256(encoded(key)).digest())
        count = min(max(round(share * len(keys)), 1), len(keys) - 1)
        test += [(key, pool[key]) for key in keys[:count]]
        train += [(key, pool[key]) for key in keys[count:]]
    return train, test


def _with_domains(
    layout: str,
    parts: Sequence[Sequence[tuple[str, str]]],
    classes: tuple[str, ...] | None = None,
    unlisted: Sequence[Path] = (),
) -> Listing:
    """A listing of images with the keys `DOMAIN/CLASS/FILE`."""
    names = classes or tuple(sorted({key.split("/")[1] for part in parts for key, _ in part}))
    position = {name: i for i, name in enumerate(names)}

    def entries(part: Sequence[tuple[str, str]]) -> tuple[Entry, ...]:
        found = []
        for key, path in part:
            domain, label, name = key.split("/", 2)
            found.append(Entry(label, f"{label}/{domain}/{name}", Path(path), domain))
        return tuple(sorted(found, key=lambda entry: (position[entry.label], entry.name)))

    return Listing(entries(parts[0]), entries(parts[1]), names, layout, unlisted=tuple(unlisted))
