"""The options of a run in one list: their types, defaults, help texts and parsing.

The command line, suite files, the Python API, `--dry-run` and the table in docs/sweeps.md are made from the classes
`RunOptions` and `ExecutionOptions`: a field added to one of them is an option everywhere.
"""

from cl_bench.options.execution import ExecutionOptions
from cl_bench.options.option import Option, Panel, options_of
from cl_bench.options.run_options import RunOptions

__all__ = ["ExecutionOptions", "Option", "Panel", "RunOptions", "options_of"]
