"""BibTeX entries: those that come with the package, and those of a method or data set of the user's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cl_bench import __version__
from cl_bench.errors import UserError, first_line

HARNESS = "clbench"
"""Key of the entry for cl-bench itself."""


@dataclass(frozen=True)
class Reference:
    """One BibTeX entry.

    Attributes:
        key: what `\\cite` names.
        text: the entry as it was written, without spaces around it.
        title: in small letters and without braces, to recognise the same paper under two keys or two under one.
    """

    key: str
    text: str
    title: str


@cache
def shipped() -> Mapping[str, Reference]:
    """The entries that come with the package, by key, in the order of the file."""
    text = (files("cl_bench") / "assets" / "bibliography" / "references.bib").read_text(encoding="utf-8")
    return parse(text.replace("Version VERSION", f"Version {__version__}"), "references.bib")


def parse(text: str, where: str) -> dict[str, Reference]:
    """BibTeX entries by key, in their order.

    Args:
        text: BibTeX; comments between entries are left out.
        where: what the text belongs to, for messages.

    Raises:
        UserError: the text is no BibTeX, has no entry, or has one key twice.
    """
    from bibtexparser.entrypoint import parse_string

    # Faults are also written to its log, which would be shown beside the error.
    logging.getLogger("bibtexparser").setLevel(logging.CRITICAL)
    library = parse_string(text, parse_stack=[])
    if library.failed_blocks:
        fault = library.failed_blocks[0]
        line = (fault.start_line or 0) + 1
        reason = first_line(getattr(fault.error, "abort_reason", fault.error))
        raise UserError(f"BibTeX of {where} cannot be read from line {line} on: {reason}")
    if not library.entries:
        raise UserError(f"BibTeX of {where} has no entry; expected e.g. @inproceedings{{key, title = {{...}}, ...}}")
    entries = library.entries
    return {entry.key: Reference(entry.key, (entry.raw or "").strip(), _plain(entry.get("title"))) for entry in entries}


def _plain(field: object) -> str:
    """A field's value without what does not change its meaning."""
    return " ".join("".join(c for c in str(getattr(field, "value", "")) if c not in '{}"').lower().split())
