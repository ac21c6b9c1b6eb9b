"""Reduce the PNG pictures of a folder to 256 colours each, a third of their bytes, for copies that git tracks.

    python -m tools.shrink_pictures reports/reference

Title, caption and resolution stay in the files. A picture that would not become smaller is left alone.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

COLOURS = 256


def shrink(path: Path) -> int:
    """Reduce the colours of one picture; returns the number of bytes saved."""
    before = path.stat().st_size
    with Image.open(path) as image:
        texts = PngInfo()
        for name, text in image.info.items():
            if isinstance(text, str):
                texts.add_text(name, text)
        reduced = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        content = BytesIO()
        reduced.save(content, "PNG", optimize=True, pnginfo=texts, dpi=image.info.get("dpi"))
    if content.tell() >= before:
        return 0
    path.write_bytes(content.getvalue())
    return before - content.tell()


def main() -> None:
    """Shrink all pictures below the folder that the command names."""
    (folder,) = sys.argv[1:]
    saved = sum(shrink(path) for path in sorted(Path(folder).rglob("*.png")))
    print(f"{saved / 1e6:.1f} MB saved")


if __name__ == "__main__":
    main()
