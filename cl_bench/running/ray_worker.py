"""The worker's side of a sweep on Ray: executes one run in a Ray task and sends its progress.

Ray imports this module in every worker, so functions import torch and most of cl-bench only where they need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cl_bench.running.remote import SweepConfig, TaskResult, execute
from cl_bench.running.transport import PackedRun

if TYPE_CHECKING:
    from cl_bench.running.executors import ProgressSender


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
    return execute(config, packed, attempt.retry, partial(_progress_sender, attempt, mailbox))


def _progress_sender(attempt: Attempt, mailbox: Any) -> ProgressSender:
    import ray

    from cl_bench.running.executors import ThrottledSender

    class MailboxSender(ThrottledSender):
        """Sends progress to the cluster's mailbox."""

        last_call: Any = None

        def deliver(self, event: str, *values: Any) -> None:
            self.last_call = mailbox.put.remote(attempt, event, *values)

        def close(self) -> None:
            # With a short timeout: a lost event affects only the display.
            super().close()
            if self.last_call is not None:
                ray.wait([self.last_call], timeout=2)

    return MailboxSender()
