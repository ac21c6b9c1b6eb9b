"""The Markdown pages of the repository: their links, anchors and commands, read by a CommonMark parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.helpers import ROOT

PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / ".github").rglob("*.md"),
        *(ROOT / "cl_bench" / "assets").glob("*.md"),
        *(ROOT / "tests").rglob("README.md"),
    }
)
"""Every page that a code host shows."""
_PARSER = MarkdownIt("commonmark", {"linkify": False}).enable("table")
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


@cache
def tokens(page: Path) -> list[Token]:
    """A page's blocks, and what is in a line of them as children."""
    return _PARSER.parse(page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of all links and pictures of a page."""
    inner = [child for token in tokens(page) for child in token.children or ()]
    return [str(child.attrs.get("href") or child.attrs.get("src")) for child in inner if child.type in _WITH_TARGET]


_WITH_TARGET = ("link_open", "image")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Where a link may lead inside a page: its headings, as code hosts and the site name them."""
    found: list[str] = []
    for token, inline in zip(tokens(page), tokens(page)[1:], strict=False):
        if token.type == "heading_open":
            text = "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))
            slug = _NOT_IN_ANCHORS.sub("", text.strip().lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{sum(one == slug for one in found)}")
    return frozenset(found)


@dataclass(frozen=True)
class Command:
    """A `cl-bench` command of a page.

    Attributes:
        arguments: after the program's name.
        whole: from a code block, to be typed as it is; others name what they are about.
    """

    page: str
    arguments: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: cl-bench {shlex.join(self.arguments)}"


def commands(page: Path) -> Iterator[Command]:
    """All commands in code blocks and in lines of text."""
    for token in tokens(page):
        if token.type in ("fence", "code_block") and token.info.strip() in (
            "",
            "bash",
            "console",
            "sh",
            "shell",
            "text",
        ):
            for line in token.content.replace("\\\n", " ").splitlines():
                yield from _commands(page, line, True)
        for child in token.children or ():
            if child.type == "code_inline":
                yield from _commands(page, child.content, False)


def _commands(page: Path, line: str, whole: bool) -> Iterator[Command]:
    if "cl-bench " not in line:
        return
    words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="&;|" if whole else "&;")
    words.whitespace_split = True
    current: list[str] = []
    for word in [*words, "&&"]:
        if word not in ("&&", ";", "|", "||", "&"):
            current.append(word)
            continue
        if current and Path(current[0]).name == "cl-bench" and len(current) > 1:
            yield Command(name(page), tuple(current[1:]), whole)
        current = []
