"""Executors on this host: one run after the other in this process, or several in worker processes.

Records do not depend on the executor.
"""

from __future__ import annotations

import os
import queue
import sys
import traceback
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cl_bench import backbones
from cl_bench.contract.registry import FILE_MODULE
from cl_bench.errors import UserError
from cl_bench.running import runner
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import Progress
from cl_bench.running.runner import Settings
from cl_bench.running.transport import PackedRun, ProgressReplay
from cl_bench.running.workers import CONTEXT, pick_worker_gpu, pool
from cl_bench.store import Store


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        failure: why it failed; empty if its record is in the store.
        code: for the exit code: 2 if the user's input is the reason, 1 for another one, 0.
    """

    run: PlannedRun
    failure: str = ""
    code: int = 0


class Executor(Protocol):
    """Executes runs in any order and yields each outcome as its run ends; closing the generator ends the others."""

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: Progress
    ) -> Generator[Outcome, None, None]: ...


@dataclass(frozen=True)
class Here:
    """One run after the other in this process."""

    device: torch.device

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: Progress
    ) -> Generator[Outcome, None, None]:
        for run in runs:
            yield try_run(run, store, self.device, settings, progress)


@dataclass(frozen=True)
class SideBySide:
    """Up to `jobs` concurrent runs in worker processes of this host, which share its cores and GPUs.

    Small matrices gain little from a second thread: on 2 cores, two runs side by side are done in two thirds of the
    time that they take one after the other.
    """

    device: torch.device
    jobs: int

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: Progress
    ) -> Generator[Outcome, None, None]:
        mailbox: Any = CONTEXT.Queue()
        threads = max(1, torch.get_num_threads() // self.jobs)
        replays = [ProgressReplay(run, progress) for run in runs]
        with pool(self.jobs, threads, _set_mailbox, mailbox) as workers:
            pending: dict[Future[tuple[str, int]], int] = {
                workers.submit(_run_in_worker, index, PackedRun.pack(run), store, self.device, settings): index
                for index, run in enumerate(runs)
            }
            while pending:
                _replay_events(replays, mailbox)
                for future in [future for future in pending if future.done()]:
                    index = pending.pop(future)
                    # Its last events come before its outcome.
                    _replay_events(replays, mailbox)
                    try:
                        yield Outcome(runs[index], *future.result())
                    except BrokenProcessPool:
                        yield Outcome(runs[index], "its process has died; was there too little memory?", 1)


def _replay_events(replays: Sequence[ProgressReplay], mailbox: Any) -> None:
    """Show the progress events that have arrived; wait a little where none has."""
    wait = True
    try:
        while True:
            index, event, values = mailbox.get(wait, 0.1)
            replays[index].apply(0, event, *values)
            # Busy runs would always send another event in that time.
            wait = False
    except queue.Empty:
        return


class ProgressSender(Progress):
    """Sends the progress of a run to the process that shows it."""

    def send(self, event: str, *values: Any) -> None:
        """Send an event for `transport.ProgressReplay.apply`."""
        raise NotImplementedError

    def close(self) -> None:
        """Deliver what has not been delivered yet."""

    def start(self, run: PlannedRun, images: int) -> None:
        self.send("start", images)

    def advance(self, images: int) -> None:
        self.send("advance", images)

    def resume(self, done: int, stages: int) -> None:
        self.send("resume", done, stages)

    def warn(self, text: str) -> None:
        self.send("warn", text)

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        self.send("stage", index, stages, accuracy, seconds)


class _MailboxSender(ProgressSender):
    """Puts events into the mailbox of this worker process."""

    def __init__(self, index: int) -> None:
        self.index = index

    def send(self, event: str, *values: Any) -> None:
        _mailbox.put((self.index, event, values))


_mailbox: Any = None
"""Queue for progress events; set in worker processes only."""


def _set_mailbox(mailbox: Any) -> None:
    global _mailbox
    _mailbox = mailbox


def _run_in_worker(
    index: int, packed: PackedRun, store: Store, device: torch.device, settings: Settings
) -> tuple[str, int]:
    """Execute a run in a worker process.

    Returns:
        Failure and exit code (see `Outcome`).
    """
    try:
        run = packed.unpack()
    except UserError as error:
        return str(error), 2
    outcome = try_run(run, store, pick_worker_gpu(device), settings, _MailboxSender(index))
    return outcome.failure, outcome.code


def local_executor(planned: Sequence[PlannedRun], device: torch.device, jobs: int | None) -> Here | SideBySide:
    """The executor for runs on this host.

    Args:
        planned: all runs of the command, whether stored or not: the same command gives a run the same threads.
        jobs: how many runs at a time; None: on a GPU one, on the CPU as many as there are cores and memory for.
    """
    if jobs is None:
        jobs = 1
        if device.type == "cpu" and planned:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            jobs = min(len(planned), torch.get_num_threads(), max(1, memory // max(map(_bytes_of, planned))))
    return Here(device) if jobs == 1 else SideBySide(device, jobs)


def _bytes_of(run: PlannedRun) -> int:
    """Approximate memory of a run on a CPU: libraries, weights, and about 70 bytes per image, token, channel and block
    for the activations of a ViT in fp32."""
    vit = backbones.skeleton(run.backbone)
    weights = 4 * sum(parameter.numel() for parameter in vit.parameters())
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    batch = int(getattr(run.method, "batch_size", 0)) or 256
    return 10**9 + 4 * weights + 70 * batch * tokens * int(vit.embed_dim) * len(vit.blocks)


def try_run(run: PlannedRun, store: Store, device: torch.device, settings: Settings, progress: Progress) -> Outcome:
    """Execute one run and store its record; an error becomes its outcome, so that other runs go on."""
    try:
        runner.run(run, store, device, progress, settings)
    except UserError as error:
        return Outcome(run, str(error), 2)
    except Exception as error:
        reason = str(error).strip() or "no reason given"
        return Outcome(run, f"{type(error).__name__}: {reason}{_place(error)}", 1)
    return Outcome(run)


def _place(error: Exception) -> str:
    """Where in a user's method file an error comes from, for its author; empty if in none."""
    frames = traceback.extract_tb(error.__traceback__)
    files = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(FILE_MODULE)}
    inside = [frame for frame in frames if frame.filename in files]
    return f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno}, in {inside[-1].name})" if inside else ""
