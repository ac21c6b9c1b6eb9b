"""Files that are either whole or not there, and files that may be anything."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from io import BufferedReader
from pathlib import Path

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EACCES}


def write_atomically(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a temporary file in the same folder, flush it to disk, rename it into place, flush the folder.

    Args:
        replace: whether an earlier file makes way.

    Raises:
        FileExistsError: there is an earlier file and `replace` is false.
        OSError: the folder cannot be written, or the disk is full; an earlier file is then as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        if replace:
            Path(temporary).replace(path)
        else:
            _rename_to_new(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a power cut, where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def open_regular(path: Path, limit: int) -> BufferedReader:
    """Open a file that somebody else may have put there: no pipe, device or folder, and not larger than `limit` bytes.

    Raises:
        OSError: it cannot be opened, or is not such a file.
    """
    # A pipe without a writer would block for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"Larger than {limit:,} bytes", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _rename_to_new(temporary: Path, path: Path) -> None:
    """A rename that fails where there is a file already, atomically where the file system has hard links."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)
    else:
        temporary.unlink()
