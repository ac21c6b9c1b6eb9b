"""The search for the number of concurrent runs, on hosts whose throughput is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_bench.contract import registry
from cl_bench.experiment import Limits
from cl_bench.running import executors, job_search, plan
from cl_bench.running.job_search import WINDOW, JobSearch
from cl_bench.running.progress import RunProgress
from cl_bench.running.runner import Settings
from cl_bench.store import Store

IMAGES = 1000


def searched(
    throughput: Callable[[int], float], most: int = 16, room: Callable[[int], bool] = lambda jobs: True
) -> JobSearch:
    """A search on a host that finishes `throughput(jobs)` runs an hour; each run ends after its 1000 images."""
    search = JobSearch(1, most, lambda: room(search.jobs * 2))
    now, left, number = 0.0, dict[int, float](), 0
    while not search.done and now < 1000 * WINDOW:
        while len(left) < search.jobs:
            search.hear(number, now, "start", IMAGES)
            left[number] = IMAGES
            number += 1
        now += 1
        done = IMAGES * throughput(search.jobs) / 3600 / len(left)
        for run in list(left):
            search.hear(run, now, "advance", done)
            left[run] -= done
            if left[run] <= 0:
                search.end(run)
                del left[run]
    return search


@given(best=st.sampled_from([1, 2, 4, 8, 16]), most=st.integers(1, 16), gain=st.floats(1.2, 2.0))
def test_the_number_with_the_most_work_is_found(best: int, most: int, gain: float) -> None:
    """Twice as many runs are `gain` times faster up to the best number, and 1 % faster beyond it."""

    def throughput(jobs: int) -> float:
        return 40 * gain ** (min(jobs, best).bit_length() - 1) * 1.01 ** max(0, jobs - best)

    search = searched(throughput, most)
    assert search.jobs == min(best, 1 << (most.bit_length() - 1)) and search.done


def test_memory_bounds_the_search() -> None:
    search = searched(lambda jobs: 10.0 * jobs, room=lambda jobs: jobs <= 4)
    assert search.jobs == 4 and list(search.rates) == [1, 2, 4]
    assert search.summary().startswith("--jobs auto: 4 at a time; runs an hour: 10 with 1, ")


def test_memory_that_runs_out_ends_the_search() -> None:
    search = JobSearch(4, 16, lambda: True)
    search.stop(2)
    search.hear(0, 0.0, "start", IMAGES)
    assert (search.jobs, search.done, search.summary()) == (2, True, "--jobs auto: 2 at a time")


def test_the_start_of_workers_and_progress_from_a_checkpoint_are_no_work() -> None:
    """Until all runs make progress nothing is measured, and what a resumed run had done before does not count."""
    search = JobSearch(2, 2 * 2, lambda: True)
    for run in (0, 1):
        search.hear(run, 0.0, "start", IMAGES)
    search.hear(0, 1.0, "advance", 900)
    search.hear(0, 100.0, "advance", 10)
    assert search.rates == {}
    search.hear(1, 100.0, "advance", 500)
    search.hear(1, 100.0, "resume", 1, 2)
    search.hear(1, 100.0, "advance", 1)
    search.hear(1, 100.0 + WINDOW, "advance", 100)
    assert search.rates == {2: pytest.approx(3600 * 0.1 / WINDOW)} and search.jobs == 4


def test_a_sweep_grows_to_the_number_that_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real workers: it begins with one and asks for a second one; every run is stored, and the rates are told."""
    monkeypatch.setattr(job_search, "WINDOW", 0.0)
    limits = Limits(tasks=2, train_per_class=3, test_per_class=2)
    linear = registry.find("linear")
    specs = [plan.RunSpec(method=linear, options={"epochs": 2}, seed=seed, limits=limits) for seed in range(4)]
    runs, store, said = plan.plan(specs), Store(tmp_path), list[str]()
    progress = RunProgress()
    monkeypatch.setattr(progress, "warn", said.append)
    executor = executors.ConcurrentExecutor(torch.device("cpu"), 2, search=True)
    outcomes = list(executor(runs, store, Settings(), progress))
    assert [outcome.failure for outcome in outcomes] == [""] * 4
    assert all(store.find(run.experiment) is not None for run in runs)
    (sentence,) = said
    assert sentence.startswith("--jobs auto: ") and "with 1" in sentence
