"""The interface through which a run reports its progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun


class RunProgress:
    """Receives the progress events of one run; the base class ignores them."""

    def for_concurrent_run(self) -> RunProgress:
        """RunProgress view for a concurrently executing run."""
        return self

    def start(self, run: PlannedRun, images: int) -> None:
        """A run has started; it will pass about `images` images through the network."""

    def advance(self, images: int) -> None:
        """Another `images` images have passed through the network; negative if an attempt is repeated."""

    def resume(self, done: int, stages: int) -> None:
        """The started run has resumed from a checkpoint, with `done` of its `stages` stages finished."""

    def warn(self, text: str) -> None:
        """The user should read this sentence."""

    def note(self, text: str) -> None:
        """A choice that was made for the run, worth a line the first time."""

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        """Stage `index` is evaluated: accuracy on the tasks so far (fraction), seconds since the run started."""
