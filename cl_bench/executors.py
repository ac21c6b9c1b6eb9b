"""Where runs execute. Nothing else knows which of these it was."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from cl_bench import runner
from cl_bench.errors import UserError
from cl_bench.plan import PlannedRun
from cl_bench.runner import Settings
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
