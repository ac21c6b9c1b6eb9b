"""Pack Tiny ImageNet and CIFAR-100 at 32x32 pixels into a data file for tools/pretrain_backbone.py.

    python tools/pack_tinyimagenet.py pack --root DATA --out photographs.npz
    python tools/pack_tinyimagenet.py split photographs.npz --part 2 --out SHARDS
    python tools/pack_tinyimagenet.py join SHARDS/*.npz --out pretrain.npz

`pack` reads both data sets from DATA as the harness does (`cl-bench data prepare` downloads them and describes their
layouts) and writes three parts with disjoint classes:

- part 0: CIFAR-100, never used for pre-training; the probe of the model card is trained and tested on it;
- part 1: the classes of Tiny ImageNet that are marked `strict` in `cl_bench/assets/tinyimagenet_cifar100_overlap.tsv`:
  classes of CIFAR-100, too, and therefore excluded from pre-training. They are the tuning stream `tiny-imagenet-44`;
- part 2: the other classes of Tiny ImageNet, including those marked `near`, for pre-training. Images with the same
  pixels as one in another part are left out: Tiny ImageNet has a few images in two classes.

The train images of each data set are split 0; the test images of CIFAR-100 and the validation images of Tiny ImageNet
are split 1.

Images of 64x64 pixels are reduced by the harness's own antialiased bicubic filter, so that pre-training uses the same
pixels as a benchmark later. It also resembles CIFAR-100 more than a box filter: neighbouring pixels differ by 0.34
standard deviations of their image on average, by 0.37 with a box filter, and by 0.28 in CIFAR-100.

`split` writes one part as files of limited size, for machines to which only small files can be copied; `join`, which
only needs numpy and Pillow, restores the data file. Images are stored as lossless WebP, 256 per strip.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cl_bench.errors import UserError
from cl_bench.files import write_atomically

if TYPE_CHECKING:
    from cl_bench.streams.types import Entry, Listing

SIDE = 32
"""Side of the packed images, in pixels."""
STRIP = 256
"""Images in one WebP file, one below the other; WebP allows 16383 rows."""
ROW_ARRAYS, CLASS_ARRAYS = ("label", "part", "split"), ("classes", "class_part")
ARRAYS = ("images", *ROW_ARRAYS, *CLASS_ARRAYS)
PROBE, TUNE, PRETRAIN = range(3)

Arrays = Mapping[str, NDArray[Any]]


# --- Packing ----------------------------------------------------------------------------------------------


def read_words(folder: Path) -> dict[str, str]:
    """Read the first name of every WordNet id from `words.txt` in the folder of Tiny ImageNet.

    Raises:
        UserError: the file does not exist.
    """
    for path in (folder / "tiny-imagenet-200" / "words.txt", folder / "words.txt"):
        if path.is_file():
            rows = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
            return {wnid: names.split(",")[0] for wnid, _, names in rows}
    raise UserError(f"no words.txt, which names the classes, in '{folder}'; unpack the archive of Tiny ImageNet again")


def reduced(entries: Sequence[Entry]) -> NDArray[np.uint8]:
    """Decode image files and reduce them to uint8 [N, 32, 32, 3].

    Raises:
        UserError: an image is damaged, not square, or smaller than 32x32.
    """
    from cl_bench.data.decoding import BadImage, shrunk
    from cl_bench.streams.image_files import for_each_image

    images = np.empty((len(entries), SIDE, SIDE, 3), np.uint8)
    found = for_each_image(entries, lambda entry, pixels: shrunk(pixels, SIDE))
    for row, (entry, pixels) in enumerate(zip(entries, found, strict=True)):
        if isinstance(pixels, BadImage):
            raise pixels
        if pixels.shape != images.shape[1:]:
            height, width = pixels.shape[:2]
            raise UserError(
                f"image '{entry.path}' has {height}x{width} pixels when reduced, expected {SIDE}x{SIDE}; restore it"
            )
        images[row] = pixels
    return images


def rows_of(listing: Listing, names: Sequence[str], parts: Sequence[int]) -> Arrays:
    """Return the arrays of one data set, with parts in ascending order.

    Args:
        names: class names, in the order of `listing.classes`.
        parts: part of each class, in the same order.
    """
    order = sorted(range(len(names)), key=lambda i: (parts[i], i))
    part_of = dict(zip(listing.classes, parts, strict=True))
    position = {listing.classes[i]: row - sorted(parts).index(parts[i]) for row, i in enumerate(order)}
    entries = (*listing.train, *listing.test)
    return {
        "images": np.concatenate(listing.pixels) if listing.pixels else reduced(entries),
        "label": np.array([position[entry.label] for entry in entries], np.int16),
        "part": np.array([part_of[entry.label] for entry in entries], np.uint8),
        "split": np.repeat(np.arange(2, dtype=np.uint8), [len(listing.train), len(listing.test)]),
        "classes": np.array([names[i] for i in order]),
        "class_part": np.array([parts[i] for i in order], np.uint8),
    }


def pack(root: Path | None, skip_bad: bool) -> Arrays:
    """Return the arrays of the data file.

    Raises:
        UserError: a data set is missing or incomplete, or an image is damaged.
    """
    from cl_bench.streams import catalogue
    from cl_bench.streams.overlaps import OVERLAPS, read_overlaps

    cifar, tiny = catalogue.find("cifar100"), catalogue.find("tiny-imagenet")
    probe, photographs = (catalogue.load(dataset, root, skip_bad) for dataset in (cifar, tiny))
    words, marks = read_words(catalogue.locate(tiny, root)), read_overlaps()
    if unknown := sorted((marks.keys() | set(photographs.classes)) - words.keys()):
        raise UserError(f"words.txt has no name for {unknown[0]}; unpack the archive of Tiny ImageNet again")
    if strange := sorted(marks.keys() - set(photographs.classes)):
        raise UserError(f"'{OVERLAPS}' lists {strange[0]} ({words[strange[0]]}), which is no class of Tiny ImageNet")
    parts = [TUNE if marks.get(wnid) == "strict" else PRETRAIN for wnid in photographs.classes]
    tables = (
        rows_of(probe, probe.classes, [PROBE] * len(probe.classes)),
        rows_of(photographs, [words[wnid] for wnid in photographs.classes], parts),
    )
    arrays = {name: np.concatenate([table[name] for table in tables]) for name in ARRAYS}
    found = list(zip(digests(arrays["images"]), arrays["part"].tolist(), strict=True))
    others = {digest for digest, part in found if part != PRETRAIN}
    used = [part != PRETRAIN or digest not in others for digest, part in found]
    print(f"left out of part {PRETRAIN}: {used.count(False)} images that other parts have, too")
    return {name: array if name in CLASS_ARRAYS else array[used] for name, array in arrays.items()}


def digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Return the SHA-256 of every image's pixels."""
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def summary(arrays: Arrays) -> Iterator[str]:
    """Yield a line for each part: its numbers of classes and images."""
    for part in np.unique(arrays["part"]).tolist():
        train, held = (int(((arrays["part"] == part) & (arrays["split"] == split)).sum()) for split in (0, 1))
        yield f"part {part}: {(arrays['class_part'] == part).sum()} classes, {train} train and {held} held-out images"


# --- Shards -----------------------------------------------------------------------------------------------


def content_of(arrays: Arrays) -> bytes:
    """Return arrays as the bytes of an uncompressed npz file; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an npz file.

    Raises:
        UserError: the file does not exist, or does not hold these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:
        # A damaged file can raise anything.
        raise UserError(f"'{path}' is not a file of this tool ({type(error).__name__}: {error})") from error


def encode(images: NDArray[np.uint8]) -> bytes:
    """Return images [N, 32, 32, 3] as one lossless WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(images.reshape(-1, SIDE, 3)).save(buffer, "WEBP", lossless=True, quality=75, method=6)
    return buffer.getvalue()


def decode(content: bytes) -> NDArray[np.uint8]:
    """Return the images of a WebP file, uint8 [N, 32, 32, 3]."""
    with Image.open(io.BytesIO(content)) as strip:
        return np.asarray(strip.convert("RGB")).reshape(-1, SIDE, SIDE, 3)


def split(arrays: Arrays, part: int, max_bytes: int) -> Iterator[bytes]:
    """Yield the shards of one part: npz files with its rows, of at most `max_bytes` each.

    Raises:
        UserError: there is no such part, or one strip is larger than a shard.
    """
    rows = np.flatnonzero(arrays["part"] == part)
    if not len(rows):
        raise UserError(f"the file has no part {part}; its parts are {np.unique(arrays['part']).tolist()}")
    starts = range(0, len(rows), STRIP)
    with ThreadPoolExecutor() as pool:
        strips = list(pool.map(lambda start: encode(arrays["images"][rows[start : start + STRIP]]), starts))
    listed = arrays["class_part"] == part
    classes = {name: arrays[name][listed] for name in CLASS_ARRAYS}
    spare = max_bytes - len(content_of(classes)) - 4096
    shards: list[list[int]] = [[]]
    filled = 0
    for index, strip in enumerate(strips):
        # A row's label, part and split, and what npz adds, are far below 16 bytes an image.
        size = len(strip) + 16 * STRIP
        if size > spare:
            raise UserError(f"a strip of {STRIP} images takes {size} bytes, more than fits into --max-mib; raise it")
        if filled + size > spare:
            shards.append([])
            filled = 0
        shards[-1].append(index)
        filled += size
    for number, chosen in enumerate(shards):
        inside = rows[starts[chosen[0]] : starts[chosen[-1]] + STRIP]
        yield content_of(
            {
                "shard": np.array([number, len(shards)]),
                "webp": np.frombuffer(b"".join(strips[i] for i in chosen), np.uint8),
                "ends": np.cumsum([len(strips[i]) for i in chosen]),
                **{name: arrays[name][inside] for name in ROW_ARRAYS},
                **classes,
            }
        )


def join(paths: Sequence[Path]) -> Arrays:
    """Return the joined arrays of all shards.

    Raises:
        UserError: a shard is missing or damaged, or the shards belong to different files.
    """
    names = ("shard", "webp", "ends", *ARRAYS[1:])
    shards = sorted((read_arrays(path, names) for path in paths), key=lambda shard: int(shard["shard"][0]))
    counts = {int(shard["shard"][1]) for shard in shards}
    numbers = [int(shard["shard"][0]) for shard in shards]
    if len(counts) != 1 or numbers != list(range(*counts)):
        raise UserError(f"expected every shard of one file once, not numbers {numbers} of {sorted(counts)}")
    strips = []
    for shard in shards:
        content, ends = shard["webp"].tobytes(), shard["ends"].tolist()
        strips += [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    with ThreadPoolExecutor() as pool:
        images = np.concatenate(list(pool.map(decode, strips)))
    rows = {name: np.concatenate([shard[name] for shard in shards]) for name in ROW_ARRAYS}
    return {"images": images, **rows, **{name: shards[0][name] for name in CLASS_ARRAYS}}


# --- Command line -----------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Pack Tiny ImageNet and CIFAR-100 for pre-training.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack", help="write the data file")
    command.add_argument("--root", type=Path, help="folder with both data sets (default: as for cl-bench data)")
    command.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    command.add_argument("--out", type=Path, required=True, help="data file to write (.npz)")
    command = commands.add_parser("split", help="write one part of a data file in shards")
    command.add_argument("file", type=Path, help="data file (.npz)")
    command.add_argument(
        "--part", type=int, default=PRETRAIN, help="part to write (default: %(default)s, for pre-training)"
    )
    command.add_argument(
        "--max-mib", type=float, default=55, help="largest size of a shard in MiB (default: %(default)s)"
    )
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command = commands.add_parser("join", help="restore the data file from its shards")
    command.add_argument("shards", type=Path, nargs="+", help="all files that split has written")
    command.add_argument("--out", type=Path, required=True, help="data file to write (.npz)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = parse_arguments(argv)
    try:
        if arguments.command == "split":
            arguments.out.mkdir(parents=True, exist_ok=True)
            arrays = read_arrays(arguments.file, ARRAYS)
            for number, content in enumerate(split(arrays, arguments.part, int(arguments.max_mib * 2**20))):
                path = arguments.out / f"{arguments.file.stem}-part{arguments.part}-{number}.npz"
                write_atomically(path, content)
                print(f"{path}: {len(content)} bytes")
            return 0
        packing = arguments.command == "pack"
        arrays = pack(arguments.root, arguments.skip_bad) if packing else join(arguments.shards)
        content = content_of(arrays)
        write_atomically(arguments.out, content)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*summary(arrays), f"SHA-256 {hashlib.sha256(content).hexdigest()}", sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
