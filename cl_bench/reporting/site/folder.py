"""The folder of a site: what cl-bench wrote there is replaced or removed, what others put there is never touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cl_bench.errors import UserError, named
from cl_bench.files import write_atomically

MANIFEST = ".cl-bench-site.json"
"""Lists the files that cl-bench wrote, relative to the folder of the site."""


def write(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write the files of a site, and remove those of an earlier site that it no longer has.

    Args:
        folder: made if missing. It may be empty, hold an earlier site, or hold hidden files such as `.git`.
        files: content by path relative to `folder`, with `/` between its parts.

    Returns:
        Paths of the written files, in the order of `files`.

    Raises:
        UserError: the folder holds files of others and no site, one of them has the name of a file of the site, or the
            folder cannot be written. Nothing is changed then, unless writing itself fails.
    """
    try:
        earlier = _earlier(folder)
        _check(folder, earlier, files)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                write_atomically(path, content)
        listing = json.dumps({"files": sorted(files)}, indent=0).encode()
        write_atomically(folder / MANIFEST, listing)
        for name in sorted(earlier - files.keys(), reverse=True):
            _remove(folder, name)
    except OSError as error:
        raise UserError(
            f"--site '{folder}' cannot be written ({error.strerror}: {error.filename}); name another folder"
        ) from error
    return [folder / name for name in files]


def _earlier(folder: Path) -> set[str]:
    """Names of the files of an earlier site; empty if there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return set()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' is damaged, so cl-bench cannot tell its files; name an empty --site folder"
        ) from error
    safe = (name for name in names if isinstance(name, str) and ".." not in PurePosixPath(name).parts)
    return {name for name in safe if not PurePosixPath(name).is_absolute()}


def _check(folder: Path, earlier: set[str], files: Mapping[str, bytes]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--site '{folder}' is a file; name a folder")
    if not folder.is_dir():
        return
    if not earlier:
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            raise UserError(
                f"--site '{folder}' holds files that are not of a site ({named(others, 3)}); name an empty "
                "folder, or one that --site wrote"
            )
    clashing = sorted(name for name in files.keys() - earlier if (folder / name).exists())
    if clashing:
        raise UserError(
            f"--site '{folder}' holds files of others where the site has its own ({named(clashing, 3)}); move them away"
        )


def _remove(folder: Path, name: str) -> None:
    """Remove a file of an earlier site, and the folders that are empty then."""
    path = folder / name
    if path.is_file() or path.is_symlink():
        path.unlink()
    for parent in path.parents:
        if parent == folder or not parent.is_dir() or any(parent.iterdir()):
            break
        parent.rmdir()
