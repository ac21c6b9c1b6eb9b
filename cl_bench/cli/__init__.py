"""The command-line program: one file per command, and shared helpers."""

from cl_bench.cli.app import app, main
from cl_bench.cli.shared import err, out

__all__ = ["app", "err", "main", "out"]
