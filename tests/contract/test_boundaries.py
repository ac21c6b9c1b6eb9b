"""What happens to a LoRA between tasks: `continue`, `stack` and `merge`, for every method that has the choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_bench.contract import registry
from cl_bench.errors import UserError
from tests.helpers.rows import NAMES, small
from tests.helpers.tiny import cut
from tests.helpers.training import all_images, distance, strategy_of, train


def accepts(name: str, boundary: str) -> bool:
    try:
        return "boundary" in registry.find(name).configure({"boundary": boundary}).values() or boundary == "stack"
    except UserError:
        return False


WITH_BOUNDARY = [name for name in NAMES if "boundary" in registry.find(name).defaults]
MERGING = [name for name in WITH_BOUNDARY if accepts(name, "merge")]


def learned(name: str, boundary: str) -> Any:
    return train(strategy_of(small(name, boundary=boundary, lr=0.01)), cut()).model.eval()


@pytest.mark.parametrize("name", MERGING)
def test_stacked_and_merged_directions_are_one_function(name: str) -> None:
    stacked, merged = (learned(name, boundary) for boundary in ("stack", "merge"))
    assert len(stacked.bank) >= 3 and len(merged.bank) < len(stacked.bank)
    with torch.no_grad():
        assert distance(merged(all_images()), stacked(all_images())) < 1e-5
    torch.testing.assert_close(merged.update(), stacked.update(), rtol=1e-4, atol=1e-6)
    assert float(merged.update().norm()) > 0.01, "the tasks change nothing"


@pytest.mark.parametrize("name", [name for name in WITH_BOUNDARY if accepts(name, "continue")])
def test_one_direction_is_trained_in_turn(name: str) -> None:
    continued = learned(name, "continue")
    assert len(continued.bank) == 1 and continued.bank.base is None
    after_one = train(strategy_of(small(name, boundary="continue", lr=0.01)), cut(), stages=1).model
    assert distance(after_one.update(), continued.update()) > 1e-4


def test_a_penalty_on_old_directions_needs_them() -> None:
    with pytest.raises(UserError, match="boundary"):
        small("olora", boundary="merge")
