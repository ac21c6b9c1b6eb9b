"""What a run records besides its counts: losses, traces of methods, probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cl_bench.errors import UserError
from cl_bench.models.lora import LoRABank
from cl_bench.randomness import generator
from cl_bench.store import Store
from cl_bench.training.probes import PROBES
from tests.helpers.command import TRIAL, Outcome
from tests.helpers.rows import small
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import strategy_of, train


@dataclass
class Losses:
    """Adds up the loss of every training batch as the strategy reports it to plugins."""

    sums: list[float] = field(default_factory=list)

    def plugin(self) -> Any:
        from avalanche.core import SupervisedPlugin

        owner = self

        class Plugin(SupervisedPlugin):  # type: ignore[misc]
            def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
                owner.sums.append(0.0)

            def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
                owner.sums[-1] += strategy.loss.item() * len(strategy.mb_y)

        return Plugin()


@pytest.mark.parametrize(("row", "aligned"), [("sdlora", []), ("linear[align=true,align_epochs=1]", [4, 7])])
def test_the_mean_loss_of_each_epoch_on_images_is_recorded(row: str, aligned: list[int]) -> None:
    losses = Losses()
    strategy = train(strategy_of(small(row, epochs=2), losses.plugin()), cut())
    rows = strategy.traces["loss"]
    assert [(r["stage"], r["phase"], r["epoch"]) for r in rows] == [(t, 0, e) for t in range(3) for e in range(2)]
    # Epochs on class statistics (classifier alignment, after the second and the third task) are not among them.
    images = [total for epoch, total in enumerate(losses.sums) if epoch not in aligned]
    assert [r["loss"] for r in rows] == pytest.approx([t / len(cut().train[0].dataset) for t in images], rel=1e-5)


def test_phases_have_losses_of_their_own() -> None:
    strategy = train(strategy_of(small("hide", epochs=2)), cut(), stages=1)
    assert [(r["phase"], r["epoch"]) for r in strategy.traces["loss"]] == [(0, 0), (1, 0), (1, 1)]


def test_residuals_start_at_nothing_and_follow_the_direction_that_is_learned() -> None:
    strategy = train(strategy_of(small("sdlora-kd", epochs=8, batch_size=4, lr=0.05)), cut())
    rows = strategy.traces["residuals"]
    assert {row["stage"] for row in rows} == {1, 2}, "the first direction has none before it"
    for stage in (1, 2):
        mine = [row for row in rows if row["stage"] == stage]
        steps = [int(row["step"]) for row in mine]  # type: ignore[arg-type]
        assert steps[0] == 1 and steps[-1] == 40 and steps == sorted(set(steps))
        assert 20 <= len(steps) <= 50
        residuals = [float(row["frobenius"]) for row in mine]  # type: ignore[arg-type]
        assert residuals[0] < 0.2 * residuals[-1]
        assert all(0 <= float(row["relative"]) <= 1 + 1e-9 for row in mine)  # type: ignore[arg-type]


def test_residuals_are_those_of_least_squares_on_full_matrices() -> None:
    strategy = train(strategy_of(small("sdlora-kd", lr=0.05)), cut())
    model: Any = strategy.model
    full = [(model.bank.B[k] @ model.bank.A[k]).detach().double().flatten() for k in range(3)]
    places = model.bank.blocks * len(model.bank.targets)

    def unit(matrix: torch.Tensor) -> torch.Tensor:
        parts = matrix.unflatten(0, (places, -1))
        return (parts / parts.norm(dim=1, keepdim=True)).flatten()

    basis = torch.stack([unit(full[0]), unit(full[1])], dim=1)
    solution = torch.linalg.lstsq(basis, full[2][:, None]).solution
    expected = (full[2][:, None] - basis @ solution).norm()
    last = strategy.traces["residuals"][-1]
    assert last["frobenius"] == pytest.approx(float(expected), rel=1e-6)
    assert last["relative"] == pytest.approx(float(expected / full[2].norm()), rel=1e-6)


def test_the_gram_matrix_of_directions_of_different_ranks() -> None:
    bank = LoRABank(tiny_vit(), ("q", "v"), 5)
    for rank in (5, 2, 3):
        bank.grow(rank, generator(("gram", rank)), torch.device("cpu"), zero=False)
    full = torch.stack([bank.B[k] @ bank.A[k] for k in range(3)], dim=2).flatten(3).double()
    torch.testing.assert_close(bank.gram(torch.float64), full @ full.transpose(2, 3), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(bank.gram()[..., 0, 2], bank.inner(0, 2), rtol=1e-4, atol=1e-6)


def test_every_optimum_is_reached_from_the_pre_trained_weights() -> None:
    vit = tiny_vit()
    start = nn.utils.parameters_to_vector(vit.parameters()).detach().clone()
    strategy = strategy_of(small("optima", lr=0.02), backbone=vit)
    ends = []
    for experience in cut().train:
        strategy.train(experience, eval_streams=[])
        ends.append(nn.utils.parameters_to_vector(strategy.model.backbone.parameters()).detach().clone())
    rows = {(row["stage"], row["task"]): row for row in strategy.traces["optima"]}
    assert set(rows) == {(stage, task) for stage in range(3) for task in range(stage + 1)}
    for (stage, task), row in rows.items():
        assert row["distance"] == pytest.approx(float((ends[stage] - ends[task]).norm()), rel=1e-4, abs=1e-6)
        assert row["norm"] == pytest.approx(float((ends[task] - start).norm()), rel=1e-4)
        assert row["pretrained"] == pytest.approx(float(start.norm()))
    # The second task alone, from the same weights, in a strategy that never saw the first.
    alone = strategy_of(small("optima", lr=0.02))
    alone.tasks_learned = 1
    alone.train(cut().train[1], eval_streams=[])
    assert torch.equal(nn.utils.parameters_to_vector(alone.model.backbone.parameters()).detach(), ends[1])


def path_rows(strategy: Any) -> dict[tuple[float, int], tuple[int, int]]:
    return {(row["x"], row["task"]): (row["correct"], row["total"]) for row in strategy.traces["interpolation"]}


@pytest.mark.parametrize("row", ["sdlora", "seqlora", "inflora"])
def test_the_path_between_two_tasks_ends_at_their_models(row: str) -> None:
    stream = cut()
    strategy = strategy_of(small(row, lr=0.05))
    probe = PROBES["interpolation"]()
    strategy.train(stream.train[0], eval_streams=[])
    probe.after_stage(0, strategy, stream.test)
    first = strategy.model.update().detach().clone()  # type: ignore[operator]
    assert "interpolation" not in strategy.traces
    strategy.train(stream.train[1], eval_streams=[])
    probe.after_stage(1, strategy, stream.test)
    rows = path_rows(strategy)
    assert set(rows) == {(step / 10, task) for step in range(11) for task in (0, 1)}
    end = strategy.count_matrix(stream.test[:2], learned=2)
    assert [rows[1.0, task] for task in (0, 1)] == list(zip(end.correct, end.total, strict=True))
    start = strategy.count_matrix(stream.test[:2], learned=2, model=strategy.model.merged(first))  # type: ignore[operator]
    assert [rows[0.0, task] for task in (0, 1)] == list(zip(start.correct, start.total, strict=True))


def test_a_probe_changes_no_count(cl_bench: Callable[..., Outcome], tmp_path: Path) -> None:
    run = ["run", "--methods", "sdlora", "--benchmark", "icons-tune", *TRIAL, "--epochs", "1"]
    assert cl_bench(*run).code == 0
    assert cl_bench(*run, "--probe", "interpolation").code == 0
    records = list(Store(tmp_path / "results" / "runs").records(pytest.fail))
    assert len(records) == 2
    assert records[0].correct == records[1].correct
    assert sorted("interpolation" in record.traces for record in records) == [False, True]


def test_a_probe_that_cannot_be_measured_is_refused_before_any_run(cl_bench: Callable[..., Outcome]) -> None:
    outcome = cl_bench("run", "--methods", "simplecil", "--probe", "interpolation")
    assert outcome.code == 2 and "low-rank updates, and 'simplecil' has none" in outcome.err
    outcome = cl_bench("run", "--methods", "sdlora", "--probe", "interpolaton")
    assert outcome.code == 2 and "Did you mean 'interpolation'" in outcome.err
    with pytest.raises(UserError):
        PROBES["interpolation"].check(nn.Linear(2, 2), "linear")


@pytest.mark.parametrize("row", ["sdlora", "seqlora", "inclora[boundary=merge]", "sdlora-kd[residual=relative,tau=2]"])
def test_what_each_task_does_to_the_update(row: str) -> None:
    """Computed a second time from the whole updates before and after each task, by singular values."""
    strategy = strategy_of(small(row, lr=0.05))
    updates: list[torch.Tensor] = []
    for experience in cut().train:
        strategy.train(experience, eval_streams=[])
        updates.append(strategy.model.update().detach().double())  # type: ignore[operator]
    rows = strategy.traces["updates"]
    assert [(r["stage"], r["target"]) for r in rows] == [(stage, target) for stage in range(3) for target in "qv"]
    for stage, (first, second) in enumerate(zip([torch.zeros_like(updates[0]), *updates], updates, strict=False)):
        change = second - first
        for place, row_of in enumerate(rows[2 * stage : 2 * stage + 2]):
            expected = {
                "norm": second[:, place].norm(),
                "change": change[:, place].norm(),
                "rank": participation(second[:, place]),
                "change_rank": participation(change[:, place]),
            }
            if stage:
                pairs = list(zip(change[:, place], first[:, place], strict=True))
                cosines = [torch.nn.functional.cosine_similarity(d.flatten(), u.flatten(), dim=0) for d, u in pairs]
                expected["cosine"] = torch.stack(cosines).mean()
                expected["input_overlap"] = torch.stack([overlap(d.T @ d, u.T @ u) for d, u in pairs]).mean()
                expected["output_overlap"] = torch.stack([overlap(d @ d.T, u @ u.T) for d, u in pairs]).mean()
            found = {name: value for name, value in row_of.items() if name not in ("stage", "target")}
            assert found == pytest.approx({name: float(v) for name, v in expected.items()}, rel=1e-4, abs=1e-6)


def participation(updates: torch.Tensor) -> torch.Tensor:
    squares = torch.linalg.svdvals(updates).square()
    return (squares.sum(1).square() / squares.square().sum(1)).mean()


def overlap(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left * right).sum() / (left.norm() * right.norm())
