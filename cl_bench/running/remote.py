"""The part of executors on other hosts that does not depend on what starts the workers (Ray, Slurm).

Workers import this module first, so functions import torch and most of cl-bench only where they need them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cl_bench import __version__
from cl_bench.errors import UserError
from cl_bench.running.transport import PackedRun

if TYPE_CHECKING:
    from cl_bench.running.executors import ProgressSender
    from cl_bench.running.runner import Settings
    from cl_bench.store import Arrays, Store

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

    @classmethod
    def of(
        cls, store: Store, marker: str, device: str, threads: int, settings: Settings, *, collect: bool = False
    ) -> SweepConfig:
        """The configuration of a sweep that this process drives; with `collect`, workers do not see the store."""
        from cl_bench.data import cache, decoding

        return cls(
            version=__version__,
            folder=str(Path.cwd()),
            cache=str(cache.folder().absolute()) if os.environ.get(cache.VARIABLE) else None,
            store=None if collect else str(store.root.absolute()),
            marker=marker,
            device=device,
            threads=threads,
            settings=settings,
            max_pixels=os.environ.get(decoding.LIMIT_VARIABLE),
        )


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


@contextlib.contextmanager
def marker_file(store: Store) -> Iterator[str]:
    """Name of a temporary file in the store, by which workers recognise the shared folder.

    Raises:
        UserError: the store cannot be written.
    """
    store.check_writable()
    path = store.root / f".shared-{uuid.uuid4().hex}"
    path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def execute(config: SweepConfig, packed: PackedRun, retry: int, progress: Callable[[], ProgressSender]) -> TaskResult:
    """Execute one run in a worker process on any host.

    Args:
        retry: number of earlier attempts.
        progress: makes the sender of the run's progress events.
    """
    host = socket.gethostname()
    if config.version != __version__:
        return TaskResult(
            f"host {host} has cl-bench {__version__} instead of {config.version}; install the same version there", 2
        )
    if config.store is not None and not becomes_visible(Path(config.store) / config.marker):
        return TaskResult(
            f"host {host} does not share the results folder {config.store} of this one; "
            "give --results a folder on a shared disk, or add --collect with Ray",
            2,
        )
    _adopt_environment(config)
    import torch

    from cl_bench.running.executors import retry_run
    from cl_bench.store import Store

    torch.set_num_threads(config.threads)
    try:
        run = packed.unpack()
    except UserError as error:
        return TaskResult(f"host {host}: {error}", 2)
    sender = progress()
    with contextlib.ExitStack() as stack:
        folder = config.store or stack.enter_context(tempfile.TemporaryDirectory(prefix="cl-bench-"))
        store = Store(folder)
        outcome = retry_run(run, store, torch.device(config.device), config.settings, sender, retry)
        sender.close()
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


def check_device(executor: str, device: str, gpus: float | None) -> None:
    """Check the device and the GPUs per run that a user asks an executor for.

    Raises:
        UserError: the device is not `auto`, `cpu` or `cuda`, or contradicts the number of GPUs.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"--device '{device}' does not go with --executor {executor}, which hands out the GPUs; "
            "expected auto, cpu or cuda"
        )
    if gpus is not None and ((device == "cpu" and gpus > 0) or (device == "cuda" and gpus == 0)):
        raise UserError(f"--gpus-per-run {gpus:g} and --device {device} contradict each other; leave one out")


def becomes_visible(path: Path) -> bool:
    """Whether a file is visible within `SHARED_FILE_TIMEOUT`: network folders show new files late."""
    until = time.monotonic() + SHARED_FILE_TIMEOUT
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True
