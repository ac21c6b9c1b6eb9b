"""docs/tutorial.md: a student's day with the wheel, from an empty folder to a table in LaTeX and the page in a browser.

The commands and edits of the page are done one after the other, in processes of their own, where nothing of the
repository can be seen. Runs are cut to a few images, except one of the student's own method over the whole stream: only
such a run stands beside the reference results.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.helpers import ROOT, SOAK, distributions, pages
from tests.helpers.browsers import CHROMIUM, Visit, launch
from tests.helpers.command import TRIAL, rows

pytest.importorskip("hatchling", reason="needs `pip install '.[test]'`")

PAGE = ROOT / "docs" / "tutorial.md"
MINE = "my_probe[imprint=true]"
GRID = "my_probe[imprint=true|false]"
WHOLE = ["--seeds", "0"]
"""The whole stream, with `MINE` in the place of `GRID`."""
RUNS = ([TRIAL], [["--limit-test", "2"]], [WHOLE, TRIAL], [TRIAL])
"""What is added to each `run` of the page, in the page's order; twice if it is run in two ways."""
ADDED = {"tune": [["--budget", "1"]]}
"""What is added to other commands."""


def edit(file: Path) -> None:
    """The three edits of the page's section on writing a method."""
    blocks = [token.content for token in pages.tokens(PAGE) if token.type == "fence" and token.info == "python"]
    imports, fields, function = blocks
    text = file.read_text()
    places = (r"^from cl_bench import .*\n", r"^    lr: PositiveFloat = 0\.005\n")
    for place, new in zip(places, (imports, fields), strict=True):
        text, changed = re.subn(place, lambda _, new=new: new, text, flags=re.MULTILINE)
        assert changed == 1, place
    file.write_text(f"{text}\n{function}")


@dataclass(frozen=True)
class Day:
    """The student's folder at the end of the day, and what the commands printed, by their name."""

    folder: Path
    outcomes: dict[str, list[CompletedProcess[str]]]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """Every command of the page; the audit, which takes longest, only in `make soak`."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    distributions.unpack(distributions.build("wheel", ROOT, tmp_path_factory.mktemp("wheel")), site)
    outcomes: dict[str, list[CompletedProcess[str]]] = defaultdict(list)
    runs = iter(RUNS)
    for command in [command for command in pages.commands(PAGE) if command.whole]:
        name = command.arguments[0]
        if name == "audit" and not SOAK:
            continue
        for added in next(runs) if name == "run" else ADDED.get(name, [[]]):
            arguments = [MINE if word == GRID and added is WHOLE else word for word in command.arguments]
            outcome = distributions.run(site, folder, "-m", "cl_bench", *arguments, *added)
            assert outcome.returncode == 0, f"{command} {added}: {outcome.stderr}"
            outcomes[name].append(outcome)
        if name == "new-method":
            file = folder / "my_probe.py"
            edit(file)
            file.write_text(file.read_text().replace("epochs: PositiveInt = 4", "epochs: PositiveInt = 1"))
    assert next(runs, None) is None
    return Day(folder, outcomes)


def plain(label: str) -> str:
    """A row's label without the mark of its precision, which depends on the processor."""
    return re.sub(r"\[(?:bf16|fp32)\]$|,(?:bf16|fp32)(?=\]$)", "", label)


def test_every_step_leads_to_the_next(day: Day) -> None:
    _, trial, whole, _, tuned = day.outcomes["run"]
    assert {"my_probe", "simplecil"} <= rows(trial.stdout).keys() and MINE in rows(whole.stdout)
    assert f"{MINE}: own defaults, epochs=1, batch_size=32, lr=0.001" in whole.stdout + whole.stderr
    assert "my_probe: tuned, best of 1 setting" in tuned.stdout + tuned.stderr
    assert (day.folder / "recipes.toml").is_file()
    (comparison,) = day.outcomes["compare"]
    assert {"simplecil", "sdlora"} <= {line.split()[0] for line in comparison.stdout.splitlines() if line.strip()}


def test_the_figure_has_the_chosen_rows_of_mine_and_of_the_reference(day: Day) -> None:
    tables = (day.folder / "paper").glob("*-accuracy.csv")
    (drawn,) = [table for table in tables if "ranpac" in table.read_text()]
    with drawn.open(newline="") as file:
        assert {plain(line["label"]) for line in csv.DictReader(file)} == {MINE, "ranpac", "simplecil", "sdlora"}
    assert drawn.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_the_table_in_latex_has_my_row_and_those_of_the_reference(day: Day) -> None:
    written = [file.read_text() for file in (day.folder / "paper").glob("table*.tex")]
    (table,) = [text for text in written if "ranpac &" in text]
    labels = [line.split(" & ")[0] for line in table.splitlines() if " & " in line]
    shown = [plain(re.sub(r"\{(.)\}", r"\1", label).replace("\\_", "_")) for label in labels]
    assert shown == ["method", MINE, "ranpac", "simplecil", "sdlora"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launch()


VIEWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install Debian's package 'chromium'")
@pytest.mark.parametrize("view", VIEWS)
def test_the_page_shows_my_row_beside_the_reference(day: Day, browser: Browser, view: str) -> None:
    context = browser.new_context(reduced_motion="reduce", **VIEWS[view])
    visit = Visit(context, day.folder / "reports")
    page = visit.page
    section = page.locator("section.protocol", has=page.locator("button[data-row=ranpac]"))
    assert section.count() == 1
    labels = [str(button.get_attribute("data-row")) for button in section.locator("button.row").all()]
    (mine,) = [label for label in labels if plain(label) == MINE]
    assert {"ranpac", "simplecil", "sdlora"} <= set(labels)
    for _ in range(200):
        page.keyboard.press("Tab")
        focused = page.evaluate("[document.activeElement.dataset.row, document.activeElement.closest('section')?.id]")
        if focused == [mine, section.get_attribute("id")]:
            break
    else:
        pytest.fail("the row cannot be reached by keyboard")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    # The runs of a row are in a file of their own, which is read when the row is opened.
    section.locator("tr.detail button.run").first.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "--method-file my_probe.py" in page.locator("dialog#run").inner_text()
    page.keyboard.press("Escape")
    plot = section.locator('.plot[data-chart$="/accuracy"]').first
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    drawn = plot.evaluate("div => div.data.map((trace) => trace.name)")
    assert {mine, "ranpac"} <= set(drawn)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    visit.check()
    context.close()
