"""The benchmarks: data sets, their official splits and what a run needs to know of them."""

from cl_bench.streams.benchmarks import Benchmark, Source, default_tasks, find, has_domains, names
from cl_bench.streams.config import DataConfig

__all__ = ["Benchmark", "DataConfig", "Source", "default_tasks", "find", "has_domains", "names"]
