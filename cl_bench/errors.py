"""What the user is told: the exception that ends in a sentence rather than in a traceback, and texts as shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message names the input, what was expected and what to do; the CLI prints it and exits with 2."""


class Diverged(UserError):
    """Training has led to numbers that are not finite, so nothing that follows means anything."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Begin the sentence of every `UserError` that is raised inside with where that was."""
    try:
        yield
    except Diverged as error:
        raise Diverged(f"{where}: {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or "no reason given").splitlines()[0]


def printable(text: str) -> str:
    """The text with an escape for each character that would act on a terminal or hide: `\\x1b`, `\\n`, `\\u202e`.

    These are control characters, ends of lines, overrides of the writing direction, halves of characters and spaces
    other than the usual one, as file names and results of others may hold them. A byte of a file name that is no UTF-8
    comes out as `\\xf1`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    # How Python keeps a byte that is no text (PEP 383).
    byte = ord(char) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()


def clipped(text: str, length: int = 60) -> str:
    """A text for use inside a sentence: one printable line of at most `length` characters, the rest as `...`."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def reason(error: BaseException) -> str:
    """Why something failed, for use inside a sentence: the text of an error as one line of at most 200 characters.

    Of an `OSError`, only the system's text: the sentence around it names the file. An error without text, or with only
    the key that was missing, is named by its type.
    """
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".rstrip()
    return clipped(text, 200)


def root_cause(error: BaseException) -> BaseException:
    """The first error in the chain that led to this one, e.g. the refused connection behind a library's own errors."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return error


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things in words: `1 task`, `2 tasks`, `3 classes`.

    Args:
        one: what one of them is called.
        many: what several are called, where neither -s nor, after an s, -es makes it.
    """
    return f"{number:,} {one if number == 1 else many or one + ('es' if one.endswith('s') else 's')}"


def named(names: Sequence[str], shown: int = 5) -> str:
    """The first of some names in quotes, and how many more there are: `'a', 'b' and 3 more`."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:shown]) + more


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
