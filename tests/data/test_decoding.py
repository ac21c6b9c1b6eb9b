"""Pixel depth, formats, sizes and damage of image files: read by a stated rule, or refused by name."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from cl_bench.data import decoding, views
from cl_bench.data.decoding import BadImage, decode, size_of
from cl_bench.data.images import ImageFiles
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms

RAMP = np.linspace(0, 1, 64)[None].repeat(4, axis=0)
SHOWN = (255 * RAMP).round()
"""What a viewer shows of it."""
DEEP = (65535 * RAMP).round().astype(np.uint16)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path: Path, pixels: NDArray[np.uint16], colour: int, extra: bytes = b"") -> None:
    """A PNG file of 16 bits per channel; Pillow writes grey ones only."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + content)


def tiff(path: Path, content: bytes, bits: int, sample: int = 1, photometric: int = 1) -> None:
    """A grey TIFF file as wide and high as `RAMP`, as cameras and microscopes write it."""
    height, width = RAMP.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: height}
    tags |= {279: len(content), 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content)


def colour(grey: NDArray[np.uint16], alpha: bool = False) -> NDArray[np.uint16]:
    return np.stack([grey] * 3 + [np.full_like(grey, 65535)] * alpha, axis=2)


def packed_12(values: NDArray[np.uint16]) -> bytes:
    first, second = values[:, ::2], values[:, 1::2]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8).tobytes()


def write(path: Path) -> None:
    """The ramp, in the way that a name says."""
    twelve, eight = (4095 * RAMP).round().astype(np.uint16), SHOWN.astype(np.uint8)
    pnm = lambda kind, white, content: path.write_bytes(b"%s 64 4 %d\n" % (kind, white) + content)  # noqa: E731
    ways = {
        "grey16.png": lambda: Image.fromarray(DEEP).save(path),
        "grey16.tif": lambda: Image.fromarray(DEEP).save(path),
        "deflated16.tiff": lambda: Image.fromarray(DEEP).save(path, compression="tiff_deflate"),
        "grey16.pgm": lambda: Image.fromarray(DEEP).save(path),
        "grey12.pgm": lambda: pnm(b"P5", 4095, twelve.astype(">u2").tobytes()),
        "text16.pgm": lambda: pnm(b"P2", 65535, b" ".join(b"%d" % value for value in DEEP.ravel())),
        "grey12.tif": lambda: tiff(path, packed_12(twelve), 12),
        "white-is-zero.tif": lambda: tiff(path, (65535 - DEEP).astype("<u2").tobytes(), 16, photometric=0),
        "grey-alpha16.png": lambda: png(path, np.stack([DEEP, np.full_like(DEEP, 65535)], axis=2), 4),
        "colour16.png": lambda: png(path, colour(DEEP), 2),
        "colour-alpha16.png": lambda: png(path, colour(DEEP, alpha=True), 6),
        "colour12.ppm": lambda: pnm(b"P6", 4095, colour(twelve).astype(">u2").tobytes()),
        "grey.gif": lambda: Image.fromarray(eight).save(path),
        "grey.jfif": lambda: Image.fromarray(eight).save(path, "JPEG", quality=100),
        "grey.avif": lambda: Image.fromarray(eight).convert("RGB").save(path, quality=100),
        "palette.png": lambda: Image.fromarray(eight).convert("P").save(path, transparency=0),
        "alpha.png": lambda: Image.fromarray(eight).convert("LA").save(path),
        "colour-alpha.webp": lambda: Image.fromarray(eight).convert("RGBA").save(path, lossless=True),
        "print.tif": lambda: Image.fromarray(eight).convert("RGB").convert("CMYK").save(path),
        "print.jpg": lambda: Image.fromarray(eight).convert("RGB").convert("CMYK").save(path, quality=100),
        "luma.tif": lambda: Image.fromarray(eight).convert("YCbCr").save(path),
    }  # fmt: skip
    ways[path.name]()


RULED = (
    "grey16.png", "grey16.tif", "deflated16.tiff", "grey16.pgm", "grey12.pgm", "text16.pgm", "grey12.tif",
    "white-is-zero.tif", "grey-alpha16.png", "colour16.png", "colour-alpha16.png", "colour12.ppm", "grey.gif",
    "grey.jfif", "grey.avif", "palette.png", "alpha.png", "colour-alpha.webp", "print.tif", "print.jpg", "luma.tif",
)  # fmt: skip


@pytest.mark.parametrize("name", RULED)
def test_a_ramp_is_a_ramp_whatever_its_depth_and_its_file(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    found = decode(tmp_path / name)
    assert found.dtype == np.uint8 and found.shape == (4, 64, 3) and size_of(tmp_path / name) == (4, 64)
    # Lossy files, and colours that were mixed and unmixed, are a few levels off.
    lossy = name.endswith((".jfif", ".jpg", ".avif")) or name == "luma.tif"
    assert np.abs(found - SHOWN[..., None]).max() <= (4 if lossy else 1)


def test_grey_of_16_bits_is_rounded_and_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32767, 65278, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    png(tmp_path / "colour.png", colour(values), 2)
    assert decode(tmp_path / "grey.png")[0, :, 0].tolist() == [0, 0, 1, 1, 127, 254, 255]
    assert decode(tmp_path / "colour.png")[0, :, 0].tolist() == [0, 0, 0, 1, 127, 254, 255]


@pytest.mark.parametrize(
    ("name", "dtype", "bits", "sample"),
    [("float", "<f4", 32, 3), ("signed", "<i2", 16, 2), ("signed8", "i1", 8, 2), ("int32", "<i4", 32, 2)],
)
def test_pixels_of_unknown_range_are_refused(name: str, dtype: str, bits: int, sample: int, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.tif"
    tiff(path, (100 * RAMP).astype(dtype).tobytes(), bits, sample)
    with pytest.raises(
        BadImage, match="is of unknown range .*convert it to 8 bits per channel, or leave it out"
    ) as bad:
        decode(path)
    assert bad.value.kind == "of unknown range" and f"'{path}'" in str(bad.value)


def test_unsigned_32_bits_and_floats_in_other_files_are_refused(tmp_path: Path) -> None:
    tiff(tmp_path / "32.tif", (2**32 * RAMP * 0.99).astype("<u4").tobytes(), 32)
    (tmp_path / "float.ppm").write_bytes(b"Pf\n64 4\n-1.0\n" + RAMP.astype("<f4").tobytes())
    tiff(tmp_path / "64.tif", RAMP.astype("<f8").tobytes(), 64, 3)
    for name, reason in (
        ("32.tif", "32-bit pixels"),
        ("float.ppm", "floating"),
        ("64.tif", "TIFF of an unsupported kind"),
    ):
        with pytest.raises(BadImage, match=reason):
            decode(tmp_path / name)


@pytest.mark.parametrize("what", ["grey.png", "grey.tif", "colour.png"])
def test_12_bits_in_a_file_of_16_are_not_taken_for_black(what: str, tmp_path: Path) -> None:
    twelve, path = (4095 * RAMP).astype(np.uint16), tmp_path / what
    if what == "colour.png":
        png(path, colour(twelve), 2)
    else:
        Image.fromarray(twelve).save(path)
    with pytest.raises(BadImage, match="under a sixteenth of their range is used"):
        decode(path)
    # Black is black, and so is what has one bright pixel.
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "black.png")
    assert not decode(tmp_path / "black.png").any()
    twelve[0, 0] = 5000
    Image.fromarray(twelve).save(tmp_path / "dark.png")
    assert decode(tmp_path / "dark.png").max() == 19


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), name) for name in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert len(list(ImageSequence.Iterator(Image.open(tmp_path / name)))) == 3
        assert (decode(tmp_path / name) == [255, 0, 0]).all()


# --- files that are something else -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS, which is not supported"),
        (b"8BPS\0\1" + bytes(40), "PSD, which is not supported"),
        (b"\xd7\xcd\xc6\x9a\0\0" + bytes(40), "WMF, which is not supported"),
        (b"%PDF-1.4\n", "not an image"),
        (b"<svg/>", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG of an unsupported kind, or damaged"),
    ],
)
def test_what_only_looks_like_an_image_is_named_and_not_opened(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (decode, size_of):
        with pytest.raises(BadImage, match=f"is unreadable .{what}"):
            read(path)


def test_postscript_reaches_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `gs` on the path would be run by Pillow, with what the file says."""
    interpreter = tmp_path / "bin" / "gs"
    interpreter.parent.mkdir()
    interpreter.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(interpreter.parent), prepend=":")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(BadImage, match="EPS"):
        decode(tmp_path / "x.png")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_in_a_text_or_profile_is_named(kind: bytes, tmp_path: Path) -> None:
    packed = zlib.compress(bytes(3 << 20))
    png(tmp_path / "x.png", DEEP, 0, chunk(kind, (b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0") + packed))
    with pytest.raises(BadImage, match="'.*x.png' is unreadable .Decompressed data too large"):
        decode(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "ppm"])
def test_half_a_file_is_named_whatever_its_kind(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 30):
        path.write_bytes(whole[:length])
        with pytest.raises(BadImage, match=f"image '{path}' is (truncated|unreadable)"):
            decode(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BadImage, match="is unreadable .not a file"):
        decode(tmp_path / "x.png")


def test_what_is_wrong_with_an_image_survives_the_way_between_processes(tmp_path: Path) -> None:
    bad = BadImage(tmp_path / "a\udcffb.png", "truncated", "half")
    again = pickle.loads(pickle.dumps(bad))
    assert (type(again), str(again), again.path) == (BadImage, str(bad), bad.path) and r"a\xffb.png" in str(bad)


def test_of_several_damaged_images_the_first_is_named_whichever_thread_meets_one_first(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for i, path in enumerate(paths):
        # Large ones come last where the order was that of the threads.
        Image.new("RGB", (400, 400) if i < 8 else (2, 2)).save(path)
    whole = paths[5].read_bytes()
    paths[5].write_bytes(whole[: len(whole) // 2])
    for path in paths[8:]:
        path.write_bytes(b"")
    for _ in range(5):
        with pytest.raises(BadImage, match=f"image '{paths[5]}' is truncated"):
            ImageFiles(paths)[np.arange(24)]
        with pytest.raises(BadImage, match=f"image '{paths[23]}' is zero-byte"):
            ImageFiles(paths)[np.arange(24)[::-1]]


# --- sizes -----------------------------------------------------------------------------------------------------


def test_the_limit_of_pixels_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = tmp_path / "large.png"
    # Its first bytes are enough.
    header = struct.pack(">IIBBBBB", 20_000, 19_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    for read in (decode, size_of):
        with pytest.raises(
            BadImage, match=r"too large .380,000,000 pixels, the limit is 178,956,970.*CL_BENCH_MAX_PIX"
        ):
            read(path)
    monkeypatch.setenv(decoding.LIMIT_VARIABLE, "380000000")
    assert size_of(path) == (19_000, 20_000)
    monkeypatch.setenv(decoding.LIMIT_VARIABLE, "379999999")
    with pytest.raises(BadImage, match="the limit is 379,999,999"):
        size_of(path)
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setenv(decoding.LIMIT_VARIABLE, "89999")
    with pytest.raises(BadImage, match="90,000 pixels, the limit is 89,999"):
        decode(path)
    for wrong in ("0", "-1", "1e9", "many", "9" * 5000):
        monkeypatch.setenv(decoding.LIMIT_VARIABLE, wrong)
        with pytest.raises(UserError, match="CL_BENCH_MAX_PIXELS is '.*; expected the largest number of pixels"):
            decode(path)


TRANSFORMS = ImageTransforms(
    size=224, crop="pixels", crop_scale=(0.05, 1), resize=256 / 224, mean=(0,) * 3, std=(1,) * 3
)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (2, 65500), (65500, 2)])
def test_a_line_is_not_enlarged_as_a_whole(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it with its shorter side at 256 would be 256 x 768,000 pixels, and more."""
    largest = 0
    interpolate = views.F.interpolate

    def watched(pixels: torch.Tensor, size: list[int], **options: object) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, int(np.prod(size)))
        return interpolate(pixels, size, **options)

    monkeypatch.setattr(views.F, "interpolate", watched)
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = torch.rand(1, views.draws(False, TRANSFORMS), generator=torch.Generator().manual_seed(0))
    assert views.test_view([image], TRANSFORMS).isfinite().all()
    assert views.training_view([image], drawn, TRANSFORMS).isfinite().all()
    assert largest <= 224 * 224


@pytest.mark.parametrize("shape", [(20, 641), (641, 20)])
def test_a_long_image_has_the_view_that_it_has_as_a_whole(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = views.test_view([image], TRANSFORMS)
    monkeypatch.setattr(views, "_LONGEST", 1000)
    whole = views.test_view([image], TRANSFORMS)
    assert float((found - whole).abs().max()) < 0.05 / 255
