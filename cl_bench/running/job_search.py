"""The search for the number of concurrent runs that finish the most work on a GPU: `--jobs auto`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WINDOW = 30.0
"""Seconds over which the work done with one number of runs is measured."""
_GAIN = 1.05
"""Ratio by which twice as many runs must be faster to be kept."""


class JobSearch:
    """Doubles the number of concurrent runs as long as they finish more work together, and memory suffices.

    Work is counted in shares of runs. With each number it is measured for `WINDOW` seconds, as soon as that many runs
    make progress at the same time: workers that still import or compile do not count.

    Args:
        first: number to begin with.
        most: largest number to try.
        fits: whether memory suffices for twice as many runs as now.

    Attributes:
        jobs: number of concurrent runs to have now.
        done: whether the search has ended.
        rates: runs per hour by the number of concurrent runs.
    """

    def __init__(self, first: int, most: int, fits: Callable[[], bool]) -> None:
        self.jobs, self.done = first, first >= most
        self.rates: dict[int, float] = {}
        self._most, self._fits = most, fits
        self._images: dict[int, int] = {}
        self._at_work: set[int] = set()
        self._since: float | None = None
        self._share = 0.0

    def hear(self, run: int, now: float, event: str, *values: Any) -> None:
        """Hear of an event of a run.

        Args:
            run: any number that tells the runs apart.
            now: the time in seconds.
            event, values: name and arguments of a method of `RunProgress`, except the run.
        """
        if event == "start":
            self._images[run] = values[0]
        elif event == "resume":
            # What was counted was not work but the progress of a checkpoint.
            self._since = None
        elif event == "advance" and not self.done and self._images.get(run):
            self._advance(run, values[0] / self._images[run], now)

    def end(self, run: int) -> None:
        """A run has ended."""
        self._at_work.discard(run)

    def stop(self, jobs: int) -> None:
        """End the search with this number, because memory ran out with more."""
        self.jobs, self.done = jobs, True

    def _advance(self, run: int, share: float, now: float) -> None:
        self._at_work.add(run)
        if self._since is None:
            if len(self._at_work) >= self.jobs:
                self._since, self._share = now, 0.0
            return
        self._share += share
        if now - self._since >= WINDOW:
            self._decide(3600 * self._share / (now - self._since))

    def _decide(self, rate: float) -> None:
        self.rates[self.jobs] = rate
        before = self.rates.get(self.jobs // 2)
        if before is not None and rate < _GAIN * before:
            self.jobs, self.done = self.jobs // 2, True
        elif self.jobs * 2 > self._most or not self._fits():
            self.done = True
        else:
            self.jobs *= 2
            self._since = None

    def summary(self) -> str:
        """The result in one sentence."""
        tried = ", ".join(f"{rate:.3g} with {jobs}" for jobs, rate in self.rates.items())
        return f"--jobs auto: {self.jobs} at a time" + (f"; runs an hour: {tried}" if tried else "")
