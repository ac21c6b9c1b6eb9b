"""Where methods come from: the files of `methods/` and entry points of other packages."""

from __future__ import annotations

import pkgutil
from importlib.metadata import EntryPoints, entry_points

import cl_bench.methods

ENTRY_POINTS = "cl_bench.methods"
"""Group of the entry points under which other packages declare methods."""


def shipped() -> list[str]:
    """Names of the methods in `methods/`, in alphabetical order: `sdlora_rr.py` is `sdlora-rr`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(cl_bench.methods.__path__))


def names(points: EntryPoints | None = None) -> list[str]:
    """Names of all installed methods, shipped ones and entry points, in alphabetical order.

    Args:
        points: entry points of the group `ENTRY_POINTS`; None: read them, which takes milliseconds.
    """
    points = entry_points(group=ENTRY_POINTS) if points is None else points
    return sorted({*shipped(), *(point.name for point in points)})
