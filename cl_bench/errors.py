"""The one exception that ends in a sentence for the user rather than in a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message names the input, what was expected and what to do; the CLI prints it and exits with 2."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Begin the sentence of every `UserError` that is raised inside with where that was."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """A `UserError` for a name that does not exist, with the closest existing one suggested.

    Args:
        kind: what the name stands for, e.g. `"method"`.
        name: what the user wrote.
        known: the names that exist.
        hint: a last sentence, e.g. the command that lists the names.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    known_names = ", ".join(names) or "none"
    return UserError(f"unknown {kind} '{name}'; known: {known_names}.{guess}{' ' + hint if hint else ''}")
