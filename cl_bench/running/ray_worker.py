"""The worker's side of a sweep on Ray: executes one run in a Ray task, sends its progress, and returns its result.

Ray imports this module in every worker, so functions import torch and most of cl-bench only where they need them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench import __version__
from cl_bench.errors import UserError
from cl_bench.running.transport import PackedRun

if TYPE_CHECKING:
    from cl_bench.running.executors import ProgressSender
    from cl_bench.running.runner import Settings
    from cl_bench.store import Arrays

SHARED_FILE_TIMEOUT = 10
"""Seconds within which a new file must be visible on all hosts that share a folder."""


@dataclass(frozen=True)
class SweepConfig:
    """Settings that all tasks of a sweep share.

    It contains the driver's values of `CL_BENCH_CACHE` and `CL_BENCH_MAX_PIXELS`, the only environment variables of
    cl-bench that workers read: each run carries its own data configuration (`PlannedRun.data`).

    Attributes:
        version: the driver's version of cl-bench; workers must have the same.
        folder: the driver's current folder, to which `folder:PATH` and paths in method files are relative.
        cache: the driver's `CL_BENCH_CACHE` as an absolute path; None: not set.
        store: path of the results folder that all hosts share; None: return results through Ray.
        marker: name of a file in that folder, by which workers recognise it.
        device: `cpu` or `cuda`.
        threads: number of torch threads of a task.
        settings: how runs are executed.
        max_pixels: the driver's `CL_BENCH_MAX_PIXELS`; None: not set.
    """

    version: str
    folder: str
    cache: str | None
    store: str | None
    marker: str
    device: str
    threads: int
    settings: Settings
    max_pixels: str | None = None


@dataclass(frozen=True)
class Attempt:
    """One execution of a run, which is repeated if its worker dies.

    Attributes:
        run: index of the run in the sweep.
        retry: number of earlier attempts.
        share: factor by which more resources are reserved than the run asks for.
    """

    run: int
    retry: int
    share: int = 1


@dataclass(frozen=True)
class TaskResult:
    """The result or failure of a task.

    Attributes:
        failure: why the task failed; empty if it did not.
        code: exit code of the failure (see `executors.Outcome`).
        out_of_memory: whether the task failed because memory ran out.
        record, arrays: the result (record as JSON) if it returns through Ray; else empty.
    """

    failure: str = ""
    code: int = 0
    out_of_memory: bool = False
    record: str = ""
    arrays: Arrays = field(default_factory=dict)


class Mailbox:
    """Ray actor on the driver's host that holds the progress events of all workers until the driver takes them."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def put(self, *event: Any) -> None:
        """Append an event: an `Attempt`, the name of a method of `RunProgress`, and the arguments of that method."""
        self.events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        """All events since the last call, oldest first."""
        taken, self.events = self.events, []
        return taken


def run_task(config: SweepConfig, packed: PackedRun, attempt: Attempt, mailbox: Any) -> TaskResult:
    """Execute one run in a Ray worker."""
    host = socket.gethostname()
    if config.version != __version__:
        return TaskResult(
            f"host {host} has cl-bench {__version__} instead of {config.version}; install the same version there", 2
        )
    if config.store is not None and not _becomes_visible(Path(config.store) / config.marker):
        return TaskResult(f"host {host} does not share the results folder {config.store} of this one; add --collect", 2)
    _adopt_environment(config)
    import torch

    from cl_bench.running.executors import retry_run
    from cl_bench.store import Store

    torch.set_num_threads(config.threads)
    try:
        run = packed.unpack()
    except UserError as error:
        return TaskResult(f"host {host}: {error}", 2)
    progress = _progress_sender(attempt, mailbox)
    with contextlib.ExitStack() as stack:
        folder = config.store or stack.enter_context(tempfile.TemporaryDirectory(prefix="cl-bench-"))
        store = Store(folder)
        outcome = retry_run(run, store, torch.device(config.device), config.settings, progress, attempt.retry)
        progress.close()
        if outcome.failure or config.store is not None:
            return TaskResult(outcome.failure, outcome.code, outcome.out_of_memory)
        record = store.load(store.json_path(run.experiment))
        return TaskResult(record=record.model_dump_json(), arrays=store.arrays(record))


def _adopt_environment(config: SweepConfig) -> None:
    """Take over the driver's cache and image limit, and its current folder if this host has it."""
    from cl_bench.data import cache, decoding

    for variable, value in ((cache.VARIABLE, config.cache), (decoding.LIMIT_VARIABLE, config.max_pixels)):
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
    if Path(config.folder).is_dir():
        os.chdir(config.folder)


def _becomes_visible(path: Path) -> bool:
    """Whether a file is visible within `SHARED_FILE_TIMEOUT`: network folders show new files late."""
    until = time.monotonic() + SHARED_FILE_TIMEOUT
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _progress_sender(attempt: Attempt, mailbox: Any) -> ProgressSender:
    import ray

    from cl_bench.running.executors import ProgressSender

    class MailboxSender(ProgressSender):
        """Sends progress to the cluster's mailbox, image counts at most once a second."""

        def __init__(self) -> None:
            self.images = 0
            self.flushed = time.monotonic()
            self.last_call: Any = None

        def send(self, event: str, *values: Any) -> None:
            self._flush()
            self.last_call = mailbox.put.remote(attempt, event, *values)

        def advance(self, images: int) -> None:
            self.images += images
            if time.monotonic() - self.flushed > 1:
                self._flush()

        def close(self) -> None:
            # With a short timeout: a lost event affects only the display.
            self._flush()
            if self.last_call is not None:
                ray.wait([self.last_call], timeout=2)

        def _flush(self) -> None:
            if self.images:
                self.last_call = mailbox.put.remote(attempt, "advance", self.images)
            self.images, self.flushed = 0, time.monotonic()

    return MailboxSender()
