"""Texts and numbers for LaTeX: escaped texts, and numbers in the notation of the package siunitx."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ESCAPED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
    "\N{DAGGER}": r"\textdagger{}",
    "\N{DOUBLE DAGGER}": r"\textdaggerdbl{}",
    "\N{SECTION SIGN}": r"\S{}",
    # At the start of a row LaTeX would read brackets as an argument of the \\ before it.
    "[": "{[}",
    "]": "{]}",
}
_NUMBER = re.compile(
    r"(?P<sign>[+\-\N{MINUS SIGN}]?)(?P<whole>[0-9]+)(?:\.(?P<decimals>[0-9]+))?"
    r"(?: (?P<plus>±) (?P<half>[0-9]+(?:\.[0-9]+)?)| \((?P<error>[0-9]+(?:\.[0-9]+)?)\))?"
    r"(?: (?P<mark>\[[^\[\]]*\]))?"
)


@dataclass(frozen=True)
class Number:
    """A number as siunitx reads it, e.g. `77.12(31)` for 77.12 ± 0.31.

    Attributes:
        sign: `+`, `-` or nothing.
        whole, decimals: digits before and after the decimal point.
        uncertainty: in units of the last digit, without leading zeros; empty: none.
        plus_minus: whether the uncertainty is shown after a ±, and not in parentheses.
        mark: text after the number, e.g. `[a]`.
    """

    sign: str
    whole: str
    decimals: str
    uncertainty: str
    plus_minus: bool
    mark: str

    @property
    def text(self) -> str:
        """The number without its mark."""
        fraction = f".{self.decimals}" if self.decimals else ""
        return f"{self.sign}{self.whole}{fraction}" + (f"({self.uncertainty})" if self.uncertainty else "")


def number(text: str) -> Number | None:
    """Read a cell such as `77.12`, `+1.20 ± 0.31` or `77.12 (0.31) [a]`; None for any other text.

    The uncertainty must have as many decimals as the number, since siunitx counts it in units of the last digit.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    decimals, spread = match["decimals"] or "", match["half"] or match["error"] or ""
    if spread and len(spread.partition(".")[2]) != len(decimals):
        return None
    uncertainty = str(int(spread.replace(".", ""))) if spread else ""
    sign = match["sign"].replace("\N{MINUS SIGN}", "-")
    return Number(sign, match["whole"], decimals, uncertainty, match["plus"] is not None, match["mark"] or "")


def table_format(texts: Sequence[str]) -> str:
    """The option of an S column with space for these cells, e.g. `table-format=+2.2(3)`; empty if none is a number."""
    numbers = [found for text in texts if (found := number(text))]
    if not numbers:
        return ""
    sign = "+" if any(number.sign for number in numbers) else ""
    whole, decimals, uncertainty = (
        max(len(getattr(number, part)) for number in numbers) for part in ("whole", "decimals", "uncertainty")
    )
    return f"table-format={sign}{whole}.{decimals}" + (f"({uncertainty})" if uncertainty else "")


def cell(text: str, numbers: str, bold: bool, underlined: bool) -> str:
    """A cell of a table.

    Args:
        numbers: `table_format` of its column; empty: the column has texts.
    """
    found = number(text) if numbers else None
    if found is None:
        plain = escaped(text)
        marked = rf"\textbf{{{plain}}}" if bold and text else rf"\underline{{{plain}}}" if underlined else plain
        return f"{{{marked}}}" if numbers and text else marked
    mark = rf"\,{escaped(found.mark)}" if found.mark else ""
    if underlined and not bold:
        # In braces an S column leaves it alone; \tablenum aligns the number like the others of the column.
        return rf"{{\underline{{\tablenum[{numbers}]{{{found.text}}}}}{mark}}}"
    return (r"\bfseries " if bold else "") + found.text + (f"{{{mark}}}" if mark else "")


def escaped(text: str) -> str:
    """Escape characters with a meaning in LaTeX; characters that its fonts lack are left as they are."""
    # Prevent ligatures: two hyphens, as in the name of an option, would become a dash; quotes likewise.
    parts = re.split("(?<=[-'`,?!])(?=[-'`,])", " ".join(text.split()))
    return "{}".join("".join(_ESCAPED.get(character, character) for character in part) for part in parts)
