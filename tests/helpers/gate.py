"""A method that waits at a gate until a test opens it, so that no test depends on timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHOD = """
from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_bench.data.samples import TaskSamples
from cl_bench.contract.task import Task
from cl_bench.methods.sdlora import SDLoRA


@dataclass(frozen=True, kw_only=True, eq=False)
class Gated(SDLoRA):
    \"\"\"SD-LoRA that waits before task N while there is a file `closed-N` in the current folder.

    With a file `closed-N.S` it waits in step S of task N, before anything else sees that step.
    \"\"\"

    def before_task(self, task: Task, images: TaskSamples) -> None:
        wait_at(f"{task.index}")
        super().before_task(task, images)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.position is not None:
            wait_at(f"{strategy.task.index}.{strategy.position.step}")


def wait_at(place: str) -> None:
    gate = Path(f"closed-{place}")
    if gate.exists():
        Path(f"reached-{place}").touch()
    while gate.exists():
        time.sleep(0.02)
"""
GATED = ("--method-file", "gated.py", "--methods")


def lay(folder: Path, *closed: int | str) -> None:
    """Put the method into the folder in which a command will run, with these gates (0-based tasks) closed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gated.py").write_text(METHOD)
    for task in closed:
        close(folder, task)


def close(folder: Path, task: int | str) -> None:
    """Close a gate at which no run waits."""
    (folder / f"closed-{task}").touch()
    (folder / f"reached-{task}").unlink(missing_ok=True)


def reached(folder: Path, task: int | str) -> bool:
    """Whether a run waits at this gate; all checkpoints of earlier tasks are written then."""
    return (folder / f"reached-{task}").exists()


def open_gates(folder: Path) -> None:
    """Open all gates, so that all runs continue."""
    for gate in folder.glob("closed-*"):
        gate.unlink()


def wait(ready: Callable[[], Any], alive: Callable[[], bool], log: Path) -> None:
    """Wait without deadline until `ready`; if the process ends before that, fail with its output."""
    while not ready():
        ended = not alive()
        # It may have become ready just before it ended.
        assert not ended or ready(), log.read_text() if log.exists() else "the process has ended"
        time.sleep(0.02)
