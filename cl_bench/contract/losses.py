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


def asymmetric_cross_entropy(own: Iterable[int], seen: Iterable[int], num_classes: int) -> Loss:
    """Make a cross-entropy in which samples of the current task and exemplars have different competitors (ER-ACE).

    Samples of the current task's classes compete among these only, exemplars of older classes among all classes seen,
    so that a new task does not push down the logits of old classes (Caccia et al., ICLR 2022, arXiv 2104.05025).

    Args:
        own: labels of the current task.
        seen: labels of this task and of all tasks before it.
        num_classes: size of the head.

    Returns:
        A loss that maps (logits [B, num_classes], labels [B]) to per-sample values [B].
    """
    outside = torch.ones(2, num_classes, dtype=torch.bool)
    outside[0, list(seen)] = False
    outside[1, list(own)] = False
    current = ~outside[1]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal outside, current
        outside, current = outside.to(logits.device), current.to(logits.device)
        masked = logits.masked_fill(outside[current[labels].long()], float("-inf"))
        return nn.functional.cross_entropy(masked, labels, reduction="none")

    return loss
