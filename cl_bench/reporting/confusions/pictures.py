"""The images behind forgotten predictions: found in the data set, and laid out as one picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cl_bench.data.images import ImageStore
from cl_bench.errors import UserError, counted
from cl_bench.reporting.confusions.measures import ForgottenImage, RowErrors
from cl_bench.streams import DataConfig, Source, find

_SIDE, _COLUMNS, _GAP, _TEXT = 128, 6, 12, 46
"""Pixels of an image's side, images in a line, pixels between them and for the text below each."""


@dataclass(frozen=True, eq=False)
class ShownImage:
    """A forgotten test image with its pixels, uint8 [H, W, 3] or [H, W, 1], and its name in the data set."""

    item: ForgottenImage
    pixels: NDArray[np.uint8]
    file: str

    @property
    def lines(self) -> tuple[str, str, str]:
        """What is seen: its class, the class that it is taken for, and the number of runs."""
        item = self.item
        return item.name, f"→ {item.taken_for}", f"{item.forgotten} of {counted(item.tested, 'run')}"


def shown(row: RowErrors, images: Sequence[ForgottenImage], data: DataConfig | None = None) -> list[ShownImage]:
    """Find images of a row in its data set, which is read but never downloaded.

    Args:
        data: location of the data; None: the defaults of `DataConfig.of`.

    Raises:
        UserError: the data are missing or damaged, have another split than the runs, or the runs were validated on
            training images instead of tested.
    """
    experiment = row.runs[0].run.record.experiment
    if experiment.limits.validation is not None:
        raise UserError("the runs were validated on training images, whose places in the data set are not stored")
    source = find(experiment.benchmark, data, experiment.scenario).source()
    if source.split != experiment.split:
        raise UserError(
            f"{experiment.benchmark} has another split here ({source.split[:8]}) than in the runs "
            f"({experiment.split[:8]}); name the folder with their data"
        )
    places = _places(source, images)
    pixels = source.test.images[np.array(places, dtype=np.int64)]
    return [
        ShownImage(item, np.asarray(image), source.test.names[place])
        for item, image, place in zip(images, pixels, places, strict=True)
    ]


def embedded(row: RowErrors) -> bool:
    """Whether the images of a row's benchmark ship with cl-bench, so that they are at hand everywhere."""
    benchmark = row.runs[0].run.record.experiment.benchmark
    try:
        return find(benchmark).dataset is None
    except UserError:
        return False


def _places(source: Source, images: Sequence[ForgottenImage]) -> list[int]:
    """Index of each image among the test images."""
    test: ImageStore = source.test
    places = []
    for item in images:
        mine = test.targets == source.classes.index(item.name)
        if item.domain and test.domains is not None:
            mine &= test.domains == item.domain
        places.append(int(np.flatnonzero(mine)[item.rank]))
    return places


def png(image: ShownImage, side: int | None = None) -> bytes:
    """An image as PNG, its longer side scaled to `side` pixels, without smoothing if that enlarges it."""
    buffer = io.BytesIO()
    _picture(image, side).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _picture(image: ShownImage, side: int | None) -> Image.Image:
    pixels = image.pixels[..., 0] if image.pixels.shape[-1] == 1 else image.pixels
    picture = Image.fromarray(pixels)
    if side is None:
        return picture
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def save_sheet(images: Sequence[ShownImage], path: Path) -> None:
    """Write all images into one PNG, each above its class, the class that it is taken for, and the number of runs."""
    columns = min(_COLUMNS, len(images))
    lines = -(-len(images) // columns)
    size = (_GAP + columns * (_SIDE + _GAP), _GAP + lines * (_SIDE + _TEXT + _GAP))
    sheet = Image.new("RGB", size, "white")
    # Pillow's own font has no arrow.
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 11)
    for number, image in enumerate(images):
        left = _GAP + number % columns * (_SIDE + _GAP)
        top = _GAP + number // columns * (_SIDE + _TEXT + _GAP)
        picture = _picture(image, _SIDE)
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        draw.rectangle((left - 1, top - 1, left + _SIDE, top + _SIDE), outline="#c8c8c8")
        text = "\n".join(textwrap.shorten(line, 22, placeholder="…") for line in image.lines)
        draw.multiline_text((left, top + _SIDE + 3), text, "#222222", font, spacing=1)
    sheet.save(path, "PNG")
