"""Draws belong to what they are for: keys and samples, never the order of calls."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.randomness import Key, generator, permutation, seed_of, seeded, uniform

KEYS = st.lists(st.integers(0, 2**40) | st.text(max_size=6), max_size=5).map(tuple)
IDS = st.lists(st.integers(0, 2**40), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(KEYS, IDS, st.integers(1, 6), st.data())
def test_uniform_belongs_to_the_sample_not_to_its_place(
    key: Key, ids: list[int], draws: int, data: st.DataObject
) -> None:
    whole = uniform(key, np.array(ids), draws)
    assert whole.shape == (len(ids), draws) and whole.dtype == torch.float32
    assert bool(((whole >= 0) & (whole < 1)).all())
    picked = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=10))
    assert torch.equal(uniform(key, np.array(ids)[picked], draws), whole[picked])


@settings(deadline=None, max_examples=50)
@given(KEYS, KEYS)
def test_other_keys_give_other_numbers(one: Key, other: Key) -> None:
    ids = np.arange(8)
    assert torch.equal(uniform(one, ids, 3), uniform(other, ids, 3)) is (one == other)
    assert (seed_of(one) == seed_of(other)) is (one == other)
    assert 0 <= seed_of(one) < 2**63


def split_mix(seed: int, counter: int) -> float:
    """SplitMix64's output of this number (Steele et al. 2014), in Python's integers, as a float32 in [0, 1)."""
    bits = 2**64 - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & bits
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
    return (z ^ (z >> 31)) / 2**64


@pytest.mark.parametrize("draws", [1, 3, 5])
def test_every_draw_of_every_sample_is_a_number_of_its_own(draws: int) -> None:
    """Neighbouring samples share none: views of one image would be cut from another one's numbers."""
    key: Key = (4, "view", 0)
    found = uniform(key, np.arange(100), draws)
    assert len(found.unique()) == 100 * draws
    expected = [[split_mix(seed_of(key), i * draws + draw) for draw in range(draws)] for i in range(100)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-24)


def test_uniform_is_uniform_and_uncorrelated() -> None:
    n = 40_000
    keys: list[Key] = [(0, "view", task, 0, epoch) for task in range(2) for epoch in range(2)]
    columns = torch.cat([uniform(key, np.arange(n), 5) for key in keys], dim=1).double().numpy()
    # Standard errors: 0.2887 / sqrt(n) = 0.0014 for a mean, 1 / sqrt(n) = 0.005 for a correlation.
    assert np.abs(columns.mean(axis=0) - 0.5).max() < 0.008
    assert np.abs(columns.var(axis=0) - 1 / 12).max() < 0.004
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.03
    # Any draw of a sample with any draw of the next one.
    width = columns.shape[1]
    neighbours = np.corrcoef(columns[:-1], columns[1:], rowvar=False)[:width, width:]
    assert np.abs(neighbours).max() < 0.03
    bins = np.stack([np.histogram(c, bins=20, range=(0, 1))[0] for c in columns.T])
    chi_square = ((bins - n / 20) ** 2 / (n / 20)).sum(axis=1)
    assert chi_square.max() < 60, "19 degrees of freedom: 60 has a probability of 4e-6"


@settings(deadline=None, max_examples=50)
@given(KEYS, st.integers(0, 300))
def test_permutation(key: Key, n: int) -> None:
    found = permutation(key, n)
    assert sorted(found.tolist()) == list(range(n))
    torch.manual_seed(n)
    assert np.array_equal(found, permutation(key, n))


def test_permutations_of_neighbouring_keys_differ_and_reach_every_place() -> None:
    found = np.stack([permutation((0, "order", epoch), 10) for epoch in range(500)])
    assert len({tuple(row) for row in found.tolist()}) == 500
    counts = np.stack([np.bincount(column, minlength=10) for column in found.T])
    assert counts.min() > 20 and counts.max() < 90


def test_generators_are_the_same_whenever_they_are_asked_for() -> None:
    first = torch.rand(5, generator=generator((1, "a")))
    torch.rand(7)
    assert torch.equal(first, torch.rand(5, generator=generator((1, "a"))))
    assert not torch.equal(first, torch.rand(5, generator=generator((1, "b"))))


@pytest.mark.parametrize("fail", [False, True])
def test_seeded_restores_the_global_state(fail: bool) -> None:
    torch.manual_seed(3)
    before = (torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate())
    draws = []
    for _ in range(2):
        try:
            with seeded(("build",)):
                draws.append(torch.rand(4))
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.array], ids=lambda kind: kind.__name__)
def test_a_numpy_seed_is_the_same_seed(kind: Callable[[int], Any]) -> None:
    key, same = (7, "build", 1), (kind(7), "build", kind(1))
    ids = np.arange(5)
    assert seed_of(key) == seed_of(same)
    assert torch.equal(uniform(key, ids, 3), uniform(same, ids, 3))
    assert np.array_equal(permutation(key, 20), permutation(same, 20))
    assert torch.equal(torch.rand(4, generator=generator(key)), torch.rand(4, generator=generator(same)))


def test_numpy_texts_are_texts() -> None:
    assert seed_of((1, str(np.str_("build")))) == seed_of((1, np.str_("build")))


@pytest.mark.parametrize("part", [1.0, np.float64(1), None, b"build", (1,)], ids=repr)
def test_keys_of_other_things_are_refused(part: Any) -> None:
    with pytest.raises(TypeError):
        seed_of((part,))


def test_seeds_are_pinned() -> None:
    """Stored results were drawn with these: undo the change, not the literals."""
    assert seed_of((7, "build", 1)) == 7872934799111394398
