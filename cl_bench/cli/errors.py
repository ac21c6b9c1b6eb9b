"""The command `cl-bench errors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_bench.cli import completion
from cl_bench.cli.reports import Backbone, Benchmark, Results, from_sections, print_table
from cl_bench.cli.shared import err, out, takes, warn
from cl_bench.errors import UserError, counted, reason
from cl_bench.grammar import PICTURES, parse_pictures
from cl_bench.store import folders_to_read

if TYPE_CHECKING:
    from cl_bench.reporting.confusions import RowErrors
    from cl_bench.reporting.runs import Section


@takes("root")
def errors(
    given: Mapping[str, Any],
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Row, whose runs are summed, or the first digits of a run's key.",
            autocompletion=completion.ANYTHING,
        ),
    ],
    task: Annotated[
        int | None, typer.Option(min=1, help="Only the test images of this task, from 1.", show_default="all tasks")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of pairs, classes and images.")] = 10,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Part of the name of the protocol, e.g. 10x10, where a row is in several.", show_default=False
        ),
    ] = None,
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    results: Results = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for pictures, images and all counts as CSV.", show_default="the screen only"
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Pictures in --out: png, pdf, svg, several with commas, or csv alone.",
            autocompletion=completion.one_of(*PICTURES, "csv", separator=","),
        ),
    ] = "png",
) -> None:
    """Show where the errors of a run or row go: to which tasks and classes, and what was forgotten."""
    from cl_bench.reporting.confusions import NoPredictions, rows_of, tables

    kinds = () if form == "csv" else parse_pictures(form, "--format")
    folders = folders_to_read(results or ())
    section = from_sections(lambda found: _section_with(run, found, protocol), results, benchmark, backbone)
    if task is not None and task > section.protocol.num_tasks:
        raise UserError(
            f"--task {task}: the stream has {counted(section.protocol.num_tasks, 'task')}; name one of them"
        )
    found, left = rows_of(section.rows, folders, None if task is None else task - 1)
    for sentence in left:
        if not found:
            raise NoPredictions(sentence)
        warn(f"left out: {sentence}")
    ((_, row),) = found.items()
    out.print(f"{section.protocol.benchmark}, {section.protocol.shape}, {section.protocol.backbone}", highlight=False)
    if row.by_domain:
        out.print(
            "All domains share their classes: a predicted class names no domain, so errors are shown by class only.",
            highlight=False,
        )
    else:
        print_table(tables.flow(row), "terminal", None)
    for table in (tables.pairs(row, top), tables.forgotten_classes(row, top)):
        if table.rows:
            print_table(table, "terminal", None)
    if not row.forgotten_classes(1):
        out.print("No class lost accuracy since it was learned.")
    if output is not None:
        _write(section, row, top, Path(given["root"]) if given else None, output, kinds)


def _section_with(run: str, found: Sequence[Section], protocol: str | None) -> Section:
    """The protocol with the requested row or run, reduced to it.

    Raises:
        UserError: no row or run has this name or key, or several protocols have the row.
    """
    from dataclasses import replace

    from cl_bench.reporting.selection import one_row

    labels = {label for section in found for label in section.rows}
    by_key = [
        (section, label, one)
        for section in found
        for label, runs in section.rows.items()
        for one in runs
        if one.record.key.startswith(run)
    ]
    if by_key and len(run) >= 4 and run not in labels:
        if len(by_key) > 1:
            raise UserError(f"'{run}' is the start of {len(by_key)} keys; give more digits")
        ((section, label, one),) = by_key
        return replace(section, rows={label: [one]}, chosen=True)
    fitting = [section for section in found if section.slug == protocol]
    fitting = fitting or [section for section in found if protocol is None or protocol in section.slug]
    if not fitting:
        slugs = ", ".join(section.slug for section in found)
        raise UserError(f"--protocol '{protocol}' is part of no protocol's name; there are {slugs}")
    label = one_row("RUN", run, dict.fromkeys(label for section in fitting for label in section.rows))
    having = [section for section in fitting if label in section.rows]
    whole = [section for section in having if not section.protocol.limits_text()]
    having = whole or having
    if len(having) > 1:
        slugs = ", ".join(section.slug for section in having)
        raise UserError(
            f"'{label}' is a row of {len(having)} protocols ({slugs}); choose one by --benchmark, --backbone or "
            f"--protocol, e.g. --protocol {having[0].slug}"
        )
    return replace(having[0], rows={label: having[0].rows[label]}, chosen=True)


def _write(section: Section, row: RowErrors, top: int, root: Path | None, folder: Path, kinds: Sequence[str]) -> None:
    """Write figures, tables, all counts and, where the data are at hand, the images that were forgotten most."""
    from cl_bench.reporting import spreadsheets
    from cl_bench.reporting.confusions import pictures, tables, views
    from cl_bench.reporting.render import drawing
    from cl_bench.streams import DataConfig

    images = row.forgotten_images(top)
    shown: list[pictures.ShownImage] = []
    if images:
        try:
            shown = pictures.shown(row, images, DataConfig.of(root))
        except UserError as error:
            err.print(f"the images themselves are not shown: {reason(error)}", markup=False)
    by_task = [] if row.by_domain else [tables.flow(row), tables.flow_by_task(row)]
    made = [
        *by_task, tables.pairs(row, len(row.classes) ** 2), tables.forgotten_classes(row, len(row.classes)),
        tables.forgotten_images(row, images, [image.file for image in shown]),
    ]  # fmt: skip
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in [*((table.name, table.data) for table in made), *tables.counts(row).items()]:
            written.append(folder / f"{name}.csv")
            written[-1].write_text(spreadsheets.to_csv(frame, float_format="%.10g"), encoding="utf-8")
        for name, chart in views.charts(section, {row.label: row}).items():
            written += drawing.save(chart, folder / f"figure-{name}", kinds, section.ceilings)
        if shown and kinds:
            written.append(folder / "forgotten-images.png")
            pictures.save_sheet(shown, written[-1])
    except OSError as error:
        raise UserError(f"--out '{folder}' cannot be written ({error.strerror}); name another folder") from error
    for path in written:
        out.print(str(path), soft_wrap=True, highlight=False)
