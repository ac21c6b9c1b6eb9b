"""Benchmarks: data sets with their official splits, default tasks and views."""

from cl_bench.streams.benchmarks import Benchmark, Source, default_tasks, find, has_domains, names
from cl_bench.streams.config import DataConfig

__all__ = ["Benchmark", "DataConfig", "Source", "default_tasks", "find", "has_domains", "names"]
