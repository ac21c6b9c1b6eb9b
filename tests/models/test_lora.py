"""The LoRA family: what stays frozen, merged weights, memories, fits, ranks and sizes; and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples, samples_of
from cl_bench.methods.inflora import InfLoRAModel, design, remember, restrict
from cl_bench.methods.nlora import absolute_sum
from cl_bench.methods.olora import overlap
from cl_bench.methods.sdlora import SDLoRA, SDLoRAModel
from cl_bench.methods.sdlora_kd import SDLoRAKD, SDLoRAKDModel
from cl_bench.methods.sdlora_rr import SDLoRARR
from cl_bench.models.lora import LoRABank, LoRAModel, Target, attention_covariances
from cl_bench.randomness import seeded
from tests.helpers.command import TRIAL, Cli, assert_refused, computed, stored
from tests.helpers.rows import DESIGNED, LORA, ONE_DIRECTION, links, small
from tests.helpers.tiny import CLASSES, TASKS, cut, tiny_vit
from tests.helpers.training import (
    Spy,
    all_images,
    distance,
    experiences,
    images_of,
    same,
    snapshot,
    strategy_of,
    train,
    trained,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, DEPTH = 32, 2
PLACES_OF_QV = 2 * DEPTH
TARGETS: tuple[Target, ...] = get_args(Target)
DROPPING = "sdlora-kd[residual=relative,tau=2]"
SEEDS = st.integers(0, 2**16)
PLACES = st.lists(st.sampled_from(TARGETS), min_size=1, max_size=4, unique=True).map(tuple)


def task_of(model: nn.Module, index: int = 0, num_classes: int = CLASSES) -> Task:
    """A task of one class, as the strategy describes it."""
    return Task(index, (index,), tuple(range(index + 1)), num_classes, None, model, ("lora", index))


def task_images(task: int = 0) -> TaskSamples:
    return TaskSamples(samples_of(cut().train[task].dataset), ("lora", task), torch.device("cpu"))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


@torch.no_grad()
def fill(bank: LoRABank, k: int, generator: torch.Generator) -> None:
    """Fill a direction with values that training could have reached: neither factor is 0."""
    for factor in bank.direction(k):
        factor.copy_(normal(generator, *factor.shape) * 0.2)


# --- what a task trains ----------------------------------------------------------------------------------------


def expected_changes(row: str, stage: int, parts: Sequence[str]) -> set[str]:
    """Names in the state dict that training changes in a stage (0-based)."""
    name = row.partition("[")[0]
    last = 0 if row in ONE_DIRECTION else stage
    last = min(stage, 1) if row == DROPPING else last
    count = links(small(row))
    moving = [part for place, part in enumerate(parts) if place != DESIGNED.get(row)]
    own = [f"bank.{part}.{k}" for part in moving for k in range(last * count, (last + 1) * count)]
    changed = {"head.weight", "head.bias", *own}
    if name.startswith("sdlora"):
        changed |= {f"magnitudes.{k}" for k in ([last] if "magnitudes=current" in row else range(last + 1))}
    if "directions=first" in row and stage:
        changed -= {"bank.A.0", "bank.B.0"}
    return changed


@pytest.mark.parametrize("row", LORA)
def test_a_task_trains_its_own_direction_and_nothing_else(row: str) -> None:
    """Everything else stays bit-identical: backbone, earlier directions, norms, memories, other tasks' head rows."""
    states: list[dict[str, Tensor]] = []

    def look(strategy: Any) -> None:
        if strategy.phase.batches is None:  # not while the head is aligned on statistics
            states.append(snapshot(strategy.model))

    spy = Spy(before_training_epoch=look, after_training_epoch=look)
    strategy = strategy_of(small(row, lr=0.05), spy)
    for stage, experience in enumerate(experiences(strategy.method, cut())):
        states.clear()
        strategy.train(experience, eval_streams=[])
        before, after = states[0], states[-1]
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == expected_changes(row, stage, strategy.model.bank.parts)
        moved = (before["head.weight"] != after["head.weight"]).any(dim=1)
        assert set(np.flatnonzero(moved.numpy()).tolist()) == set(experience.classes_in_this_experience)


def test_only_the_first_task_learns_a_direction() -> None:
    strategy = strategy_of(small("sdlora[directions=first]", lr=0.05))
    kept: list[Tensor] = []
    for experience in cut().train:
        strategy.train(experience, eval_streams=[])
        directions = [factor.detach().clone() for factor in strategy.model.bank.direction(-1)]
        kept = kept or directions
        assert len(strategy.model.bank) == 1 and all(map(torch.equal, directions, kept))
    assert all(bool(factor.any()) for factor in kept)


def magnitudes(model: Any) -> list[float]:
    return [float(value.detach()) for value in model.magnitudes]


@pytest.mark.parametrize("carry", ["reset", "carry"])
def test_magnitudes_start_anew_or_go_on(carry: str) -> None:
    started: list[list[float]] = []
    spy = Spy(before_training_epoch=lambda s: started.append(magnitudes(s.model)))
    strategy = strategy_of(small(f"sdlora[alpha_carry={carry},alpha_init=0.5]", lr=0.05, epochs=1), spy)
    learned: list[float] = []
    for experience in cut().train:
        strategy.train(experience, eval_streams=[])
        assert started[-1] == [*(learned if carry == "carry" else [0.5] * len(learned)), 0.5]
        learned = magnitudes(strategy.model)
        assert 0.5 not in learned


def test_old_magnitudes_are_one_where_only_the_current_one_is_trained() -> None:
    strategy = strategy_of(small("sdlora[magnitudes=current,alpha_init=0.5]", lr=0.05))
    for stage, experience in enumerate(cut().train):
        strategy.train(experience, eval_streams=[])
        *old, current = magnitudes(strategy.model)
        assert old == [1.0] * stage and current not in (0.5, 1.0)


# --- merged weights, against an update that is never merged ------------------------------------------------------


def hooked(model: LoRAModel, coefficients: Sequence[Sequence[Sequence[float]]], images: Tensor) -> Tensor:
    """Logits with c_k B_k A_k x added to the output of each projection, one direction after the other, by hooks."""
    width, targets = model.bank.dim, model.bank.targets

    def hook(block: int, layer: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            output = output.clone()
            for place, target in enumerate(targets):
                if (target == "proj") is not (layer == "proj"):
                    continue
                start = 0 if layer == "proj" else "qkv".index(target) * width
                for k in range(len(model.bank)):
                    A, B = (factor[block, place] for factor in model.bank.factors(k))
                    output[..., start : start + width] += coefficients[k][block][place] * (inputs[0] @ A.T @ B.T)
                if model.bank.base is not None:
                    output[..., start : start + width] += inputs[0] @ model.bank.base[block, place].T
            return output

        return getattr(model.backbone.blocks[block].attn, layer).register_forward_hook(add)

    handles = [hook(block, layer) for block in range(len(model.backbone.blocks)) for layer in ("qkv", "proj")]
    try:
        with torch.no_grad():
            return model.predicting_head(model.backbone(images))
    finally:
        for handle in handles:
            handle.remove()


def documented(row: str, model: Any) -> list[list[list[float]]]:
    """c_k of a row's model after its last task, [K][block][projection], as its file says."""
    count = len(model.bank)
    # Directions that are not the current task's.
    frozen = count if row == DROPPING or "directions=first" in row else 0 if "directions=shared" in row else count - 1

    def coefficient(k: int, block: int, place: int) -> float:
        if not isinstance(model, SDLoRAModel):
            return 1.0
        A, B = (factor[block, place].detach().double() for factor in model.bank.direction(k))
        norm = 1.0
        if "norm=frobenius" in row:
            norm = float((B @ A).norm())
        elif k < frozen:
            norm = float(A.norm() * B.norm())
        offset = float(model.offsets[k, block, place]) if isinstance(model, SDLoRAKDModel) else 0.0
        return magnitudes(model)[k] / norm + offset

    places = range(len(model.bank.targets))
    return [[[coefficient(k, block, p) for p in places] for block in range(model.bank.blocks)] for k in range(count)]


def assert_merges(model: LoRAModel, coefficients: Sequence[Sequence[Sequence[float]]], images: Tensor) -> None:
    """The model, the merged model and the unmerged reference predict the same; merging leaves the model alone."""
    before = snapshot(model)
    merged = model.eval().merged()
    with torch.no_grad():
        logits, folded = model(images), merged(images)
    reference = hooked(model, coefficients, images)
    assert distance(logits, reference) < 1e-5
    assert distance(folded, reference) < 1e-5
    plain = [*model.backbone.parameters(), *model.head.parameters()]
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_direction_starts_as_lora_does() -> None:
    """A ~ U(-1/sqrt(d), 1/sqrt(d)), B = 0 or drawn as A; no two draws are the same."""
    bank, bound = LoRABank(tiny_vit(), ("q", "v"), 8), DIM**-0.5
    bank.grow(8, torch.Generator().manual_seed(3), torch.device("cpu"))
    bank.grow(8, torch.Generator().manual_seed(4), torch.device("cpu"), zero=False)
    assert not bank.B[0].any()
    for factor in (bank.A[0], bank.A[1], bank.B[1]):
        values = factor.detach().flatten() / bound
        # Of n = 1024 the standard error of the mean is 0.018, and of the mean square 0.009.
        assert float(values.abs().max()) < 1 and len(values.unique()) == len(values) == 4 * 8 * DIM
        assert abs(float(values.mean())) < 0.07 and abs(float(values.square().mean()) - 1 / 3) < 0.04


@pytest.mark.parametrize("alpha", [None, 3.0, 12.0])
def test_alpha_over_rank_scales_whatever_is_said_of_a_direction(alpha: float | None) -> None:
    """The scale acts as a factor on B; trained parameters, and those that penalties see, have no scale."""
    generator, rank, images = torch.Generator().manual_seed(5), 3, all_images()[:4]
    scale = 1.0 if alpha is None else alpha / rank
    scaled = LoRAModel(tiny_vit(), CLASSES, ("q", "v"), rank, alpha)
    plain = LoRAModel(tiny_vit(), CLASSES, ("q", "v"), rank)
    plain.head.load_state_dict(scaled.head.state_dict())
    for k in range(2):
        scaled.grow(rank, torch.Generator())
        fill(scaled.bank, k, generator)
        plain.bank.append(scaled.bank.A[k].detach(), scale * scaled.bank.B[k].detach())
    ours, theirs = scaled.bank, plain.bank
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    close(scaled.update(), plain.update())
    close(ours.gram(), theirs.gram())
    close(ours.inner(0, 1), theirs.inner(0, 1))
    for kind in ("product", "frobenius"):
        close(ours.norm(1, kind), theirs.norm(1, kind))
    with torch.no_grad():
        close(scaled(images), plain(images))
        close(scaled.merged()(images), plain(images))
    assert ours.direction(1) == [ours.A[1], ours.B[1]] and torch.equal(ours.factors(1)[0], ours.A[1])
    assert (ours.factors(1)[1] is ours.B[1]) == (alpha is None)


@pytest.mark.parametrize("name", ["inclora", "nlora", "olora", "seqlora"])
def test_a_method_with_alpha_is_scaled_and_one_of_its_rank_is_as_before(name: str) -> None:
    strategies = {alpha: train(strategy_of(small(name, lr=0.01, alpha=alpha)), cut(), 2) for alpha in (None, 3.0, 6.0)}
    updates = {alpha: strategy.model.update().detach() for alpha, strategy in strategies.items()}
    assert torch.equal(updates[None], updates[3.0])
    bank = strategies[6.0].model.bank
    B = torch.cat([2 * B for B in bank.B], dim=3)
    torch.testing.assert_close(updates[6.0], B @ torch.cat(list(bank.A), dim=2))
    assert distance(updates[6.0], updates[None]) > 0.1


# --- the sum over frozen directions ----------------------------------------------------------------------------


def bank_of(ranks: Sequence[int], seed: int, trained: int = 1) -> LoRABank:
    """A bank with random directions of these ranks, of which the last `trained` are not frozen."""
    bank, generator = LoRABank(tiny_vit(), rank=max(ranks)), torch.Generator().manual_seed(seed)
    for number, rank in enumerate(ranks):
        bank.grow(rank, generator, torch.device("cpu"), zero=False)
        for parameter in bank.direction(number):
            parameter.requires_grad_(number >= len(ranks) - trained)
    return bank


def summed(bank: LoRABank, coefficients: Tensor) -> Tensor:
    """sum_k c_k B_k A_k, direction by direction in fp64."""
    pairs = [[factor.double() for factor in bank.factors(k)] for k in range(len(bank))]
    return torch.stack(
        [c.double()[..., None, None] * (B @ A) for c, (A, B) in zip(coefficients, pairs, strict=True)]
    ).sum(0)


@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=6), trained=st.integers(0, 2), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_sum_over_frozen_directions_is_that_of_each(ranks: list[int], trained: int, seed: int) -> None:
    """Also the gradients of all coefficients and of the trained directions."""
    bank = bank_of(ranks, seed, trained)
    generator = torch.Generator().manual_seed(seed + 1)
    c = torch.randn(len(ranks), DEPTH, 2, generator=generator, requires_grad=True)
    weights = torch.randn(DEPTH, 2, DIM, DIM, generator=generator)
    leaves = [c, *(p for k in range(len(ranks)) for p in bank.direction(k) if p.requires_grad)]
    found, expected = bank.update(c), summed(bank, c)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad((update * weights).sum(), leaves) for update in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_frozen_direction_that_changes_is_seen() -> None:
    """By a step in place, and when it is dropped."""
    bank, c = bank_of([2, 3, 1], seed=0), torch.ones(3, DEPTH, 2)
    bank.update(c)
    bank.A[0].mul_(2)
    torch.testing.assert_close(bank.update(c).double(), summed(bank, c), rtol=1e-5, atol=1e-6)
    bank.drop()
    torch.testing.assert_close(bank.update(c[:2]).double(), summed(bank, c[:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.5])
@torch.no_grad()
def test_rounding_the_sum_adds_less_than_rounding_the_weights(share: float) -> None:
    """Of a hundred directions, which change the weights by this share of their norm. Without rounding it would be
    exactly what rounding the weights costs."""
    bank, c = bank_of([4] * 100, seed=1), torch.rand(100, DEPTH, 2, generator=torch.Generator().manual_seed(2))
    change = summed(bank, c)
    frozen = torch.randn(change.shape, generator=torch.Generator().manual_seed(3)) * change.std() / share
    exact = frozen.double() + change
    unavoidable = (exact.bfloat16().double() - exact).norm()
    total = ((frozen + bank.update(c, torch.bfloat16)).bfloat16().double() - exact).norm()
    assert total**2 - unavoidable**2 < unavoidable**2


@pytest.mark.parametrize("row", LORA)
def test_merged_weights_predict_the_same_after_training(row: str) -> None:
    model: Any = trained(row).model
    images = all_images()
    assert_merges(model, documented(row, model), images)
    with torch.no_grad():
        assert distance(model.head(model.backbone(images)), model(images)) > 1e-3, "the update changes nothing"


@settings(max_examples=25, deadline=None)
@given(targets=PLACES, ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=SEEDS)
def test_merged_weights_for_any_targets_and_ranks(targets: tuple[Target, ...], ranks: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with seeded(("head", seed)):
        model = SDLoRAModel(tiny_vit(), 5, targets, max(ranks))
    for k, rank in enumerate(ranks):
        model.grow(rank, generator)
        fill(model.bank, k, generator)
    model.set_magnitudes(normal(generator, len(ranks)).tolist())
    assert_merges(model, documented("sdlora", model), normal(generator, 3, 1, 32, 32))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        (name, targets)
        for name in sorted({row.partition("[")[0] for row in LORA})
        for targets in (TARGETS, ("proj",), ("v", "k", "q"))
        if name not in ("inflora", "prilora") or "proj" not in targets  # they look at what q, k and v see
    ],
)
def test_every_method_trains_the_targets_it_is_given(name: str, targets: tuple[Target, ...]) -> None:
    option = "train=lora," if name == "joint" else ""
    strategy = train(strategy_of(small(f"{name}[{option}targets={'+'.join(targets)}]", lr=0.01)), cut())
    model: Any = strategy.model
    assert model.bank.targets == targets
    changed = torch.stack([B.detach().flatten(2).any(dim=2) for B in model.bank.B])
    by_task = changed.unflatten(0, (-1, links(strategy.method))).any(dim=1)
    assert bool(by_task.all()), "a task leaves a projection as it is"
    assert_merges(model, documented(name, model), all_images())


# --- penalties of O-LoRA and N-LoRA ----------------------------------------------------------------------------


def rows_of(*directions: Tensor) -> LoRABank:
    """A bank of directions whose A has the same rows [r, d] at every place; B is 0."""
    bank = LoRABank(tiny_vit(), ("q", "v"), max(len(rows) for rows in directions))
    for rows in directions:
        A = rows.expand(DEPTH, 2, -1, -1)
        bank.append(A, torch.zeros_like(A).transpose(2, 3))
    return bank


@pytest.mark.parametrize("rank", [1, 4])
@torch.no_grad()
def test_overlap_by_hand(rank: int) -> None:
    basis = torch.linalg.qr(normal(torch.Generator().manual_seed(rank), DIM, DIM).double())[0].T
    one, other, new = basis[:rank], basis[rank : 2 * rank], normal(torch.Generator().manual_seed(0), rank, DIM).double()
    assert float(overlap(rows_of(one))) == 0, "nothing before it"
    assert float(overlap(rows_of(one, other))) < 1e-12, "orthogonal"
    assert float(overlap(rows_of(one, one))) == pytest.approx(rank * PLACES_OF_QV), "the same rows"
    assert float(overlap(rows_of(one, -2 * one))) == pytest.approx(2 * rank * PLACES_OF_QV), "linear, without a sign"
    apart, together = overlap(rows_of(one, other, new)), overlap(rows_of(torch.cat([one, other]), new))
    assert float(apart) == pytest.approx(float(together)) and float(apart) > 0.1


@pytest.mark.parametrize("product", ["AB", "BA"])
def test_sparsity_asks_for_nothing_at_the_start(product: Literal["AB", "BA"]) -> None:
    """At B = 0 the penalty and its gradient are exactly 0: the first step is plain LoRA's."""
    bank = rows_of(normal(torch.Generator().manual_seed(1), 3, DIM))
    penalty = absolute_sum(bank, product)
    penalty.backward()
    assert float(penalty.detach()) == 0 and all(not factor.grad.any() for factor in bank.direction(0))


@pytest.mark.parametrize("row", ["olora[orthogonality=0]", "nlora[sparsity=0]"])
def test_without_its_penalty_a_method_is_incremental_lora_to_the_bit(row: str) -> None:
    plain = train(strategy_of(small("inclora", optimizer="adamw", lr=0.01)), cut(), stages=2)
    found = train(strategy_of(small(row, optimizer="adamw", lr=0.01)), cut(), stages=2)
    assert same(found.model.state_dict(), plain.model.state_dict())


# --- InfLoRA ---------------------------------------------------------------------------------------------------


def leaves_span(rows: Tensor, basis: Tensor) -> float:
    """How much of the rows lies outside span(basis), relative to the rows."""
    return float((rows - rows @ basis @ basis.T).norm() / rows.norm())


def covariance(generator: torch.Generator, values: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A random [d, d] second moment with these eigenvalues, and its eigenvectors in columns."""
    vectors = torch.linalg.qr(normal(generator, DIM, DIM).double())[0]
    return vectors @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ vectors.T, vectors


def test_new_directions_avoid_what_old_tasks_use() -> None:
    """On a real stream, whose blocks store small bases of old inputs or small ones of their complement."""
    modes: set[str] = set()

    def look(strategy: Any) -> None:
        model = strategy.model
        A = model.bank.A[-1].detach().double()
        assert torch.equal(A[:, 0], A[:, 1])
        for block, designed in enumerate(A[:, 0]):
            basis, mode = model.memory(block)
            if basis.shape[1] == 0:
                continue
            modes.add(mode)
            assert float(designed.norm()) > 0.5
            if mode == "remove":
                assert float((designed @ basis).norm() / designed.norm()) < 1e-4
            else:
                assert leaves_span(designed, basis) < 1e-4

    for lamb in (0.6, 0.9, 0.9999):
        strategy = strategy_of(small(f"inflora[lamb={lamb}]", lr=0.01), Spy(before_training_epoch=look))
        for experience in cut().train:
            strategy.train(experience, eval_streams=[])
            for block in range(DEPTH):
                basis, _ = strategy.model.memory(block)
                assert basis.shape[1] > 0
                torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), atol=1e-5, rtol=0)
    assert modes == {"remove", "retain"}


def test_directions_are_designed_and_remembered_on_training_views() -> None:
    """As in the released code: inputs come from the training views of the task, one view of each image."""
    plugin, found = small("inflora", epochs=1, batch_size=100), []

    def look(strategy: Any) -> None:
        images = TaskSamples(samples_of(cut().train[0].dataset), strategy.task.key, torch.device("cpu"))
        for batches in (images.batches(augmented=True), images.batches()):
            inputs, _ = attention_covariances(strategy.model, batches)
            found.append(torch.stack([design(each, plugin.rank) for each in inputs]).abs())

    strategy = train(strategy_of(plugin, Spy(before_training_iteration=look)), cut(), stages=1)
    A = strategy.model.bank.A[0].detach()[:, 0].abs()
    torch.testing.assert_close(A, found[0].float(), rtol=1e-4, atol=1e-5)
    assert distance(A, found[1]) > 0.05


@pytest.mark.parametrize(("threshold", "directions", "mode"), [(0.52, 16, "remove"), (0.6, 19, "retain")])
def test_a_first_task_may_use_half_of_the_space_and_more(threshold: float, directions: int, mode: str) -> None:
    """The energy is (all but) equal in all 32 directions; the memory keeps those below the threshold."""
    generator = torch.Generator().manual_seed(0)
    C, vectors = covariance(generator, np.linspace(1.0001, 1, DIM).tolist())
    model = InfLoRAModel(tiny_vit(), CLASSES, ("k", "v"), 3)
    model.design(torch.stack([C] * DEPTH), 3)
    model.remember(torch.stack([C] * DEPTH), threshold)
    basis, found = model.memory(0)
    leading, rest = vectors[:, :directions], vectors[:, directions:]
    assert found == mode
    assert basis.shape == (DIM, directions if mode == "remove" else DIM - directions)
    assert leaves_span(basis.T, leading if mode == "remove" else rest) < 1e-5
    other, _ = covariance(generator, np.linspace(2, 1, DIM).tolist())
    model.design(torch.stack([other] * DEPTH), 3)
    A = model.bank.A[-1][0, 0].detach().double()
    assert float((A @ leading).norm() / A.norm()) < 1e-5
    torch.testing.assert_close(A @ A.T, torch.eye(3).double() / 3, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(st.tuples(st.integers(2, DIM), st.floats(0.3, 0.999)), min_size=2, max_size=5),
    dual=st.booleans(),
    seed=SEEDS,
)
def test_memories_grow_until_they_hold_enough(tasks: list[tuple[int, float]], dual: bool, seed: int) -> None:
    """Over any tasks, of any rank and threshold: orthonormal bases, nothing forgotten, and the share asked for."""
    generator = torch.Generator().manual_seed(seed)
    basis, mode = torch.zeros(DIM, 0).double(), "remove"
    used = torch.zeros(DIM, DIM).double()
    for number, (rank, threshold) in enumerate(tasks):
        C, _ = covariance(generator, [*np.linspace(3, 1, rank), *[0.0] * (DIM - rank)])
        basis, mode = remember(C, basis, mode, threshold, dual)  # type: ignore[arg-type]
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), atol=1e-9, rtol=0)
        inside = basis @ basis.T
        before, used = used, inside if mode == "remove" else torch.eye(DIM).double() - inside
        assert float((used @ before - before).norm()) < 1e-8, "a direction in use was forgotten"
        left = float(restrict(C, basis, mode).square().sum() / C.square().sum())  # type: ignore[arg-type]
        if number:
            assert left <= 1 - threshold + 1e-9
        assert dual or mode == "remove"
        assert mode == "retain" or not dual or basis.shape[1] <= DIM / 2


@settings(max_examples=40, deadline=None)
@given(present=st.integers(1, 8), removed=st.integers(0, 7), rank=st.integers(1, 12), seed=SEEDS)
def test_designed_rows_are_orthonormal_up_to_what_there_is(present: int, removed: int, rank: int, seed: int) -> None:
    """Rows beyond the rank of the restricted second moment are 0, not arbitrary."""
    generator = torch.Generator().manual_seed(seed)
    C, vectors = covariance(generator, [*np.linspace(2, 1, present), *[0.0] * (DIM - present)])
    removed = min(removed, present - 1)
    A = design(restrict(C, vectors[:, :removed], "remove"), rank)
    rows = min(rank, present - removed)
    assert A.shape == (rank, DIM)
    torch.testing.assert_close(A[:rows] @ A[:rows].T, torch.eye(rows).double() / 3, atol=1e-9, rtol=0)
    assert leaves_span(A[:rows], vectors[:, removed:present]) < 1e-9
    assert not A[rows:].any()
    assert not design(torch.zeros(DIM, DIM).double(), rank).any()


# --- SD-LoRA-KD ------------------------------------------------------------------------------------------------


def kd_model(ranks: Sequence[int], generator: torch.Generator, targets: tuple[Target, ...] = ("q", "v")) -> Any:
    """A model whose directions are all filled; magnitudes are drawn too."""
    with seeded(("head", 0)):
        model = SDLoRAKDModel(tiny_vit(), CLASSES, targets, max(ranks))
    for k, rank in enumerate(ranks):
        model.grow(rank, generator)
        fill(model.bank, k, generator)
    model.set_magnitudes((normal(generator, len(ranks)).abs() + 0.5).tolist())
    return model.eval()


def dense(model: Any) -> np.ndarray:
    """U_k = B_k A_k / ||B_k A_k||_F, [K, places, d * d]."""
    found = []
    for A, B in zip(model.bank.A, model.bank.B, strict=True):
        product = (B.detach().double() @ A.detach().double()).flatten(0, 1).flatten(1).numpy()
        found.append(product / np.linalg.norm(product, axis=1, keepdims=True))
    return np.stack(found)


@torch.no_grad()
def put_last_in_span(model: Any, shares: Tensor) -> None:
    """Make the last direction sum_k shares[k, block, place] U_k of the others."""
    others = range(len(model.bank) - 1)
    model.bank.A[-1].copy_(torch.cat([model.bank.A[k] for k in others], dim=2))
    scaled = [
        shares[k][..., None, None] * model.bank.B[k] / (model.bank.inner(k, k).sqrt())[..., None, None] for k in others
    ]
    model.bank.B[-1].copy_(torch.cat(scaled, dim=3))


@torch.no_grad()
def orthogonalise(model: Any) -> None:
    """Give the directions orthogonal columns, so that a sum of them has the same norm in every place."""
    kept = list(model.bank.B)[:-1]
    columns = torch.linalg.qr(torch.cat(kept, dim=3))[0].split([B.shape[3] for B in kept], dim=3)
    for B, column in zip(kept, columns, strict=True):
        B.copy_(column)
    model.normalisers[:-1] = torch.stack([model.bank.norm(k, model.norm) for k in range(len(kept))])


def after_task(model: Any, **changes: Any) -> None:
    SDLoRAKD(**changes).after_task(task_of(model), task_images())


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("scope", ["joint", "projection"])
@pytest.mark.parametrize("residual", ["rms", "frobenius", "relative"])
@pytest.mark.parametrize("kept", [1, 3])
def test_a_direction_in_the_span_is_dropped_and_nothing_changes(
    scope: Literal["joint", "projection"], residual: Any, kept: int, normalise: bool
) -> None:
    generator = torch.Generator().manual_seed(kept)
    model = kd_model([3] * kept + [3 * kept], generator)
    model.normalise_current = normalise
    if scope == "joint":
        orthogonalise(model)
        shares = torch.tensor([0.9, -1.7, 0.4])[:kept, None, None].expand(-1, DEPTH, 2)
    else:
        shares = normal(generator, kept, DEPTH, 2)
    put_last_in_span(model, shares)
    # Not the first drop: what was absorbed before stays.
    model.offsets.copy_(normal(generator, *model.offsets.shape) * 0.1)
    images = all_images()
    with torch.no_grad():
        expected = model(images)
    after_task(model, tau=1e-4, residual=residual, scope=scope)
    assert len(model.bank) == len(model.magnitudes) == len(model.normalisers) == len(model.offsets) == kept
    with torch.no_grad():
        assert distance(model(images), expected) < 1e-5
        model.offsets.zero_()
        assert distance(model(images), expected) > 1e-2, "what was dropped did not matter"


def test_one_fit_for_all_projections_does_not_drop_what_needs_one_each() -> None:
    generator = torch.Generator().manual_seed(1)
    model = kd_model([3, 3, 6], generator)
    put_last_in_span(model, normal(generator, 2, DEPTH, 2))
    assert model.fit("projection").pooled("relative") < 1e-6
    assert model.fit("joint").pooled("relative") > 0.1
    after_task(model, tau=0.1, residual="relative", scope="joint")
    assert len(model.bank) == 3
    after_task(model, tau=0.1, residual="relative", scope="projection")
    assert len(model.bank) == 2


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scope=st.sampled_from(["joint", "projection"]), share=st.floats(0.2, 1))
def test_a_direction_outside_the_span_is_kept_as_it_is(
    seed: int, scope: Literal["joint", "projection"], share: float
) -> None:
    """A direction partly in the span is kept if the tolerance is below its residual, and dropped if it is above."""
    generator = torch.Generator().manual_seed(seed)
    model = kd_model([2, 2, 4], generator)
    outside = [factor.detach().clone() for factor in model.bank.direction(-1)]
    put_last_in_span(model, torch.ones(2, DEPTH, 2))
    with torch.no_grad():
        for inside, other in zip(model.bank.direction(-1), outside, strict=True):
            inside.copy_((1 - share) * inside + share * other)
    residual = model.fit(scope).pooled("relative")
    assert 0.02 < residual <= 1
    before = snapshot(model)
    after_task(model, tau=residual * 0.99, residual="relative", scope=scope)
    after = snapshot(model)
    assert after.pop("residuals").tolist() == pytest.approx([residual])
    assert all(torch.equal(value, before[name]) for name, value in after.items()) and len(before) == len(after) + 1
    after_task(model, tau=residual * 1.01, residual="relative", scope=scope)
    assert len(model.bank) == 2


def test_without_tolerance_every_trained_direction_is_kept() -> None:
    model: Any = train(strategy_of(small("sdlora-kd[tau=0]", lr=0.05)), cut()).model
    assert len(model.bank) == TASKS
    assert len(model.residuals) == TASKS - 1 and bool((model.residuals > 0.5).all())


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    targets=PLACES,
    seed=SEEDS,
    scope=st.sampled_from(["joint", "projection"]),
)
def test_the_fit_is_least_squares_of_the_dense_matrices(
    ranks: list[int], targets: tuple[Target, ...], seed: int, scope: Literal["joint", "projection"]
) -> None:
    model = kd_model(ranks, torch.Generator().manual_seed(seed), targets)
    fit, units = model.fit(scope), dense(model)
    places = units.shape[1]
    groups = [units.reshape(len(ranks), -1)] if scope == "joint" else [units[:, place] for place in range(places)]
    assert fit.coefficients.shape == (len(groups), len(ranks) - 1)
    squares = 0.0
    for number, group in enumerate(groups):
        solution = np.linalg.lstsq(group[:-1].T, group[-1], rcond=None)[0]
        error = group[-1] - solution @ group[:-1]
        squares += float(error @ error)
        np.testing.assert_allclose(fit.coefficients[number], solution, atol=1e-9)
        np.testing.assert_allclose(fit.residual[number], np.linalg.norm(error), atol=1e-7)
        np.testing.assert_allclose(fit.gram[number], group[:-1] @ group[:-1].T, atol=1e-12)
        np.testing.assert_allclose(fit.rhs[number], group[:-1] @ group[-1], atol=1e-12)
    # Every place has a unit target, so that the relative residual is sqrt(places) times the smaller.
    frobenius = squares**0.5
    assert fit.pooled("frobenius") == pytest.approx(frobenius, rel=1e-6)
    assert fit.pooled("relative") == pytest.approx(frobenius / places**0.5, rel=1e-6)
    assert fit.pooled("rms") == pytest.approx(fit.pooled("relative") / DIM, rel=1e-9)


def test_a_task_after_drops_is_learned_and_kept() -> None:
    """Two tasks whose directions are dropped, except the first one, then a task that keeps its own."""
    stream = cut()
    dropping = train(strategy_of(small(DROPPING, lr=0.05)), stream, stages=2)
    strategy = strategy_of(small("sdlora-kd[tau=0]", lr=0.05))
    strategy.model.load_state_dict(dropping.model.state_dict())
    strategy.seen, strategy.tasks_learned = dropping.seen, dropping.tasks_learned
    offsets, first = dropping.model.offsets.clone(), [p.clone() for p in dropping.model.bank.direction(0)]
    assert len(dropping.model.bank) == 1 and bool(offsets.any())
    strategy.train(stream.train[2], eval_streams=[])
    model: Any = strategy.model
    assert len(model.bank) == len(model.magnitudes) == 2 and bool(model.bank.B[-1].any())
    assert all(map(torch.equal, model.bank.direction(0), first))
    assert torch.equal(model.offsets[:1], offsets) and not model.offsets[1].any()
    assert all(hits is not None for hits in strategy.count_matrix(stream.test).correct)
    assert_merges(model, documented("sdlora-kd", model), all_images())


# --- ranks, sizes, memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "ranks"),
    [("paper", [10, 10, 10, 8, 8, 8, 8, 6, 6, 6]), ("code", [10, 10, 10, 10, 8, 8, 8, 8, 6, 6])],
)
def test_ranks_fall_with_the_tasks(index: Literal["paper", "code"], ranks: list[int]) -> None:
    method = SDLoRARR(index=index)
    model: Any = method.build(tiny_vit(), CLASSES)
    for task in range(10):
        method.before_task(task_of(model, task), task_images())
    assert [A.shape[2] for A in model.bank.A] == [B.shape[3] for B in model.bank.B] == ranks


@pytest.mark.parametrize(
    ("name", "rank", "factors", "magnitudes"),
    [("sdlora", 10, 368_640, True), ("sdlora-rr", 6, 221_184, True), ("inflora", 10, 184_320, False)],
)
def test_numbers_trained_per_task_on_vit_b(name: str, rank: int, factors: int, magnitudes: bool) -> None:
    """Without the head. The released SD-LoRA counts 21 magnitudes in every task; here there are as many as tasks."""
    method = small(name, rank=10, rank_mu=8, rank_nu=6)
    with torch.device("meta"):
        model: Any = method.build(timm.create_model("vit_base_patch16_224", num_classes=0), 200)
        for task in range(10):
            if magnitudes:
                model.grow(rank, torch.Generator())
                model.set_magnitudes([0.8] * (task + 1))
            else:
                model.bank.append(torch.empty(12, 2, rank, 768), torch.empty(12, 2, 768, rank))
            (phase,) = method.phases(task_of(model, task, 200))
            head = sum(p.numel() for p in model.head.parameters())
            trained = sum(p.numel() for p in phase.trainable())
            assert head == 200 * 769
            assert trained - head == factors + (task + 1 if magnitudes else 0)


def saved_bytes(model: Any, phase: Any, images: Tensor, labels: Tensor) -> int:
    """Bytes held from the forward to the backward pass of a step, without parameters; each storage counts once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.requires_grad_(False)
    for parameter in phase.trainable():
        parameter.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = phase.loss(model(images), labels).mean()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("row", ["sdlora", "sdlora[normalise_current=true,norm=frobenius]", "sdlora-kd"])
def test_a_step_keeps_little_more_with_each_task(row: str) -> None:
    """No more than one task's factors, and its activations in front of B."""
    method: Any = small(row)
    model, images = method.build(tiny_vit(), CLASSES).train(), all_images()
    labels = torch.zeros(len(images), dtype=torch.int64)
    sizes = []
    for index in range(9):
        task = task_of(model, index)
        method.before_task(task, task_images())
        fill(model.bank, -1, task.generator("fill"))
        (phase,) = method.phases(task)
        sizes.append(saved_bytes(model, phase, images, labels.fill_(index)))
    factors = sum(factor.nbytes for factor in model.bank.direction(-1))
    tokens = len(images) * (16 + 1)
    activations = method.rank * tokens * DEPTH * len(method.targets) * 4
    growth = np.diff(sizes)
    assert sizes[0] > 0 and len(growth) == 8
    assert growth.max() <= factors + activations
    # Full-size products per task, or activations of the whole width, would be seen.
    assert factors < DEPTH * 2 * DIM * DIM * 4 and tokens * DIM * DEPTH * 2 * 4 > factors + activations


def test_there_is_no_limit_to_the_number_of_tasks() -> None:
    """The released code stops at 20."""
    method = SDLoRA(rank=2)
    model: Any = method.build(tiny_vit(), CLASSES)
    for index in range(25):
        task = task_of(model, index)
        method.before_task(task, task_images())
        fill(model.bank, -1, task.generator("fill"))
    (phase,) = method.phases(Task(24, (23, 24), tuple(range(25)), CLASSES, None, model, ("lora", 24)))
    images, _ = images_of(cut().test[0])
    phase.loss(model(images), torch.tensor([23, 24] * (len(images) // 2))).sum().backward()
    gradients = [parameter.grad for parameter in phase.trainable()]
    assert len(model.magnitudes) == len(model.bank) == 25
    assert all(g is not None and bool(g.isfinite().all()) and bool(g.any()) for g in gradients)


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "fragments"),
    [
        ("sdlora[rank=193]", ["LoRA rank 193", "at most 192"]),
        ("joint[train=lora,rank=500]", ["LoRA rank 500", "at most 192"]),
        ("sdlora[targets=q+fc9]", ["sdlora.targets", "fc9", "'q', 'k', 'v' or 'proj'"]),
        ("inflora[targets=k+v+k]", ["LoRA targets k+v+k", "once"]),
        ("sdlora[targets=]", ["targets"]),
        ("sdlora-rr[rank=4]", ["ranks 4, 8, 6", "never rise"]),
        ("sdlora-rr[mu=9]", ["from tasks 1, 9, 8 on", "mu <= nu"]),
        ("sdlora-rr[rank_nu=9]", ["ranks 10, 8, 9", "never rise"]),
        ("sdlora-kd[tau=-1]", ["sdlora-kd.tau", "greater than or equal to 0"]),
        ("inflora[lamb=1.5]", ["inflora.lamb", "less than or equal to 1"]),
        ("simplecil,seqlora[rank=193]", ["LoRA rank 193"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, methods: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", methods, *TRIAL), *fragments)


def test_a_hundred_tasks_of_one_class_run(cl_bench: Cli) -> None:
    """One prompt component each for coda, one image each for the memory of InfLoRA, no gradient under a masked loss."""
    methods = ["coda[epochs=1]", "finetune[epochs=1]", "inflora[epochs=1]", "sdlora-kd[epochs=1]"]
    limits = ["--limit-tasks", "2", "--limit-train", "1", "--limit-test", "1"]
    outcome = cl_bench("run", "--methods", ",".join(methods), "--tasks", "100", *limits)
    assert outcome.code == 0 and computed(outcome) == (4, 0), outcome
    for run in stored():
        assert (run["experiment"]["tasks"], len(run["classes"]), run["total"]) == (100, 100, [1, 1])
        assert run["correct_task_aware"] == [[1, 1], [1, 1]] and run["correct"][0][1] is None
