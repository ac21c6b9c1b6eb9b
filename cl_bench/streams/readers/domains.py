"""Trees of domain folders, each with class folders."""

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
    """`DOMAIN/CLASS/` with a pair of lists for each domain; images are called `CLASS/DOMAIN/FILE`.

    Args:
        lists: names of the lists of a domain, with `{}` for it.
        by_label: classes in the order of the lists' labels, rather than in alphabetical order.
        test_share: if there are no lists, this share of each class in each domain is the test part: the first ones in
            the order of the SHA-256 of `DOMAIN/CLASS/FILE`.
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
                        "(or a split list that names only the others: --split-list)"
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
                raise UserError(f"'{top}' has no split lists; put {' and '.join(names)} there, and so for each domain")
            return replace(_with_domains("domain folders, split by name", _by_name(pool, test_share)), not_read=left)
        return None

    return read


def own_domain_folders(tests: Sequence[str] = ("test",), test_share: float = 0.2) -> Layout:
    """`DOMAIN/CLASS/`, `DOMAIN/{train,test}/CLASS/` or `{train,test}/DOMAIN/CLASS/`, whatever the domains are called.

    Their order is the alphabetical one. A list of the user's comes first, then those in the folder (a pair for each
    domain, or one for all), then `train/` and `test/`. Without any of these, a share of each class in each domain is
    the test part, as in `domain_folders`; an only image is for training.

    Args:
        tests: what the test folder may be called.
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
    """A folder of class folders.

    Attributes:
        part: `train`, `test`, or empty where the folders do not say it.
    """

    part: str
    domain: str
    folder: Path
    files: Files


def _domain_trees(top: Path, tests: Sequence[str]) -> tuple[list[_DomainTree], list[Path]]:
    """The trees of all domains, and the folders without images."""
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
                f"in '{top}', domain '{printable(split[0])}' has train/ and test/ folders and domain "
                f"'{printable(whole[0])}' has not; arrange all domains alike"
            )
    trees: list[_DomainTree] = []
    spelling: dict[str, str] = {}
    for part, domain, folder in found:
        files = scan_classes(folder)
        empty += empty_folders(folder, files)
        # Accents are written in two ways: one domain or class has one name.
        domain, *labels = (spelling.setdefault(unicodedata.normalize("NFC", name), name) for name in (domain, *files))
        if len({*labels}) < len(labels) or (part, domain) in {(tree.part, tree.domain) for tree in trees}:
            raise UserError(
                f"names of folders in '{printable(str(folder if len({*labels}) < len(labels) else folder.parent))}' "
                "differ only in how accents are written; put their images into one"
            )
        trees.append(_DomainTree(part, domain, folder, dict(zip(labels, files.values(), strict=True))))
    return trees, empty


def _check_domains(top: Path, domains: Sequence[str], keys: Iterable[str]) -> None:
    """Raise `UserError` if these folders can be no domains."""
    if len(domains) < 2:
        raise UserError(
            f"'{top}' has the one domain folder '{printable(domains[0])}', expected several: DOMAIN/CLASS/FILE; "
            "name the folder that they lie in"
        )
    labels = Counter(label for _, label in {tuple(key.split("/")[:2]) for key in keys})
    if max(labels.values()) < 2:
        raise UserError(
            f"the folders of '{top}' ({printable(', '.join(domains[:3]))}, ...) have no class in common, so they are "
            "no domains; arrange them as DOMAIN/CLASS/FILE, or leave out --scenario if they are classes"
        )


def _together(pools: dict[str, dict[str, str]], top: Path, split: SplitList) -> dict[str, str]:
    """The images of both parts."""
    pool: dict[str, str] = {}
    for one in pools.values():
        if twice := pool.keys() & one.keys():
            raise UserError(
                f"'{printable(min(twice))}' is in both parts of '{top}', so that {split.path.name} could mean either; "
                "rename or remove one"
            )
        pool |= one
    return pool


def _domain_lists(domains: Sequence[str], names: tuple[str, str], folders: Sequence[Path]) -> SplitList | None:
    """The lists of all domains as one; None if there is not a single one."""
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
    names = classes or tuple(sorted({key.split("/")[1] for part in parts for key, _ in part}))
    position = {name: i for i, name in enumerate(names)}

    def entries(part: Sequence[tuple[str, str]]) -> tuple[Entry, ...]:
        found = []
        for key, path in part:
            domain, label, name = key.split("/", 2)
            found.append(Entry(label, f"{label}/{domain}/{name}", Path(path), domain))
        return tuple(sorted(found, key=lambda entry: (position[entry.label], entry.name)))

    return Listing(entries(parts[0]), entries(parts[1]), names, layout, unlisted=tuple(unlisted))
