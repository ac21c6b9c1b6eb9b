"""RAC-LoRA and XGBLoRA: what a link may change, what a chain adds up to, and the rows that are LoRA itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_bench.contract.task import Task
from cl_bench.methods.raclora import RACLoRA
from cl_bench.methods.seqlora import SeqLoRA
from cl_bench.methods.xgblora import XGBLoRA
from cl_bench.randomness import seeded
from cl_bench.training.checkpoint import Checkpoint, Facts, Stage
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.tiny import CLASSES, cut, tiny_vit
from tests.helpers.training import Spy, all_images, distance, images_of, same, snapshot, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, DEPTH = 32, 2
LORA: dict[str, Any] = {"epochs": 2, "batch_size": 16, "optimizer": "adamw", "lr": 0.01, "alpha": 6}
SKETCHES = ["left", "right"]


def learned(method: Any, stages: int = 1) -> Any:
    return train(strategy_of(method), cut(), stages).model.eval()


def changes(model: Any) -> list[Tensor]:
    """Update by each direction, [L, P, d, d]."""
    products = []
    for k in range(len(model.bank)):
        A, B = (factor.detach().double() for factor in model.bank.factors(k))
        products.append(B @ A)
    return products


def begun(method: Any) -> tuple[Any, Task]:
    """A model whose first task has begun, and the task."""
    with seeded(("chains", "head")):
        model = method.build(tiny_vit(), CLASSES)
    own = tuple(cut().train[0].classes_in_this_experience)
    task = Task(0, own, own, CLASSES, None, model, ("chains", 0))
    method.before_task(task, None)
    return model, task


# --- links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sketch", SKETCHES)
def test_a_link_changes_weights_only_where_its_drawn_factor_reaches(sketch: Any) -> None:
    """The drawn factor keeps its bits; the update is its own projection on it, on either side."""
    method = RACLoRA(sketch=sketch, links=2, **LORA)
    model, drawn = learned(method), 0 if sketch == "right" else 1
    fresh, _ = begun(method)
    for k, update in enumerate(changes(model)):
        factor = model.bank.direction(k)[drawn].detach().double()
        assert factor.shape == fresh.bank.direction(k)[drawn].shape and bool(factor.any()) and bool(update.any())
        basis = torch.linalg.qr(factor.mT if sketch == "right" else factor).Q
        projector = basis @ basis.mT
        projected = update @ projector if sketch == "right" else projector @ update
        assert distance(projected, update) < 1e-5


def test_only_the_link_that_is_trained_moves() -> None:
    """Links that have not been reached change nothing, and those before keep their bits."""
    seen: list[dict[str, Tensor]] = []
    spy = Spy(after_training_epoch=lambda strategy: seen.append(snapshot(strategy.model)))
    start, _ = begun(RACLoRA(links=3, **LORA | {"epochs": 3}))
    train(strategy_of(RACLoRA(links=3, **LORA | {"epochs": 3}), spy), cut(), stages=1)
    assert len(seen) == 3
    for link, state in enumerate(seen):
        assert [bool(state[f"bank.B.{k}"].any()) for k in range(3)] == [k <= link for k in range(3)]
        for k in range(link):
            assert torch.equal(state[f"bank.B.{k}"], seen[link - 1][f"bank.B.{k}"])
    assert all(torch.equal(seen[0][f"bank.A.{k}"], seen[2][f"bank.A.{k}"]) for k in range(3))
    assert len({float(A.detach().sum()) for A in start.bank.A}) == 3, "two links have the same draw"


@pytest.mark.parametrize(("sketch", "alpha"), [("left", None), ("left", 6.0), ("right", 6.0)])
def test_a_step_of_gradient_descent_is_a_sketch_of_the_gradient(sketch: Any, alpha: float | None) -> None:
    """From 0, W changes by -lr s^2 B B^T G, or by -lr s^2 G A^T A."""
    lr = 0.01
    method = RACLoRA(sketch=sketch, links=1, epochs=1, optimizer="sgd", momentum=0.0, lr=lr, alpha=alpha)
    model, task = begun(method)
    (phase,) = method.phases(task)
    images, labels = images_of(cut().train[0])
    update = torch.zeros(DEPTH, 2, DIM, DIM, requires_grad=True)
    features = model.vit.features(images, weights=model.weights(update))
    phase.loss(model.head(features), labels).mean().backward()
    gradient = update.grad
    assert gradient is not None
    phase.loss(model(images), labels).mean().backward()
    phase.optimizer(phase.parameters).step()
    A, B = model.bank.direction(0)
    scale = 1.0 if alpha is None else alpha / method.rank
    drawn = B @ B.mT @ gradient if sketch == "left" else gradient @ A.mT @ A
    assert distance(model.update(), -lr * scale**2 * drawn) < 1e-4


@pytest.mark.parametrize(
    "method", [RACLoRA(rank=2, links=3), XGBLoRA(links=3, select="all")], ids=["raclora", "xgblora"]
)
def test_the_rank_of_a_chain_is_the_sum_of_its_links(method: Any) -> None:
    model, _ = begun(method)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for B in model.bank.B:
            B.copy_(torch.randn(B.shape, generator=generator))
    ranks = torch.linalg.matrix_rank(sum(changes(model)))  # type: ignore[call-overload]
    assert ranks.unique().tolist() == [3 * method.rank]


@pytest.mark.parametrize("method", [RACLoRA(links=2, **LORA), XGBLoRA(links=2, **LORA)], ids=["raclora", "xgblora"])
def test_merging_a_chain_changes_no_logit(method: Any) -> None:
    model = learned(method)
    model.bank.keep_base()
    with torch.no_grad():
        before = model(all_images())
        model.merge()
        assert len(model.bank) == 0 and bool(model.update().any())
        assert distance(model(all_images()), before) < 1e-5


@pytest.mark.parametrize(
    "method",
    [RACLoRA(links=1, train="both", rank=3, **LORA), XGBLoRA(links=1, blocks=DEPTH, rank=3, **LORA)],
    ids=["raclora", "xgblora"],
)
def test_one_link_of_both_factors_is_lora_to_the_bit(method: Any) -> None:
    chain, lora = learned(method), learned(SeqLoRA(rank=3, **LORA))
    assert bool(lora.update().any()) and torch.equal(chain.update(), lora.update())
    assert torch.equal(chain.head.weight, lora.head.weight)


@pytest.mark.parametrize(
    ("options", "std", "bound"),
    [
        ({}, (DIM * 3) ** -0.5, DIM**-0.5),
        ({"draw": "normal"}, DIM**-0.5, None),
        ({"draw": "normal", "draw_std": 1.0}, 1.0, None),
    ],
)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_how_a_factor_is_drawn(options: dict[str, Any], std: float, bound: float | None, sketch: Any) -> None:
    model, _ = begun(RACLoRA(rank=8, links=1, sketch=sketch, **options))
    A, B = (factor.detach() for factor in model.bank.direction(0))
    drawn, zero = (A, B) if sketch == "right" else (B, A)
    # Of n = 1024 draws, the standard error of the standard deviation is 2 %.
    assert not zero.any() and abs(float(drawn.std()) / std - 1) < 0.08
    assert bound is None or 0.9 * bound < float(drawn.abs().max()) < bound


@pytest.mark.parametrize("sketch", SKETCHES)
def test_a_drawn_factor_may_be_orthonormal(sketch: Any) -> None:
    model, _ = begun(RACLoRA(rank=4, links=1, sketch=sketch, orthonormal=True))
    A, B = (factor.detach() for factor in model.bank.direction(0))
    gram = A @ A.mT if sketch == "right" else B.mT @ B
    torch.testing.assert_close(gram, torch.eye(4).expand_as(gram), rtol=0, atol=1e-6)


# --- epochs, schedules, optimisers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "epochs"),
    [
        (RACLoRA(links=3, epochs=20), [7, 7, 6]),
        (RACLoRA(epochs=20), [2] * 10),
        (RACLoRA(epochs=4), [1] * 4),
        (XGBLoRA(epochs=20), [1] * 20),
    ],
)
def test_links_divide_the_epochs(method: Any, epochs: list[int]) -> None:
    _, task = begun(method)
    assert [phase.epochs for phase in method.phases(task)] == epochs


@pytest.mark.parametrize(("over", "restarts"), [("task", False), ("link", True)])
def test_a_schedule_runs_over_the_task_or_restarts_in_each_link(over: Any, restarts: bool) -> None:
    method = RACLoRA(links=3, epochs=5, schedule="cosine", schedule_over=over)
    _, task = begun(method)
    factors = [phase.schedule(epoch, phase.epochs) for phase in method.phases(task) for epoch in range(phase.epochs)]
    (whole,) = RACLoRA(links=1, epochs=5, schedule="cosine").phases(begun(RACLoRA(links=1))[1])
    once = [whole.schedule(epoch, 5) for epoch in range(5)]
    assert factors == pytest.approx([1.0, 0.5, 1.0, 0.5, 1.0] if restarts else once)


def steps_of(moments: str) -> list[list[float]]:
    """Adam's step counts of the parameters after each epoch; three links."""
    found: list[list[float]] = []

    def look(strategy: Any) -> None:
        found.append([float(state["step"]) for state in strategy.optimizer.state.values()])

    train(
        strategy_of(RACLoRA(links=3, **LORA | {"moments": moments, "epochs": 3}), Spy(after_training_epoch=look)),
        cut(),
        2,
    )
    return found


def test_an_optimiser_goes_on_from_link_to_link_but_not_from_task_to_task() -> None:
    fresh, kept = steps_of("fresh"), steps_of("keep")
    each = fresh[0][0]
    assert fresh == [[each] * 3] * 6
    assert kept == [[each * link] * 3 for link in (1, 2, 3)] * 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_optimiser_of_links_that_start_where_the_last_one_stopped_is_one_phase(optimizer: Any) -> None:
    """If the factors stayed as they are, a chain with one optimiser would be a single phase."""
    options: dict[str, Any] = LORA | {"optimizer": optimizer, "epochs": 2, "train": "both", "schedule": "cosine"}
    images, labels = images_of(cut().train[0])

    def heads(links: int) -> Tensor:
        method = RACLoRA(links=links, moments="keep", **options)
        model, task = begun(method)
        for phase in method.phases(task):
            made = phase.optimizer([{"params": model.head.parameters()}])
            for epoch in range(phase.epochs):
                made.param_groups[0]["lr"] = method.lr * phase.schedule(epoch, phase.epochs)
                model.zero_grad()
                phase.loss(model.head(model.features(images).detach()), labels).mean().backward()
                made.step()
            assert phase.after_step is not None
            phase.after_step(phase.epochs, phase.epochs)
        return model.head.weight.detach()

    one, two = heads(1), heads(2)
    torch.testing.assert_close(two, one, rtol=0, atol=0)


def test_a_chain_with_one_optimiser_resumes_to_the_same_bits_from_every_step() -> None:
    method = RACLoRA(sketch="left", links=2, moments="keep", **LORA)
    stage = Stage(**dict.fromkeys(Stage.model_fields, 0) | {"correct": [], "correct_task_aware": []})
    caught: list[Checkpoint] = []

    def catch(strategy: Any) -> None:
        if strategy.tasks_learned == 1:
            found = strategy.checkpoint(Facts(key="", stages=[stage]))
            caught.append(Checkpoint(found.facts, {name: tensor.clone() for name, tensor in found.tensors.items()}))

    whole = train(strategy_of(method, Spy(after_training_iteration=catch)), cut(), stages=2)
    assert [(each.facts.position.phase, each.facts.position.step) for each in caught if each.facts.position] == [
        (0, 1), (0, 2), (1, 1), (1, 2),
    ]  # fmt: skip
    for checkpoint in caught:
        resumed = strategy_of(method)
        resumed.resume(checkpoint)
        resumed.train(cut().train[1], eval_streams=[])
        assert same(resumed.model.state_dict(), whole.model.state_dict())


# --- boosters --------------------------------------------------------------------------------------------------


def blocks_of(method: Any) -> list[list[int]]:
    """The blocks that each booster of the first task may change."""
    vit = tiny_vit()
    vit.blocks = torch.nn.Sequential(*(tiny_vit(seed).blocks[0] for seed in range(6)))
    model = method.build(vit, CLASSES)
    method.before_task(Task(0, (0,), (0,), CLASSES, None, model, ("boosters", 0)), None)
    return [model.bank.changes(k).nonzero().flatten().tolist() for k in range(len(model.bank))]


def test_a_booster_draws_its_blocks_from_its_key() -> None:
    drawn = blocks_of(XGBLoRA(epochs=12))
    assert all(len(blocks) == len(set(blocks)) == 2 for blocks in drawn) and len(drawn) == 12
    assert len({tuple(blocks) for blocks in drawn}) > 3
    assert blocks_of(XGBLoRA(epochs=12)) == drawn
    assert blocks_of(XGBLoRA(epochs=5)) == drawn[:5], "a booster's blocks depend on how many follow"


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"blocks": 4}, None),
        ({"select": "balanced"}, [4] * 6),
        ({"select": "all"}, [12] * 6),
        ({"blocks": 6}, [12] * 6),
    ],
)
def test_blocks_are_drawn_evenly_if_asked_for(options: dict[str, Any], counts: Sequence[int] | None) -> None:
    drawn = blocks_of(XGBLoRA(epochs=12, **options))
    found = [sum(block in blocks for blocks in drawn) for block in range(6)]
    assert found == counts if counts else sum(found) == 4 * 12 and len(set(found)) > 1


def test_blocks_that_are_not_drawn_stay_as_they_are() -> None:
    model = learned(XGBLoRA(links=2, blocks=1, weight_decay=0.1, **LORA))
    for k, update in enumerate(changes(model)):
        moved = update.flatten(1).any(dim=1)
        assert moved.sum() == 1 and torch.equal(moved, model.bank.changes(k))


def test_a_booster_shrunk_to_nothing_changes_nothing() -> None:
    strategy = strategy_of(XGBLoRA(links=2, shrinkage=0.0, **LORA))
    head = strategy.model.head.weight.detach().clone()
    train(strategy, cut(), stages=2)
    assert not strategy.model.update().any()
    assert not torch.equal(strategy.model.head.weight, head)


def test_shrinkage_scales_a_booster_in_training_and_after() -> None:
    shrunk, _ = begun(XGBLoRA(links=1, select="all", shrinkage=0.25, alpha=2))
    whole, _ = begun(XGBLoRA(links=1, select="all", alpha=2))
    with torch.no_grad():
        for model in (shrunk, whole):
            model.bank.B[0].fill_(0.1)
    torch.testing.assert_close(shrunk.update(), 0.25 * whole.update())


def test_the_penalty_is_on_the_current_booster() -> None:
    model, task = begun(XGBLoRA(links=2, select="all", norm_penalty=0.5))
    model.requires_grad_(False)
    for factor in model.bank.direction(1):
        factor.requires_grad_(True)
    expected = 0.5 * sum(factor.detach().square().sum() for factor in model.bank.direction(1))
    torch.testing.assert_close(XGBLoRA(norm_penalty=0.5).penalty(task), expected)
    assert XGBLoRA().penalty(task) is None


# --- records and refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "blocks"), [(RACLoRA(links=2, **LORA), 2), (XGBLoRA(links=2, **LORA), 1)], ids=["raclora", "xgblora"]
)
@pytest.mark.parametrize("boundary", ["stack", "merge"])
def test_traces_tell_of_every_link(method: Any, blocks: int, boundary: Any) -> None:
    strategy = train(strategy_of(type(method)(links=2, boundary=boundary, **LORA)), cut(), stages=2)
    rows = strategy.traces["links"]
    assert [(row["stage"], row["link"], row["blocks"]) for row in rows] == [
        (stage, link, blocks) for stage in range(2) for link in range(2)
    ]
    last = changes(strategy.model)[-2:]
    for row, update, total in zip(rows[-2:], last, (last[0], last[0] + last[1]), strict=True):
        assert row["norm"] == pytest.approx(float(update.norm()), rel=1e-4)
        assert row["total"] == pytest.approx(float(total.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("methods", "fragments"),
    [
        ("raclora[links=6,epochs=5]", ["chain of 6 links", "5 epochs", "at most 5"]),
        ("xgblora[links=6,epochs=5]", ["chain of 6 links", "5 epochs", "at most 5"]),
        ("raclora[boundary=continue]", ["raclora.boundary", "'stack' or 'merge'"]),
        ("xgblora[blocks=13]", ["13 blocks", "backbone with 12", "at most 12"]),
        ("xgblora[blocks=4,select=all]", ["select=all", "limited to 4", "leave out"]),
        ("raclora[draw_std=0.5]", ["draw_std = 0.5", "uniform", "draw=normal"]),
        ("raclora[draw_std=0]", ["raclora.draw_std", "greater than 0"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, methods: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", methods, *TRIAL), *fragments)
