"""The interface of a tracker: what it is told of a run, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

Status = Literal["finished", "failed", "interrupted"]
"""How a run ended; a process that is killed says nothing."""


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of a run before it logs anything.

    Attributes:
        name: label, seed and key, for people.
        key: content key of the experiment.
        label: name of the run's row in tables.
        seed: training seed.
        settings: benchmark, backbone, seed and other fields of the experiment that have one value.
        hyperparameters: hyper-parameters of the method.
        environment: versions of libraries, device, threads.
        steps: number of the last step before the checkpoint from which the run resumes; 0: it starts at its beginning.
    """

    name: str
    key: str
    label: str
    seed: int
    settings: Mapping[str, str | int | float | bool | None]
    hyperparameters: Mapping[str, str | int | float | bool | None]
    environment: Mapping[str, str | int | float | bool | None]
    steps: int = 0


class Tracker:
    """Logs one run. The calls are `start`, any number of `log` with growing steps, `finish`.

    A killed run resumes from a checkpoint and repeats the steps after it, with the same numbers. `RunFacts.steps` says
    where it resumes, and nothing may then be logged twice: a tracker drops what it holds of later steps, or skips the
    steps that it holds. Any error ends the logging of the run, not the run.

    Args:
        folder: folder of this kind of tracker, in which many runs log.
        settings: what `prepare` returned.
    """

    package: ClassVar[str] = ""
    """The package that this tracker needs, as it is imported; empty: none. An extra of cl-bench installs it."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder, self.settings = folder, settings

    @classmethod
    def prepare(cls, folder: Path) -> Mapping[str, str]:
        """Check that this tracker can log, and read its settings from the environment of the command.

        Raises:
            UserError: its package or its login is missing.
        """
        return {}

    def path(self, facts: RunFacts, suffix: str = "") -> Path:
        """The run's own path in the folder, with its label, seed and key in its name."""
        # One experiment can have several labels, since a default may be given or not: its first file is continued.
        for earlier in sorted(self.folder.glob(f"*-{facts.key}{suffix}")):
            return earlier
        label = re.sub(r"[^\w.=,+-]+", "_", facts.label).strip("_.")[:100]
        return self.folder / f"{label}-s{facts.seed}-{facts.key}{suffix}"

    def start(self, facts: RunFacts) -> None:
        """A run begins or resumes."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite or infinite values by name, measured at a step; each step is logged once."""
        raise NotImplementedError

    def finish(self, status: Status) -> None:
        """The run has ended; also called if `start` or `log` failed."""
        raise NotImplementedError
