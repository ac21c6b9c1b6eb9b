"""Whether a release is in order, as `.ci/release` asks: its tag and its texts, then the sizes of what was built.

    python tools/release.py version v0.2.0   # prints 0.2.0, or says what does not fit, with exit code 2
    python tools/release.py sizes dist

It needs the standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 100 * 1000**2
"""Bytes of a distribution; the package index refuses files above 100 MB."""
VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")


class NotInOrder(Exception):
    """One sentence: what does not fit, and what to do."""


def version_of(root: Path) -> str:
    """The version that the package says it has."""
    return _find(root / "cl_bench" / "__init__.py", r'^__version__ = "(.+)"$')[0]


def check_version(root: Path, tag: str | None) -> str:
    """The version of a release.

    Args:
        root: folder of the repository.
        tag: name of the tag, with or without a `v` in front; without a tag, the changelog may have unreleased entries.

    Raises:
        NotInOrder: tag, package, citation and changelog do not all have the same version and day.
    """
    version = version_of(root)
    if tag is not None:
        tagged = tag.removeprefix("v")
        if not VERSION.fullmatch(tagged):
            raise NotInOrder(f"'{tag}' is no tag of a release: expected vMAJOR.MINOR.PATCH, such as v{version}")
        if tagged != version:
            raise NotInOrder(
                f"the tag '{tag}' is of version {tagged}, but cl_bench/__init__.py has {version}: "
                "change __version__, or choose the other tag"
            )
    cited = (
        _find(root / "CITATION.cff", r"^version: *['\"]?([^'\"\s]+)['\"]?$")[0],
        _find(root / "CITATION.cff", r"^date-released: *['\"]?([^'\"\s]+)['\"]?$")[0],
    )
    changed = _find(root / "CHANGELOG.md", r"^## \[(\d[^\]]*)\] - (\S+)$")
    if changed[0] != version or cited[0] != version:
        raise NotInOrder(
            f"the version is {version} in cl_bench/__init__.py, {cited[0]} in CITATION.cff and {changed[0]} in "
            "CHANGELOG.md: all three must be the same"
        )
    if changed[1] != cited[1]:
        raise NotInOrder(
            f"version {version} is of {cited[1]} in CITATION.cff and of {changed[1]} in CHANGELOG.md: "
            "write the day of the release in both"
        )
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = re.search(r"^## \[Unreleased\]$(.*?)^## ", text, re.M | re.S)
    if tag is not None and unreleased and unreleased[1].strip():
        raise NotInOrder(
            f"CHANGELOG.md has entries under 'Unreleased', which '{tag}' would publish: move them under a version"
        )
    return version


def check_sizes(folder: Path) -> None:
    """Raises:
    NotInOrder: there is not one wheel and one source distribution, or one of them is too large to be published.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file())
    names = [path.name for path in files]
    if [name.rpartition(".")[2] for name in names] != ["whl", "gz"]:
        raise NotInOrder(f"'{folder}' has {names}, expected one wheel and one source distribution")
    for path in files:
        size = path.stat().st_size
        if size >= LARGEST:
            raise NotInOrder(f"{path.name} has {size / 1e6:.1f} MB, the limit is {LARGEST / 1e6:.0f} MB")
        print(f"{path.name}: {size / 1e6:.1f} MB")


def _find(path: Path, pattern: str) -> tuple[str, ...]:
    """The groups of the first line that matches."""
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise NotInOrder(f"'{path.name}' has no line like {pattern}")
    return found.groups()


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version").add_argument("tag", nargs="?")
    commands.add_parser("sizes").add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "version":
            print(check_version(root, options.tag))
        else:
            check_sizes(options.folder)
    except NotInOrder as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
