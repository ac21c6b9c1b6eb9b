"""Published continual-learning metrics as pure functions of the count matrices.

All of them take `correct`, the integer matrix of class-incremental hits, and `total`, the test-set sizes. Row t is
the state after training stage t, column j is task j; `correct[t][j]` is None where stage t has not seen task j yet (a
full, task-aware matrix is not accepted: its upper triangle would enter the averages). Results are fractions in
[0, 1], forgetting and transfer in [-1, 1].

Two averages are in use and often mixed up: *sample-weighted* (all test images of the seen classes pooled; PILOT,
InfLoRA and the SD-LoRA code) and *over tasks* (mean of the per-task accuracies; Lopez-Paz & Ranzato 2017, L2P,
CODA-Prompt). They differ where tasks have test sets of different size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = Sequence[Sequence[int | None]]
Totals = Sequence[int]


def accuracy_matrix(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """Accuracies R[t, j] = correct[t][j] / total[j], shape [stages, tasks]; NaN where there is no count.

    Raises:
        ValueError: a count exceeds its total, or the shapes do not fit.
    """
    hits = np.array([[np.nan if c is None else c for c in row] for row in correct], dtype=np.float64)
    sizes = np.asarray(total, dtype=np.float64)
    if hits.ndim != 2 or hits.shape[1] != sizes.shape[0]:
        raise ValueError(f"counts of shape {hits.shape} do not fit {sizes.shape[0]} test sets")
    if np.any(hits < 0) or np.any(hits > sizes):
        raise ValueError("a count is negative or larger than its test set")
    return hits / sizes


def is_sequential(correct: Counts, total: Totals) -> bool:
    """Whether there is one training stage per task and stage t has counts for exactly the tasks 0..t.

    Joint training has a single stage that sees every task: final accuracy is defined, anytime metrics are not.
    """
    rows = [[c is not None for c in row] for row in correct]
    return rows == [[j <= t for j in range(len(total))] for t in range(len(total))]


def accuracy_curve(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """Sample-weighted top-1 over the classes seen after each stage: A_t = sum_j correct[t][j] / sum_j total[j], j seen.

    Source: what PILOT, InfLoRA and the SD-LoRA code report. Shape [stages].
    """
    accuracy = accuracy_matrix(correct, total)
    seen = ~np.isnan(accuracy)
    sizes = np.asarray(total, dtype=np.float64)
    return np.nansum(accuracy * sizes, axis=1) / (seen * sizes).sum(axis=1)


def accuracy_curve_task(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """Mean over seen tasks of the per-task accuracy after each stage: A_t = 1/(t+1) sum_{j<=t} R[t, j].

    Source: Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018. Shape [stages].
    """
    return np.nanmean(accuracy_matrix(correct, total), axis=1)


def acc(correct: Counts, total: Totals) -> float:
    """Final sample-weighted accuracy: the last value of `accuracy_curve`."""
    return float(accuracy_curve(correct, total)[-1])


def aaa(correct: Counts, total: Totals) -> float:
    """Average anytime accuracy: mean of `accuracy_curve` over the stages (the SD-LoRA code's AAA)."""
    return float(accuracy_curve(correct, total).mean())


def acc_task(correct: Counts, total: Totals) -> float:
    """Final accuracy as the mean over tasks (Acc of SD-LoRA, section 4.1; A_T of Lopez-Paz & Ranzato 2017)."""
    return float(accuracy_curve_task(correct, total)[-1])


def aaa_task(correct: Counts, total: Totals) -> float:
    """Average anytime accuracy as the mean over stages of the mean over seen tasks (SD-LoRA, section 4.1)."""
    return float(accuracy_curve_task(correct, total).mean())


def forgetting_per_task(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """f_j = max_{j<=l<T} R[l, j] - R[T-1, j] for the tasks j < T-1; the best includes the last stage, so f_j >= 0.

    Source: L2P and DualPrompt code, PILOT, Mammoth. Shape [tasks - 1].
    """
    accuracy = accuracy_matrix(correct, total)
    return np.nanmax(accuracy[:, :-1], axis=0) - accuracy[-1, :-1]


def forgetting(correct: Counts, total: Totals) -> float:
    """Mean of `forgetting_per_task`; 0 for a single task."""
    per_task = forgetting_per_task(correct, total)
    return float(per_task.mean()) if per_task.size else 0.0


def forgetting_curve(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """`forgetting` after each stage k = 0..T-1 (0 at the first), over the tasks learned before k. Shape [stages]."""
    stages = range(1, len(correct) + 1)
    return np.array([forgetting([row[:k] for row in correct[:k]], total[:k]) for k in stages])


def forgetting_rwalk(correct: Counts, total: Totals) -> float:
    """1/(T-1) sum_j (max_{j<=l<=T-2} R[l, j] - R[T-1, j]): the best strictly before the last stage; may be negative.

    Source: Chaudhry et al. 2018 (RWalk), f_j^k with the maximum over stages before k. 0 for a single task.
    """
    accuracy = accuracy_matrix(correct, total)
    if accuracy.shape[1] < 2:
        return 0.0
    return float((np.nanmax(accuracy[:-1, :-1], axis=0) - accuracy[-1, :-1]).mean())


def bwt(correct: Counts, total: Totals) -> float:
    """Backward transfer 1/(T-1) sum_{j<T-1} (R[T-1, j] - R[j, j]) (Lopez-Paz & Ranzato 2017). 0 for a single task."""
    accuracy = accuracy_matrix(correct, total)
    if accuracy.shape[1] < 2:
        return 0.0
    return float((accuracy[-1, :-1] - np.diag(accuracy)[:-1]).mean())
