"""Processes side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_bench.running.workers import CONTEXT, own, pool

_together: Any = None


def _meet(barrier: Any) -> None:
    global _together
    _together = barrier


def _gpu_of_two() -> int | None:
    # No worker can do this twice while another has not.
    _together.wait()
    with pytest.MonkeyPatch.context() as patch:
        # How many GPUs there are is the one thing that this machine cannot show.
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        return own(torch.device("cuda")).index


def test_workers_share_the_gpus_evenly() -> None:
    with pool(3, 1, _meet, CONTEXT.Barrier(3)) as workers:
        futures = [workers.submit(_gpu_of_two) for _ in range(3)]
        assert sorted(future.result() for future in futures) == [0, 0, 1]


@pytest.mark.parametrize("named", ["cpu", "cuda:1"])
def test_a_named_device_is_kept(named: str) -> None:
    assert own(torch.device(named)) == torch.device(named)
