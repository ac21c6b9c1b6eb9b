"""Losses that many methods share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cl_bench.contract.phase import Loss


def masked_cross_entropy(classes: Iterable[int], num_classes: int) -> Loss:
    """Cross-entropy in which only `classes` compete: all other logits are -inf ("local" or "masked" softmax).

    Returns:
        A loss from (logits [B, num_classes], labels [B]) to per-sample values [B].
    """
    outside = torch.ones(num_classes, dtype=torch.bool)
    outside[list(classes)] = False

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal outside
        # Once, not in every step: a copy from the host makes it wait for the device.
        outside = outside.to(logits.device)
        masked = logits.masked_fill(outside, float("-inf"))
        return nn.functional.cross_entropy(masked, labels, reduction="none")

    return loss
