"""Measures of weight updates, against singular values and by their properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_bench.models.update_measures import cosine, effective_rank, energy, input_overlap, output_overlap


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(seed: int, rank: int, dim: int = 12) -> Tensor:
    return random(seed, dim, rank) @ random(seed + 1, rank, dim)


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_the_effective_rank_is_that_of_the_singular_values(seed: int, rank: int) -> None:
    update = low_rank(seed, rank)
    squares = torch.linalg.svdvals(update).square()
    assert float(effective_rank(update)) == pytest.approx(float(squares.sum() ** 2 / squares.square().sum()))
    assert 1 - 1e-9 <= float(effective_rank(update)) <= rank + 1e-9
    assert float(energy(update)) == pytest.approx(float(squares.sum()))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_count_fully(rank: int) -> None:
    basis = torch.linalg.qr(random(rank, 12, 12)).Q[:, :rank]
    assert float(effective_rank(5 * basis @ basis.T)) == pytest.approx(rank)


def test_overlaps_tell_inputs_from_outputs() -> None:
    rows, others = torch.linalg.qr(random(0, 12, 12)).Q.split([3, 9], dim=1)
    columns, rest = torch.linalg.qr(random(1, 12, 12)).Q.split([3, 9], dim=1)
    one = columns @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()) @ rows.T
    same_inputs, same_outputs = rest[:, :3] @ rows.T, columns @ others[:, :3].T
    assert float(input_overlap(one, same_outputs)) == pytest.approx(0, abs=1e-12)
    assert float(output_overlap(one, same_inputs)) == pytest.approx(0, abs=1e-12)
    # The cosine between the squared singular values 9, 4, 1 and 1, 1, 1.
    expected = 14 / (98 * 3) ** 0.5
    assert float(input_overlap(one, same_inputs)) == pytest.approx(expected)
    assert float(output_overlap(one, same_outputs)) == pytest.approx(expected)
    assert [float(f(one, -2 * one)) for f in (cosine, input_overlap, output_overlap)] == pytest.approx([-1, 1, 1])


def test_tiny_updates_keep_their_measures_in_fp32() -> None:
    one, other = (1e-12 * low_rank(seed, 3) for seed in (5, 7))
    for measure in (cosine, input_overlap, output_overlap):
        assert float(measure(one.float(), other.float())) == pytest.approx(float(measure(one, other)), rel=1e-3)
    assert float(effective_rank(one.float())) == pytest.approx(float(effective_rank(one)), rel=1e-4)


def test_an_update_of_nothing_has_no_rank_and_no_overlap() -> None:
    zero, update = torch.zeros(2, 4, 4), random(3, 2, 4, 4)
    for value in (effective_rank(zero), cosine(zero, update), input_overlap(update, zero)):
        assert value.shape == (2,) and bool(value.isnan().all())
