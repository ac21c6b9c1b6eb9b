"""Results in one file: the records of many runs, without the predictions of each image.

The file is xz of lines of UTF-8 JSON: a head with the version of the format, then one record per line, as in a results
folder. The reference results come with the package in this form: most of a results folder are its npz files, which only
comparisons on the same images need.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from cl_bench.errors import UserError, printable
from cl_bench.store.record import RunRecord, parse

FORMAT = 1
"""Version of the file's layout; the records have a schema version of their own."""
NAME = "cl-bench results"
PACKAGED = Path(str(files("cl_bench") / "assets" / "reference.jsonl.xz"))
"""The reference results of this version of cl-bench, written by `tools/pack_reference.py`."""


def pack(records: Iterable[bytes]) -> bytes:
    """Content of a compact file with these records.

    Args:
        records: contents of the JSON files of a results folder, in order.
    """
    lines = [_line(json.loads(record)) for record in records]
    head = _line({"content": NAME, "format": FORMAT, "records": len(lines)})
    return lzma.compress("".join([head, *lines]).encode(), preset=9 | lzma.PRESET_EXTREME)


def unpack(
    path: Path,
    on_damaged: Callable[[str], None],
    wanted: Callable[[str, Mapping[str, Any]], bool] = lambda key, experiment: True,
) -> Iterator[RunRecord]:
    """The valid records of a compact file, in order.

    Args:
        path: the file.
        on_damaged: called for each skipped record, with a sentence that names the file and the fault.
        wanted: whether a record is needed, by its key and the fields of its experiment, neither of them validated.

    Raises:
        UserError: the file cannot be read, or belongs to another version of cl-bench.
    """
    repair = "install cl-bench again, or leave the reference out with --no-reference"
    try:
        head, *lines = lzma.decompress(path.read_bytes()).splitlines()
        found = json.loads(head)
    except OSError as error:
        raise UserError(f"the reference '{path}' cannot be read ({error.strerror}); {repair}") from error
    except (lzma.LZMAError, ValueError) as error:
        raise UserError(f"the reference '{path}' is damaged ({printable(str(error))}); {repair}") from error
    version = found.get("format") if isinstance(found, dict) and found.get("content") == NAME else None
    if version != FORMAT:
        raise UserError(
            f"the reference '{path}' is of another version of cl-bench (format {printable(str(version))}, expected "
            f"{FORMAT}); {repair}"
        )
    if found.get("records") != len(lines):
        raise UserError(f"the reference '{path}' is damaged ({len(lines)} of its records are left); {repair}")
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            # Validation takes most of the time, so it is left to the records that are needed.
            if wanted(fields["key"], fields["experiment"]):
                yield parse(line)
        except (ValueError, LookupError, TypeError) as error:
            on_damaged(f"{path}, record {number}: {error}")


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n"
