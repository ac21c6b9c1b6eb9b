"""docs/tutorial.md: its commands and edits, done one after the other in an empty folder, lead where it says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers import ROOT, SOAK, pages
from tests.helpers.command import TRIAL, Cli, rows

PAGE = ROOT / "docs" / "tutorial.md"


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


def test_every_step_leads_to_the_next(cl_bench: Cli, one_thread: None) -> None:
    """On two tasks of a few images; the audit, which takes longest, only in `make soak`."""
    outcomes = {}
    for command in [command for command in pages.commands(PAGE) if command.whole]:
        name, *_ = arguments = list(command.arguments)
        if name == "audit" and not SOAK:
            continue
        outcome = outcomes[name] = cl_bench(*arguments, *(TRIAL if name == "run" else ()))
        assert outcome.code == 0, f"{command}: {outcome.err}"
        if name == "new-method":
            edit(Path("my_probe.py"))
    own = {"my_probe[imprint=true]", "my_probe[imprint=false]"}
    assert own | {"simplecil"} <= rows(outcomes["run"].out).keys()
    assert "my_probe[imprint=false]" in outcomes["compare"].out
    figures = list(Path("reports").rglob("*accuracy*"))
    assert {path.suffix for path in figures} >= {".png", ".csv"}
    page = Path("reports/index.html").read_text()
    assert all(label in page for label in (*own, "sdlora", "coda"))
