"""Pictures for papers: widths and letters of venues, and vector files that render to what they should show."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
import resvg_py
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.text import Text
from PIL import Image

from cl_bench.errors import UserError
from cl_bench.reporting.charts import Chart, Heat, Line, Lines, Panel, Point, Scatter
from cl_bench.reporting.render import drawing, venues
from cl_bench.stats import Summary, summarise
from tests.helpers.command import Cli
from tests.helpers.factories import record, write
from tests.helpers.pictures import boxes, outside, overlapping

NAMES = [f"row_{i}[rank={i}]" for i in range(4)]
CURVES = Lines(
    "", "tasks learned", "top-1 accuracy, %",
    tuple(Line(name, (1, 2, 3), tuple(Summary(3, 90 - 3 * i - t, 1.0) for t in (2, 4, 6)))
          for i, name in enumerate(NAMES)),
)  # fmt: skip
POINTS = Scatter(
    "", "parameters trained", "final accuracy, %",
    tuple(Point(name, summarise([1000.0 * 30**i]), summarise([50.0 + i, 52.0 + i])) for i, name in enumerate(NAMES)),
    log=True,
)  # fmt: skip
STORED = replace(POINTS, x="stored after the last task, MB", points=POINTS.points[:3])
CELLS = Heat("a", "tested on task", "after task", ("1", "2"), ("1", "2"), ((90.0, None), (80.0, 95.0)), "%", 70, 100)


def chart(*panels: Panel) -> Chart:
    return Chart("chart", "A title", "A caption.", panels)


def pdf_page(path: Path) -> pypdfium2.PdfPage:
    document = pypdfium2.PdfDocument(path)
    assert len(document) == 1
    return document[0]


def inked(pixels: np.ndarray) -> tuple[float, float]:
    """Share of the pixels that are not white, and of those at the edge of the picture."""
    dark = pixels[..., :3].min(axis=-1) < 200
    edge = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    return float(dark.mean()), float(edge.mean())


@pytest.mark.parametrize(
    ("width", "panels"),
    [
        ("neurips", (CURVES,)),
        ("cvpr", (CURVES,)),
        ("cvpr:page", (POINTS, POINTS)),
        ("acl", (CELLS, CURVES)),
        ("eccv", (POINTS, POINTS)),
        ("2.5", (CELLS, CURVES)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_vector_files_render_at_the_width_of_the_venue(tmp_path: Path, width: str, panels: tuple[Panel, ...]) -> None:
    page = venues.parse_width(width)
    inches = page.column if len(panels) == 1 else page.text
    _, pdf, svg = drawing.save(chart(*panels), tmp_path / "chart", ["pdf", "svg"], (), page)
    rendered = pdf_page(pdf)
    assert rendered.get_width() == pytest.approx(72 * inches, abs=0.5)
    ink, edge = inked(rendered.render(scale=100 / 72).to_numpy())
    # Cells fill much of a page; nothing is cut off at its edges.
    assert 0.01 < ink < 0.6 and edge == 0
    content = pdf.read_bytes()
    assert b"/Type3" not in content and (b"/TrueType" in content or b"/CIDFontType2" in content)
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(svg), dpi=100, skip_system_fonts=True))))
    ink, edge = inked(np.asarray(image.convert("RGBA")))
    assert 0.01 < ink < 0.6 and edge == 0
    assert image.width / image.height == pytest.approx(rendered.get_width() / rendered.get_height(), rel=0.02)


@pytest.mark.parametrize("width", ["neurips", "cvpr", "eccv"])
def test_texts_of_a_pdf_are_letters_inside_its_page(tmp_path: Path, width: str) -> None:
    _, pdf = drawing.save(chart(CURVES), tmp_path / "chart", ["pdf"], (), venues.parse_width(width))
    rendered = pdf_page(pdf)
    text = rendered.get_textpage()
    for expected in ("tasks learned", "top-1 accuracy, %", *NAMES):
        assert text.search(expected).get_next() is not None, expected
    for number in range(text.count_chars()):
        left, bottom, right, top = text.get_charbox(number)
        assert left >= 0 and bottom >= 0 and right <= rendered.get_width() and top <= rendered.get_height()
    metadata = pypdfium2.PdfDocument(pdf).get_metadata_dict()
    assert (metadata["Title"], metadata["Subject"]) == ("A title", "A caption.")


def letters(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]


@pytest.mark.parametrize("name", list(venues.venues()))
def test_letters_are_those_of_the_venue_and_no_text_covers_another(name: str) -> None:
    page = venues.venues()[name]
    for panels in ((CURVES,), (CELLS, CURVES), (STORED, STORED, STORED)):
        figure = drawing.draw(chart(*panels), (), page)
        found = list(boxes(figure))
        assert outside(figure, found) == [] and overlapping(found) == []
        axes = figure.axes[0]
        assert axes.xaxis.label.get_size() == axes.yaxis.label.get_size() == page.label
        assert max(text.get_size() for text in letters(figure)) == page.label
        for text in letters(figure):
            # Computer Modern as matplotlib has it holds another glyph in the place of the underscore.
            expected = "cmr10" if name == "eccv" and "_" not in text.get_text() else "STIXGeneral"
            assert Path(findfont(FontProperties(family=text.get_fontfamily()))).stem == expected, text.get_text()


def test_a_width_is_a_venue_a_part_of_its_page_or_inches() -> None:
    assert (venues.parse_width("cvpr").column, venues.parse_width("CVPR").text) == (3.28125, 6.875)
    for text, inches in (("cvpr:page", 6.875), ("acl:column", 3.031), ("3.25", 3.25)):
        page = venues.parse_width(text)
        assert (page.column, page.text) == (inches, inches)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("neurip", "unknown --width 'neurip'.*Did you mean 'neurips'"),
        ("cvpr:colum", r"unknown --width 'colum'.*Expected cvpr:column or cvpr:page"),
        ("0.5", "expected 2 to 20 inches"),
        ("nan", "expected 2 to 20 inches"),
        ("3:page", "expected 2 to 20 inches"),
    ],
)
def test_another_width_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        venues.parse_width(text)


def test_the_command_draws_for_a_venue_and_prints_the_caption(cl_bench: Cli, tmp_path: Path) -> None:
    write(tmp_path / "results" / "runs", *(record(f"m{i}", 0, drop=0.01 * i) for i in range(8)))
    outcome = cl_bench("figure", "accuracy", "--width", "cvpr", "--format", "pdf", "--out", "pictures")
    assert outcome.code == 0 and "In colour: the six rows with the best final accuracy." in outcome.err
    [pdf] = Path("pictures").glob("*.pdf")
    assert pdf_page(pdf).get_width() == pytest.approx(72 * 3.28125, abs=0.5)
    assert cl_bench("figure", "accuracy", "--width", "ieee").code == 2
