"""Where runs execute. Nothing else knows which of these it was."""

from __future__ import annotations

import os
import queue
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from cl_bench import backbones
from cl_bench.errors import UserError
from cl_bench.running import runner
from cl_bench.running.plan import PlannedRun
from cl_bench.running.runner import Settings
from cl_bench.running.transport import Parcel, Show
from cl_bench.running.workers import CONTEXT, own, pool
from cl_bench.store import Store


@dataclass(frozen=True)
class Outcome:
    """A run that is over.

    Attributes:
        failure: why it failed; empty if its record is in the store.
        code: for the exit code: 2 if the user's input is the reason, 1 for another one, 0.
    """

    run: PlannedRun
    failure: str = ""
    code: int = 0


class Executor(Protocol):
    """Carries runs out, in any order, and tells of each as soon as it is over; closing the generator ends the rest."""

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: runner.Progress
    ) -> Generator[Outcome, None, None]: ...


@dataclass(frozen=True)
class Here:
    """One run after the other in this process."""

    device: torch.device

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: runner.Progress
    ) -> Generator[Outcome, None, None]:
        for run in runs:
            yield attempt(run, store, self.device, settings, progress)


@dataclass(frozen=True)
class SideBySide:
    """Runs in processes of their own on this host, so many at a time, which share its cores and GPUs.

    Small matrices gain little from a second thread: on 2 cores, two runs side by side are done in two thirds of the
    time that they take one after the other.
    """

    device: torch.device
    jobs: int

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: runner.Progress
    ) -> Generator[Outcome, None, None]:
        mailbox: Any = CONTEXT.Queue()
        threads = max(1, torch.get_num_threads() // self.jobs)
        shows = [Show(run, progress) for run in runs]
        with pool(self.jobs, threads, _keep, mailbox) as workers:
            left: dict[Future[tuple[str, int]], int] = {
                workers.submit(_attempt, number, Parcel.of(run), store, self.device, settings): number
                for number, run in enumerate(runs)
            }
            while left:
                _tell(shows, mailbox)
                for future in [future for future in left if future.done()]:
                    number = left.pop(future)
                    # What it has told before it was over.
                    _tell(shows, mailbox)
                    try:
                        yield Outcome(runs[number], *future.result())
                    except BrokenProcessPool:
                        yield Outcome(runs[number], "its process has died; was there too little memory?", 1)


def _tell(shows: Sequence[Show], mailbox: Any) -> None:
    """Pass on what has arrived; wait a little where nothing has."""
    wait = True
    try:
        while True:
            number, kind, values = mailbox.get(wait, 0.1)
            shows[number].tell(0, kind, *values)
            # Busy runs would always have something more to tell in that time.
            wait = False
    except queue.Empty:
        return


class Teller(runner.Progress):
    """Passes what a run tells on, to where it is shown."""

    def tell(self, kind: str, *values: Any) -> None:
        """What `parcels.Show.tell` is to be told."""
        raise NotImplementedError

    def start(self, run: PlannedRun, images: int) -> None:
        self.tell("start", images)

    def advance(self, images: int) -> None:
        self.tell("advance", images)

    def resume(self, done: int, stages: int) -> None:
        self.tell("resume", done, stages)

    def warn(self, text: str) -> None:
        self.tell("warn", text)

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        self.tell("stage", index, stages, accuracy, seconds)


class _Sender(Teller):
    """Into the mailbox of this process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def tell(self, kind: str, *values: Any) -> None:
        _mailbox.put((self.number, kind, values))


_mailbox: Any = None
"""Of a worker process."""


def _keep(mailbox: Any) -> None:
    global _mailbox
    _mailbox = mailbox


def _attempt(number: int, parcel: Parcel, store: Store, device: torch.device, settings: Settings) -> tuple[str, int]:
    try:
        run = parcel.unpack()
    except UserError as error:
        return str(error), 2
    outcome = attempt(run, store, own(device), settings, _Sender(number))
    return outcome.failure, outcome.code


def side_by_side(planned: Sequence[PlannedRun], device: torch.device, jobs: int | None) -> Here | SideBySide:
    """The executor of this host.

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
    """About what a run takes on a CPU: the libraries, the weights, and some 70 bytes per image, token, channel and
    block, which training keeps of a ViT in fp32."""
    vit = backbones.skeleton(run.backbone)
    weights = 4 * sum(parameter.numel() for parameter in vit.parameters())
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    batch = int(getattr(run.method, "batch_size", 0)) or 256
    return 10**9 + 4 * weights + 70 * batch * tokens * int(vit.embed_dim) * len(vit.blocks)


def attempt(
    run: PlannedRun, store: Store, device: torch.device, settings: Settings, progress: runner.Progress
) -> Outcome:
    """Carry out one run and store it; whatever goes wrong is its outcome and hinders no other run."""
    try:
        runner.run(run, store, device, progress, settings)
    except UserError as error:
        return Outcome(run, str(error), 2)
    except Exception as error:
        reason = str(error).strip() or "no reason given"
        return Outcome(run, f"{type(error).__name__}: {reason}", 1)
    return Outcome(run)
