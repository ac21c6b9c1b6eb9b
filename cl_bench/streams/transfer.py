"""What downloads and unpacking share: progress reports, and a lock against other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from cl_bench.errors import UserError


class TransferProgress(Protocol):
    """Receives the progress of a download or an unpacking, in bytes; those of the archive when one is unpacked."""

    def begin(self, total: int | None) -> None:
        """The transfer starts, or starts over, at zero of `total` bytes; None if the size is unknown."""

    def advance(self, size: int) -> None:
        """`size` more bytes are done; bytes left by an earlier download are reported right after `begin`."""


class _Silent:
    """Ignores all progress."""

    def begin(self, total: int | None) -> None:
        pass

    def advance(self, size: int) -> None:
        pass


SILENT: TransferProgress = _Silent()


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock against other processes; it is released when this process ends, however that happens.

    Args:
        lock: path of the lock file.
        what: the file or folder that is being written, for the message.

    Raises:
        UserError: another process holds the lock.
    """
    try:
        held = FileLock(lock).acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"another process is writing '{what}' now; wait for it and try again") from error
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
