"""Rehearsal: what a memory of exemplars holds, what reaches the batches, and what the loss makes of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.rehearsal import Rehearsing
from cl_bench.contract.task import Task
from cl_bench.data.images import ImageStore, RaggedImages
from cl_bench.data.rehearsal import exemplar_samples, stored_images
from cl_bench.data.samples import ImageDataset, StoreSamples, samples_of
from cl_bench.errors import UserError
from cl_bench.methods.linear import LinearProbe
from cl_bench.models.exemplars import Exemplars
from tests.helpers.rows import small
from tests.helpers.tiny import TRANSFORMS, cut
from tests.helpers.training import Spy, snapshot, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

Pixels = NDArray[np.uint8]


def offered(memory: Exemplars, labels: list[int], priorities: list[int], images: list[Pixels]) -> None:
    memory.offer(np.array(labels), np.array(priorities), lambda positions: [images[i] for i in positions])


def held(memory: Exemplars) -> list[tuple[int, bytes]]:
    return sorted((int(label), image.tobytes()) for label, image in zip(memory.labels, memory.images(), strict=True))


def test_a_memory_holds_what_a_choice_from_all_images_so_far_would_hold() -> None:
    """In whatever order and number of tasks the images come, and of whatever sizes they are."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 7, 150)
    priorities = draw.permutation(150)
    images = [draw.integers(0, 256, (*draw.integers(3, 9, 2), 3), dtype=np.uint8) for _ in range(150)]

    at_once, bit_by_bit = Exemplars(0.005), Exemplars(0.005)
    offered(at_once, labels.tolist(), priorities.tolist(), images)
    for part in np.split(draw.permutation(150), (10, 11, 90)):
        offered(bit_by_bit, labels[part].tolist(), priorities[part].tolist(), [images[i] for i in part])
        stored = bit_by_bit.pixels.numel() + 4 * bit_by_bit.table.numel()
        assert stored <= 5000
    assert held(at_once) == held(bit_by_bit) and stored > 5000 - 3 * 8 * 8 - 20, "no room for another image"
    counts = Counter(at_once.labels.tolist())
    assert set(counts) == set(range(7)) and max(counts.values()) - min(counts.values()) <= 1
    for label in range(7):
        order = sorted(np.flatnonzero(labels == label), key=lambda i: priorities[i])
        best = sorted((label, images[i].tobytes()) for i in order[: counts[label]])
        assert [each for each in held(at_once) if each[0] == label] == best


@pytest.mark.parametrize("ragged", [False, True])
def test_exemplars_look_like_the_images_that_they_were(ragged: bool) -> None:
    draw = np.random.default_rng(4)
    sizes = [(40, 30), (30, 44), (36, 36), (33, 50)] if ragged else [(40, 30)] * 4
    images = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    store = ImageStore(RaggedImages.of(images) if ragged else np.stack(images), np.array([0, 1, 2, 2]), names=())
    transforms = TRANSFORMS.model_copy(update={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)})
    own = StoreSamples(ImageDataset(store, np.array([5, 6, 4]), transforms), np.arange(4))

    memory, chosen, cpu = Exemplars(1), np.array([3, 0]), torch.device("cpu")
    kept = stored_images(own, chosen)
    offered(memory, own.labels[chosen].tolist(), [0, 1], kept)
    again = exemplar_samples(memory.images(), memory.labels, own)
    assert again.labels.tolist() == [4, 5]
    assert torch.equal(again.view(np.array([0, 1]), None, cpu), own.view(chosen, None, cpu))
    one, other = (again.view(np.array([0, 1]), (key,), cpu) for key in ("a", "b"))
    assert one.shape == other.shape and not torch.equal(one, other), "they are augmented"


def batches_of(row: str, **changes: Any) -> tuple[list[list[tuple[Tensor, Tensor]]], Any]:
    """The batches of each task as the method's loss sees them, and the trained strategy."""
    tasks: list[list[tuple[Tensor, Tensor]]] = []
    spy = Spy(
        before_training_exp=lambda s: tasks.append([]),
        before_backward=lambda s: tasks[-1].append((s.mb_x.clone(), s.mb_y.clone())),
    )
    strategy = train(strategy_of(small(row, **changes), spy), cut())
    return tasks, strategy


def test_every_batch_holds_exemplars_and_its_own_images() -> None:
    """20 images a task in batches of 16 and 4, and all 10 of the memory, which is less than a batch, before them."""
    tasks, strategy = batches_of("replay", epochs=2)
    classes = [set(own) for own in cut().tasks]
    assert [len(labels) for _, labels in tasks[0]] == [16, 4, 16, 4]
    seen: set[int] = set()
    for index, batches in enumerate(tasks):
        own = 0
        for images, labels in batches:
            old = 10 if index else 0
            assert len(images) == len(labels) and len(labels) - old in (16, 4)
            assert set(labels[:old].tolist()) <= seen and set(labels[old:].tolist()) <= classes[index]
            own += len(labels) - old
        assert own == 2 * 20
        seen |= classes[index]
        assert not index or {int(label) for _, labels in batches for label in labels} == seen
    losses = [row["loss"] for row in strategy.traces["loss"]]
    assert all(0 < loss < 100 for loss in losses)


def test_all_exemplars_are_drawn_before_one_is_drawn_again() -> None:
    tasks, strategy = batches_of("replay", epochs=1, batch_size=2, buffer_mb=0.0105)
    drawn = [int(label) for _, labels in tasks[1] for label in labels[:2]]
    assert len(drawn) == 2 * 10
    once = Counter(drawn[:10])
    assert once == Counter(drawn[10:]) and sum(once.values()) == 10 and set(once) == set(cut().tasks[0])


def test_the_memory_holds_stored_pixels_of_past_training_images() -> None:
    _, strategy = batches_of("replay", epochs=1)
    memory = strategy.model.exemplars
    source: Any = [samples_of(experience.dataset) for experience in cut().train]
    known = {
        (int(label), source[0].dataset.store.images[i].tobytes())
        for part in source
        for i, label in zip(part.ids, part.labels, strict=True)
    }
    assert len(memory) == 10 == len(set(held(memory))) and set(held(memory)) <= known


def test_rehearsal_protects_from_forgetting() -> None:
    """The same fine-tuning with and without a memory, on the first task after the last one."""
    hits = []
    for row in ("finetune", "replay"):
        extra = {"buffer_mb": 0.1} if row == "replay" else {}
        strategy = train(strategy_of(small(row, lr=0.02, epochs=8, **extra)), cut())
        hits.append(strategy.count_matrix(cut().test).correct[0])
    assert hits[1] > hits[0]


def test_own_samples_and_exemplars_compete_with_different_classes() -> None:
    """With loss=masked: the task's own among themselves, exemplars among all classes seen (by hand)."""
    method = small("replay", loss="masked")
    assert isinstance(method, GradientMethod)
    task = Task(1, (2, 3), (0, 1, 2, 3), 5, None, None, ())
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, 9.0], [1.0, 2.0, 3.0, 4.0, 9.0]], requires_grad=True)
    losses = method.cross_entropy(task)(logits, torch.tensor([2, 0]))
    by_hand = [np.log(1 + np.exp(-2)), np.log(np.exp([0, 1, 2, 3]).sum())]
    np.testing.assert_allclose(losses.detach().numpy(), by_hand, rtol=1e-6)
    losses.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert (logits.grad != 0).tolist() == [[False, False, True, True, False], [True, True, True, True, False]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Half(LinearProbe, Rehearsing):
    """A linear probe with rehearsal, whichever base comes first, and with another number of exemplars."""

    def phases(self, task: Task) -> list[Phase]:
        return [self.phase(phase.parameters, phase.loss, exemplars=3) for phase in super().phases(task)]


def test_any_gradient_method_takes_rehearsal_on() -> None:
    sizes: list[int] = []
    spy = Spy(before_backward=lambda s: sizes.append(len(s.mb_y)))
    method = Half(epochs=1, batch_size=16, buffer_mb=0.01)
    assert method.exemplar_mb == 0.01 and LinearProbe().exemplar_mb == 0
    strategy = train(strategy_of(method, spy), cut())
    assert sizes == [16, 4, 19, 7, 19, 7] and len(strategy.model.exemplars) == 9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Forgets(LinearProbe):
    """Draws exemplars without keeping any."""

    def phases(self, task: Task) -> list[Phase]:
        return [dataclasses.replace(phase, exemplars=3) for phase in super().phases(task)]


def test_faults_are_named() -> None:
    with pytest.raises(UserError, match="^a memory of 0.001 MB holds not a single image of this stream; enlarge it"):
        train(strategy_of(small("replay", epochs=1, buffer_mb=0.001)), cut(), stages=1)
    with pytest.raises(UserError, match="Forgets draws exemplars, but its model keeps none: derive it from"):
        train(strategy_of(Forgets(epochs=1, batch_size=16)), cut(), stages=1)
    phase = small("linear", epochs=1)
    assert isinstance(phase, GradientMethod)
    with pytest.raises(UserError, match="a phase with `batches` of its own gets no `exemplars`"):
        phase.phase([], lambda *_: torch.zeros(()), batches=lambda epoch: [], exemplars=2)


def test_a_fresh_model_holds_no_exemplars_and_grows_to_those_of_a_state_dict() -> None:
    _, strategy = batches_of("replay", epochs=1)
    fresh = strategy_of(small("replay")).model
    assert len(fresh.exemplars) == 0
    fresh.load_state_dict(strategy.model.state_dict())
    assert held(fresh.exemplars) == held(strategy.model.exemplars) != []
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in snapshot(strategy.model).items())
