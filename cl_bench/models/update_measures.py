"""Measures of weight updates: how large they are, how many directions they use, and how far two of them overlap.

All work on matrices [..., d, d] without a decomposition. With M = U diag(s) V^T:

    ||M||_F^2 = sum s_i^2,   ||M^T M||_F^2 = sum s_i^4
"""

from __future__ import annotations

from torch import Tensor


def energy(update: Tensor) -> Tensor:
    """Squared Frobenius norm, [...]."""
    return update.square().sum(dim=(-2, -1))


def _unit(update: Tensor) -> Tensor:
    """The matrix with a Frobenius norm of 1, so that powers of small entries do not vanish in fp32."""
    return update / energy(update).sqrt()[..., None, None]


def effective_rank(update: Tensor) -> Tensor:
    """Participation ratio of the squared singular values, (sum s^2)^2 / sum s^4, [...]; not a number for a matrix of 0.

    r equal singular values give r, one that dominates gives 1; never more than the rank.
    """
    unit = _unit(update)
    return 1 / energy(unit.mT @ unit)


def cosine(update: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between two matrices as vectors, [...], -1 to 1; not a number if one of them is 0."""
    return (_unit(update) * _unit(other)).sum(dim=(-2, -1))


def input_overlap(update: Tensor, other: Tensor) -> Tensor:
    """Cosine between M^T M and N^T N, [...], 0 to 1: whether two updates react to the same inputs.

    0 for orthogonal row spaces. Not a number if one of the matrices is 0.
    """
    update, other = _unit(update), _unit(other)
    return cosine(update.mT @ update, other.mT @ other)


def output_overlap(update: Tensor, other: Tensor) -> Tensor:
    """Cosine between M M^T and N N^T, [...], 0 to 1: whether two updates change the same outputs."""
    return input_overlap(update.mT, other.mT)
