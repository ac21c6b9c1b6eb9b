"""The site that `make docs` builds: strict, whole, at home without a network, on a desk and on a phone.

It is built once, in a copy of the repository with a page whose faults the build has to name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page, expect

import cl_bench
from cl_bench import backbones, streams
from cl_bench.contract import registry
from cl_bench.options import ExecutionOptions, RunOptions, options_of
from cl_bench.store.record import RunRecord
from tests.helpers import ROOT
from tests.helpers.browsers import CHROMIUM, launch

FAULTY = """# Faults

A [page](no-such-page.md), a [file](../no/such/file.py), a [heading](sweeps.md#no-such-heading), and what is no fault:
a [heading](sweeps.md#resuming), a [file](../examples/avalanche_script.py), a [folder](../reports/reference)
and `[code](nothing.md)`.
"""
PARTS = (
    ".github", "LICENSES", "cl_bench", "docs", "examples", "methods", "reports", "tools", "tests/golden",
)  # fmt: skip
"""Folders that a build reads."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz", "*.html", "*.tex")


@dataclass
class Site:
    """A built site, and what the build said."""

    folder: Path
    code: int
    said: str

    def pages(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.html") if path.name not in ("404.html", "faults.html"))

    def text(self, page: str) -> str:
        """A page's article as it is read."""
        return parsed(self.folder / page).text


@dataclass
class Parsed(HTMLParser):
    """Links, anchors and text of a page.

    Attributes:
        counts: how many elements there are of each kind in the article.
    """

    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._inside |= tag == "article"
        self.links += [value for name in ("href", "src") if (value := values.get(name))]
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        if self._inside:
            self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "article"

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""


@cache
def parsed(page: Path) -> Parsed:
    found = Parsed()
    found.feed(page.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    copy = tmp_path_factory.mktemp("docs") / "repository"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=LEFT_OUT, symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    (copy / "docs" / "faults.md").write_text(FAULTY)
    (rule,) = re.findall(r"^docs:.*\n\t(.*\n)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = rule.replace("$(BIN)/python", sys.executable)
    done = subprocess.run(
        ["sh", "-c", command], cwd=copy, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert (copy / "site" / "index.html").is_file(), done.stdout + done.stderr
    return Site(copy / "site", done.returncode, done.stdout + done.stderr)


def test_the_build_names_every_fault_and_nothing_else(site: Site) -> None:
    warnings = [line for line in site.said.splitlines() if line.startswith("WARNING")]
    for link in ("no-such-page.md", "../no/such/file.py", "sweeps.md#no-such-heading"):
        assert sum("'faults.md'" in line and f"'{link}'" in line for line in warnings) == 1, link
    assert any("not included in the" in line for line in warnings)
    assert "- faults.md" in site.said
    assert len(warnings) == 4, site.said
    assert site.code == 1 and "strict" in site.said


def test_every_link_and_anchor_of_the_site_is_alive(site: Site) -> None:
    dead = []
    for page in site.pages():
        for link in parsed(page).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = parsed(target).anchors if target.is_file() and target.suffix == ".html" else set()
            # The theme's links to the top.
            if not target.is_file() or (
                parts.fragment not in ("", "__skip") and unquote(parts.fragment) not in anchors
            ):
                dead.append(f"{page.relative_to(site.folder)}: {link}")
    assert dead == []


def test_every_page_can_be_reached_from_the_first(site: Site) -> None:
    waiting, found = [site.folder / "index.html"], set()
    while waiting:
        page = waiting.pop()
        if page not in found and page.is_file():
            found.add(page)
            hrefs = (urlsplit(link) for link in parsed(page).links)
            paths = (unquote(href.path) for href in hrefs if not href.scheme and href.path.endswith(".html"))
            waiting += [(page.parent / path).resolve() for path in paths]
    assert {page.relative_to(site.folder) for page in site.pages()} <= {page.relative_to(site.folder) for page in found}


def test_every_method_data_set_and_backbone_has_its_place(site: Site) -> None:
    table = parsed(site.folder / "reference/methods/index.html")
    for name in registry.names():
        entry = registry.find(name)
        text = site.text(f"reference/methods/{name}.html")
        assert f"{name}.html" in table.links
        assert entry.cls.paper in " ".join(text.split()) and f"methods/{name.replace('-', '_')}.py" in text
        assert all(field in text for field in entry.defaults)
        assert all(f"published:{paper}" in text for paper in entry.cls.published)
    assert set(streams.names()) <= parsed(site.folder / "reference/data-sets.html").anchors
    shipped = site.text("reference/backbones.html")
    assert all(name in shipped for name in backbones.names())


def test_a_method_page_has_what_show_prints_and_its_rows(site: Site) -> None:
    text = site.text("reference/methods/sdlora.html")
    for part in ("W = W_0 + sum_{k<t} a_k B_k A_k", "0.0409", "sdlora[align=true]", "SD-LoRA (ICLR 2025"):
        assert part in text


def test_the_reference_names_every_option_command_field_and_public_name(site: Site) -> None:
    options, commands = site.text("reference/options.html"), site.text("reference/cli.html")
    for name, option in (options_of(RunOptions) | options_of(ExecutionOptions)).items():
        assert option.flag in options and name in options and option.flag in commands
    for command in ("run", "ls methods", "results merge", "data verify", "audit", "show"):
        assert f"cl-bench {command}" in commands
    records = site.text("reference/file-formats.html")
    assert all(name in records for name in RunRecord.model_fields)
    anchors = {one for page in (site.folder / "reference/api").glob("*.html") for one in parsed(page).anchors}
    public = {name for name in dir(cl_bench) if name != "__version__"}
    assert {name for name in public if f"cl_bench.{name}" not in anchors} == set()


PLAIN = [
    path.relative_to(ROOT / "docs")
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not re.search(r"^(<!-- site:|:::)", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("page", PLAIN, ids=str)
def test_pages_have_the_same_parts_on_a_code_host(page: Path, site: Site) -> None:
    """Python-Markdown reads some lists, blocks and tables otherwise than CommonMark."""
    plain = Parsed()
    html = MarkdownIt("commonmark").enable("table").render((ROOT / "docs" / page).read_text(encoding="utf-8"))
    plain.feed(f"<article>{html}</article>")
    shown = parsed(site.folder / page.with_suffix(".html")).counts
    for kind in ("li", "ol", "ul", "pre", "table", "tr", "td", "h2", "h3", "blockquote", "img"):
        assert shown.get(kind, 0) == plain.counts.get(kind, 0), kind


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install Debian's package 'chromium'")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LOOKED_AT = (
    "index.html",
    "tutorial.html",
    "reference/cli.html",
    "reference/options.html",
    "reference/file-formats.html",
    "reference/api/methods.html",
    "reference/methods/sdlora.html",
    "findings/results.html",
    "repository/LICENSE.html",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launch()


@dataclass
class Visit:
    """A page of the site opened from the disk, with the addresses that it requested and its error messages."""

    page: Page
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)

    def check(self) -> None:
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        assert self.faults == []


@contextmanager
def visiting(browser: Browser, **options: Any) -> Iterator[Visit]:
    """A page in a browser context of its own, checked at the end."""
    context = browser.new_context(**options)
    context.set_default_timeout(0)
    visit = Visit(context.new_page())
    yield visit
    visit.check()
    context.close()


@needs_chromium
@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE, PHONE | {"color_scheme": "dark"}], ids=str)
def test_pages_ask_no_host_and_fit_the_screen(options: dict[str, object], site: Site, browser: Browser) -> None:
    with visiting(browser, **options) as visit:
        for name in LOOKED_AT:
            visit.page.goto(f"file://{site.folder}/{name}")
            wide, screen = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide <= screen, name
            scheme = visit.page.locator("body").get_attribute("data-md-color-scheme")
            assert scheme == ("slate" if "color_scheme" in options else "default")
            broken = "all => all.filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
            assert visit.page.locator("img").evaluate_all(broken) == []


@needs_chromium
def test_search_finds_a_glossary_entry_from_the_disk(site: Site, browser: Browser) -> None:
    with visiting(browser, viewport={"width": 1440, "height": 900}) as visit:
        visit.page.goto(f"file://{site.folder}/index.html")
        visit.page.locator("input[name=query]").fill("exemplar-free")
        found = visit.page.locator(".md-search-result__link[href*='glossary.html']")
        expect(found).not_to_have_count(0, timeout=0)
        found.first.click()
        visit.page.wait_for_url("**/reference/glossary.html**")


@needs_chromium
def test_result_tables_are_sorted_by_quantity(site: Site, browser: Browser) -> None:
    with visiting(browser, viewport={"width": 1440, "height": 900}) as visit:
        visit.page.goto(f"file://{site.folder}/findings/results.html")
        table = visit.page.locator("table", has=visit.page.locator("th", has_text="trainable")).first
        units = {"k": 1e3, "M": 1e6}

        def column(number: int) -> list[float]:
            cells = [text.split() for text in table.locator(f"tbody td:nth-child({number})").all_inner_texts()]
            return [
                float(cell[0]) * (units.get(cell[1], 1) if len(cell) > 1 else 1) for cell in cells if cell[0] != "–"
            ]

        heads = table.locator("thead th").all_inner_texts()
        for head in ("acc, %", "trainable"):
            number = heads.index(head) + 1
            table.locator(f"thead th:nth-child({number})").click()
            once = column(number)
            assert once in (sorted(once), sorted(once, reverse=True)) and len(set(once)) > 5
