"""The small method SEMA, beyond its golden numbers: the order of scans, and which errors are stored."""

from __future__ import annotations

import pytest
import torch

from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples, samples_of
from tests.helpers.kinds.sema import SEMA
from tests.helpers.tiny import CLASSES, cut, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [7, 100])
def test_scans_go_on_behind_the_batch_that_made_a_block_grow(size: int) -> None:
    """If every batch is new to every adapter, the blocks grow one after the other, once each, and never again."""
    method = SEMA(first=0, threshold=1e-6, scan_batch=size)
    samples = TaskSamples(samples_of(cut().train[1].dataset), ("scan",), torch.device("cpu"))
    batches = -(-len(samples) // size)
    assert batches == 1 or batches > 2
    task = Task(1, (0, 1), (0, 1), CLASSES, None, method.build(tiny_vit(), CLASSES), ("scan",))
    counts = []
    for number in (None, 1, 3):
        with torch.no_grad():
            if number is None:
                method.before_task(task, samples)
            else:
                task.scratch[f"errors {task.model.grown[-1]}"] = torch.arange(4.0)
                method.after_phase(task, samples, number)
        counts.append((task.model.grown.tolist(), int(task.scratch["scanned"]), len(method.phases(task))))
    second = min(2, batches)
    assert counts == [([0], 1, 2), ([0, 1], second, 4), ([0, 1], second, 4)]
    assert [len(mixture) for mixture in task.model.mixtures] == [2, 2]
    assert [float(mixture[1].mean) for mixture in task.model.mixtures] == [1.5, 1.5]


def test_the_last_errors_of_both_phases_are_stored() -> None:
    """A batch is cut to the free places of the buffer; once it is full, the newest errors replace the oldest."""
    method = SEMA(first=1, recent=5, descriptor_epochs=1, epochs=1)
    task = Task(0, (0, 1), (0, 1), CLASSES, None, method.build(tiny_vit(), CLASSES), ())
    training, description = method.phases(task)
    labels, buffers = torch.tensor([0, 1, 0]), []
    for phase, first in ((training, 1.0), (training, 4.0), (description, 7.0)):
        assert phase.loss is not None
        errors = torch.arange(first, first + 3)[:, None]
        losses = phase.loss((torch.zeros(3, CLASSES), errors), labels)
        assert torch.equal(losses, errors[:, 0]) is (phase is description)
        buffers.append(task.scratch["errors 1"].tolist())
    assert buffers == [[1, 2, 3], [1, 2, 3, 4, 5], [4, 5, 7, 8, 9]]


def test_a_task_that_is_not_new_trains_the_head_only() -> None:
    method = SEMA(first=0, threshold=1e6)
    model = method.build(tiny_vit(), CLASSES)
    samples = TaskSamples(samples_of(cut().train[1].dataset), (), torch.device("cpu"))
    task = Task(1, (0, 1), (0, 1), CLASSES, None, model, ())
    with torch.no_grad():
        method.before_task(task, samples)
    (phase,) = method.phases(task)
    assert phase.trainable() == list(model.head.parameters())
