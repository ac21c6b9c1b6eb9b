"""Files of the repository outside docs/ on the site: which pages link to them, where they stand, what they show."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

HOME = "repository"
"""Folder of the site below which files outside docs/ have the paths of the repository."""
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".cff": "yaml", ".txt": "text", "": "text"}
"""Kinds of text files that get a page, with their highlighting; other files are copied as they are."""
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
"""Front matter of pages that the search leaves out."""
_TARGET = re.compile(r"\]\(\s*<?([^)>\s]+)|^\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)


def uri_of(path: str) -> str:
    """Where mkdocs finds a file or folder, given by its path in the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith("/"):
        return f"{HOME}/{path}index.md"
    page = posixpath.splitext(path)[1] in {*LANGUAGES, ".ipynb"}
    return f"{HOME}/{path}.md" if page else f"{HOME}/{path}"


def path_of(uri: str) -> str:
    """The path in the repository of a Markdown page of the site; generated ones have one below docs/."""
    return uri.removeprefix(f"{HOME}/") if uri.startswith(f"{HOME}/") else f"docs/{uri}"


def source(root: Path, uri: str) -> str | None:
    """The path of the file outside docs/ that a page shows; None if there is no such file, or the page is another."""
    path = uri.removeprefix(f"{HOME}/")
    found = [each for each in (path, path.removesuffix(".md")) if (root / each).is_file()]
    return found[0] if found and path != uri else None


def target(page: str, href: str) -> tuple[str, str] | None:
    """The path in the repository that a relative link of a page leads to, and its anchor; None for other links."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))), parts.fragment


def linked(root: Path, texts: Mapping[str, str], named: Iterable[str] = ()) -> list[str]:
    """The files and folders outside docs/ that pages link to, directly or by a Markdown file among them.

    Args:
        texts: Markdown pages by path in the repository.
        named: further such files.

    Returns:
        Sorted paths in the repository, those of folders with a slash at the end.
    """
    found: set[str] = set(named)
    waiting = [
        *texts.items(),
        *((path, (root / path).read_text(encoding="utf-8")) for path in found if path.endswith(".md")),
    ]
    while waiting:
        page, text = waiting.pop()
        for match in _TARGET.finditer(text):
            leads = target(page, match[1] or match[2])
            if leads is None or leads[0].startswith(("docs/", "..")) or not (root / leads[0]).exists():
                continue
            path = _folder(root, leads[0])
            if path not in found:
                found.add(path)
                if path.endswith(".md"):
                    waiting.append((path, (root / path).read_text(encoding="utf-8")))
                if path.endswith("/"):
                    found.update(path + each.name for each in _shown(root / path))
    return sorted(found)


def _folder(root: Path, path: str) -> str:
    """A folder with a slash at the end, or its README, which code hosts show for it; a file as it is."""
    if not (root / path).is_dir():
        return path
    return f"{path}/README.md" if (root / path / "README.md").is_file() else f"{path}/"


def _shown(folder: Path) -> list[Path]:
    """The files that the page of a folder shows."""
    return [path for path in sorted(folder.iterdir()) if path.suffix in (".md", ".png", ".csv")]


def content(path: Path) -> str | bytes:
    """What the site shows of a file or folder: Markdown, or the bytes of a file that is copied."""
    if path.is_dir():
        return _listing(path)
    if path.suffix == ".md":
        # The tables of the reports are in the findings, too.
        front = UNSEARCHED if path.parent.name == "tables" else ""
        return front + path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return _notebook(path)
    if path.suffix in LANGUAGES:
        return f"{UNSEARCHED}# {path.name}\n\n````{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}\n````\n"
    return path.read_bytes()


def _listing(folder: Path) -> str:
    names = [path.name for path in _shown(folder)]
    folders = [f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir()]
    lines = [f"- [{name}]({name})" for name in names] + [f"- {name}" for name in folders]
    return f"{UNSEARCHED}# {folder.name}/\n\n" + "\n".join(lines) + "\n"


def _notebook(path: Path) -> str:
    """The cells of a notebook, texts and code, without outputs."""
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        blocks.append(text if cell["cell_type"] == "markdown" else f"````python\n{text}\n````")
    return "\n\n".join(blocks) + "\n"


class Links(Extension):
    """Rewrites relative links that cross the border of docs/, either way, to where the site has their target.

    Attributes:
        page: of which the Markdown is being converted, as mkdocs names it.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.page = root, ""

    def extendMarkdown(self, md: Markdown) -> None:
        # After inline patterns have made the links (20), before mkdocs validates them (0).
        md.treeprocessors.register(_Rewriter(self, md), "repository-links", 1)

    def rewritten(self, href: str) -> str:
        """A link as mkdocs understands it."""
        page = path_of(self.page)
        leads = target(page, href)
        if leads is None or (page.startswith("docs/") and leads[0].startswith("docs/")):
            return href
        if not (self.root / leads[0]).exists():
            # mkdocs names the link as it was written.
            return href
        link = posixpath.relpath(uri_of(_folder(self.root, leads[0])), posixpath.dirname(self.page) or ".")
        return f"{link}#{leads[1]}" if leads[1] else link


class _Rewriter(Treeprocessor):
    def __init__(self, links: Links, md: Markdown) -> None:
        super().__init__(md)
        self.links = links

    def run(self, root: Element) -> None:
        for element in root.iter():
            for name in ("href", "src"):
                if href := element.get(name):
                    element.set(name, self.links.rewritten(href))
