"""Other people's errors and names, as parts of one line."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """What went wrong, by its first cause that a library names, in one line of bounded length."""
    if isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"


def printable(text: str) -> str:
    """A name out of a file, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
