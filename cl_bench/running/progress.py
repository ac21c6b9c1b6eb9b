"""What a run tells while it executes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun


class RunProgress:
    """What a run tells while it goes on; the base class is silent."""

    def for_concurrent_run(self) -> RunProgress:
        """RunProgress view for a concurrently executing run."""
        return self

    def start(self, run: PlannedRun, images: int) -> None:
        """A run begins that will pass about this many images through the network."""

    def advance(self, images: int) -> None:
        """So many more images are done."""

    def resume(self, done: int, stages: int) -> None:
        """The run that has begun goes on from a checkpoint, after so many stages."""

    def warn(self, text: str) -> None:
        """Something that the user should know."""

    def stage(self, index: int, stages: int, accuracy: float, seconds: float) -> None:
        """A training stage is over: accuracy so far (fraction) and seconds since the run began."""
