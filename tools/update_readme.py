"""Put the table of `results/reference` between the README's `results` markers.

python tools/update_readme.py            # rewrite the README
"""

from __future__ import annotations

from pathlib import Path

from cl_bench import report
from cl_bench.report import sheets, tables

BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
ROOT = Path(__file__).resolve().parent.parent


def readme_table(reference: Path) -> str:
    """The Markdown table of the reference results on the embedded stream.

    Raises:
        ValueError: a stored result is damaged.
    """
    sections, damaged = report.load([(reference, "reference")])
    if damaged:
        raise ValueError("; ".join(damaged))
    (section,) = (section for section in sections if section.protocol.benchmark == "icons-100")
    return sheets.markdown(tables.sheet(tables.build(section)))


def main() -> None:
    """Rewrite the README in place."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    readme.write_text(text[:start] + readme_table(ROOT / "results" / "reference") + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
