"""The page in a real browser, used as a reader would: on a desktop and a phone, in the light and the dark theme."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from cl_bench import metrics
from cl_bench.errors import printable
from cl_bench.experiment import Limits
from cl_bench.reporting.report import render
from cl_bench.store import RunRecord
from tests.helpers import ROOT, reports
from tests.helpers.browsers import CHROMIUM, Visit, launch
from tests.helpers.command import Cli
from tests.helpers.factories import record, write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install Debian's package 'chromium'")
HOSTILE = "<script>alert(1)</script>[a='\"&\u2028</script><img src=x onerror=alert(2)>]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launch()


DROPS = {"alpha": 0.01, "beta": 0.03, "gamma[rank=4,lr=0.1]": 0.06}


def made(label: str, seed: int) -> RunRecord:
    """A run of a method that learns task by task."""
    return record(label.split("[")[0], seed, label=label, drop=DROPS[label])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over four methods of one protocol, two of another, a trial, and a method with a hostile name.

    One row comes from another folder.
    """
    folder = tmp_path_factory.mktemp("site")
    write(
        folder / "it's runs",
        *(made(label, seed) for label in DROPS for seed in range(3)),
        *(record("joint", s, joint=True) for s in range(3)),
        *(record("alpha", s, benchmark="photos", tasks=5) for s in range(2)),
        record("alpha", 0, limits=Limits(test_per_class=5)),
        record("hostile", 0, label=HOSTILE, benchmark="<b>bold</b>"),
    )
    write(folder / "shared", *(record("beta", s, benchmark="photos", tasks=5) for s in range(2)))
    render([(folder / "it's runs", "it's runs"), (folder / "shared", "shared")], folder / "out", "cl-bench report")
    return folder / "out"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over 500 runs: 25 rows of 10 seeds on each of two streams."""
    folder = tmp_path_factory.mktemp("many")
    runs = [record(f"method-{m}", s, drop=0.002 * m, tasks=t) for m in range(25) for s in range(10) for t in (5, 10)]
    write(folder / "runs", *runs)
    render([(folder / "runs", "runs")], folder / "out", "cl-bench report")
    return folder / "out"


@pytest.fixture
def visit(browser: Browser, site: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    options: dict[str, Any] = getattr(request, "param", {})
    # A click waits until the page stands still: without smooth scrolling that is at once.
    still = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
    context = browser.new_context(**still | options)
    found = Visit(context, site)
    yield found
    found.check()
    context.close()


def names(page: Page, section: int = 0) -> list[str]:
    return page.locator("table.leaderboard").nth(section).locator("tbody th button.row").all_inner_texts()


def heads(page: Page) -> list[str]:
    return page.locator("table.leaderboard").first.locator("thead th").all_inner_texts()


ENDS = """() => {
    const div = document.querySelector('.plot[data-chart$="/accuracy"]');
    const curves = div.data.filter((trace) => trace.mode !== "lines" || trace.showlegend);
    return curves.map((trace) => [trace.name, trace.y.at(-1)]);
}"""
"""The last value of every curve of the first plot of accuracies."""
CONTRAST = """([selector, behind]) => {
    // Whatever the notation, and half transparent or not: as it is painted.
    const parse = (...colours) => {
        const area = document.createElement("canvas").getContext("2d");
        for (const colour of colours) { area.fillStyle = colour; area.fillRect(0, 0, 1, 1); }
        return [...area.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
    };
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ground = getComputedStyle(document.querySelector(behind)).backgroundColor;
    return Math.min(...[...document.querySelectorAll(selector)].map((element) => {
        const style = getComputedStyle(element);
        const [one, two] = [light(parse(style.color)), light(parse(ground, style.backgroundColor))];
        return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    }));
}"""
"""The lowest contrast (WCAG 2) between the texts of the selected elements and their background."""
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DARK = {"color_scheme": "dark"}


# --- leaderboards ------------------------------------------------------------------------------------------------


def test_the_table_is_sorted_by_the_chosen_head(visit: Visit) -> None:
    page = visit.page
    assert sorted(names(page)) == ["alpha", "beta", "gamma[rank=4,lr=0.1]", "joint"]
    best = names(page)
    page.get_by_role("button", name="method", exact=True).first.click()
    assert names(page) == sorted(best, reverse=True) or names(page) == sorted(best)
    first = names(page)
    page.get_by_role("button", name="method", exact=True).first.click()
    assert names(page) == first[::-1]
    page.get_by_role("button", name="forgetting, %").first.click()
    head = page.locator("table.leaderboard").first.locator("th[aria-sort]")
    assert (head.count(), head.get_attribute("aria-sort")) == (1, "ascending")
    assert names(page) == ["alpha", "beta", "gamma[rank=4,lr=0.1]", "joint"], "least forgetting first, none last"


def test_every_metric_can_be_chosen_with_its_interval(visit: Visit, site: Path) -> None:
    page = visit.page
    options = page.locator("#metric option").evaluate_all("all => all.map(one => one.value)")
    assert options == [*metrics.METRICS, "fwt", "intransigence"]
    page.select_option("#metric", "bwt")
    assert heads(page)[1].startswith("bwt") and heads(page)[2:5] == ["acc, %", "aaa, %", "forgetting, %"]
    cell = page.locator("tr", has=page.get_by_role("button", name="alpha")).first.locator("td.primary")
    shown = re.match(r"(-?[\d.]+) ± ([\d.]+)", cell.inner_text())
    runs = [made("alpha", seed) for seed in range(3)]
    values = [100 * metrics.bwt(run.correct, run.total) for run in runs]
    assert shown is not None and float(shown[1]) == pytest.approx(sum(values) / 3, abs=0.006)
    assert cell.locator(".range i").count() == 1


def test_rows_and_tables_are_filtered(visit: Visit) -> None:
    page = visit.page
    page.fill("#filter", "GAMMA")
    assert page.locator("section.protocol:visible").count() == 1
    assert names(page) == ["gamma[rank=4,lr=0.1]"]
    expect(page.locator("#found")).to_have_text("1 row in 1 table")
    page.fill("#filter", "")
    page.select_option("#benchmark", "photos")
    title = "photos, 5 tasks × 10 classes on vit_tiny_patch8_32.icons"
    assert page.locator("section.protocol:visible h2").all_inner_texts() == [title]
    page.select_option("#benchmark", "")
    protocols = page.locator("#protocol option").evaluate_all("all => all.map(one => one.value)")
    page.select_option("#protocol", protocols[1])
    assert page.locator("section.protocol:visible").count() == 1
    page.select_option("#protocol", "")
    page.select_option("#origin", "shared")
    expect(page.locator("#found")).to_have_text("1 row in 1 table")
    assert page.locator("section.protocol:visible button.row").all_inner_texts() == ["beta"]


def test_the_address_brings_the_same_view_back(visit: Visit, browser: Browser, site: Path) -> None:
    page = visit.page
    page.fill("#filter", "a")
    page.select_option("#metric", "aaa")
    page.get_by_role("button", name="method", exact=True).first.click()
    address = page.evaluate("location.hash")
    again = Visit(page.context, site, address)
    assert again.page.input_value("#filter") == "a" and again.page.input_value("#metric") == "aaa"
    assert names(again.page) == names(page)
    again.page.evaluate("location.hash = 'filter=gamma'")
    expect(again.page.locator("#found")).to_have_text("1 row in 1 table")
    assert again.page.input_value("#filter") == "gamma" and again.page.input_value("#metric") == "acc"
    again.check()


def test_filters_that_fit_nothing_say_so_and_are_undone(visit: Visit) -> None:
    page = visit.page
    page.fill("#filter", "no such method")
    assert page.locator("#none").is_visible() and page.locator("section.protocol:visible").count() == 0
    page.get_by_role("button", name="Show all rows").click()
    assert page.locator("#none").is_hidden() and page.input_value("#filter") == ""
    assert page.locator("section.protocol:visible").count() == 4
    assert page.evaluate("document.activeElement.id") == "filter"


def test_the_contents_lead_to_every_part_and_keep_the_view(visit: Visit, site: Path) -> None:
    page = visit.page
    slugs = page.locator("section.protocol").evaluate_all("all => all.map(one => one.id)")
    links = page.locator("#contents a").evaluate_all("all => all.map(one => decodeURIComponent(one.hash.slice(1)))")
    assert [link for link in links if link in slugs] == slugs
    assert all(page.locator(f"[id='{link}']").count() == 1 for link in links)
    page.select_option("#metric", "bwt")
    page.locator("#contents a").filter(has_text="photos").first.click()
    (photos,) = [slug for slug in slugs if slug.startswith("photos")]
    address = page.evaluate("location.hash")
    assert address == f"#metric=bwt&at={photos}"
    assert page.evaluate("document.activeElement.closest('section').id") == photos
    again = Visit(page.context, site, address)
    assert again.page.input_value("#metric") == "bwt"
    top = "one => one.getBoundingClientRect().top - document.getElementById('tools').getBoundingClientRect().bottom"
    expect(again.page.locator(f"[id='{photos}']")).to_be_in_viewport()
    assert 0 <= again.page.locator(f"[id='{photos}'] h2").evaluate(top) < 60, "below the tools, not under them"
    # A part inside something closed is opened; rows that filters hide are shown.
    again.page.fill("#filter", "gamma")
    again.page.evaluate(f"location.hash = '{photos}-figures'")
    expect(again.page.locator(f"[id='{photos}-figures'][open]")).to_be_visible()
    assert again.page.input_value("#filter") == ""
    again.check()


def test_protocols_with_runs_of_ones_own_come_first(tmp_path: Path) -> None:
    write(tmp_path / "reference", *(record(f"row-{number}") for number in range(3)))
    write(tmp_path / "runs", record("mine", tasks=5, limits=Limits(test_per_class=5)), record("mine", tasks=5))
    render([(tmp_path / name, name) for name in ("runs", "reference")], tmp_path / "out", "cl-bench report")
    page = (tmp_path / "out" / "index.html").read_text()
    slugs = re.findall(r'<section class="protocol" id="([^"]+)"', page)
    assert [slug.split("-vit")[0] for slug in slugs] == ["icons-100-5x10", "icons-100-5x10", "icons-100-10x10"]
    assert "test_per_class5" in slugs[1]
    assert page.index("Your runs</h3>") < page.index("Reference runs</h3>") < page.index('<form id="tools"')


def test_without_runs_the_page_says_what_to_type(cl_bench: Cli, browser: Browser) -> None:
    done = cl_bench("report", "--out", "pages")
    assert done.code == 0 and "no results in 'results/runs'; make some with `cl-bench run" in done.err
    context = browser.new_context()
    found = Visit(context, Path("pages").absolute())
    lines = found.page.locator("section.empty pre").inner_text().splitlines()
    assert lines == ["cl-bench run --methods sdlora,coda", "cl-bench report --out pages"]
    assert found.page.locator("#contents, #tools").count() == 0
    found.check()
    context.close()


def test_trials_come_last_and_are_labelled(visit: Visit) -> None:
    titles = visit.page.locator("section.protocol h2").all_inner_texts()
    assert "a trial: at most 5 test images per class" in titles[-1]
    assert not any("trial" in title for title in titles[:-1])


# --- details -----------------------------------------------------------------------------------------------------


def test_a_run_opens_with_the_command_that_repeats_it(visit: Visit, site: Path) -> None:
    page = visit.page
    page.get_by_role("button", name="alpha").first.click()
    runs = page.locator("tr.detail").first.locator("tbody tr")
    expect(runs).to_have_count(3)
    key = runs.first.locator("code").inner_text()
    runs.first.get_by_role("button").click()
    dialog = page.locator("dialog#run")
    assert dialog.is_visible() and "alpha, seed 0" in dialog.inner_text()
    folder = str(site.parent / "it's runs").replace("'", "'\\''")
    assert dialog.locator("#command").inner_text() == f"cl-bench repeat {key} --results '{folder}'"
    first = made("alpha", 0)
    cells = dialog.locator("table.heat tbody tr").last.locator("td").all_inner_texts()
    assert cells == [f"{100 * (hit or 0) / n:.1f}" for hit, n in zip(first.correct[-1], first.total, strict=True)]
    terms = dict(zip(dialog.locator("dt").all_inner_texts(), dialog.locator("dd").all_inner_texts(), strict=True))
    assert (terms["method"], terms["recipe"], terms["weights"]) == ("alpha", "tuned", first.experiment.weights)
    assert (terms["epochs"], terms["threads"]) == ("20", "2")
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("#filter").focus()
    page.keyboard.press("Control+V")
    assert page.input_value("#filter") == f"cl-bench repeat {key} --results '{folder}'"


def test_a_click_anywhere_on_a_row_opens_its_details(visit: Visit) -> None:
    page = visit.page
    page.locator("table.leaderboard").first.locator("tbody td").nth(1).click()
    assert page.locator("tr.detail").count() == 1
    page.locator("table.leaderboard").first.locator("button.row").first.click()
    assert page.locator("tr.detail").count() == 0


def test_rows_are_compared_in_pairs(visit: Visit) -> None:
    page = visit.page
    details = page.locator("details.pairs").first
    details.locator("summary").click()
    details.locator("select").select_option(label="beta")
    lines = details.locator("tbody tr")
    assert lines.count() == 3
    first = lines.first.inner_text().split("\t")
    assert re.match(r"[+−][\d.]+ ± [\d.]+", first[1]) and re.match(r"\d/\d/\d", first[-1])
    swapped = {line.split("\t")[0]: line.split("\t")[1] for line in lines.all_inner_texts()}
    details.locator("select").select_option(label="alpha")
    back = {line.split("\t")[0]: line.split("\t")[1] for line in details.locator("tbody tr").all_inner_texts()}
    assert back["beta"][1:] == swapped["alpha"][1:] and back["beta"][0] != swapped["alpha"][0]


def test_downloads_are_the_files_next_to_the_page(visit: Visit, site: Path) -> None:
    links = visit.page.locator("a[data-file]:visible")
    files = [site / name for name in links.evaluate_all("all => all.map(one => one.dataset.file)")]
    assert {file.suffix for file in files} == {".csv", ".tex", ".md"}
    assert {file.parent.name for file in files} == {"tables", "figures"}
    # Chromium asks the user for permission after more than ten downloads within seconds.
    for start in range(0, len(files), 9):
        again = Visit(visit.page.context, site)
        shown = again.page.locator("a[data-file]:visible")
        for i, file in list(enumerate(files))[start : start + 9]:
            with again.page.expect_download() as caught:
                shown.nth(i).click()
            assert caught.value.suggested_filename == file.name
            assert Path(caught.value.path()).read_text() == file.read_text()
        again.check()


# --- plots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visit", [{}, PHONE], ids=["desk", "phone"], indirect=True)
def test_nothing_moves_when_plots_are_drawn(visit: Visit) -> None:
    page = visit.page
    plots = page.locator("div.plot:visible")
    tops = "all => all.map(one => one.getBoundingClientRect().top + scrollY)"
    before = plots.evaluate_all(tops)
    for plot in plots.all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    assert len(before) > 5 and plots.evaluate_all(tops) == pytest.approx(before)


@pytest.mark.parametrize("visit", [{"viewport": {"width": 1280, "height": 300}}], ids=["low"], indirect=True)
def test_plots_are_drawn_when_they_come_into_view(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate("typeof Plotly") == "undefined", "read only when it is needed"
    for name in ("accuracy", "matrix", "stability"):
        plot = page.locator(f'.plot[data-chart$="/{name}"]').first
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    ends = dict(page.evaluate(ENDS))
    runs = [made("alpha", seed) for seed in range(3)]
    expected = sum(100 * metrics.acc(run.correct, run.total) for run in runs) / 3
    assert ends["alpha"] == pytest.approx(expected, rel=1e-5)
    assert set(ends) == {"alpha", "beta", "gamma[rank=4,lr=0.1]", "joint"}


def test_the_legend_hides_and_shows_curves_by_keyboard(visit: Visit) -> None:
    page = visit.page
    plot = page.locator('.plot[data-chart$="/accuracy"]').first
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    button = page.locator(".legend").first.get_by_role("button", name="beta")
    shown = "div => div.data.filter((one) => one.legendgroup === 'beta').map((one) => one.visible !== false)"
    for pressed in ("false", "true"):
        button.focus()
        page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-pressed", pressed)
        page.wait_for_function(f"({shown})(document.querySelector('.plot')).every((one) => one === {pressed})")
    axis = page.locator('.plot[data-chart$="/forgetting"]').first
    axis.scroll_into_view_if_needed()
    axis.locator("svg.main-svg").first.wait_for()
    assert axis.evaluate("div => div._fullLayout.yaxis.range[0]") >= 0, "although an interval reaches below 0"


def test_a_plot_says_what_is_seen_on_it(visit: Visit) -> None:
    plot = visit.page.locator('.plot[data-chart$="/accuracy"]').first
    seen = visit.page.locator(f"[id='{plot.get_attribute('aria-describedby')}']").inner_text()
    first, last = (
        np.mean([100 * metrics.accuracy_curve(run.correct, run.total)[place] for run in runs])
        for place in (0, -1)
        for runs in [[made("alpha", seed) for seed in range(3)]]
    )
    assert seen.startswith(f"Highest at the end: alpha, which falls from {first:.1f} to {last:.1f}, then beta at ")
    assert "; lowest: gamma[rank=4,lr=0.1], which falls from" in seen and "; joint at " in seen


def test_hovering_shows_the_values(visit: Visit) -> None:
    page = visit.page
    plot = page.locator('.plot[data-chart$="/accuracy"]').first
    plot.scroll_into_view_if_needed()
    plot.locator(".scatterlayer .point").first.hover(force=True)
    plot.locator(".hoverlayer text").first.wait_for()
    assert re.search(r"\d+: [\d.]+ ± [\d.]+, 3 runs", plot.locator(".hoverlayer").text_content() or "")


TITLES = """() => {
    const div = document.querySelector('.plot[data-chart$="/NAME"]');
    const middle = (box) => box.left + box.width / 2;
    const titles = [...div.querySelectorAll(".annotation")].map((title) => title.getBoundingClientRect());
    const bar = div.querySelector(".modebar-container .modebar").getBoundingClientRect();
    const frames = [...div.querySelectorAll(".cartesianlayer .subplot")].map((one) => {
        const axis = div._fullLayout._plots[one.classList[1]].xaxis;
        return div.getBoundingClientRect().left + axis._offset + axis._length / 2;
    });
    return {off: titles.map((title, i) => Math.abs(middle(title) - frames[i])), top: titles[0].top, bar: bar.bottom};
}"""


@pytest.mark.parametrize("name", ["tasks", "matrix"])
def test_panels_have_their_names_above_them(browser: Browser, many: Path, name: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = Visit(context, many)
    plot = found.page.locator(f'.plot[data-chart$="/{name}"]').first
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    measured = found.page.evaluate(TITLES.replace("NAME", name))
    assert len(measured["off"]) == 6 and max(measured["off"]) < 2
    assert measured["top"] >= measured["bar"], "the buttons cover no name"
    found.check()
    context.close()


def test_too_many_pairs_are_left_out_with_a_word(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path / "runs", *(record(f"method-{m}", 0, tasks=2) for m in range(46)))
    render([(tmp_path / "runs", "runs")], tmp_path / "out", "cl-bench report")
    context = browser.new_context()
    found = Visit(context, tmp_path / "out")
    details = found.page.locator("details.pairs")
    details.locator("summary").click()
    assert "this table has 46. Compare some of them with cl-bench compare" in details.inner_text()
    found.check()
    context.close()


# --- readers -----------------------------------------------------------------------------------------------------


TARGETS = """() => [...document.querySelectorAll("a, button, input, select, summary, .modebar-btn")]
    .filter((one) => one.checkVisibility() && !one.matches(".skip"))
    .map((one) => [one.outerHTML.slice(0, 90), one.getBoundingClientRect()])
    .filter(([, box]) => Math.min(box.width, box.height) < 23.99)
    .map(([text, box]) => `${text} ${box.width} x ${box.height}`)"""
"""Things to press that are smaller than 24 pixels (WCAG 2.2, criterion 2.5.8)."""
CUT = """() => [...document.querySelectorAll("#tools select, #tools input")].filter((one) => {
    const area = document.createElement("canvas").getContext("2d");
    const style = getComputedStyle(one);
    area.font = style.font;
    const text = one.placeholder || one.selectedOptions[0].textContent;
    return area.measureText(text).width > one.clientWidth - 2 * parseFloat(style.paddingLeft) - (one.options ? 16 : 0);
}).map((one) => one.id)"""
"""Fields whose text has no room; a selector has an arrow of at most 16 pixels."""


@pytest.mark.parametrize("visit", [PHONE, PHONE | DARK, DARK], ids=["phone", "dark phone", "dark"], indirect=True)
def test_nothing_sticks_out_and_everything_can_be_read(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    for selector in ("h1", ".soft", ".notes", "a", "td", "tr.ceiling td", "summary", "thead th"):
        assert page.evaluate(CONTRAST, [selector, "body"]) >= 4.5, selector
    width = page.evaluate("innerWidth")
    if width < 500:
        boxes = page.locator("#tools input, #tools select, button.row:visible").all()[:9]
        sizes = [box.bounding_box() for box in boxes]
        assert all(size is not None and size["height"] >= 40 for size in sizes)
    for metric in metrics.METRICS:
        page.select_option("#metric", metric)
        assert page.evaluate(CUT) == [], metric
    page.select_option("#metric", "acc")
    page.get_by_role("button", name="alpha").first.click()
    about = page.locator("tr.detail p").first.bounding_box()
    assert about is not None and about["x"] >= 0 and about["x"] + about["width"] <= width
    page.locator("tr.detail tbody button").first.click()
    for selector in ("#run-body td", "#run-body dd", "#run-body .soft"):
        assert page.evaluate(CONTRAST, [selector, "#run"]) >= 4.5, selector
    assert page.evaluate(TARGETS) == []
    page.keyboard.press("Escape")
    plot = page.locator('.plot[data-chart$="/accuracy"]').first
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate(TARGETS) == []


@pytest.mark.parametrize("visit", [{}, {"reduced_motion": "no-preference"}], ids=["still", "moving"], indirect=True)
def test_the_page_scrolls_smoothly_unless_less_motion_is_asked_for(visit: Visit) -> None:
    still = visit.page.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches")
    behaviour = visit.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior")
    assert behaviour == ("auto" if still else "smooth")


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('nav').id") == "contents"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "H2"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.row") == "alpha":
            break
    else:
        pytest.fail("the row cannot be reached")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    # The runs of a row may come from a file of their own, which is read when the row is opened.
    page.locator("tr.detail button.run").first.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("dialog#run").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog#run").is_visible()


def test_hostile_texts_stay_texts(visit: Visit) -> None:
    page = visit.page
    page.fill("#filter", "onerror")
    assert page.locator("section.protocol:visible").count() == 1
    section = page.locator("section.protocol:visible")
    assert "<b>bold</b>" in section.locator("h2").inner_text()
    row = section.locator("button.row").first
    assert row.text_content() == printable(HOSTILE)
    row.click()
    section.locator("tr.detail button").first.click()
    assert "<script>alert(1)</script>" in page.locator("#run-title").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("img").count() == 0
    section.locator("details.figures summary").click()
    plot = section.locator('.plot[data-chart$="/accuracy"]')
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("visit", [{"java_script_enabled": False}], ids=["no script"], indirect=True)
def test_without_scripts_the_tables_are_there(visit: Visit) -> None:
    page = visit.page
    table = page.locator("table.leaderboard").first
    assert "gamma[rank=4,lr=0.1]" in table.inner_text() and "±" in table.inner_text()
    assert page.locator("#tools").is_hidden()
    assert "need" in page.locator("noscript p").inner_text()


def test_damaged_files_are_named(browser: Browser, tmp_path: Path) -> None:
    paths = write(tmp_path / "runs", record("alpha", 0), record("beta", 0))
    paths[1].write_text("{}")
    render([(tmp_path / "runs", "runs")], tmp_path / "out", "cl-bench report")
    context = browser.new_context()
    found = Visit(context, tmp_path / "out")
    assert paths[1].name in found.page.locator("section.damaged").inner_text()
    found.check()
    context.close()


def test_a_page_of_few_rows_has_a_megabyte_with_the_script_that_the_licences_name(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 1_200_000
    (packed,) = re.findall(r'<script type="text/plain" id="plotly">\s*([\w+/=]+)\s*</script>', page)
    script = gzip.decompress(base64.b64decode(packed))
    assert b"Copyright 2012-2026, Plotly, Inc." in script[:300]
    assert hashlib.sha256(script).hexdigest() in (ROOT / "ASSETS.md").read_text(encoding="utf-8")


def test_five_hundred_runs_need_little_more_than_a_few(browser: Browser, many: Path, site: Path) -> None:
    few, size = ((folder / "index.html").stat().st_size for folder in (site, many))
    assert size < few + 500 * 3_000
    context = browser.new_context()
    found = Visit(context, many)
    assert "500 runs in 50 rows of 2 protocols" in found.page.locator("header").inner_text()
    parts = reports.parts((many / "index.html").read_text(encoding="utf-8"), "runs")
    assert [len(part["runs"]) for part in parts.values()] == [250, 250]
    found.check()
    context.close()
