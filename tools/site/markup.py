"""Markdown of generated pages: tables, and texts that must not be read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

_SPECIAL = re.compile(r"([\\*<>\[\]|#~])")
_CODE = re.compile(r"(`[^`]*`)")


def plain(text: str) -> str:
    """A text of the program in Markdown, on one line: as it is, except for code between single backticks."""
    pieces = _CODE.split(" ".join(text.split()))
    return "".join(code(piece[1:-1]) if piece[:1] == "`" != piece else _SPECIAL.sub(r"\\\1", piece) for piece in pieces)


def code(text: str) -> str:
    """A text in code font, also in a table, where `|` would end the cell."""
    if "|" in text:
        return f"<code>{escape(text, quote=False).replace('|', '&#124;')}</code>"
    return f"`{text}`" if text else ""


def several(kind: str) -> str:
    """The plural of a type in words."""
    return re.sub(r"^(list|whole number|number|text|object)\b", r"\1s", kind)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], aligned: Sequence[str] = ()) -> str:
    """A pipe table of Markdown cells; the columns are aligned to the left, or as the marks in `aligned` say."""
    lines = [heads, aligned or ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def prose(text: str) -> str:
    """A docstring's text before its sections, in which indented lines are equations or tables."""
    lines = [line if line.startswith("    ") else _escaped(line) for line in text.strip().splitlines()]
    return "\n".join(lines) + "\n"


def _escaped(line: str) -> str:
    return "".join(piece if piece[:1] == "`" else re.sub(r"([*<])", r"\\\1", piece) for piece in _CODE.split(line))
