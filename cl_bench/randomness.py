"""Counter-based randomness: every random draw is a pure function of a key that says its purpose.

Keys are tuples such as `(seed, "augment", task, phase, epoch)`. No draw depends on the global generator or on the
order of calls, so resuming, auditing and parallel loading do not change any number.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Key = tuple[int | str, ...]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def seed_of(key: Key) -> int:
    """63-bit seed of a key, from SHA-256, so that similar keys have unrelated seeds."""
    plain = tuple(str(part) if isinstance(part, str) else operator.index(part) for part in key)
    return int.from_bytes(hashlib.sha256(repr(plain).encode()).digest()[:8], "little") >> 1


def generator(key: Key) -> torch.Generator:
    """CPU generator of a key; draw on the CPU and move the numbers, so that they are the same on every device."""
    return torch.Generator().manual_seed(seed_of(key))


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Seed the global CPU generator inside this context, for code that takes no generator (module constructors)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(key))
        yield


def permutation(key: Key, n: int) -> NDArray[np.int64]:
    """Random permutation of 0..n-1, int64 [n]."""
    return torch.randperm(n, generator=generator(key)).numpy()


def uniform(key: Key, ids: NDArray[np.int64], draws: int) -> torch.Tensor:
    """Uniform random numbers in [0, 1) that depend on the samples, not on their positions in a batch.

    Args:
        key: purpose of the draws.
        ids: identities of the samples, [n].
        draws: numbers per sample.

    Returns:
        float32 [n, draws], a function of (key, draws, id, draw) only (SplitMix64; Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        counter = ids.astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
        z: Any = np.uint64(seed_of(key)) + (counter + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))
