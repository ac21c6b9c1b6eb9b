"""What stored predictions show: confusions between classes and tasks, where errors go, and what was forgotten."""

from cl_bench.reporting.confusions.measures import RowErrors, rows_of
from cl_bench.reporting.confusions.predicted import NoPredictions, RunErrors, measure, read

__all__ = ["NoPredictions", "RowErrors", "RunErrors", "measure", "read", "rows_of"]
