"""The static site of `cl-bench report --site`: its pages and links, its folder, and how a browser shows it."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser

from cl_bench import metrics
from cl_bench.experiment import Limits
from cl_bench.reporting.site import pages
from tests.helpers import ROOT
from tests.helpers.browsers import CHROMIUM, launch
from tests.helpers.command import Cli, assert_refused, tree
from tests.helpers.factories import record, write

HOSTILE = "<script>alert(1)</script>"


class Links(HTMLParser):
    """Targets of links, styles and scripts of a page, its anchors, title and description."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.title = self.description = self._tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        found = dict(attrs)
        self.targets += [value for name in ("href", "src", "data-src") if (value := found.get(name))]
        self.anchors |= {value for name in ("id",) if (value := found.get(name))}
        if found.get("name") == "description":
            self.description = found["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._tag == "title":
            self.title += data.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site over two folders of the same name: rows of one protocol in both, a trial, and hostile names."""
    top = tmp_path_factory.mktemp("leaderboard")
    write(
        top / "alice" / "runs",
        *(record(method, s, drop=drop) for method, drop in (("sdlora", 0.01), ("coda", 0.03)) for s in range(2)),
        *(record("joint", s, joint=True) for s in range(2)),
        record("sdlora", limits=Limits(test_per_class=5)),
    )
    write(
        top / "bob" / "runs",
        *(record("mine", s, drop=0.02) for s in range(2)),
        record("sdlora", 0),
        record("Mine", tasks=5),
        record(HOSTILE, benchmark="folder:../birds", backbone="vit:../own.pth"),
    )
    pages.write([top / "alice" / "runs", top / "bob" / "runs"], top / "site")
    return top / "site"


def html(site: Path) -> dict[str, Links]:
    return {path.relative_to(site).as_posix(): Links(path) for path in sorted(site.rglob("*.html"))}


# --- pages and links ---------------------------------------------------------------------------------------------


def test_every_link_leads_to_a_file_and_an_anchor_of_the_site(site: Path) -> None:
    found = html(site)
    seen = set()
    for name, page in found.items():
        for target in page.targets:
            parts = urlsplit(target)
            assert not parts.netloc and (not parts.scheme or target == "data:,"), target
            if parts.scheme:
                continue
            place = (site / name).parent / unquote(parts.path) if parts.path else site / name
            assert place.is_file() and place.resolve().is_relative_to(site.resolve()), (name, target)
            seen.add(place.resolve())
            if parts.fragment:
                inside = found[place.resolve().relative_to(site.resolve()).as_posix()]
                assert unquote(parts.fragment) in inside.anchors, (name, target)
    hidden = {site / ".nojekyll", site / ".cl-bench-site.json"}
    everything = {path.resolve() for path in site.rglob("*") if path.is_file()}
    unreached = {path for path in everything - seen if path.suffix != ".md"} - {path.resolve() for path in hidden}
    assert unreached == set(), "no file without a link"


def test_every_page_has_a_title_and_a_description_of_its_own(site: Path) -> None:
    found = html(site)
    assert len({page.title for page in found.values()}) == len(found)
    assert all(page.title.endswith(" · Continual-learning leaderboard") for page in found.values())
    assert all(20 < len(page.description) < 300 for page in found.values())


def test_methods_benchmarks_and_backbones_have_pages_stored_or_published(site: Path) -> None:
    names = {kind: {path.stem for path in (site / kind).iterdir()} for kind in ("methods", "benchmarks", "backbones")}
    assert names["methods"] >= {"sdlora", "coda", "joint", "mine", "hide", "sdlora-rr"}
    assert len([name for name in names["methods"] if name.casefold().startswith("mine")]) == 2, "case does not count"
    assert names["benchmarks"] >= {"icons-100", "imagenet-r", "cub200", "folder_.._birds"}
    assert names["backbones"] == {
        "vit_tiny_patch8_32.icons", "vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_.._own.pth",
    }  # fmt: skip
    assert not any(HOSTILE in path.read_text() for path in site.rglob("*.html"))


def test_places_are_those_of_the_mean_accuracies_over_both_folders(site: Path) -> None:
    runs = {
        method: [record(method, seed, drop=drop) for seed in range(2)]
        for method, drop in (("sdlora", 0.01), ("coda", 0.03), ("mine", 0.02))
    }
    means = {name: np.mean([metrics.acc(run.correct, run.total) for run in found]) for name, found in runs.items()}
    order = sorted(means, key=lambda name: -means[name])
    for name in order:
        text = (site / "methods" / f"{name}.html").read_text()
        assert f"{order.index(name) + 1} of 3" in text and f"{100 * means[name]:.2f} ±" in text
    joint = (site / "methods" / "joint.html").read_text()
    assert " of 3" not in joint, "joint training sees all tasks"
    index = (site / "index.html").read_text()
    assert f"place {order.index('mine') + 1} of 3 on icons-100" in index
    assert "runs of /" in index and "alice/runs, " in index, "folders of one name are told apart"
    with (site / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6 + 1 + 2 + 1 + 1, "a run in both folders counts once"


def test_published_numbers_are_those_of_the_papers(site: Path) -> None:
    with (ROOT / "cl_bench/assets/papers/sdlora.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "acc" and row["method"] == "hide"]
    assert len(rows) >= 5
    text = (site / "methods" / "hide.html").read_text()
    for row in rows:
        assert f"{float(row['mean']):.2f} ({float(row['stderr']):.2f})" in text
    assert "No stored run of this method yet" in text and "@inproceedings" in text


def test_the_same_results_give_the_same_bytes(site: Path) -> None:
    before = tree(site)
    stores = [site.parent / name / "runs" for name in ("alice", "bob")]
    pages.write(stores, site)
    assert tree(site) == before


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_site_replaces_its_own_files_alone(cl_bench: Cli) -> None:
    write(Path("mine"), record("alpha"), record("beta"))
    command = ["report", "--results", "mine", "--site", "public"]
    Path("public/.git").mkdir(parents=True)
    Path("public/.git/HEAD").write_text("ref")
    done = cl_bench(*command)
    assert done.code == 0 and done.out == "site: public/index.html\n"
    Path("public/CNAME").write_text("example.org")
    for path in Path("mine").glob("beta-*"):
        path.unlink()
    assert Path("public/methods/beta.html").is_file()
    assert cl_bench(*command).code == 0
    assert not Path("public/methods/beta.html").exists()
    assert Path("public/CNAME").read_text() == "example.org" and Path("public/.git/HEAD").read_text() == "ref"


def test_folders_of_others_stay_as_they_are(cl_bench: Cli) -> None:
    write(Path("mine"), record("alpha"))
    command = ["report", "--results", "mine", "--site"]
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("text")
    Path("file").write_text("text")
    before = tree()
    assert_refused(cl_bench(*command, "thesis"), "'thesis'", "'chapter.tex'", "empty folder")
    assert_refused(cl_bench(*command, "file"), "'file' is a file")
    assert_refused(cl_bench("report", "--results", "nowhere", "--site", "new"), "'nowhere'", "cl-bench run")
    assert tree() == before
    assert cl_bench(*command, "public").code == 0
    Path("public/methods/beta.html").write_text("of another program")
    write(Path("mine"), record("beta"))
    before = tree()
    assert_refused(cl_bench(*command, "public"), "'methods/beta.html'", "move them away")
    assert tree() == before
    Path("public/.cl-bench-site.json").write_text('{"files": ["../file", "/etc/hosts", 3]}')
    assert_refused(cl_bench(*command, "public"), "'public' holds files")
    Path("public/.cl-bench-site.json").write_text("{")
    assert_refused(cl_bench(*command, "public"), "is damaged")
    assert Path("file").read_text() == "text"


def test_without_runs_the_published_numbers_are_a_site(cl_bench: Cli) -> None:
    assert cl_bench("report", "--site", "public").code == 0
    assert "No results yet" in Path("public/index.html").read_text()
    assert "79.15" in Path("public/benchmarks/imagenet-r.html").read_text()


# --- in a browser, from a server ---------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """A file server that writes no log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: install Debian's package 'chromium'")
    yield from launch()


@pytest.fixture(scope="module")
def host(site: Path) -> Iterator[str]:
    """The address of a server that has the site in a folder below its top."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/site"
        server.shutdown()


@pytest.mark.parametrize("start", ["host", "disk"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pages_work_from_a_host_and_from_a_disk(
    browser: Browser, site: Path, host: str, start: str, width: int
) -> None:
    top = host if start == "host" else f"file://{site}"
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if width < 500 else "light",
        reduced_motion="reduce",
    )
    # No deadline, because a busy machine may take long; the time limit of all tests ends a page that hangs.
    context.set_default_timeout(0)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda text: faults.append(text.text) if text.type in ("error", "warning") else None)
    page.on("response", lambda got: faults.append(got.url) if got.status not in (200, 304, 0) else None)
    page.on(
        "request", lambda sent: faults.append(sent.url) if not sent.url.startswith((top, "data:", "blob:")) else None
    )
    for path in ("index", "methods/sdlora", "benchmarks/imagenet-r", "published"):
        page.goto(f"{top}/{path}.html")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        small = page.locator("a:visible, summary:visible, .scroll a").evaluate_all(
            "all => all.filter((one) => !one.matches('.skip, p > a, .soft a'))"
            ".filter((one) => one.getBoundingClientRect().height < 23.9).map((one) => one.outerHTML)"
        )
        assert small == []
    page.goto(f"{top}/index.html")
    page.locator("main section").first.get_by_role("link", name="runs of icons-100").click()
    assert page.url.startswith(f"{top}/benchmarks/icons-100.html#icons-100-")
    # Legends have buttons of the same names.
    page.locator("table.leaderboard").get_by_role("button", name="mine", exact=True).click()
    plot = page.locator('.plot[data-chart$="/accuracy"]').first
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    with page.expect_download() as caught:
        page.locator(".downloads a").first.click()
    assert Path(caught.value.path()).read_bytes() == (site / "tables" / caught.value.suggested_filename).read_bytes()
    page.get_by_role("link", name="All results of mine").click()
    assert page.locator("h1").inner_text() == "mine" and "1 of 3" not in page.title()
    assert faults == []
    context.close()
