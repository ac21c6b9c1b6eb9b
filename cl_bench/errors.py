"""Messages to the user: the exception that is shown as one sentence without a traceback, and helpers for its text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """Invalid input. The message says what is wrong, what was expected and what to do; the CLI then exits with 2."""


class Diverged(UserError):
    """Training produced numbers that are not finite, so its results are meaningless."""


class NotHere(UserError):
    """Data or weights that a run needs are not on this machine."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Prefix the message of every `UserError` raised in this context with the place `where`."""
    try:
        yield
    except Diverged as error:
        raise Diverged(f"{where}: {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def first_line(error: BaseException) -> str:
    """First line of an error's message."""
    return (str(error).strip() or "no reason given").splitlines()[0]


def printable(text: str) -> str:
    """Replace each character that controls a terminal or is invisible by its escape: `\\x1b`, `\\n`, `\\u202e`.

    File names and results of others may contain control characters, line ends, overrides of the writing direction,
    lone surrogates and unusual spaces. A byte of a file name that is not UTF-8 becomes `\\xf1`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    # How Python represents a byte that is not text (PEP 383).
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
    """A number with its noun: `1 task`, `2 tasks`, `3 classes`.

    Args:
        one: the singular.
        many: an irregular plural; by default the singular with -s, or with -es after an s.
    """
    return f"{number:,} {one if number == 1 else many or one + ('es' if one.endswith('s') else 's')}"


def named(names: Sequence[str], shown: int = 5) -> str:
    """The first names in quotes, and the number of the others: `'a', 'b' and 3 more`."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:shown]) + more


def unknown_name(
    kind: str, name: str, known: Iterable[str], hint: str = "", close: Sequence[str] | None = None
) -> UserError:
    """A `UserError` for a name that does not exist, with the closest existing one suggested.

    Args:
        kind: the kind of thing that has the name, e.g. `"method"`.
        name: the name that the user wrote.
        known: existing names.
        hint: last sentence of the message, e.g. the command that lists the names.
        close: the closest names, of which the first is suggested; None: those of the closest spelling.
    """
    names = sorted(known)
    known_names = ", ".join(names) or "none"
    guess = suggestion(name, names) if close is None else _guess(close[:1])
    return UserError(f"unknown {kind} '{name}'; known: {known_names}.{guess}{' ' + hint if hint else ''}")


def suggestion(name: str, known: Sequence[str], at_most: int = 1) -> str:
    """The existing names closest to one that does not exist, as sentences after a space; empty if none is close."""
    return _guess(difflib.get_close_matches(name, known, n=at_most, cutoff=0.4))


def _guess(close: Sequence[str]) -> str:
    others = f" Other close names: {', '.join(close[1:])}." if close[1:] else ""
    return f" Did you mean '{close[0]}'?{others}" if close else ""
