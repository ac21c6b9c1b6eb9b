"""Hashes that identify splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from cl_bench.errors import UserError, named


def split_hash(train: Iterable[str], test: Iterable[str]) -> str:
    """SHA-256 over the sorted `class/file` names of both parts; stored with every run.

    Raises:
        UserError: a name is not valid UTF-8.
    """
    digest = hashlib.sha256()
    for part, names in (("train", train), ("test", test)):
        digest.update(_lines([part, *sorted(names)]) + b"\n")
    return digest.hexdigest()


def names_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names of one part, joined by newlines; identifies published split lists.

    Raises:
        UserError: a name is not valid UTF-8.
    """
    return hashlib.sha256(_lines(sorted(names))).hexdigest()


def _lines(names: Sequence[str]) -> bytes:
    try:
        return "\n".join(names).encode()
    except UnicodeEncodeError as error:
        odd = [name for name in names if not _is_text(name)]
        raise _not_text(odd) from error


def encoded(text: str) -> bytes:
    """A file name as UTF-8.

    Raises:
        UserError: the name on the file system is not valid UTF-8.
    """
    if not _is_text(text):
        raise _not_text([text])
    return text.encode()


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode()) or True
    except UnicodeEncodeError:
        return False


def _not_text(names: Sequence[str]) -> UserError:
    if len(names) == 1:
        return UserError(f"the file name {named(names)} is not valid UTF-8; rename the file")
    return UserError(f"the file names {named(names, 3)} are not valid UTF-8; rename the files")
