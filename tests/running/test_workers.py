"""Worker processes and their GPUs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_bench.running.workers import CONTEXT, pick_worker_gpu, pool

_barrier: Any = None


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _gpu_of_two() -> int | None:
    # No worker can do this twice while another has not.
    _barrier.wait()
    with pytest.MonkeyPatch.context() as patch:
        # How many GPUs there are is the one thing that this machine cannot show.
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        return pick_worker_gpu(torch.device("cuda")).index


def test_workers_share_the_gpus_evenly() -> None:
    with pool(3, 1, _set_barrier, CONTEXT.Barrier(3)) as workers:
        futures = [workers.submit(_gpu_of_two) for _ in range(3)]
        assert sorted(future.result() for future in futures) == [0, 0, 1]


@pytest.mark.parametrize("named", ["cpu", "cuda:1"])
def test_a_named_device_is_kept(named: str) -> None:
    assert pick_worker_gpu(torch.device(named)) == torch.device(named)
