"""Hooks of mkdocs (see mkdocs.yml): generated pages, marked places in hand-written ones, links out of docs/.

A page of docs/ holds `<!-- site: NAME -->` where the site shows a generated part, so that it stays readable as plain
Markdown. Links from docs/ to other files of the repository work on a code host; `tools.site.repository` gives each such
file a page on the site and points the links there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# `mkdocs build` alone does not look for modules in the repository.
sys.path.insert(0, str(ROOT))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files, InclusionLevel  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from tools.site import parts, repository  # noqa: E402

_MARK = re.compile(r"^<!-- site: (?P<name>[\w-]+) -->$", re.MULTILINE)
_links = repository.Links(ROOT)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let links be rewritten before mkdocs validates them."""
    config.markdown_extensions.append(_links)  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Fill the marked places, add the generated pages, and those of files outside docs/ that any page links to.

    Raises:
        PluginError: a mark with an unknown name.
    """
    for file in files.documentation_pages():
        file.content_string = _filled(file.content_string, file.src_uri)
    methods = parts.method_pages()
    for uri, content in methods.items():
        files.append(File.generated(config, uri, content=content))
    _section(config.nav, "Methods").extend(methods)
    named = [path for uri in _uris(config.nav) if (path := repository.source(ROOT, uri))]
    texts = {repository.path_of(file.src_uri): file.content_string for file in files.documentation_pages()}
    for path in repository.linked(ROOT, texts, named):
        uri, content = repository.uri_of(path), repository.content(ROOT / path)
        where = InclusionLevel.INCLUDED if path in named else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=content, inclusion=where))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links be resolved from this page, and hide the left column of a page that is a section of its own."""
    _links.page = page.file.src_uri
    if page.parent is None:
        page.meta.setdefault("hide", []).append("navigation")
    return markdown


def _filled(text: str, uri: str) -> str:
    def part(match: re.Match[str]) -> str:
        if match["name"] not in parts.PARTS:
            raise PluginError(f"{uri}: no part is called '{match['name']}'; there are {', '.join(parts.PARTS)}")
        return parts.PARTS[match["name"]]()

    return _MARK.sub(part, text)


def _section(nav: Any, title: str) -> list[Any]:
    """The section of the navigation with this title, at any depth."""
    for item in nav if isinstance(nav, list) else []:
        if isinstance(item, dict):
            ((name, inner),) = item.items()
            if name == title:
                return inner
            if found := _section(inner, title):
                return found
    return []


def _uris(nav: Any) -> list[str]:
    """The pages that the navigation names."""
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [uri for item in inner for uri in _uris(item)]
