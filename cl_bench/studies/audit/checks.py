"""The checks of the audit that need one watched training run; each is a function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import as_classification_dataset
from numpy.typing import NDArray
from torch import Tensor

from cl_bench.randomness import permutation
from cl_bench.stats import summarise
from cl_bench.studies.audit.passes import EnteredBlocks
from cl_bench.studies.audit.predictions import (
    Difference,
    full_pieces,
    grouped,
    largest,
    logits_of,
    pieces,
    predict,
)
from cl_bench.studies.audit.trials import Trial, images_of

CHECKS = (
    "batch size",
    "batch company",
    "task identity",
    "earlier predictions",
    "passes",
    "frozen weights",
    "old samples",
    "memory",
    "repeatability",
    "restart",
    "ceiling",
    "number of tasks",
)


SIZES = (1, 7, 128)
"""Batch sizes at which predictions must agree."""


Status = Literal["pass", "fail", "declared", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        figure: the measurement, in a few words.
        detail: the cause of a failure; empty unless the check failed.
    """

    check: str
    status: Status
    figure: str
    detail: str = ""

    @classmethod
    def judge(cls, check: str, good: bool, figure: str, detail: str = "") -> Finding:
        """A finding that passes if `good`, and else fails with the detail."""
        return cls(check, "pass" if good else "fail", figure, "" if good else detail)


@dataclass(frozen=True)
class Ceiling:
    """An upper bound for honest methods: the best joint training on the same slice.

    Attributes:
        label: name and options of that joint training.
        hits: whether each test image [n] is classified correctly.
    """

    label: str
    hits: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of the test images that are classified correctly."""
        return float(self.hits.mean())


def batch_size(trial: Trial) -> Finding:
    """The logits of every test image are the same, within `TOLERANCE`, in shuffled batches of 1, 7 and 128 images.

    Both the model and the merged module that replaces it in `count_matrix` are tested. A prediction that changes within
    the tolerance is no failure: two classes were practically tied.
    """
    order = permutation(("audit", 0), len(trial.images))
    differences = []
    for model in trial.predictors():
        alone, *others = (predict(model, trial.images, pieces(order, size)) for size in SIZES)
        for size, logits in zip(SIZES[1:], others, strict=True):
            differences.append((f"batches of {size}", Difference.between(alone, logits, trial.seen)))
    name, worst = largest(differences)
    return Finding.judge(
        "batch size", worst.tolerable, str(worst), f"logits in {name} differ from those of single images"
    )


def batch_company(trial: Trial) -> Finding:
    """The logits of every test image are the same, within `TOLERANCE`, whichever images share its batch.

    Compared are batches of equal size with images of all tasks, of all tasks in another order, of one task only, and of
    one class only. The accuracy in batches of one class minus that in mixed batches is the gain from a leak in a
    benchmark that tests class by class; it is shown, not judged.
    """
    n = len(trial.images)
    size = max(2, int(np.median(np.unique(trial.labels, return_counts=True)[1])))
    order, another = permutation(("audit", 0), n), permutation(("audit", 1), n)
    companies = {
        "mixed batches of another order": [another],
        "batches of one task": grouped(order, trial.task),
        "batches of one class": grouped(order, trial.labels),
    }
    differences, gains = [], []
    for model in trial.predictors():
        mixed = predict(model, trial.images, full_pieces([order], size))
        for name, groups in companies.items():
            logits = predict(model, trial.images, full_pieces(groups, size))
            differences.append((name, Difference.between(mixed, logits, trial.seen)))
        gains.append(100 * (accuracy(logits, trial) - accuracy(mixed, trial)))
    name, worst = largest(differences)
    figure = f"{worst}, {max(gains, key=abs):+.1f} points"
    return Finding.judge(
        "batch company", worst.tolerable, figure, f"logits in {name} differ from those in mixed batches"
    )


def accuracy(logits: Tensor, trial: Trial) -> float:
    """Share of the test images whose label has the largest of the logits of all classes seen."""
    seen = np.array(trial.seen)
    return float((seen[logits[:, seen].argmax(1).numpy()] == trial.labels).mean())


def task_identity(trial: Trial) -> Finding:
    """The logits of every test image are the same, within `TOLERANCE`, whether it is evaluated

    - in the experience of its own task, with its task label, by Avalanche's `eval` with all callbacks,
    - in the same way with the tasks in reverse order,
    - in one experience with the images of all tasks, without task labels, or
    - by `count_matrix`.

    Batches hold one image each, so that leaks through the batch are left to the other checks.
    """
    strategy, n = trial.strategy, len(trial.images)
    own = grouped(np.arange(n), trial.task)
    order = permutation(("audit", 2), n)
    labelled = [
        experience.dataset.update_data_attribute("targets_task_labels", [task] * len(experience.dataset))
        for task, experience in enumerate(trial.stream.test)
    ]
    tasks = with_task_labels(with_classes_timeline(benchmark_from_datasets(test=labelled))).streams["test"]
    parts = [images_of(experience) for experience in trial.stream.test]
    ids = np.concatenate([part.ids for part in parts])[order]
    together = as_classification_dataset(parts[0].dataset).subset(ids.tolist())
    mixed = with_classes_timeline(benchmark_from_datasets(test=[together])).streams["test"]

    def evaluated(experiences: Any, positions: Sequence[NDArray[np.int64]]) -> Tensor:
        strategy.eval(experiences)
        outputs = trial.recorder.take()
        return torch.empty_like(outputs).index_copy_(0, torch.from_numpy(np.concatenate(positions)), outputs)

    before, strategy.eval_mb_size = strategy.eval_mb_size, 1
    usual = evaluated(tasks, own)
    others = {
        "in reverse order": evaluated(list(tasks)[::-1], own[::-1]),
        "of a mixed experience": evaluated(mixed, [order]),
        "of count_matrix": strategy.count(trial.stream.test, 1)[1],
    }
    strategy.eval_mb_size = before
    name, worst = largest((name, Difference.between(usual, one, trial.seen)) for name, one in others.items())
    detail = f"logits {name} differ from those of an evaluation task by task"
    return Finding.judge("task identity", worst.tolerable, str(worst), detail)


def earlier_predictions(trial: Trial) -> Finding:
    """Predictions do not depend on earlier ones, compared bit by bit.

    One test image of each class, alone in its batch, gets the same logits at first, in an immediate repetition, and
    after all other images were predicted in batches. `count_matrix` gives the same logits as right after training,
    whatever was evaluated since.

    A method that declares `stateful_prediction` fails even if no difference shows.
    """
    order, ones = permutation(("audit", 3), len(trial.images)), one_of_each(trial)
    differences = []
    for model in trial.predictors():
        pairs = [(logits_of(model, trial.images[i : i + 1]), logits_of(model, trial.images[i : i + 1])) for i in ones]
        first, again = (torch.cat(logits) for logits in zip(*pairs, strict=True))
        predict(model, trial.images, pieces(order, SIZES[-1]))
        after = torch.cat([logits_of(model, trial.images[i : i + 1]) for i in ones[::-1]]).flip(0)
        differences.append(("of an immediate repetition", Difference.between(first, again, trial.seen)))
        differences.append(("after predicting all images", Difference.between(first, after, trial.seen)))
    counted = trial.strategy.count(trial.stream.test, trial.strategy.eval_mb_size)[1]
    differences.append(("of a later count_matrix", Difference.between(trial.result.logits, counted, trial.seen)))
    name, worst = max(differences, key=lambda pair: pair[1].relative)
    detail = f"logits {name} differ from the first ones"
    declared = trial.method.stateful_prediction
    if declared:
        detail = f"declared: {detail if worst.relative else 'predictions depend on earlier ones'}"
    return Finding.judge("earlier predictions", not (declared or worst.relative), str(worst), detail)


def one_of_each(trial: Trial) -> NDArray[np.int64]:
    """Positions of one test image of each class, in a fixed random order."""
    ones = np.unique(trial.labels, return_index=True)[1]
    return ones[permutation(("audit", 4), len(ones))]


def backbone_passes(trial: Trial) -> Finding:
    """A prediction takes at most as many passes through the backbone's blocks as the method declares (`Method.passes`).

    The pass for the query counts too. Tested with single images and with a batch, in the model and the merged module.
    """
    declared = trial.method.passes(trial.strategy.tasks_learned)
    ones = one_of_each(trial)
    measured = 0.0
    for model in trial.predictors():
        for batch in (*pieces(ones, 1), ones):
            entered = EnteredBlocks()
            with entered.counting():
                logits_of(model, trial.images[batch])
            measured = max(measured, entered.passes(len(batch), trial.depth))
    figure = f"{measured:.3g} of {declared}"
    return Finding.judge("passes", measured <= declared, figure, "more than the method declares (passes)")


def frozen_weights(trial: Trial) -> Finding:
    """The following tensors stay the same, bit by bit:

    - during a phase, every parameter that the phase does not list;
    - between the training of tasks (in evaluations above all), every parameter and buffer;
    - from the pre-trained backbone to the end, every backbone weight that no phase lists.

    `before_task` and `after_task` may change anything outside the backbone.
    """
    strategy = trial.strategy
    strategy.look()
    pretrained = {f"backbone.{name}": bits for name, bits in trial.pretrained.items()}
    frozen = {name: bits for name, bits in pretrained.items() if name not in strategy.listed}
    moved = {
        name: "differs from its pre-trained value"
        for name, bits in frozen.items()
        if trial.result.state.get(name) != bits
    }
    moved |= strategy.moved
    figure = f"{len(moved)} of {len(moved.keys() | frozen.keys() | strategy.held)} tensors change"
    return Finding.judge("frozen weights", not moved, figure, listed(f"{name} {when}" for name, when in moved.items()))


def old_samples(trial: Trial) -> Finding:
    """Training on a task reads only the training images of its experience; evaluation reads no training image.

    For a method that trains on the whole stream at once (`trains_on`), that experience holds the images of all tasks.
    """
    late = sum(stage.late for stage in trial.stages) + len(trial.reads.train)
    old, test = sum(stage.old for stage in trial.stages), sum(stage.test for stage in trial.stages)
    figure = f"{old} of other tasks, {test} test images, {late} at test"
    detail = "training read images of other tasks or test images, or evaluation read training images"
    return Finding.judge("old samples", not (old or test or late), figure, detail)


def memory(trial: Trial) -> Finding:
    """After every task the model stores at most as many numbers as the method declares (`Method.storage`), the method
    hides none outside the model's parameters and buffers, and images of the task are found in the model only if the
    method declares exemplars, and then within the size of their memory (`Method.exemplar_mb`).

    Stored numbers are those of the state dict, without backbone weights that equal the pre-trained ones. Hidden numbers
    are tensors, arrays and bytes on the plugin, its class, the strategy or any module of the model (closures included),
    and numbers in lists and other containers that were added since the first task. The check is skipped for methods
    that declare nothing, hide nothing and keep no images.
    """
    last = trial.stages[-1]
    hidden: dict[str, int] = {}
    for places in (*(stage.hidden for stage in trial.stages), trial.hidden()):
        hidden |= places
    excess = [
        f"{stage.stored:,} stored after task {number}, but {stage.declared:,} declared"
        for number, stage in enumerate(trial.stages, start=1)
        if stage.declared is not None and stage.stored > stage.declared
    ]
    allowed = trial.method.exemplar_mb
    excess += [
        f"images of task {number} are kept in {stage.exemplars:,} bytes, but {allowed:g} MB of exemplars declared"
        for number, stage in enumerate(trial.stages, start=1)
        if stage.exemplars > allowed * 1e6
    ]
    where = [f"{numbers:,} hidden in {path}" for path, numbers in sorted(hidden.items())]
    declared = "undeclared" if last.declared is None else f"of {last.declared:,}"
    figure = f"{last.stored:,} {declared}, {sum(hidden.values()):,} hidden"
    if last.declared is None and not (excess or hidden):
        return Finding("memory", "skipped", figure)
    return Finding.judge("memory", not (excess or where), figure, listed([*excess, *where]))


def under_ceiling(trial: Trial, best: Ceiling | None) -> Finding:
    """Final accuracy does not exceed that of the best joint training by more than the half-width of the 95 % interval
    of the paired difference over the test images."""
    if best is None:
        return Finding("ceiling", "skipped", "no joint training to compare with")
    difference = summarise(100 * (trial.hits.astype(float) - best.hits))
    half = difference.half_width or 0.0
    figure = f"{difference.mean:+.1f} ± {half:.1f} points"
    detail = f"{100 * float(trial.hits.mean()):.1f} %, but {best.label} reaches {100 * best.accuracy:.1f} %"
    return Finding.judge("ceiling", difference.mean <= half, figure, detail)


def listed(parts: Iterable[str]) -> str:
    """The first three parts, and the number of the others."""
    texts = list(parts)
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
