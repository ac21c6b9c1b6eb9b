"""The worker's side of a sweep on Slurm: executes one run in a job and writes its progress into a file.

Every job imports this module first, so functions import torch and most of cl-bench only where they need them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench.running.remote import SweepConfig, TaskResult, execute
from cl_bench.running.transport import PackedRun

if TYPE_CHECKING:
    from cl_bench.running.executors import ProgressSender


@dataclass(frozen=True)
class SlurmTask:
    """One run as a job. submitit pickles it, calls it on a node, and calls `checkpoint` shortly before its time limit.

    Attributes:
        events: file to which progress events are appended, one JSON list a line.
        retry: number of earlier jobs of this run that died.
    """

    config: SweepConfig
    packed: PackedRun
    events: Path
    retry: int = 0

    def __call__(self) -> TaskResult:
        """Execute the run, or resume it from its checkpoint if the job was queued again."""
        retry = self.retry + int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return execute(self.config, self.packed, retry, lambda: _file_sender(self.events, retry))

    def checkpoint(self) -> Any:
        """The job to queue again: the same run, which resumes from the checkpoint of its last task or ten minutes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def read_events(path: Path, offset: int) -> tuple[list[list[Any]], int]:
    """Complete lines of a file of events that begin at byte `offset`, and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def _file_sender(path: Path, retry: int) -> ProgressSender:
    from cl_bench.running.executors import ThrottledSender

    class FileSender(ThrottledSender):
        """Appends progress to a file on the shared disk."""

        def deliver(self, event: str, *values: Any) -> None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([retry, event, *values]) + "\n")

    return FileSender()
