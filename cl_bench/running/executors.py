"""Executors on this host: one run after the other in this process, or several in worker processes.

The records of runs do not depend on the executor.
"""

from __future__ import annotations

import queue
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from cl_bench import backbones
from cl_bench.backbones import Backbone
from cl_bench.contract.registry import FILE_MODULE
from cl_bench.errors import UserError
from cl_bench.running import memory, runner
from cl_bench.running.job_search import JobSearch
from cl_bench.running.plan import PlannedRun
from cl_bench.running.pool import TaskFailed, WorkerPool
from cl_bench.running.progress import RunProgress
from cl_bench.running.runner import Settings
from cl_bench.running.transport import PackedRun, ProgressReplay
from cl_bench.running.workers import current_retry, describe, pick_worker_gpu, send_event
from cl_bench.store import DamagedRecord, Store


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        failure: why the run failed; empty if its record is in the store.
        code: exit code: 0 without failure, 2 if the user's input caused it, else 1.
        out_of_memory: whether the run failed because memory ran out.
    """

    run: PlannedRun
    failure: str = ""
    code: int = 0
    out_of_memory: bool = False


class Executor(Protocol):
    """Executes runs in any order and yields the outcome of each as it ends; closing the generator stops the others."""

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: RunProgress
    ) -> Generator[Outcome, None, None]: ...


class RemoteExecutor(Executor, Protocol):
    """Executor on other hosts."""

    def likely_device(self) -> torch.device:
        """The device on which runs will probably execute, which decides their precision."""


@dataclass(frozen=True)
class SequentialExecutor:
    """Executes one run after the other in this process."""

    device: torch.device

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: RunProgress
    ) -> Generator[Outcome, None, None]:
        for run in runs:
            yield try_run(run, store, self.device, settings, progress)


@dataclass(frozen=True)
class ConcurrentExecutor:
    """Executes up to `jobs` concurrent runs in worker processes of this host, which share its cores and GPUs.

    With `search` it begins with one run per GPU, and keeps the number that finishes the most work (see `JobSearch`).

    Small matrices gain little from a second thread: on 2 cores, two concurrent runs take two thirds of the time of two
    consecutive ones.
    """

    device: torch.device
    jobs: int
    search: bool = False

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: RunProgress
    ) -> Generator[Outcome, None, None]:
        # Messages from the thread of the pool: (index of a run, one of its events or its future), or (None, warning).
        inbox: queue.SimpleQueue[tuple[int | None, tuple[Any, ...]]] = queue.SimpleQueue()

        def put(index: int | None, *content: Any) -> None:
            inbox.put((index, content))

        replays = [ProgressReplay(run, progress) for run in runs]
        threads = max(1, torch.get_num_threads() // self.jobs)
        most = min(self.jobs, max(1, len(runs)))
        search = self._search(most) if self.search else None
        with WorkerPool(most if search is None else search.jobs, threads, partial(put, None)) as workers:
            ended = []
            for index, run in enumerate(runs):
                call = (_run_in_worker, PackedRun.pack(run), store, self.device, settings)
                future = workers.submit(*call, name=run.name, on_report=partial(put, index))
                future.add_done_callback(partial(put, index))
                ended.append(future)
            left = len(runs)
            while left:
                place, content = inbox.get()
                if place is None:
                    progress.warn(*content)
                elif content == (ended[place],):
                    left -= 1
                    if search is not None:
                        search.end(place)
                    yield _outcome(runs[place], ended[place])
                else:
                    replays[place].apply(*content)
                    if search is not None and not search.done:
                        if workers.limit < search.jobs:
                            search.stop(workers.limit)
                        search.hear(place, time.monotonic(), *content[1:])
                        workers.limit = search.jobs
            if search is not None and search.rates:
                progress.warn(search.summary())

    def _search(self, most: int) -> JobSearch:
        gpus = [self.device.index] if self.device.index is not None else list(range(torch.cuda.device_count()))
        return JobSearch(min(max(1, len(gpus)), most), most, partial(_have_room, gpus))


def _have_room(gpus: Sequence[int]) -> bool:
    """Whether each of these GPUs has as much free memory as its runs use now, and a quarter more."""
    for index in gpus:
        free, total = torch.cuda.mem_get_info(index)
        if free < 1.25 * (total - free):
            return False
    return True


def _outcome(run: PlannedRun, future: Future[tuple[str, int]]) -> Outcome:
    try:
        return Outcome(run, *future.result())
    except TaskFailed as error:
        return Outcome(run, str(error), 1)
    except Exception as error:
        return Outcome(run, describe(error), 1)


class ProgressSender(RunProgress):
    """Sends the progress of a run to the process that displays it."""

    def send(self, event: str, *values: Any) -> None:
        """Send an event for `transport.ProgressReplay.apply`."""
        raise NotImplementedError

    def close(self) -> None:
        """Deliver all events that are still buffered."""

    def start(self, run: PlannedRun, images: int) -> None:
        self.send("start", images)

    def advance(self, images: int) -> None:
        self.send("advance", images)

    def resume(self, done: int, stages: int) -> None:
        self.send("resume", done, stages)

    def warn(self, text: str) -> None:
        self.send("warn", text)

    def note(self, text: str) -> None:
        self.send("note", text)

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        self.send("stage", index, stages, accuracy, seconds)


class ThrottledSender(ProgressSender):
    """Sends image counts at most once a second, for messages that cost more than a pipe's."""

    def __init__(self) -> None:
        self._images = 0
        self._flushed = time.monotonic()

    def deliver(self, event: str, *values: Any) -> None:
        """Send an event now."""
        raise NotImplementedError

    def send(self, event: str, *values: Any) -> None:
        self._flush()
        self.deliver(event, *values)

    def advance(self, images: int) -> None:
        self._images += images
        if time.monotonic() - self._flushed > 1:
            self._flush()

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._images:
            self.deliver("advance", self._images)
        self._images, self._flushed = 0, time.monotonic()


class _ReportSender(ProgressSender):
    """Sends events to the parent of this worker process."""

    def send(self, event: str, *values: Any) -> None:
        send_event(event, *values)


def _run_in_worker(packed: PackedRun, store: Store, device: torch.device, settings: Settings) -> tuple[str, int]:
    """Execute a run in a worker process.

    Returns:
        The fields `failure` and `code` of its `Outcome`.

    Raises:
        MemoryError: memory ran out.
    """
    try:
        run = packed.unpack()
    except UserError as error:
        return str(error), 2
    outcome = retry_run(run, store, pick_worker_gpu(device), settings, _ReportSender(), current_retry())
    if outcome.out_of_memory:
        raise MemoryError(outcome.failure)
    return outcome.failure, outcome.code


def local_executor(
    planned: Sequence[PlannedRun], device: torch.device, jobs: int | Literal["auto"] | None
) -> SequentialExecutor | ConcurrentExecutor:
    """The executor for runs on this host.

    Args:
        planned: all runs of the command, stored ones included, so that repeating a command gives a run as many threads.
        jobs: number of concurrent runs; None: one on a GPU, on the CPU as many as its cores and memory allow; `auto`:
            the same on the CPU, and on a GPU as many as finish the most work, which is measured.
    """
    if jobs == "auto":
        if device.type == "cuda":
            return ConcurrentExecutor(device, max(1, torch.get_num_threads()), search=True)
        jobs = None
    if jobs is None:
        jobs = min(len(planned), torch.get_num_threads()) if device.type == "cpu" and planned else 1
        if jobs > 1:
            sizes = {(run.backbone, int(getattr(run.method, "batch_size", 0)) or 256) for run in planned}
            jobs = min(jobs, max(1, memory.total_bytes() // max(starmap(_bytes_of, sizes))))
    return SequentialExecutor(device) if jobs == 1 else ConcurrentExecutor(device, jobs)


def _bytes_of(backbone: Backbone, batch: int) -> int:
    """Approximate memory of a run on a CPU in bytes.

    The sum of libraries, weights, and about 70 bytes per image, token, channel and block for the activations of a ViT
    in fp32.
    """
    vit = backbones.skeleton(backbone)
    weights = 4 * sum(parameter.numel() for parameter in vit.parameters())
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    return 10**9 + 4 * weights + 70 * batch * tokens * int(vit.embed_dim) * len(vit.blocks)


def retry_run(
    run: PlannedRun, store: Store, device: torch.device, settings: Settings, progress: RunProgress, retry: int
) -> Outcome:
    """Execute one run like `try_run`, after earlier attempts that may have died at any point.

    Args:
        retry: number of earlier attempts.
    """
    if retry > 0:
        if not settings.fresh:
            # The worker may have died after it stored the result and before it could report that.
            with suppress(DamagedRecord):
                if store.find(run.experiment) is not None:
                    return Outcome(run)
        # `fresh` ignores checkpoints from before this command; an earlier attempt has replaced these by its own.
        settings = replace(settings, fresh=False)
    return try_run(run, store, device, settings, progress)


def try_run(run: PlannedRun, store: Store, device: torch.device, settings: Settings, progress: RunProgress) -> Outcome:
    """Execute one run and store its record; an error becomes the outcome, so that other runs can continue."""
    try:
        runner.run(run, store, device, progress, settings)
    except UserError as error:
        return Outcome(run, str(error), 2)
    except Exception as error:
        if memory.is_exhausted(error):
            return Outcome(run, memory.describe(error), 1, out_of_memory=True)
        reason = str(error).strip() or "no reason given"
        return Outcome(run, f"{type(error).__name__}: {reason}{_place(error)}", 1)
    return Outcome(run)


def _place(error: Exception) -> str:
    """The place in a user's method file where an error was raised, for its author; else empty."""
    frames = traceback.extract_tb(error.__traceback__)
    files = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(FILE_MODULE)}
    inside = [frame for frame in frames if frame.filename in files]
    return f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno}, in {inside[-1].name})" if inside else ""
