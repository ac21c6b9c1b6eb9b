"""Pack the reference results into the file that the package carries.

    python -m tools.pack_reference

Writes `cl_bench/assets/reference.jsonl.xz` from `results/reference`: every record, without the predictions of each
image (see `cl_bench.store.compact`). Run it whenever a reference result is added or changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cl_bench.files import write_atomically
from cl_bench.store import Store, compact

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"


def records(folder: Path = REFERENCE) -> Iterator[bytes]:
    """Contents of the JSON files of a results folder, sorted by name.

    Raises:
        DamagedRecord: a record cannot be trusted.
    """
    store = Store(folder)
    for name in store.names():
        store.check(folder / name)
        yield (folder / name).read_bytes()


def main() -> None:
    packed = compact.pack(records())
    write_atomically(compact.PACKAGED, packed)
    print(f"{len(packed):,} bytes: {compact.PACKAGED}")


if __name__ == "__main__":
    main()
