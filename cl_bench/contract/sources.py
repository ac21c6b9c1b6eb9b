"""Where methods come from: the files of `methods/`, and entry points of other packages."""

from __future__ import annotations

import pkgutil

import cl_bench.methods

ENTRY_POINTS = "cl_bench.methods"


def shipped() -> list[str]:
    """Names of the methods in `methods/`: `sdlora_rr.py` is `sdlora-rr`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(cl_bench.methods.__path__))
