"""The command line: one file per command, and what they share."""

from cl_bench.cli.app import app, main
from cl_bench.cli.shared import err, out

__all__ = ["app", "err", "main", "out"]
