"""Predictions of the same images in other batches, compared."""

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
"""Of logits, relative to the range that they have over the classes of an image (median over images).

Kernels for other shapes add in another order. In fp32 that moves the logits of every shipped method by 1e-6 of their
range at most (ViT-Ti, sums of some hundred terms; in larger networks the error grows like the root of their number).
The weakest leak of released code moves them by 4e-3 there, usual ones by 0.1 and more.
"""


@dataclass(frozen=True)
class Difference:
    """How far two sets of logits of the same images are apart.

    Attributes:
        relative: largest difference, relative to the range of an image's logits.
        changed: images whose prediction is another one, of `total`.
    """

    relative: float
    changed: int
    total: int

    @classmethod
    def between(cls, one: Tensor, other: Tensor, seen: Sequence[int]) -> Difference:
        """Of logits [n, num_classes], over the classes seen."""
        a, b = one[:, seen].double(), other[:, seen].double()
        # Classes that a method rules out with -inf on both sides agree; whatever else is not finite does not.
        gap = (a - b).abs().masked_fill(a == b, 0).nan_to_num(nan=float("inf"), posinf=float("inf"))
        finite = a.isfinite()
        top, bottom = a.masked_fill(~finite, -float("inf")).amax(1), a.masked_fill(~finite, float("inf")).amin(1)
        ranges = (top - bottom)[(top - bottom) > 0]
        scale = float(ranges.median()) if len(ranges) else 1.0
        return cls(float(gap.max()) / scale, int((a.argmax(1) != b.argmax(1)).sum()), len(a))

    @property
    def tolerable(self) -> bool:
        """Within `TOLERANCE`: where a prediction changes nevertheless, two classes were as good as tied."""
        return self.relative <= TOLERANCE

    def __str__(self) -> str:
        relative = f"{self.relative:.0e}" if self.relative else "0"
        return f"{relative}, {self.changed} of {self.total} change"


def largest(differences: Iterable[tuple[str, Difference]]) -> tuple[str, Difference]:
    """The largest difference, named, with the most changes of any."""
    found = list(differences)
    name, worst = max(found, key=lambda pair: pair[1].relative)
    return name, replace(worst, changed=max(difference.changed for _, difference in found))


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, num_classes] of one batch, fp32, with its queries made anew."""
    query = model.query(images) if isinstance(model, FeatureModel) else None
    logits: Tensor = model(images) if query is None else model(images, query)
    return logits.float()


def predict(model: Any, images: Tensor, batches: Iterable[NDArray[np.int64]]) -> Tensor:
    """Logits [n, num_classes] of the images, which go through the model in these batches."""
    parts = list(batches)
    logits = [logits_of(model, images[batch]) for batch in parts]
    found = torch.empty(len(images), logits[0].shape[1])
    for batch, part in zip(parts, logits, strict=True):
        found[batch] = part
    return found


def pieces(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Batches of an order; the last one may be smaller."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def full_pieces(groups: Iterable[NDArray[np.int64]], size: int) -> list[NDArray[np.int64]]:
    """Batches within each group, all of the same size: the last of a group is filled up with members of it."""
    return [
        np.concatenate([piece, np.resize(group, size - len(piece))])
        for group in groups
        for piece in pieces(group, size)
    ]


def grouped(order: NDArray[np.int64], by: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The positions of each group, in this order."""
    return [order[by[order] == value] for value in np.unique(by)]
