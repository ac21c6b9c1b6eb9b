"""PRILoRA: the ranks of the blocks, which entries a pruning takes, and the rows that are LoRA itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_bench.errors import UserError
from cl_bench.methods.prilora import PRILoRA, lowest, ranks_of
from cl_bench.methods.seqlora import SeqLoRA
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import Spy, all_images, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON: dict[str, Any] = {"rank": 3, "epochs": 1, "batch_size": 16, "optimizer": "adamw", "lr": 0.01}
OFTEN: dict[str, Any] = COMMON | {"epochs": 2, "batch_size": 8, "rank_first": 2, "prune_every": 2}


def watched(method: PRILoRA, stages: int = 1) -> tuple[ContinualStrategy, list[Tensor]]:
    """A trained strategy, and the last direction's A [P, R, d] after every step."""
    seen: list[Tensor] = []
    spy = Spy(after_training_iteration=lambda strategy: seen.append(strategy.model.bank.A[-1].detach().clone()))
    return train(strategy_of(method, spy), cut(), stages=stages), seen


@pytest.mark.parametrize(
    ("blocks", "ranks"),
    [
        (12, [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]),
        (6, [4, 6, 7, 9, 10, 12]),
        (24, [4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 11, 12, 12]),
        (1, [8]),
    ],
)
def test_ranks_grow_with_depth_and_keep_the_budget(blocks: int, ranks: list[int]) -> None:
    assert PRILoRA().ranks(blocks) == ranks == ranks_of(blocks, 4, 12)
    assert sum(ranks) == 8 * blocks


def test_ranks_that_are_cut_miss_the_budget() -> None:
    assert sum(PRILoRA(rounding="floor").ranks(12)) == 91


def test_a_direction_has_the_numbers_of_lora_of_the_mean_rank() -> None:
    method, lora = PRILoRA(**OFTEN), SeqLoRA(**COMMON)
    assert method.direction_numbers(tiny_vit()) == lora.direction_numbers(tiny_vit()) == 2 * 2 * 2 * 3 * 32
    bank = train(strategy_of(method), cut(), stages=1).model.bank
    assert sum(p.numel() for p in bank.direction(0)) == method.direction_numbers(tiny_vit())
    A, B = bank.factors(0)
    assert [int(torch.linalg.matrix_rank(B[block, 0] @ A[block, 0])) for block in (0, 1)] == [2, 4]
    assert A.shape[2] == 4 and not A[0, :, 2:].any() and not B[0, :, :, 2:].any()


def test_the_importances_of_one_row() -> None:
    """|A| times the norms 1, 4, 1/2 and 2 gives 3, 4, 1 and 1."""
    A, norms = torch.tensor([[[3.0, -1.0, 2.0, 0.5]]]), torch.tensor([1.0, 4.0, 0.5, 2.0])
    assert lowest(A.abs() * norms, 0.5, "row").tolist() == [[[False, False, True, True]]]
    assert lowest(A.abs(), 0.5, "row").tolist() == [[[False, True, False, True]]]
    assert lowest(A.abs() * torch.full_like(norms, 7.0), 0.5, "row").tolist() == lowest(A.abs(), 0.5, "row").tolist()


def test_groups_are_rows_columns_or_the_matrix() -> None:
    importance = torch.tensor([[[1.0, 8.0, 3.0], [2.0, 7.0, 9.0]]])
    assert lowest(importance, 0.5, "row").int().tolist() == [[[1, 0, 0], [1, 0, 0]]]
    assert lowest(importance, 0.5, "column").int().tolist() == [[[1, 0, 1], [0, 1, 0]]]
    assert lowest(importance, 0.5, "matrix").int().tolist() == [[[1, 0, 1], [1, 0, 0]]]
    # 0.29 of 100 in floating-point numbers is a little less than 29.
    assert int(lowest(torch.rand(1, 1, 100), 0.29, "row").sum()) == 29


@pytest.mark.parametrize("regrow", [True, False])
def test_a_pruning_takes_half_of_each_row_and_what_grows_again_moves_at_once(regrow: bool) -> None:
    _, seen = watched(PRILoRA(**OFTEN, regrow=regrow))
    assert len(seen) >= 4
    assert [int((A == 0).sum()) for A in seen[:1]] == [0]
    zeros = [(A == 0).sum(dim=2).unique().tolist() for A in seen]
    assert zeros[1] == zeros[3] == [16]
    # Gradients of all entries differ from 0, so all of them move in the next step.
    assert zeros[2] == ([0] if regrow else [16])
    if not regrow:
        assert torch.equal(seen[1] == 0, seen[-1] == 0)


def test_pruning_ends_where_it_is_told() -> None:
    strategy, seen = watched(PRILoRA(**OFTEN, prune_end=0.5))
    pruned = [step for step, A in enumerate(seen, start=1) if bool((A == 0).any())]
    assert pruned == list(range(2, len(seen) // 2 + 1, 2)) and pruned
    assert {row["prunings"] for row in strategy.traces["pruned"]} == {len(pruned)}


@pytest.mark.parametrize("when", ["prune", "step"])
def test_importance_averages_the_norms_of_the_inputs_of_each_batch(when: Any) -> None:
    """The second pruning, repeated from the batches and the model as they were."""
    # At this rate, what was pruned first is not what is smallest.
    method = PRILoRA(**OFTEN | {"lr": 0.1}, norm_when=when, norm_decay=0.75)
    norms: list[Tensor] = []
    before: list[Tensor] = []

    def forward(strategy: Any) -> None:
        model = strategy.model
        with torch.no_grad():
            seen = model.vit.attention_inputs(strategy.mb_x[: strategy.valid], weights=model.weights())
        norms.append(torch.stack([x.flatten(0, 1).square().sum(0).sqrt() for x in seen]))

    spy = Spy(before_forward=forward, after_update=lambda s: before.append(s.model.bank.A[-1].detach().clone()))
    after: list[Tensor] = []
    record = Spy(after_training_iteration=lambda s: after.append(s.model.bank.A[-1].detach().clone()))
    train(strategy_of(method, spy, record), cut(), stages=1)
    used = norms[1:4:2] if when == "prune" else norms[:4]
    average = used[0]
    for each in used[1:]:
        average = 0.75 * average + 0.25 * each
    unpruned = before[3]
    for block, (A, pruned) in enumerate(zip(unpruned.split([2, 4], 1), after[3].split([2, 4], 1), strict=True)):
        expected = A.masked_fill(lowest(A.abs() * average[block], 0.5, "row"), 0.0)
        assert torch.equal(pruned, expected)
    assert not torch.equal(lowest(unpruned.abs(), 0.5, "row"), after[3] == 0), "the norms make no difference"


def test_without_pruning_and_growing_ranks_it_is_lora_to_the_bit() -> None:
    own = PRILoRA(**COMMON, rank_first=3, prune_share=0.0, alpha=6)
    ours, lora = (train(strategy_of(method), cut(), stages=2).model for method in (own, SeqLoRA(**COMMON, alpha=6)))
    assert bool(lora.update().any()) and torch.equal(ours.update(), lora.update())
    assert torch.equal(ours(all_images()), lora(all_images()))


def test_alpha_is_divided_by_the_rank_of_the_block_or_by_the_mean() -> None:
    for by, scales in (("layer", [6 / 2, 6 / 4]), ("mean", [2, 2])):
        method = PRILoRA(rank=3, rank_first=2, alpha=6, scale_by=by)  # type: ignore[arg-type]
        bank = method.bank(tiny_vit(), ("q", "v"), 3, 6.0)
        bank.grow(3, torch.Generator().manual_seed(0), torch.device("cpu"), zero=False)
        packed = bank.B[0].split([2, 4], dim=2)
        _, B = bank.factors(0)
        for block, (own, scale) in enumerate(zip(packed, scales, strict=True)):
            torch.testing.assert_close(B[block, :, :, : own.shape[2]], own * scale)


def test_traces_tell_how_much_was_pruned() -> None:
    strategy, seen = watched(PRILoRA(**OFTEN, regrow=False), stages=2)
    rows = strategy.traces["pruned"]
    assert [(row["stage"], row["block"], row["rank"]) for row in rows] == [(0, 0, 2), (0, 1, 4), (1, 0, 2), (1, 1, 4)]
    assert [(row["density_before"], row["density"]) for row in rows] == [(1, 0.5)] * 2 + [(0.5, 0.5)] * 2
    assert {row["prunings"] for row in rows} == {len(seen) // 2 // 2}
    assert all(0 < float(row["removed"]) < 0.25 for row in rows)


def test_only_inputs_that_are_known_have_norms() -> None:
    with pytest.raises(UserError, match="not those of proj: leave this target out, or choose importance=magnitude"):
        PRILoRA(targets=("q", "proj"))
    train(strategy_of(PRILoRA(**OFTEN, targets=("q", "proj"), importance="magnitude")), cut(), stages=1)


@pytest.mark.parametrize(
    ("methods", "fragments"),
    [
        ("prilora[rank_first=16]", ["mean rank 8", "16 in the first block", "no rank", "at most 15"]),
        ("prilora[prune_share=1]", ["prilora.prune_share", "less than 1"]),
        ("prilora[rank_first=0]", ["prilora.rank_first", "greater than 0"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, methods: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", methods, *TRIAL), *fragments)
