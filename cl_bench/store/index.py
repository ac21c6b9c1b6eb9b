"""A cache of the records of a results folder, so that thousands of files need not be opened, hashed and checked again.

The cache never changes a result. An entry is used only while both files of its record have the inode, size and times of
change that they had when they were read, and its record is then validated like any other. A copied or unpacked folder
has other inodes, so entries from elsewhere are ignored. A cache that cannot be read is ignored as a whole.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from cl_bench.files import open_regular, write_atomically

NAME = ".index.parquet"
VERSION = 2
"""Increased whenever records get another check, so that all records are checked again."""
MIN_NEW_RECORDS = 100
"""The cache is written once this many records had to be read from their files; fewer take less than 0.1 s."""
SETTLED_NS = 2 * 10**9
"""A file that changed less than this time before it was read could change again within the same time stamp."""
_MAX_BYTES = 2**30


class CachedRecord(NamedTuple):
    """A record in the cache.

    Attributes:
        name, status: name and `fingerprint` of the JSON file.
        arrays, arrays_status: name and `fingerprint` of the npz file.
        record: the record as JSON.
    """

    name: str
    status: str
    arrays: str
    arrays_status: str
    record: str


def fingerprint(status: os.stat_result) -> str:
    """A text that changes whenever a file is replaced or written to; programs cannot set the time of change in it."""
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


class Index:
    """The cache of one folder; empty if there is no usable one.

    Args:
        root: the results folder.
        schema: current schema version of records; a cache written for another version is not used.
    """

    def __init__(self, root: Path, schema: int) -> None:
        self.root, self.schema = root, schema
        self._known = {entry.name: entry for entry in _read(root / NAME, schema)}
        self._valid: list[CachedRecord] = []
        self._new_records = 0

    def find(self, name: str) -> str | None:
        """The cached JSON of the record in the file `name`; None if unknown, or if one of its two files has changed."""
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
        """Add a record that was read and checked; both statuses must be from before it was read."""
        latest = max(status.st_mtime_ns, status.st_ctime_ns, arrays_status.st_mtime_ns, arrays_status.st_ctime_ns)
        # Also false for times in the future, which exist after a clock was set back.
        if latest + SETTLED_NS < time.time_ns():
            self._valid.append(CachedRecord(name, fingerprint(status), arrays, fingerprint(arrays_status), record))
            self._new_records += 1

    def save(self) -> None:
        """Write the cache if it has gained `MIN_NEW_RECORDS`; a folder without write permission is left as it is."""
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
