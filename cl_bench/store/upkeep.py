"""Maintenance of results folders: merging, verifying, and finding files that are no longer needed."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from cl_bench.errors import UserError
from cl_bench.files import open_regular
from cl_bench.store import CHECKPOINTS, DamagedRecord, RunRecord, Store, UnreadableRecord, index
from cl_bench.store.record import MAX_JSON_BYTES

Prefer = Literal["source", "dest"]
# Exactly the file names that a store makes; no other program's files should match.
_STEM = r".+-s[0-9]{1,10}-[0-9a-f]{16}"
_JSON = re.compile(rf"{_STEM}\.json")
_ARRAYS = re.compile(rf"({_STEM})-([0-9a-f]{{8}})\.npz")
_CHECKPOINT = re.compile(rf"({_STEM})\.safetensors")
_TEMPORARY = re.compile(
    rf"\.({_STEM}(\.json|-[0-9a-f]{{8}}\.npz|\.safetensors)|\.?{re.escape(index.NAME[1:])})-[a-z0-9_]{{8}}"
)
_PROBE = re.compile(r"\.probe-[a-z0-9_]{8}|\.shared-[0-9a-f]{32}")
"""Empty files: of a writer that probes whether it can write, of a sweep that probes whether hosts share the folder."""
_QUIET_SECONDS = 3600
"""Younger files may belong to a run that is being stored, or to a copy of the folder in progress."""
_STALE_SECONDS = 30 * 86400
"""A checkpoint older than this belongs to an abandoned run."""


@dataclass
class Merge:
    """Outcome of `merge`.

    Attributes:
        copied: number of records that were copied.
        identical: number of records that the destination had already.
        replaced: one sentence per record of the destination that was replaced by a different result of the same run.
        not_replaced: one sentence per record that was not copied, because the destination keeps a different result of
            the same run.
        damaged: one sentence per record that was not copied because it cannot be trusted.
    """

    copied: int = 0
    identical: int = 0
    replaced: list[str] = field(default_factory=list)
    not_replaced: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class Leftover(NamedTuple):
    """A file that is no longer needed, and the reason."""

    path: Path
    reason: str


def merge(
    sources: Iterable[Path], into: Path, prefer: Prefer | None = None, on_record: Callable[[], None] = lambda: None
) -> Merge:
    """Copy the records of other stores into one, byte by byte.

    Args:
        prefer: which of two different results of the same run to keep: "source" replaces the one in the destination.
        on_record: called after each record.

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
            on_record()
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
        done.identical += 1
        return
    sentence = f"{path}: {difference}"
    if prefer == "source":
        dest.copy(path, replace=True)
        done.replaced.append(sentence)
    else:
        done.not_replaced.append(sentence)


def _difference(one: RunRecord, other: RunRecord) -> str:
    """Names of the fields in which two records of the same run differ, in words; empty if they are identical."""
    if one.checksum == other.checksum:
        return ""
    differing = [name for name in RunRecord.model_fields if getattr(one, name) != getattr(other, name)]
    names = [name for name in differing if name not in ("checksum", "arrays_sha256")] or ["predictions"]
    same = "" if {"correct", "correct_task_aware", "predictions"} & {*names} else "same counts, but "
    return f"{same}different {', '.join(names)}"


def verify(store: Store, on_record: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Check every file of a store and yield one sentence per fault; the index is not used.

    The checks of each record cover schema, key, file name, checksum, hash of the npz, shapes and dtypes of its arrays,
    and counts of its predictions. Files that belong to no record are reported if they are older than an hour.

    Args:
        on_record: called after each record.
    """
    for name in store.names():
        try:
            store.check(store.root / name)
        except DamagedRecord as error:
            yield str(error)
        on_record()
    for path, reason in leftovers(store):
        yield f"{path}: {reason}"


def leftovers(store: Store, damaged: bool = False, unfinished: bool = False) -> list[Leftover]:
    """Find files that are not needed: of killed writers, npz files that no record names, checkpoints of stored runs.

    Only files whose names have exactly the form that a store gives them, and that have not changed for an hour, are
    returned. The time of change counts too, because a copy in progress (`rsync -a`) keeps old times of modification.

    Args:
        damaged: also return records that are damaged for good, with their npz files; never records that are only
            unreadable here (newer schema, no permission).
        unfinished: also return checkpoints that have not changed for 30 days.
    """
    found, why_left_over, needed = _leftovers_of_records(store, damaged)
    names = {*store.names()}
    for name in sorted(os.listdir(store.root)) if store.root.is_dir() else []:  # noqa: PTH208
        path = store.root / name
        if not unchanged(path):
            continue
        if _TEMPORARY.fullmatch(name):
            found.append(Leftover(path, "left by a killed writer"))
        elif _PROBE.fullmatch(name) and path.stat().st_size == 0:
            who = "sweep" if name.startswith(".shared") else "writer"
            found.append(Leftover(path, f"left by a killed {who}"))
        elif (arrays := _ARRAYS.fullmatch(name)) and not {name, arrays[2]} & needed:
            reason = why_left_over.get(arrays[1], "npz that no record names")
            if reason:
                found.append(Leftover(path, reason))
    for path in sorted((store.root / CHECKPOINTS).glob("*")):
        checkpoint = _CHECKPOINT.fullmatch(path.name)
        if _TEMPORARY.fullmatch(path.name) and unchanged(path):
            found.append(Leftover(path, "left by a killed writer"))
        elif checkpoint and f"{checkpoint[1]}.json" in names and unchanged(path):
            found.append(Leftover(path, "checkpoint of a stored run"))
        elif checkpoint and unfinished and unchanged(path, _STALE_SECONDS):
            found.append(Leftover(path, "checkpoint that has not changed for 30 days"))
    return found


def _leftovers_of_records(store: Store, damaged: bool) -> tuple[list[Leftover], dict[str, str], set[str]]:
    """Sort the records of a store, and the npz files that they name.

    Returns:
        Damaged records, if `damaged`; by stem of a damaged record, the reason why its npz is not needed, or "" if it
        may be needed; and the npz files that are needed: their names, or the hashes in their names.
    """
    found, why_left_over, needed = list[Leftover](), dict[str, str](), set[str]()
    for name in store.names():
        path, stem = store.root / name, name.removesuffix(".json")
        arrays = store.arrays_named_by(path)
        if damaged and _JSON.fullmatch(name) and unchanged(path):
            try:
                store.check(path)
            except UnreadableRecord:
                pass
            except DamagedRecord as error:
                found.append(Leftover(path, f"damaged record ({error})"))
                why_left_over[stem] = "npz of a damaged record"
                continue
        if arrays is None:
            why_left_over[stem] = ""
            needed |= _claimed_hashes(path)
        else:
            needed.add(arrays.name)
    return found, why_left_over, needed


def _claimed_hashes(path: Path) -> set[str]:
    """Hashes that the name of the npz of a renamed or altered record may contain; its arrays exist nowhere else."""
    try:
        with open_regular(path, MAX_JSON_BYTES) as file:
            fields = json.load(file)
    except (OSError, ValueError, RecursionError):
        return set()
    return {str(fields.get(name))[:8] for name in ("arrays_sha256", "checksum")} if isinstance(fields, dict) else set()


def remove(leftover: Leftover) -> bool:
    """Delete a leftover, unless it has changed since it was found; returns whether it is gone.

    Raises:
        OSError: the file cannot be deleted.
    """
    if not unchanged(leftover.path):
        return False
    leftover.path.unlink(missing_ok=True)
    return True


def unchanged(path: Path, seconds: float = _QUIET_SECONDS) -> bool:
    """Whether `path` is a file whose content and metadata have not changed for `seconds`."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and time.time() - max(status.st_mtime, status.st_ctime) > seconds
