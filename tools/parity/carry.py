"""Restore CIFAR-100 in the layout of its archive on a machine to which only small files can be copied.

    python -m tools.parity.carry names cifar100-names.xz
    python tools/pack_tinyimagenet.py join photographs-part0-*.npz --out cifar100.npz
    python -m tools.parity.carry unpack cifar100.npz cifar100-names.xz --root DATA

The shards of `tools/pack_tinyimagenet.py` (part 0) hold pixels and labels in the harness's order, but not the file
names, which determine the split hash. `names`, run on a machine with the data set, writes them to a small file;
`unpack` combines both as `DATA/cifar100/cifar-100-python`, with the split and content hashes of the original.
"""

from __future__ import annotations

import argparse
import lzma
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cl_bench.errors import UserError
from cl_bench.files import write_atomically
from cl_bench.streams import catalogue


def names(root: Path | None) -> bytes:
    """File names of the training images, then of the test images, one per line, compressed."""
    listing = catalogue.load(catalogue.find("cifar100"), root)
    return compressed("\n".join(entry.name.partition("/")[2] for entry in (*listing.train, *listing.test)))


def compressed(text: str) -> bytes:
    """Compress a text for `unpack`."""
    return lzma.compress(text.encode(), preset=9)


def unpack(data: Path, listed: Path, root: Path) -> None:
    """Write the folder `cifar-100-python` below `root`.

    Args:
        data: data file with pixels and labels.
        listed: file with the file names, as written by `names`.
        root: folder with the data sets.

    Raises:
        UserError: a file is missing or damaged, or the two do not match.
    """
    try:
        files = lzma.decompress(listed.read_bytes()).decode().split("\n")
        with np.load(data, allow_pickle=False) as arrays:
            images, label, split, classes = (arrays[name] for name in ("images", "label", "split", "classes"))
    except (OSError, ValueError, KeyError, lzma.LZMAError) as error:
        raise UserError(f"'{data}' or '{listed}' is not a file of these tools ({error})") from error
    if len(files) != len(images):
        raise UserError(f"'{listed}' names {len(files)} images, '{data}' has {len(images)}; write both again")
    folder = root / catalogue.find("cifar100").folders[0] / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "test")):
        rows = np.flatnonzero(split == number)
        content = {
            "data": np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)).reshape(len(rows), -1),
            "fine_labels": label[rows].tolist(),
            "filenames": [files[row] for row in rows],
        }
        write_atomically(folder / name, pickle.dumps(content, protocol=2))
    write_atomically(folder / "meta", pickle.dumps({"fine_label_names": classes.tolist()}, protocol=2))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Restore CIFAR-100 from shards, in the layout of its archive.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("names", help="write the file names of the data set on this machine")
    command.add_argument("out", type=Path, help="file to write (.xz)")
    command.add_argument("--root", type=Path, help="folder with the data sets (default: as for cl-bench data)")
    command = commands.add_parser("unpack", help="write the data set")
    command.add_argument("data", type=Path, help="data file joined from the shards (.npz)")
    command.add_argument("names", type=Path, help="file written by the command names (.xz)")
    command.add_argument("--root", type=Path, required=True, help="folder with the data sets, for CL_BENCH_DATA")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = parse_arguments(argv)
    try:
        if arguments.command == "names":
            write_atomically(arguments.out, names(arguments.root))
        else:
            unpack(arguments.data, arguments.names, arguments.root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
