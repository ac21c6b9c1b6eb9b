"""Losses shared by methods."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cl_bench.contract.phase import Loss


def masked_cross_entropy(classes: Iterable[int], num_classes: int) -> Loss:
    """Make a cross-entropy over some classes only: the logits of all others are -inf ("local" or "masked" softmax).

    Args:
        classes: labels that take part in the softmax.
        num_classes: size of the head.

    Returns:
        A loss that maps (logits [B, num_classes], labels [B]) to per-sample values [B].
    """
    outside = torch.ones(num_classes, dtype=torch.bool)
    outside[list(classes)] = False

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal outside
        # The copy to the device makes the host wait, so it is made in the first step only.
        outside = outside.to(logits.device)
        masked = logits.masked_fill(outside, float("-inf"))
        return nn.functional.cross_entropy(masked, labels, reduction="none")

    return loss
