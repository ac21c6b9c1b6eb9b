"""What the page of a report shows of the stored predictions of a protocol."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_bench.errors import UserError, counted
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.confusions import pictures, tables, views
from cl_bench.reporting.confusions.measures import RowErrors, rows_of
from cl_bench.reporting.runs import Section
from cl_bench.reporting.text_tables import TextTable

NAMES = ("errors", "errors-by-task", "confusion", "classes")
"""The charts of predictions on the page; a confusion matrix of 100 classes would take as much room as all of them."""
_TOP, _IMAGES = 10, 12


@dataclass(frozen=True)
class Thumbnail:
    """An image that was forgotten: its address, which holds its pixels, and lines of text on it."""

    address: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class ErrorsOnPage:
    """The part of a protocol that shows stored predictions.

    Attributes:
        charts: by name, of all rows with predictions.
        label: row that tables and images are of: the first in colour, which is an own row if there is one.
        tables: most confused pairs, and most forgotten classes.
        images: images of the embedded data that most runs of the row have forgotten; empty for other data, which are
            not on every machine, so that the same results always make the same page.
        command: command line that shows more of the row.
        left: sentence on runs without predictions; empty if all have them.
    """

    charts: dict[str, Chart]
    label: str
    tables: tuple[TextTable, ...]
    images: tuple[Thumbnail, ...]
    command: str
    left: str


def on_page(section: Section, folders: Sequence[Path]) -> ErrorsOnPage | None:
    """The part of the page for one protocol; None if it has no predictions, or no errors to show.

    Args:
        folders: results folders with the predictions, the preferred one first.
    """
    rows, left = rows_of(section.rows, folders)
    charts = views.charts(section, rows, NAMES)
    learners = views.learners_of(section, rows)
    if not learners or not charts:
        return None
    row = rows[learners[0]]
    made = (tables.pairs(row, _TOP), tables.forgotten_classes(row, _TOP))
    return ErrorsOnPage(
        charts=charts,
        label=row.label,
        tables=tuple(table for table in made if table.rows),
        images=_thumbnails(row),
        command=f"cl-bench errors {shlex.quote(row.label)} --protocol {section.slug} --out FOLDER",
        left=f"{counted(len(left), 'run')} without stored predictions left out." if left else "",
    )


def _thumbnails(row: RowErrors) -> tuple[Thumbnail, ...]:
    if not pictures.embedded(row):
        return ()
    try:
        shown = pictures.shown(row, row.forgotten_images(_IMAGES))
    except UserError:
        # The embedded images of another version, or of a validation split: the page does without.
        return ()
    return tuple(
        Thumbnail(f"data:image/png;base64,{base64.b64encode(pictures.png(image)).decode()}", image.lines)
        for image in shown
    )
