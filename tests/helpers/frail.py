"""A method that fails, runs out of memory or ends its process, as its hyper-parameter `action` says."""

METHOD = """
from __future__ import annotations
import os
from dataclasses import dataclass
from pathlib import Path
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.methods.simplecil import SimpleCIL

@dataclass(frozen=True, kw_only=True, eq=False)
class Frail(SimpleCIL):
    action: str = "live"

    def phases(self, task: Task) -> list[Phase]:
        if self.action == "fail":
            raise RuntimeError("it had to come to this")
        if self.action == "starve":
            raise MemoryError("no room for 99 bytes")
        if self.action == "die" and not Path("died").exists():
            Path("died").touch()
            os._exit(1)
        return super().phases(task)
"""
