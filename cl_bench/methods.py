"""Makes `methods/`, which lies beside this package in a checkout, importable as `cl_bench.methods`.

The wheel has that folder in place of this file: see `sources` in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "methods")]
