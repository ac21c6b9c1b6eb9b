"""Every link of every Markdown page leads somewhere on a code host; `test_site.py` follows the links of the site."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers import ROOT, pages


def dead(page: Path, href: str) -> str:
    """What is wrong with a link of a page; empty if nothing is."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc:
        # Whether it can be reached is for .github/workflows/links.yml, which has a network.
        fit = parts.scheme in ("http", "https") and "." in parts.netloc and not href.endswith((".", ",", ")"))
        return "" if fit and "example" not in parts.netloc else "no web address"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return "nothing there"
    if not target.is_relative_to(ROOT):
        return "outside the repository"
    if parts.fragment and (target.suffix != ".md" or parts.fragment not in pages.anchors(target)):
        return "no such heading"
    return ""


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    found = {href: dead(page, href) for href in pages.links(page)}
    assert {href: fault for href, fault in found.items() if fault} == {}


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("[a](no-such-page.md)", "nothing there"),
        ("![a](../reports/reference/figures/none.png)", "nothing there"),
        ("[a](sweeps.md#no-such-heading)", "no such heading"),
        ("[a](../../elsewhere)", "nothing there"),
        ("[a](ftp://arxiv.org/abs/2501.13198)", "no web address"),
        ("[a](https://example.org/cl-bench)", "no web address"),
        ("<https://arxiv.org/abs/2501.13198.>", "no web address"),
        ("[a](sweeps.md#resuming)", ""),
        ("[a](https://arxiv.org/abs/2501.13198)", ""),
    ],
)
def test_dead_links_are_found(link: str, fault: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nText with {link} in it.\n")
    (href,) = pages.links(page)
    assert dead(ROOT / "docs" / "page.md", href) == fault
