"""A run that is killed goes on where it was, and ends with the numbers of a run that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import processes

LIMITS = ["--limit-tasks", "3", "--limit-train", "6", "--limit-test", "4", "--checkpoint-every", "0"]
RUN = ["run", "--benchmark", "icons-tune", "--device", "cpu", *LIMITS, "--methods"]
KILLS = int(os.environ.get("CL_BENCH_KILLS", "2"))
"""Per method; `make soak` asks for more."""
METHODS = [
    "sdlora[epochs=3]",
    "inflora[epochs=2]",
    "coda[epochs=2]",
    "ranpac[epochs=3,projection=500]",
    "joint[epochs=4]",
    "linear[align=true,epochs=2,optimizer=adamw]",
    "hide[epochs=2,inference_epochs=2,align_epochs=2]",
]


def result(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The only record in a folder, with its arrays."""
    (path,) = (folder / "results" / "runs").glob("*.json")
    (arrays,) = (folder / "results" / "runs").glob("*.npz")
    with np.load(arrays) as found:
        return json.loads(path.read_text()), dict(found)


def finish(folder: Path, *arguments: str) -> None:
    process = processes.start(folder, *arguments)
    process.join(240)
    assert process.exitcode == 0, (folder / "log").read_text()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.partition("[")[0])
def test_a_killed_run_ends_as_if_it_had_never_been_killed(method: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    began = time.monotonic()
    finish(whole, *RUN, method)
    seconds = time.monotonic() - began
    chance = random.Random(f"{method} {KILLS}")
    kills = 0
    while kills < KILLS:
        process = processes.start(killed, *RUN, method)
        process.join(chance.uniform(0.1, 0.9) * seconds)
        if process.exitcode is not None:
            assert process.exitcode == 0, (killed / "log").read_text()
            if not (killed / "results" / "runs").glob("*.json"):
                raise AssertionError("it ended without a result")
            for file in (killed / "results" / "runs").glob("*"):
                if file.is_file():
                    file.unlink()
            continue
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    finish(killed, *RUN, method)
    (one, arrays), (other, arrays_of_other) = result(whole), result(killed)
    for name in ("key", "stages", "correct", "correct_task_aware", "total", "trainable", "stored", "traces"):
        assert one[name] == other[name], name
    assert one["train_samples"] == other["train_samples"]
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, arrays_of_other[name], err_msg=name)
    assert one["sessions"] == 1
    assert not list((killed / "results" / "runs" / ".checkpoints").glob("*"))
