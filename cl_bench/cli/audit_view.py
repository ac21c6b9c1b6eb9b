"""Output of an audit: findings on the terminal, and a table in a Markdown file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cl_bench.cli.shared import err, out
from cl_bench.errors import UserError, counted
from cl_bench.files import write_atomically

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun
    from cl_bench.studies.audit import AuditedMethod, AuditReport, Finding, Slice

AUDIT_BEGIN, AUDIT_END = "<!-- audit -->\n", "<!-- /audit -->"
_HEADS = [
    head.replace(" ", "\n")
    for head in (
        "batch size", "com- pany", "task id", "ear- lier", "pas- ses", "fro- zen", "old data", "mem- ory", "re- peat",
        "re- start", "ceil- ing", "num. tasks",
    )
]  # fmt: skip
_WORDS = {"pass": "pass", "fail": "FAIL", "declared": "decl.", "skipped": "-"}
_STYLES = {"pass": "green", "fail": "bold red", "declared": "yellow", "skipped": "dim"}


def audit_all(
    rows: Sequence[AuditedMethod], joint: Sequence[PlannedRun], where: Slice
) -> tuple[list[AuditReport], str]:
    """Audit every row and print its findings at once, then one table of all rows.

    Returns:
        The reports, and a description of the data and backbone that they were measured on.
    """
    from cl_bench.studies import audit

    with _steps("ceiling") as on_step:
        best = audit.ceiling([audit.AuditedMethod(run.label, run.method) for run in joint], where, on_step)
    title = _audited_on(joint[0], best.label, best.accuracy)
    out.print(Text(title))
    reports = []
    for number, row in enumerate(rows, start=1):
        name, began = f"[{number}/{len(rows)}] {row.label}", time.perf_counter()
        # Print after the status line is gone; it would erase output of the other stream.
        with _steps(name) as on_step:
            reports += audit.audit([row], where, best, on_step=on_step)
        if not err.is_terminal:
            err.print(escape(f"{name}: {_verdict(reports[-1])} after {time.perf_counter() - began:.0f} s"))
        out.print(_findings(reports[-1]))
    if len(reports) > 1:
        for table in _overviews(reports):
            out.print(table)
    return reports, title


@contextmanager
def _steps(name: str) -> Iterator[Callable[[str], None]]:
    """Show what is under way: in one line that changes on a terminal, else in a line per step.

    Yields:
        A function that shows the step that begins.
    """
    with err.status(escape(f"{name} ...")) as status:

        def show(step: str) -> None:
            if err.is_terminal:
                status.update(escape(f"{name}: {step} ..."))
            else:
                err.print(escape(f"{name}: {step}"))

        yield show


def _audited_on(run: PlannedRun, ceiling: str, accuracy: float) -> str:
    experiment = run.experiment
    limits = experiment.limits
    tasks = counted(experiment.num_tasks, "task")
    shape = f"the first {limits.tasks} of {tasks}" if limits.tasks else tasks
    cuts = {"training": limits.train_per_class, "test": limits.test_per_class}
    counts = " and ".join(f"{count} {part}" for part, count in cuts.items() if count)
    images = f", {counts} images per class" if counts else ""
    return (
        f"{experiment.benchmark}, {shape}{images}; backbone {experiment.backbone}; seed {experiment.seed}; "
        f"ceiling {ceiling}, {100 * accuracy:.1f} %"
    )


def _verdict(report: AuditReport) -> str:
    if report.error is not None:
        return f"failed: {report.error}"
    if not report.failed:
        return "leaks, but was not caught" if report.audited.leaky else "no check fails"
    return f"{'caught by' if report.audited.leaky else 'fails'} {', '.join(report.failed)}"


def _findings(report: AuditReport) -> Group:
    """Verdict of one row, and one line per finding."""
    style = "green" if report.good else "bold red"
    title = Text.assemble((report.audited.label, "bold"), ": ", (_verdict(report), style))
    table = Table("check", "result", "measured", box=SIMPLE_HEAD)
    for finding in report.findings:
        measured = Text(finding.figure if not finding.detail else f"{finding.figure}\n{finding.detail}")
        table.add_row(finding.check, _word(finding), measured)
    return Group(title, table) if report.findings else Group(title)


def _word(finding: Finding) -> Text:
    return Text(_WORDS[finding.status], style=_STYLES[finding.status])


def _overviews(reports: Sequence[AuditReport]) -> list[Group]:
    """Result of every check of every row; rows that must be detected are in a table of their own."""
    tables = []
    for leaky, title in ((False, "All rows"), (True, "Leaks of released code, which must be caught")):
        chosen = [report for report in reports if report.audited.leaky == leaky]
        if not chosen:
            continue
        # 80 columns have just enough room for all checks with one space in between.
        table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("method", overflow="fold")
        for name in _HEADS:
            table.add_column(name, no_wrap=True)
        for report in chosen:
            words = [_word(finding) for finding in report.findings] or [Text("error", style="bold red")]
            table.add_row(Text(report.audited.label), *words)
        tables.append(Group(Text(title, style="bold"), table, ""))
    return tables


def check_audit_file(path: Path) -> None:
    """Raise `UserError` if `write_audit` could not write its table to this file."""
    if path.exists():
        _around_audit(path)
    elif not path.parent.is_dir():
        raise UserError(f"'{path}' cannot be written (no such folder); make the folder first")


def _around_audit(path: Path) -> tuple[str, str]:
    """Text of the file before and after the table."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as text; name a Markdown file") from error
    before, begin, rest = text.partition(AUDIT_BEGIN)
    _, end, after = rest.partition(AUDIT_END)
    if not (begin and end):
        raise UserError(
            f"'{path}' has no place for the table; put the lines '{AUDIT_BEGIN.strip()}' and '{AUDIT_END}' there"
        )
    return before, after


def write_audit(path: Path, title: str, reports: Sequence[AuditReport]) -> None:
    """Replace the table between the markers, or write a new file.

    Raises:
        UserError: the file has no markers, or cannot be written.
    """
    before, after = _around_audit(path) if path.exists() else ("", "\n")
    try:
        text = f"{before}{AUDIT_BEGIN}{audit_markdown(title, reports)}{AUDIT_END}{after}"
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror})") from error


def audit_markdown(title: str, reports: Sequence[AuditReport]) -> str:
    """All measured values as pipe tables; rows that must be detected are in a table of their own."""
    from cl_bench.studies.audit import CHECKS

    parts = [f"Measured on {title}.\n"]
    for leaky in (False, True):
        chosen = [report for report in reports if report.audited.leaky == leaky]
        if not chosen:
            continue
        lines = [("method", *CHECKS), ("---",) * (1 + len(CHECKS))]
        for report in chosen:
            marks = {"fail": "**fails:** ", "skipped": "skipped: "}
            cells = [f"{marks.get(finding.status, '')}{finding.figure}" for finding in report.findings]
            lines.append((f"`{report.audited.label}`", *(cells or [f"**error:** {report.error}"])))
        if leaky:
            parts.append("Leaks of released code, which must be caught:\n")
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)
