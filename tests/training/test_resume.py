"""A killed run resumes where it was, and ends with the numbers of a run that was never killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.helpers import gate, processes
from tests.helpers.command import Result, results

LIMITS = ["--limit-tasks", "3", "--limit-train", "6", "--limit-test", "4", "--checkpoint-every", "0"]
STREAM = ["run", "--benchmark", "icons-tune", "--device", "cpu", *LIMITS]
RUN = [*STREAM, "--methods"]
GATED = [*STREAM, *gate.GATED, "gated[epochs=2]"]
PROBED = ("--probe", "interpolation", "--limit-test", "2")
"""The interpolation probe evaluates eleven points, so use fewer images."""
KILLS = int(os.environ.get("CL_BENCH_KILLS", "1"))
"""Per method; `make soak` asks for more."""
METHODS = [
    "sdlora[epochs=2]",
    "inflora[epochs=2]",
    "coda[epochs=2]",
    "ranpac[epochs=3,projection=500]",
    "joint[epochs=2]",
]
STATEFUL = [
    "linear[align=true,epochs=2,optimizer=adamw]",
    "hide[epochs=2,inference_epochs=2,align_epochs=2]",
    "l2p[epochs=2]",
    "dualprompt[epochs=2]",
    "nlora[epochs=2]",
    "sdlora-kd[epochs=2]",
]
"""Methods that are only killed in the long campaign."""


NUMBERS = ("key", "stages", "correct", "correct_task_aware", "total", "trainable", "stored", "train_samples", "traces")
"""Fields of a record that do not depend on when and how it was computed."""


def assert_equal_results(one: Result, other: Result) -> None:
    for name in NUMBERS:
        assert one[0][name] == other[0][name], name
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_array_equal(values, other[1][name], err_msg=name)


def result(folder: Path) -> Result:
    """The only record in a folder, and its arrays."""
    (path,) = (folder / "results" / "runs").glob("*.json")
    (arrays,) = (folder / "results" / "runs").glob("*.npz")
    with np.load(arrays) as found:
        return json.loads(path.read_text()), dict(found)


def finish(folder: Path, *arguments: str) -> None:
    process = processes.start(folder, *arguments)
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()


@pytest.mark.parametrize("method", METHODS + STATEFUL * (KILLS > 1), ids=lambda method: method.partition("[")[0])
def test_a_killed_run_ends_as_if_it_had_never_been_killed(method: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    began = time.monotonic()
    probe = PROBED if method.startswith("sdlora") else ()
    finish(whole, *RUN, method, *probe)
    seconds = time.monotonic() - began
    chance = random.Random(f"{method} {KILLS}")
    kills = 0
    while kills < KILLS:
        process = processes.start(killed, *RUN, method, *probe)
        process.join(chance.uniform(0.1, 0.9) * seconds)
        if process.exitcode is not None:
            assert process.exitcode == 0, (killed / "log").read_text()
            # The kill came too late: try again from the beginning.
            for file in (killed / "results" / "runs").glob("*"):
                if file.is_file():
                    file.unlink()
            continue
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    finish(killed, *RUN, method, *probe)
    assert ("interpolation" in result(whole)[0]["traces"]) == bool(probe)
    assert result(whole)[0]["sessions"] == 1
    assert_equal_results(result(whole), result(killed))
    assert not list((killed / "results" / "runs" / ".checkpoints").glob("*"))


WORKER_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
PARENT_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.skipif(KILLS == 1, reason="takes minutes: make soak")
def test_a_sweep_ends_as_if_no_worker_or_parent_had_been_killed(tmp_path: Path) -> None:
    """Victims and moments are random; moments are counted in checkpoints, of which there is one after every batch."""
    methods = "sdlora[epochs=2],inflora[epochs=2],ranpac[epochs=2,projection=500]"
    sweep = [*RUN, methods, "--seeds", "0-1", "--set", "batch_size=8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(whole, *sweep, "--jobs", "1")
    expected = results(whole)
    assert len(expected) == 6
    store = killed / "results" / "runs"
    chance = random.Random(KILLS)
    victims: Counter[str] = Counter()

    def checked() -> None:
        found = results(killed)
        assert found.keys() == expected.keys()
        for key, (record, arrays) in found.items():
            assert_equal_results(expected[key], (record, arrays))
        assert not list((store / ".checkpoints").glob("*.safetensors"))
        victims["sweeps"] += 1

    while sum(victims.values()) - victims["sweeps"] < 4 * KILLS:
        parent = processes.start(killed, *sweep, "--jobs", "2")
        assert parent.pid is not None
        ended_by: set[int] = set()
        while parent.is_alive():
            moment, before = chance.randrange(20), checkpoints(killed)
            written: set[tuple[str, int]] = set()
            while parent.is_alive() and len(written) < moment:
                written |= checkpoints(killed) - before
                time.sleep(0.01)
            workers = processes.workers_of(parent.pid)
            if workers and chance.random() < 0.5:
                how = chance.choice(WORKER_SIGNALS)
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), how)
                    victims[f"worker {how.name}"] += 1
            elif parent.is_alive():
                how = chance.choice(PARENT_SIGNALS)
                os.kill(parent.pid, how)
                parent.join()
                victims[f"parent {how.name}"] += 1
                # Right after its start, the process does not handle signals yet.
                ended_by = {-how} if how == signal.SIGKILL else {128 + how} if moment > 0 else {128 + how, -how}
        # The workers and the tracker of shared memory end, too.
        while processes.in_sessions([parent.pid]):
            time.sleep(0.01)
        assert parent.exitcode in ended_by | {0}, (killed / "log").read_text()
        if parent.exitcode == 0:
            checked()
            shutil.rmtree(store)
    finish(killed, *sweep, "--jobs", "2")
    checked()
    print(dict(victims))


def checkpoints(folder: Path) -> set[tuple[str, int]]:
    """Name and time of each checkpoint."""
    found = set()
    for path in (folder / "results" / "runs" / ".checkpoints").glob("*.safetensors"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def ended_at_the_gate(folder: Path, task: int, how: signal.Signals) -> int | None:
    """Start the gated run, end it where it waits before a task, and open the gate; returns the exit code."""
    gate.lay(folder, task)
    process = processes.start(folder, *GATED)
    gate.wait(lambda: gate.reached(folder, task), process.is_alive, folder / "log")
    assert process.pid is not None
    os.kill(process.pid, how)
    process.join()
    gate.open_gates(folder)
    return process.exitcode


def interrupted(folder: Path) -> Path:
    """Kill a run after its first task; returns its checkpoint."""
    assert ended_at_the_gate(folder, 1, signal.SIGKILL) == -signal.SIGKILL
    (checkpoint,) = (folder / "results" / "runs" / ".checkpoints").glob("*.safetensors")
    return checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    gate.lay(folder)
    finish(folder, *GATED)
    return folder


def assert_same_numbers(one: Path, other: Path) -> None:
    (record, arrays), (again, arrays_again) = result(one), result(other)
    assert record["correct"] == again["correct"] and record["correct_task_aware"] == again["correct_task_aware"]
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, arrays_again[name])


def test_the_user_is_told_that_a_run_goes_on(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    interrupted(folder)
    (folder / "log").unlink()
    finish(folder, *GATED)
    assert "resumes after task 1/3" in (folder / "log").read_text()
    assert result(folder)[0]["sessions"] == 2
    assert_same_numbers(whole, folder)


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    assert ended_at_the_gate(folder, 2, signal.SIGINT) == 130
    assert "interrupted" in (folder / "log").read_text()
    finish(folder, *GATED)
    assert_same_numbers(whole, folder)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_ends_a_process_ends_a_run_like_ctrl_c(tmp_path: Path, how: signal.Signals, code: int) -> None:
    folder = tmp_path / "run"
    assert ended_at_the_gate(folder, 1, how) == code
    assert "interrupted; finished results are stored" in (folder / "log").read_text()
    (left,) = [path for path in (folder / "results" / "runs").rglob("*") if path.is_file()]
    assert left.suffix == ".safetensors" and not left.name.startswith(".")


@pytest.mark.parametrize("damage", ["flipped", "other"])
def test_a_damaged_checkpoint_is_named_and_the_run_starts_anew(tmp_path: Path, whole: Path, damage: str) -> None:
    folder = tmp_path / "run"
    checkpoint = interrupted(folder)
    content = bytearray(checkpoint.read_bytes())
    if damage == "flipped":
        content[-100] ^= 4
    else:
        content = bytearray(safetensors.torch.save({"model.head": torch.zeros(2)}))
    checkpoint.write_bytes(bytes(content))
    (folder / "log").unlink()
    finish(folder, *GATED)
    log = (folder / "log").read_text()
    assert "a checkpoint cannot be used" in log and checkpoint.name in log and "Traceback" not in log
    assert result(folder)[0]["sessions"] == 1
    assert_same_numbers(whole, folder)


def test_force_starts_from_the_beginning(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    interrupted(folder)
    (folder / "log").unlink()
    finish(folder, *GATED, "--force")
    assert "resumes" not in (folder / "log").read_text() and result(folder)[0]["sessions"] == 1
    assert_same_numbers(whole, folder)


def test_a_full_disk_ends_in_a_sentence_and_stores_nothing(tmp_path: Path) -> None:
    """Files may not grow beyond a few KB: neither checkpoint nor result fits."""
    folder = tmp_path / "run"
    folder.mkdir()
    process = processes.start(folder, *RUN, "sdlora[epochs=1]", largest_file=3000)
    process.join()
    log = (folder / "log").read_text()
    assert process.exitcode == 1 and "failed" in log and "Traceback" not in log
    assert "no checkpoint of sdlora" in log and log.count("no checkpoint of sdlora") == 1
    assert not [file for file in (folder / "results" / "runs").rglob("*") if file.is_file()]
    finish(folder, *RUN, "sdlora[epochs=1]")
    assert result(folder)[0]["sessions"] == 1


def test_four_processes_on_one_store_lose_nothing(tmp_path: Path) -> None:
    """All processes get the same runs, so that each run is computed up to four times at once, with checkpoints."""
    methods = "simplecil,linear[epochs=1]"
    arguments = [*RUN, methods]
    # Each process has its own current folder for its log; the results folder is shared.
    folders = [tmp_path / str(number) for number in range(4)]
    store = tmp_path / "store"
    started = []
    for folder in folders:
        folder.mkdir()
        started.append(processes.start(folder, *arguments, "--results", str(store)))
    for folder, process in zip(folders, started, strict=True):
        process.join()
        log = (folder / "log").read_text()
        assert process.exitcode == 0 and "error" not in log and "Traceback" not in log, log
    assert len(list(store.glob("*.json"))) == len(list(store.glob("*.npz"))) == 2
    check = processes.start(tmp_path, "results", "verify", "--results", str(store))
    check.join()
    assert check.exitcode == 0, (tmp_path / "log").read_text()
    alone = tmp_path / "alone"
    alone.mkdir()
    finish(alone, *arguments)
    for path in (alone / "results" / "runs").glob("*.json"):
        one, other = (json.loads(file.read_text()) for file in (path, store / path.name))
        assert one["correct"] == other["correct"] and one["correct_task_aware"] == other["correct_task_aware"]
