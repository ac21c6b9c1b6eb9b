"""Published continual-learning metrics as pure functions of the count matrices.

Every metric takes `correct`, the integer matrix of class-incremental hits [stages, tasks], and `total`, the test-set
sizes [tasks]. Row t is the state after training stage t, column j is task j; `correct[t][j]` is None where stage t has
not seen task j yet. A full, task-aware matrix is not accepted, because its upper triangle would enter the averages.
Results are fractions in [0, 1], forgetting and transfer in [-1, 1]. An undefined metric is NaN, as is every metric
that compares earlier with later tasks when there is a single task.

The literature uses two averages, which are often confused: *sample-weighted* (all test images of the seen classes
pooled; PILOT, InfLoRA and the SD-LoRA code) and *over tasks* (mean of the per-task accuracies; Lopez-Paz & Ranzato
2017, L2P, CODA-Prompt). They differ if the test sets of the tasks differ in size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

Counts = Sequence[Sequence[int | None]]
Totals = Sequence[int]


def accuracy_matrix(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """Accuracies R[t, j] = `correct[t][j]` / `total[j]`, shape [stages, tasks]; NaN where there is no count or no
    test image.

    Raises:
        ValueError: a count is negative or exceeds its total, or the shapes do not fit.
    """
    hits = np.array(correct, dtype=np.float64)  # None becomes NaN
    sizes = np.asarray(total, dtype=np.float64)
    if hits.ndim != 2 or hits.shape[1] != sizes.shape[0]:
        raise ValueError(f"counts of shape {hits.shape} do not fit {sizes.shape[0]} test sets")
    if ((hits < 0) | (hits > sizes)).any():
        raise ValueError("a count is negative or larger than its test set")
    return _ratio(hits, np.broadcast_to(sizes, hits.shape))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Elementwise quotient; NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Mean of the values; NaN if there are none."""
    return float(np.mean(values)) if len(values) else float("nan")


def _best(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Best accuracy on each task over the stages that have seen it, shape [tasks]."""
    return np.fmax.reduce(accuracy, axis=0)


def is_sequential(correct: Counts, total: Totals) -> bool:
    """Whether there is one training stage per task and stage t has counts for exactly the tasks 0..t.

    Joint training has a single stage that sees every task, so only its final accuracy is defined.
    """
    tasks = len(total)
    return len(correct) == tasks and all(
        len(row) == tasks and None not in row[: t + 1] and row.count(None) == tasks - t - 1
        for t, row in enumerate(correct)
    )


def learning_accuracy(correct: Counts, total: Totals) -> float:
    """Accuracy on a task right after it was learned, averaged over tasks: 1/T sum_j R[j, j] (plasticity).

    Source: `learning_acc` of the L2P and DualPrompt code.
    """
    return _mean(np.diag(accuracy_matrix(correct, total)))


def accuracy_curve(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """Sample-weighted top-1 accuracy over the classes seen after each stage t: the sum of `correct[t][j]` divided by
    the sum of `total[j]`, both over the seen tasks j.

    Source: what PILOT, InfLoRA and the SD-LoRA code report. Shape [stages].
    """
    accuracy = accuracy_matrix(correct, total)
    seen = ~np.isnan(accuracy)
    sizes = np.asarray(total, dtype=np.float64)
    return _ratio(np.nansum(accuracy * sizes, axis=1), (seen * sizes).sum(axis=1))


def accuracy_curve_task(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """Mean over seen tasks of the per-task accuracy after each stage: A_t = 1/(t+1) sum_{j<=t} R[t, j].

    Source: Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018. Shape [stages].
    """
    accuracy = accuracy_matrix(correct, total)
    return _ratio(np.nansum(accuracy, axis=1), (~np.isnan(accuracy)).sum(axis=1, dtype=np.float64))


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
    return _best(accuracy[:, :-1]) - accuracy[-1, :-1]


def forgetting(correct: Counts, total: Totals) -> float:
    """Mean of `forgetting_per_task`; NaN for a single task."""
    return _mean(forgetting_per_task(correct, total))


def forgetting_curve(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """`forgetting` after each stage k = 0..T-1 (NaN at the first), over the tasks learned before k. Shape [stages]."""
    accuracy = accuracy_matrix(correct, total)
    drop = np.fmax.accumulate(accuracy, axis=0) - accuracy
    return np.array([_mean(drop[k, :k]) for k in range(len(accuracy))])


def forgetting_rwalk(correct: Counts, total: Totals) -> float:
    """1/(T-1) sum_j (max_{j<=l<=T-2} R[l, j] - R[T-1, j]): the best strictly before the last stage; may be negative.

    Source: Chaudhry et al. 2018 (RWalk), f_j^k with the maximum over stages before k. NaN for a single task.
    """
    accuracy = accuracy_matrix(correct, total)
    if len(accuracy) < 2:
        return float("nan")
    return _mean(_best(accuracy[:-1, :-1]) - accuracy[-1, :-1])


def forgetting_rwalk_curve(correct: Counts, total: Totals) -> NDArray[np.float64]:
    """`forgetting_rwalk` after each stage k = 1..T-1 (Chaudhry et al. 2018). Shape [stages - 1]."""
    stages = range(2, len(correct) + 1)
    return np.array([forgetting_rwalk([row[:k] for row in correct[:k]], total[:k]) for k in stages])


def forgetting_coda(correct: Counts, total: Totals) -> float:
    """1/(T-1) sum_{t=1..T-1} 1/t sum_{i<t} (R[t-1, i] - R[t, i]): drops from stage to stage. NaN for a single task.

    Source: CODA-Prompt's released helper, which assumes tasks of equal size.
    """
    accuracy = accuracy_matrix(correct, total)
    drops = [float((accuracy[t - 1, :t] - accuracy[t, :t]).mean()) for t in range(1, len(accuracy))]
    return _mean(drops)


def bwt(correct: Counts, total: Totals) -> float:
    """Backward transfer 1/(T-1) sum_{j<T-1} (R[T-1, j] - R[j, j]) (Lopez-Paz & Ranzato 2017). NaN for a single task."""
    accuracy = accuracy_matrix(correct, total)
    return _mean(accuracy[-1, :-1] - np.diag(accuracy)[:-1])


def bwt_all(correct: Counts, total: Totals) -> float:
    """Backward transfer over all stages: sum_{i=1..T-1} sum_{j<i} (R[i, j] - R[j, j]) / (T (T-1) / 2).

    Source: Diaz-Rodriguez et al. 2018. NaN for a single task.
    """
    accuracy = accuracy_matrix(correct, total)
    changes = [accuracy[i, j] - accuracy[j, j] for i in range(1, len(accuracy)) for j in range(i)]
    return _mean(changes)


def fwt(correct_task_aware: Counts, total: Totals, baseline: Sequence[float]) -> float:
    """Forward transfer 1/(T-1) sum_{j=1..T-1} (R[j-1, j] - b_j) (Lopez-Paz & Ranzato 2017). NaN for a single task.

    Args:
        correct_task_aware: full matrix [stages, tasks]; hits on task j before it is learned need the task's identity.
        baseline: accuracy b_j without any training, shape [tasks]: of a random initialisation, or chance level.
    """
    accuracy = accuracy_matrix(correct_task_aware, total)
    gains = [accuracy[j - 1, j] - baseline[j] for j in range(1, accuracy.shape[1])]
    return _mean(gains)


def intransigence_per_task(correct: Counts, total: Totals, reference: Sequence[float]) -> NDArray[np.float64]:
    """I_k = ref_k - R[k, k]: accuracy lost on a new task compared with joint training (Chaudhry et al. 2018).

    Args:
        reference: accuracy on task k of a model trained jointly on tasks 0..k, shape [tasks].

    Returns:
        Intransigence of each task, shape [tasks].
    """
    return np.asarray(reference, dtype=np.float64) - np.diag(accuracy_matrix(correct, total))


def intransigence(correct: Counts, total: Totals, reference: Sequence[float]) -> float:
    """Mean of `intransigence_per_task`; the paper reports each I_k."""
    return float(intransigence_per_task(correct, total, reference).mean())


def pilot_aaa(correct: Counts, total: Totals) -> float:
    """`aaa` in percent as PILOT prints it: each accuracy of the curve is rounded to two decimals before the mean."""
    return float(np.mean(np.around(100 * accuracy_curve(correct, total), 2)))


def pilot_forgetting(correct: Counts, total: Totals) -> float:
    """`forgetting` in percent as PILOT prints it: from per-task accuracies rounded to two decimals."""
    rounded = np.around(100 * accuracy_matrix(correct, total), 2)
    return _mean(_best(rounded[:, :-1]) - rounded[-1, :-1])


class Metric(NamedTuple):
    """A metric that depends on the class-incremental counts of a run only.

    Attributes:
        title: column head, for values in percent or percentage points.
        description: definition in one clause.
        value: function of counts and totals; returns a fraction.
        higher: whether higher values are better.
        sequential: whether the metric is defined only for tasks learned one after the other.
        tasks: smallest number of tasks for which the metric is defined.
    """

    title: str
    description: str
    value: Callable[[Counts, Totals], float]
    higher: bool = True
    sequential: bool = True
    tasks: int = 1


METRICS: Mapping[str, Metric] = {
    "acc": Metric("acc, %", "top-1 accuracy over all classes after the last task", acc, sequential=False),
    "aaa": Metric("aaa, %", "top-1 accuracy over the classes seen so far, averaged over the tasks", aaa),
    "forgetting": Metric(
        "forgetting, %", "best minus last accuracy, averaged over all tasks but the last", forgetting, False, tasks=2
    ),
    "acc_task": Metric(
        "acc (tasks), %", "mean over tasks of the accuracy after the last task", acc_task, sequential=False
    ),
    "aaa_task": Metric("aaa (tasks), %", "mean over stages of the mean accuracy on the tasks seen", aaa_task),
    "learning": Metric(
        "learning, %", "accuracy on a task right after it was learned, mean over tasks", learning_accuracy
    ),
    "forgetting_rwalk": Metric(
        "forgetting (RWalk), %",
        "best accuracy before the last stage minus the last (Chaudhry)",
        forgetting_rwalk,
        False,
        tasks=2,
    ),
    "forgetting_coda": Metric(
        "forgetting (CODA), %",
        "drop of accuracy from stage to stage, mean (CODA-Prompt)",
        forgetting_coda,
        False,
        tasks=2,
    ),
    "bwt": Metric("bwt, %", "last accuracy minus that right after learning (Lopez-Paz & Ranzato)", bwt, tasks=2),
    "bwt_all": Metric(
        "bwt (all), %",
        "accuracy minus that right after learning, mean over all later stages (Diaz-Rodriguez)",
        bwt_all,
        tasks=2,
    ),
}
"""Metrics by their names in tables, reports and on the command line."""


def values(correct: Counts, total: Totals) -> dict[str, float]:
    """All metrics by name, as `value` gives each; the counts are converted and looked through once."""
    sequential = is_sequential(correct, total)
    hits = cast(Counts, np.array(correct, dtype=np.float64))
    return {
        name: float("nan") if metric.sequential and not sequential else metric.value(hits, total)
        for name, metric in METRICS.items()
    }


def value(name: str, correct: Counts, total: Totals) -> float:
    """Value of a metric by its name; NaN where it is undefined.

    Raises:
        KeyError: no metric has this name.
    """
    metric = METRICS[name]
    if metric.sequential and not is_sequential(correct, total):
        return float("nan")
    return metric.value(correct, total)
