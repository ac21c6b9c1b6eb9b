"""Where methods come from: the files of `methods/` and entry points of other packages."""

from __future__ import annotations

import pkgutil
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import cl_bench.methods
from cl_bench.errors import UserError

ENTRY_POINTS = "cl_bench.methods"
"""Group of the entry points under which other packages declare methods."""


def shipped() -> list[str]:
    """Names of the methods in `methods/`, in alphabetical order: `sdlora_rr.py` is `sdlora-rr`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(cl_bench.methods.__path__))


def check_not_shipped(name: str, what: str, advice: str, suffix: str = "") -> None:
    """Raise `UserError` if a user's method would have the name of one in `methods/`.

    Its results would be stored and listed under that name, and get that method's tuned hyper-parameters.

    Args:
        name: name of the user's method; `sdlora_rr` is too close to `sdlora-rr`.
        what: what has the name, for the message.
        advice: what to do; a free name and `suffix` are put behind it.
    """
    taken = name.casefold().replace("_", "-")
    if taken in shipped():
        raise UserError(
            f"{what} has the name of the method '{taken}', which comes with cl-bench, and would share its recipes and "
            f"rows; {advice} my_{name}{suffix}"
        )


def check_file_name(path: Path) -> None:
    """Raise `UserError` if a method file has the name of a shipped method (see `check_not_shipped`)."""
    check_not_shipped(path.stem, f"method file '{path}'", "rename it, e.g. to", ".py")


def check_entry_point(point: EntryPoint) -> None:
    """Raise `UserError` if an entry point has the name of a shipped method (see `check_not_shipped`)."""
    check_not_shipped(point.name, f"the entry point {point.value} of another package", "rename it, e.g. to")


def names(points: EntryPoints | None = None) -> list[str]:
    """Names of all installed methods, shipped ones and entry points, in alphabetical order.

    Args:
        points: entry points of the group `ENTRY_POINTS`; None: read them, which takes milliseconds.
    """
    points = entry_points(group=ENTRY_POINTS) if points is None else points
    return sorted({*shipped(), *(point.name for point in points)})
