"""How docstrings of this project are read: `a, b: ...` in a section describes both names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from griffe import Docstring, DocstringSectionKind, Extension, Object

_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)


def one_name_each(docstring: str) -> str:
    """The docstring with an item for each name, as parsers of the Google style expect."""
    return _SEVERAL.sub(lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", ")), docstring)


class OneNameEach(Extension):
    """The same for the API pages."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of whatever griffe has read."""
        if obj.docstring:
            obj.docstring.value = one_name_each(obj.docstring.value)


def sections(docstring: str) -> tuple[str, Mapping[str, str]]:
    """A docstring's text without its sections, and its attributes with their meanings."""
    text: list[str] = []
    meanings: dict[str, str] = {}
    for section in Docstring(one_name_each(docstring)).parse("google", warnings=False):
        if section.kind is DocstringSectionKind.text:
            text.append(section.value)
        elif section.kind is DocstringSectionKind.attributes:
            meanings |= {item.name: item.description for item in section.value}
    return "\n\n".join(text), meanings
