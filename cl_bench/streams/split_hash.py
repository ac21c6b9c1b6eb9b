"""The hashes by which splits are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cl_bench.errors import UserError


def split_hash(train: Iterable[str], test: Iterable[str]) -> str:
    """The hash of a split that is stored with every run: SHA-256 over the sorted `class/file` names of both parts.

    Raises:
        UserError: a name is no text.
    """
    digest = hashlib.sha256()
    for part, names in (("train", train), ("test", test)):
        digest.update(encoded("\n".join([part, *sorted(names)])) + b"\n")
    return digest.hexdigest()


def names_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names of one part, joined with newlines: how published split lists are told apart.

    Raises:
        UserError: a name is no text.
    """
    return hashlib.sha256(encoded("\n".join(sorted(names)))).hexdigest()


def encoded(text: str) -> bytes:
    """UTF-8 of a name.

    Raises:
        UserError: the file system has a name there that is no text.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {text!r} is not valid UTF-8; rename the file") from error
