"""Reports: from folders of run records to tables, figures and a page, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_bench.errors import UserError
from cl_bench.report import figures, page, tables
from cl_bench.report.frame import Folder, Section, collect, named, sections
from cl_bench.store import RunRecord

__all__ = ["Folder", "Report", "load", "render", "tables_of"]


@dataclass(frozen=True)
class Report:
    """What `render` made.

    Attributes:
        paths: files written, the page first.
        damaged: one sentence per result file that was skipped, naming it.
        tables: one per protocol, for printing (`tables.to_rich`).
    """

    paths: list[Path]
    damaged: list[str]
    tables: list[tables.Table]


def tables_of(records: Iterable[RunRecord], origin: str) -> list[tables.Table]:
    """Tables over records at hand, one per protocol."""
    return [tables.build(section) for section in sections(named((record, origin) for record in records))]


def load(folders: Iterable[tuple[Path, str]]) -> tuple[list[Section], list[str]]:
    """The runs of the folders by protocol, and a sentence for each damaged file.

    Args:
        folders: pairs of path and origin name, the preferred one first (see `frame.collect`).

    Raises:
        UserError: there is no valid run in any of them.
    """
    folders = list(folders)
    damaged: list[str] = []
    found = sections(collect(folders, damaged.append))
    if not found:
        looked = ", ".join(f"'{path}'" for path, _ in folders) or "no folder at all"
        skipped = f" ({len(damaged)} damaged: {'; '.join(damaged)})" if damaged else ""
        raise UserError(f"no results in {looked}{skipped}; make some with `cl-bench run --methods NAME,NAME`")
    return found, damaged


def render(folders: Iterable[tuple[Path, str]], out: Path, command: str) -> Report:
    """Write the page, `index.html`, and per protocol its tables and figures.

    These are `tables/SLUG.{md,csv,tex}` and `figures/SLUG-{accuracy,forgetting,matrix}.{png,pdf}`; only the
    first figure where no method learned task by task. The same records give the same bytes. Other files in
    `out` are left alone.

    Args:
        folders: pairs of path and origin name, the preferred one first.
        out: the folder to write into; made if missing.
        command: the command line that makes this report, shown on the page.

    Raises:
        UserError: no valid run, or `out` cannot be written.
    """
    found, damaged = load(folders)
    look = figures.styles(found)
    built = [tables.build(section) for section in found]
    try:
        drawn = [_write_files(section, table, out, look) for section, table in zip(found, built, strict=True)]
        index = out / "index.html"
        index.write_text(page.render(found, built, drawn, damaged, command), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"report folder '{out}' cannot be written ({error.strerror}: {error.filename}); name another one"
        ) from error
    return Report([index, *(path for paths in drawn for path in paths)], damaged, built)


def _write_files(section: Section, table: tables.Table, out: Path, look: figures.Styles) -> Sequence[Path]:
    """Tables and figures of one protocol; returns their paths."""
    written = []
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ("md", tables.to_markdown(table)),
        ("csv", tables.to_csv(table)),
        ("tex", tables.to_latex(table)),
    ):
        path = out / "tables" / f"{table.slug}.{suffix}"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    for name, figure in figures.draw(section, look).items():
        written += figures.save(figure, out / "figures" / f"{table.slug}-{name}")
    return written
