"""Shared fixtures: the real command line, in this process or in one of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Consoles made while this is set keep that width, and pytest-xdist sets it: tests set a width of their own later.
os.environ.pop("COLUMNS", None)
# Imports make a million objects, none of them garbage: looking for some would take a quarter of the time.
gc.disable()

from cl_bench import cli  # noqa: E402
from tests.helpers import SOAK  # noqa: E402
from tests.helpers.command import Outcome  # noqa: E402

# Beside other work an example takes as long as it likes. `make test` always has the same ones, `make soak` new ones.
settings.register_profile(
    "no deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=not SOAK, print_blob=True
)
settings.load_profile("no deadline")

LONGEST = (
    "test_strategy.py", "test_avalanche.py", "test_leaks.py", "test_randomness.py", "test_frozen_weights.py",
    "test_phases.py", "test_padding.py", "test_audit.py", "test_resume.py", "test_ray.py", "test_workers.py",
    "test_tune.py", "test_scenarios.py", "test_api.py", "test_golden.py", "test_golden_replay.py", "test_examples.py",
    "test_cli.py", "test_page.py", "test_speed_options.py", "test_methods.py", "test_backbones.py", "test_charts.py",
    "test_kinds.py", "test_site.py", "test_tracking.py", "test_tutorial.py", "test_slurm.py",
)  # fmt: skip
"""Files that take the longest, from the first on."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: with one file at a time and process, none is left alone with a long one at the end."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """Garbage is looked for again, but not among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Libraries complain of what is not taken down at the end."""
    gc.unfreeze()


@pytest.fixture
def cl_bench(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """`cl_bench("run", "--methods", "sdlora")` in an empty folder, through the entry point, without a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for variable in ("CL_BENCH_DATA", "CL_BENCH_RESULTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CL_BENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cl-bench", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`process("run", ...)`: the same in a process of its own, for what only a real one shows."""

    def call(*arguments: str, pythonpath: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"COLUMNS": "200"} | ({"PYTHONPATH": str(pythonpath)} if pythonpath else {})
        command = [sys.executable, "-m", "cl_bench", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return call


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices are faster on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def plain_and_single_threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread: two of them on a busy machine wait for each other ten times as long as they work."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data of whoever runs the tests."""
    from cl_bench.streams import catalogue

    monkeypatch.delenv(catalogue.ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
