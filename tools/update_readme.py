"""Put the table of `results/reference` between the README's `results` markers.

python tools/update_readme.py            # rewrite the README
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cl_bench import report
from cl_bench.report import sheets, tables
from cl_bench.report.frame import Section

BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
COMMAND = r"cl-bench run --methods '([^']+)' --seeds 0-4 --results results/reference"
ROOT = Path(__file__).resolve().parent.parent


def section(readme: str, reference: Path) -> Section:
    """The embedded stream in ten tasks, with the rows of the command that the README names.

    Raises:
        ValueError: a stored result is damaged.
    """
    sections, damaged = report.load([(reference, "reference")])
    if damaged:
        raise ValueError("; ".join(damaged))
    (found,) = (
        one
        for one in sections
        if (one.protocol.benchmark, one.protocol.num_tasks) == ("icons-100", 10) and not one.protocol.limits_text()
    )
    (command,) = re.findall(COMMAND, readme)
    named = re.findall(r"[a-z][a-z0-9-]*(?:\[[^]]*\])?", command)
    return replace(found, rows={label: found.rows[label] for label in named})


def readme_table(readme: str, reference: Path) -> str:
    """Its table as Markdown."""
    return sheets.markdown(tables.sheet(tables.build(section(readme, reference))))


def main() -> None:
    """Rewrite the README in place."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    table = readme_table(text, ROOT / "results" / "reference")
    readme.write_text(text[:start] + table + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
