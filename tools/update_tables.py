"""Update the generated tables in README.md and docs/: results, comparisons, parity, options.

    python -m tools.update_tables

Pairs of HTML comments mark the generated blocks:

- `<!-- table: SUITE, N tasks -->` to `<!-- /table -->`: the rows of a suite on its stream of N tasks; rows without
  a run are named under the table;
- `<!-- table: SUITE, N tasks, rows A;B;C -->` to `<!-- /table -->`: only these rows; a note below says how many there
  are in all;
- `<!-- compare: SUITE, N tasks, against ROW -->` to `<!-- /compare -->`: the differences between all rows and ROW,
  paired over seeds, with a margin of one point; with `, of METRIC` behind ROW another metric than final accuracy;
- `<!-- traces: SUITE, N tasks, against ROW, of TRACE -->` to `<!-- /traces -->`: what runs traced, paired with ROW;
  with `, rows A;B` only these rows;
- SUITE may be `SUITE on BENCHMARK`, where a suite has streams of N tasks on several;
- `<!-- parity -->` to `<!-- /parity -->`: the report of `tools.parity.report`;
- `<!-- options -->` to `<!-- /options -->`: the fields of a suite and the options of `cl-bench run`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cl_bench.options import ExecutionOptions, RunOptions, options_of
from cl_bench.reporting import comparison, report, result_table, text_tables, traces
from cl_bench.reporting.precision import by_precision
from cl_bench.reporting.runs import Section, sections
from cl_bench.running import suites
from tools.parity import report as parity

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    ROOT / "README.md",
    ROOT / "docs" / "findings" / "results.md",
    ROOT / "docs" / "findings" / "parity.md",
    ROOT / "docs" / "sweeps.md",
)
REFERENCE = ROOT / "results" / "reference"
PARITY = ROOT / "results" / "authors", [ROOT / "results" / "parity"]
MARGIN = 1.0
_PARITY = re.compile(r"(?P<head><!-- parity -->\n).*?(?P<tail><!-- /parity -->)", re.DOTALL)
_OPTIONS = re.compile(r"(?P<head><!-- options -->\n).*?(?P<tail><!-- /options -->)", re.DOTALL)
_BLOCK = re.compile(
    r"(?P<head><!-- (?P<kind>table|compare|traces): (?P<suite>\S+?)(?: on (?P<benchmark>\S+))?, (?P<tasks>\d+) tasks"
    r"(?:, against (?P<against>\S+?))?(?:, of (?P<of>\S+?))?(?:, rows (?P<rows>\S+))? -->\n)"
    r".*?(?P<tail><!-- /(?P=kind) -->)",
    re.DOTALL,
)


def load(reference: Path) -> list[Section]:
    """The stored runs, grouped by protocol.

    Raises:
        ValueError: a stored result is damaged.
    """
    runs, damaged = report.load_runs([(reference, "reference")])
    if damaged:
        raise ValueError("; ".join(damaged))
    return sections(runs)


def section(
    protocols: list[Section], suite: str, tasks: int, benchmark: str | None = None
) -> tuple[Section, list[str]]:
    """The section of a suite's stream of `tasks` tasks, reduced to the suite's rows, and the rows without stored runs.

    Args:
        benchmark: needed where the suite has such streams on several.

    Raises:
        ValueError: the suite has no such stream, or no run of it is stored.
    """
    cells = [
        cell
        for options in suites.find(suite).runs
        for cell in options.cells()
        if cell.tasks == (tasks,) and benchmark in (None, *cell.benchmark)
    ]
    if len({(cell.benchmark, cell.backbone) for cell in cells}) != 1:
        raise ValueError(f"suite '{suite}' has no stream in {tasks} tasks, or several")
    named = [str(spec) for cell in cells for spec in cell.methods]
    stored = [
        one
        for whole in protocols
        for one in by_precision(whole)
        if (one.protocol.benchmark, one.protocol.num_tasks) == (cells[0].benchmark[0], tasks)
        and cells[0].backbone in ((), (one.protocol.backbone,))
        and {*one.precisions.values()} == {cells[0].precision}
        and not one.protocol.limits_text()
    ]
    if len(stored) != 1:
        raise ValueError(f"no run of suite '{suite}' in {tasks} tasks is stored, or runs of several protocols are")
    rows = stored[0].rows
    missing = [label for label in named if label not in rows]
    return replace(stored[0], rows={label: rows[label] for label in named if label in rows}), missing


def selected(whole: Section, labels: Sequence[str]) -> Section:
    """A section reduced to some of its rows.

    Raises:
        ValueError: the section has no such row.
    """
    unknown = [label for label in labels if label not in whole.rows]
    if unknown:
        raise ValueError(f"no run of {', '.join(unknown)} is stored; there are {', '.join(whole.rows)}")
    return replace(whole, rows={label: whole.rows[label] for label in labels})


def _table(whole: Section, missing: Sequence[str], rows: str | None) -> text_tables.TextTable:
    """The table of a section, or of the rows that a marker selects."""
    if rows is None:
        table = result_table.text_table(result_table.build(whole))
        return replace(table, notes=(*table.notes, f"Not run yet: {', '.join(missing)}.")) if missing else table
    part = selected(whole, rows.split(";"))
    table = result_table.text_table(result_table.build(part))
    return replace(table, notes=(f"{len(part.rows)} of {len(whole.rows)} rows.", *table.notes))


def options_table() -> str:
    """The fields of a suite, and the options of `run` on execution, as Markdown tables."""
    parts = []
    for cls, title in (
        (RunOptions, "field of a suite, `--option` of `run`"),
        (ExecutionOptions, "`--option` of `run`"),
    ):
        lines = [f"| {title} | what it is | default |", "| --- | --- | --- |"]
        for name, option in options_of(cls).items():
            shown = f"`{name}`" if cls is RunOptions else f"`{option.flag}`"
            several = " Several values: all of them run." if option.kind == "alternatives" else ""
            cells = (shown, f"{option.help}{several}", option.default)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def filled(text: str, protocols: list[Section]) -> str:
    """A text with the blocks between its markers generated again."""

    def block(match: re.Match[str]) -> str:
        found, missing = section(protocols, match["suite"], int(match["tasks"]), match["benchmark"])
        if match["kind"] == "table":
            return match["head"] + text_tables.markdown(_table(found, missing, match["rows"])) + match["tail"]
        rows = match["rows"].split(";") if match["rows"] else ()
        if match["kind"] == "traces":
            table = traces.text_table(found, match["against"], rows, wanted=traces.Wanted.parse(match["of"]))
        else:
            table = comparison.text_table(found, match["against"], rows, match["of"] or "acc", MARGIN)
        assert table is not None, match["head"]
        return match["head"] + text_tables.markdown(table) + match["tail"]

    text = _PARITY.sub(lambda match: match["head"] + parity.text(*PARITY) + match["tail"], text)
    text = _OPTIONS.sub(lambda match: match["head"] + options_table() + match["tail"], text)
    return _BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the files in place."""
    protocols = load(REFERENCE)
    for path in FILES:
        path.write_text(filled(path.read_text(encoding="utf-8"), protocols), encoding="utf-8")


if __name__ == "__main__":
    main()
