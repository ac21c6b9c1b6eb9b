"""Care of results folders: uniting them, checking them, and finding what nobody needs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from cl_bench.errors import UserError
from cl_bench.store import CHECKPOINTS, DamagedRecord, RunRecord, Store, UnreadableRecord

Prefer = Literal["source", "dest"]
_TEMPORARY = re.compile(r"\.((probe|.+\.(json|npz|parquet|safetensors))-[a-z0-9_]{8}|shared-[0-9a-f]{32})")
_QUIET_SECONDS = 3600
"""Younger files may belong to a run that is being stored."""


@dataclass
class Merge:
    """What `merge` has done.

    Attributes:
        copied, same: records that were copied, and that were there already.
        replaced, kept: other results of a run that is there: a sentence for each, by what was done with the one there.
        damaged: a sentence for each record that was not copied because it cannot be trusted.
    """

    copied: int = 0
    same: int = 0
    replaced: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class Leftover(NamedTuple):
    """A file that nobody needs, and why."""

    path: Path
    reason: str


def merge(
    sources: Iterable[Path], into: Path, prefer: Prefer | None = None, progress: Callable[[], None] = lambda: None
) -> Merge:
    """Copy the records of other stores, byte by byte; one that is there is only replaced if `prefer` says so.

    Raises:
        UserError: a source is no folder or the destination itself, or the destination cannot be written.
    """
    sources, dest, done = list(sources), Store(into), Merge()
    for source in sources:
        if not source.is_dir():
            raise UserError(f"source '{source}' is no folder; name a results folder")
        if into.exists() and source.samefile(into):
            raise UserError(f"source '{source}' is the destination itself; name another folder")
    dest.check_writable()
    for store in map(Store, sources):
        for name in store.names():
            try:
                _merge_one(store, store.root / name, dest, prefer, done)
            except DamagedRecord as error:
                done.damaged.append(str(error))
            except OSError as error:
                raise UserError(
                    f"'{into}' cannot be written ({error.strerror}); what was copied so far is whole"
                ) from error
            progress()
    return done


def _merge_one(source: Store, path: Path, dest: Store, prefer: Prefer | None, done: Merge) -> None:
    there = dest.root / path.name
    if not there.exists():
        try:
            dest.copy(path)
        except FileExistsError:
            pass
        else:
            done.copied += 1
            return
    source.check(path)
    record = source.load(path)
    try:
        earlier = dest.load(there)
        difference = _difference(record, earlier)
    except DamagedRecord as error:
        difference = f"damaged there: {error}"
    if not difference:
        done.same += 1
        return
    sentence = f"{path}: {difference}"
    if prefer == "source":
        dest.copy(path, replace=True)
        done.replaced.append(sentence)
    else:
        done.kept.append(sentence)


def _difference(one: RunRecord, other: RunRecord) -> str:
    """In what two records of the same run differ, in words; empty if they do not."""
    if one.checksum == other.checksum:
        return ""
    differing = [name for name in RunRecord.model_fields if getattr(one, name) != getattr(other, name)]
    names = [name for name in differing if name not in ("checksum", "arrays_sha256")] or ["predictions"]
    same = "" if {"correct", "correct_task_aware", "predictions"} & {*names} else "same counts, but "
    return f"{same}other {', '.join(names)}"


def verify(store: Store, progress: Callable[[], None] = lambda: None) -> Iterator[str]:
    """A sentence for each thing that is wrong; the index is not used.

    Every record: schema, key, file name, checksum, hash of the npz, shapes and dtypes in it, and predictions counted
    again. Then files that belong to no record, if they are older than an hour.
    """
    for name in store.names():
        try:
            store.check(store.root / name)
        except DamagedRecord as error:
            yield str(error)
        progress()
    for path, reason in leftovers(store):
        yield f"{path}: {reason}"


def leftovers(store: Store, damaged: bool = False) -> list[Leftover]:
    """Files that nobody needs: left by killed writers, npz files that no record names, checkpoints of stored runs.

    Args:
        damaged: also records that are damaged for good, with their npz files; never one that may only be unreadable
            here (of a newer schema, no permission).
    """
    names = store.names()
    needed: set[str] = set()
    doubtful: dict[str, str] = {}
    found = []
    for name in names:
        arrays = store.named_arrays(store.root / name)
        if arrays is None:
            doubtful[name.removesuffix(".json")] = ""
        else:
            needed.add(arrays.name)
        if damaged:
            try:
                store.check(store.root / name)
            except UnreadableRecord:
                continue
            except DamagedRecord as error:
                found.append(Leftover(store.root / name, f"damaged record ({error})"))
                doubtful[name.removesuffix(".json")] = "npz of a damaged record"
                if arrays is not None:
                    needed.discard(arrays.name)
    for name in sorted(os.listdir(store.root)) if store.root.is_dir() else []:  # noqa: PTH208
        path = store.root / name
        if not _forgotten(path):
            continue
        if _TEMPORARY.fullmatch(name):
            found.append(Leftover(path, "left by a writer that was killed"))
        elif name.endswith(".npz") and name not in needed:
            reason = doubtful.get(name[: -len("-01234567.npz")], "npz that no record names")
            if reason:
                found.append(Leftover(path, reason))
    for path in sorted((store.root / CHECKPOINTS).glob("*")):
        if _TEMPORARY.fullmatch(path.name) and _forgotten(path):
            found.append(Leftover(path, "left by a writer that was killed"))
        elif f"{path.name.removesuffix('.safetensors')}.json" in names:
            found.append(Leftover(path, "checkpoint of a run that is stored"))
    return found


def _forgotten(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and time.time() - path.lstat().st_mtime > _QUIET_SECONDS
    except OSError:
        return False
