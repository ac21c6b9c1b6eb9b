"""A cache of the records of a results folder, so that thousands of them need not be opened, hashed and checked again.

It saves time and decides nothing: an entry counts only while both files of its record are, by inode, size and times of
change, the very ones that were read, and then the record is validated like any other. A copied or unpacked folder has
other inodes, so a cache that was made elsewhere is never believed. Whatever is wrong with the cache, it is ignored.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from cl_bench.files import open_regular, write_atomically

NAME = ".index.parquet"
VERSION = 2
"""Raised whenever records are checked for more than before, so that all are checked again."""
MIN_NEW_RECORDS = 100
"""So many records that had to be read make it worth writing; fewer take less than 0.1 s."""
SETTLED_NS = 2 * 10**9
"""A file changed less than this before it was read could change again without a new time stamp."""
_MAX_BYTES = 2**30


class CachedRecord(NamedTuple):
    """A record as it was when it was read.

    Attributes:
        name, status: the JSON file's name and `fingerprint`.
        arrays, arrays_status: those of its npz.
        record: the JSON of the record.
    """

    name: str
    status: str
    arrays: str
    arrays_status: str
    record: str


def fingerprint(status: os.stat_result) -> str:
    """What changes whenever a file is replaced or written to; the change time cannot be set by hand."""
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


class Index:
    """The cache of one folder; empty where there is none that can be used.

    Args:
        root: the results folder.
        schema: version of the records in it; those of another one are read again.
    """

    def __init__(self, root: Path, schema: int) -> None:
        self.root, self.schema = root, schema
        self._known = {entry.name: entry for entry in _read(root / NAME, schema)}
        self._valid: list[CachedRecord] = []
        self._new_records = 0

    def find(self, name: str) -> str | None:
        """The JSON of the record in the file of this name, if both of its files are as they were."""
        entry = self._known.get(name)
        if entry is None:
            return None
        try:
            status = fingerprint((self.root / name).stat())
            arrays_status = fingerprint((self.root / entry.arrays).stat())
        except (OSError, ValueError):
            return None
        if (status, arrays_status) != (entry.status, entry.arrays_status):
            return None
        self._valid.append(entry)
        return entry.record

    def add(self, name: str, status: os.stat_result, arrays: str, arrays_status: os.stat_result, record: str) -> None:
        """Remember a record that was read and checked; the statuses are from before it was read."""
        latest = max(status.st_mtime_ns, status.st_ctime_ns, arrays_status.st_mtime_ns, arrays_status.st_ctime_ns)
        # Also false for times in the future, after the clock went back.
        if latest + SETTLED_NS < time.time_ns():
            self._valid.append(CachedRecord(name, fingerprint(status), arrays, fingerprint(arrays_status), record))
            self._new_records += 1

    def save(self) -> None:
        """Write the cache if it gained enough; a folder that cannot be written to is left as it is."""
        if self._new_records < MIN_NEW_RECORDS:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pydict(
            dict(zip(CachedRecord._fields, zip(*self._valid, strict=True), strict=True)), _schema(self.schema)
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
        try:
            write_atomically(self.root / NAME, sink.getvalue().to_pybytes())
        except OSError:
            return
        self._new_records = 0


def _schema(schema: int) -> Any:
    import pyarrow as pa

    version = f"{VERSION} of schema {schema}"
    return pa.schema([(name, pa.large_string()) for name in CachedRecord._fields], metadata={"cl_bench": version})


def _read(path: Path, schema: int) -> list[CachedRecord]:
    try:
        with open_regular(path, _MAX_BYTES) as file:
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                table = pq.ParquetFile(file, page_checksum_verification=True).read()
                if not table.schema.equals(_schema(schema), check_metadata=True):
                    return []
                rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
                return [CachedRecord(*row) for row in rows]
            except (pa.ArrowException, ValueError, TypeError):
                return []
    except OSError:
        return []
