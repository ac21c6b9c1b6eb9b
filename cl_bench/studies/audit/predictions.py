"""Compares the logits of the same images in different batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cl_bench.models.base import FeatureModel

TOLERANCE = 1e-4
"""Tolerated difference of logits, relative to their range over the classes of an image (median over images).

Kernels for other shapes add in another order. In fp32 this changes the logits of every shipped method by at most 1e-6
of their range (ViT-Ti, sums of some hundred terms; the error grows like the square root of that number). The weakest
leak of released code changes them by 4e-3, most leaks by 0.1 and more.
"""


@dataclass(frozen=True)
class Difference:
    """The difference of two sets of logits of the same images.

    Attributes:
        relative: largest difference, relative to the range of an image's logits (median over images).
        changed: number of images whose prediction differs, out of `total`.
    """

    relative: float
    changed: int
    total: int

    @classmethod
    def between(cls, one: Tensor, other: Tensor, seen: Sequence[int]) -> Difference:
        """The difference of two sets of logits [n, num_classes] over the classes seen."""
        a, b = one[:, seen].double(), other[:, seen].double()
        # Equal infinities agree (a method may exclude classes by -inf); all other values that are not finite differ.
        gap = (a - b).abs().masked_fill(a == b, 0).nan_to_num(nan=float("inf"), posinf=float("inf"))
        finite = a.isfinite()
        top, bottom = a.masked_fill(~finite, -float("inf")).amax(1), a.masked_fill(~finite, float("inf")).amin(1)
        ranges = (top - bottom)[(top - bottom) > 0]
        scale = float(ranges.median()) if len(ranges) else 1.0
        return cls(float(gap.max()) / scale, int((a.argmax(1) != b.argmax(1)).sum()), len(a))

    @property
    def tolerable(self) -> bool:
        """Whether the difference is within `TOLERANCE`; a prediction that still changes was practically a tie."""
        return self.relative <= TOLERANCE

    def __str__(self) -> str:
        relative = f"{self.relative:.0e}" if self.relative else "0"
        return f"{relative}, {self.changed} of {self.total} change"


def largest(differences: Iterable[tuple[str, Difference]]) -> tuple[str, Difference]:
    """The name and value of the largest difference, with the maximum of all `changed`."""
    pairs = list(differences)
    name, worst = max(pairs, key=lambda pair: pair[1].relative)
    return name, replace(worst, changed=max(difference.changed for _, difference in pairs))


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """fp32 logits [B, num_classes] of one batch, with newly computed queries."""
    query = model.query(images) if isinstance(model, FeatureModel) else None
    logits: Tensor = model(images) if query is None else model(images, query)
    return logits.float()


def predict(model: Any, images: Tensor, batches: Iterable[NDArray[np.int64]]) -> Tensor:
    """Logits [n, num_classes] of the images, predicted in these batches (arrays of positions)."""
    parts = list(batches)
    logits = [logits_of(model, images[batch]) for batch in parts]
    result = torch.empty(len(images), logits[0].shape[1])
    for batch, part in zip(parts, logits, strict=True):
        result[batch] = part
    return result


def pieces(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """An order split into batches; the last one may be smaller."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def full_pieces(groups: Iterable[NDArray[np.int64]], size: int) -> list[NDArray[np.int64]]:
    """Batches within each group, all of the same size; the last of a group is filled up with members of the group."""
    return [
        np.concatenate([piece, np.resize(group, size - len(piece))])
        for group in groups
        for piece in pieces(group, size)
    ]


def grouped(order: NDArray[np.int64], by: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions grouped by the values of `by`, in this order within each group."""
    return [order[by[order] == value] for value in np.unique(by)]
