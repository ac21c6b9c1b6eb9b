"""Trees of domain folders, each with class folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cl_bench.errors import UserError
from cl_bench.streams.readers.layouts import Layout, scan_classes, tree_tops
from cl_bench.streams.readers.list_files import read_part
from cl_bench.streams.readers.splits import SplitList
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
            if split is not None:
                dealt, unlisted = split.deal(pool, top, 3)
                classes = split.order() if by_label else None
                return _with_domains(f"domain folders, split by {split.name}", dealt, classes, unlisted)
            if test_share is None:
                names = [name.format(there[0]) for name in lists]
                raise UserError(f"'{top}' has no split lists; put {' and '.join(names)} there, and so for each domain")
            return _with_domains("domain folders, split by name", _by_name(pool, test_share))
        return None

    return read


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
        count = max(round(share * len(keys)), 1)
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
