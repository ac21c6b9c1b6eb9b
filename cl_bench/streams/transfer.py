"""What downloads and unpacking share: telling how far they are, and keeping other processes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from cl_bench.errors import UserError


class Progress(Protocol):
    """Told how far a download or an unpacking is, in bytes (of the archive, when one is unpacked)."""

    def total(self, units: int | None) -> None:
        """The work begins, or begins anew, from zero; `units` is all of it, None if nobody knows."""

    def advance(self, units: int) -> None:
        """So much more is done; what an earlier call has left counts too, right after `total`."""


class _Silent:
    """Shows nothing."""

    def total(self, units: int | None) -> None:
        pass

    def advance(self, units: int) -> None:
        pass


SILENT: Progress = _Silent()


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Keep other processes out; the lock goes with the process, however that ends.

    Raises:
        UserError: another process is in.
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
