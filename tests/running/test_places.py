"""A pipe, socket or folder at the path of a run's file is refused in one sentence, before any training."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command import RUNS, TRIAL, Cli, stored

RUN = ("run", "--methods", "simplecil", "--benchmark", "icons-tune", "--jobs", "1", *TRIAL)


def lay_socket(path: Path) -> None:
    # The path of a socket has at most a hundred bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
    Path("s").rename(path.name)
    os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lay_socket,
    "folder": Path.mkdir,
    "what cannot be read (Too many levels of symbolic links)": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(scope="module")
def stem() -> str:
    """Stem of the run's file names; the key in it does not depend on the machine."""
    from cl_bench.contract import registry
    from cl_bench.experiment import Limits
    from cl_bench.running import plan

    limits = Limits(tasks=2, train_per_class=3, test_per_class=2)
    spec = plan.RunSpec(method=registry.find("simplecil"), benchmark="icons-tune", limits=limits)
    (run,) = plan.plan([spec])
    return run.experiment.file_stem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", [".checkpoints/{}.safetensors", "{}.json", "{}-0123abcd.npz", ".checkpoints"], ids=lambda place: place[-6:]
)
def test_it_is_refused_before_training(cl_bench: Cli, stem: str, place: str, kind: str) -> None:
    path = RUNS / place.format(stem)
    expected = "a file"
    path.parent.mkdir(parents=True)
    if place == ".checkpoints":
        expected = "a folder"
        kind = "file" if kind == "folder" else kind
    KINDS.get(kind, Path.touch)(path)
    what = kind if kind.startswith("what") else f"a {kind}"
    done = cl_bench(*RUN, "--precision", "fp32")
    assert done.code == 2, done.err
    assert f"simplecil seed 0 failed: '{path}' is {what}, expected {expected} or nothing: move" in done.err
    assert "task 1/2" not in done.err and os.path.lexists(path)
    assert not [file for file in RUNS.glob("*.json") if file != path]


def test_a_place_is_no_place_of_other_runs(cl_bench: Cli, stem: str) -> None:
    (RUNS / ".checkpoints").mkdir(parents=True)
    os.mkfifo(RUNS / ".checkpoints" / f"{stem}.safetensors")
    done = cl_bench(*RUN, "--precision", "fp32", "--seeds", "0-1")
    assert done.code == 2 and [record["experiment"]["seed"] for record in stored()] == [1]
