"""PRoLoRA: what rotated chunks make of factors, the numbers that they save, and the rows that are LoRA itself."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.methods.prolora import PRoLoRA, PRoLoRABank
from cl_bench.methods.seqlora import SeqLoRA
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 32
CPU = torch.device("cpu")


def bank_of(vit: VisionTransformer | None = None, **options: Any) -> PRoLoRABank:
    """A bank with one direction, all of whose parameters are normal."""
    method = PRoLoRA(**options)
    bank = method.bank(tiny_vit() if vit is None else vit, ("q", "v"), method.rank, method.alpha)
    generator = torch.Generator().manual_seed(1)
    bank.grow(method.rank, generator, CPU)
    with torch.no_grad():
        for parameter in bank.direction(0):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return bank


def update(bank: PRoLoRABank) -> Tensor:
    """Of the first block's q, [d, d]."""
    A, B = bank.factors(0)
    return (B @ A).detach()[0, 0]


def blocks(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix cut into [rows, columns, height, width]."""
    return torch.stack([torch.stack(row.chunk(columns, dim=1)) for row in matrix.chunk(rows, dim=0)])


def test_three_chunks_of_one_column_are_a_circulant() -> None:
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=3, depth=1, num_heads=1, num_classes=0)
    bank = bank_of(vit, rank=3, unshared=0, share_a=3, share_b=3)
    with torch.no_grad():
        bank.A[0].copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        bank.B[0].copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    circulant = torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]])
    for factor in bank.factors(0):
        assert torch.equal(factor[0, 0], circulant)
    assert torch.equal(update(bank), torch.tensor([[14.0, 11.0, 11.0], [11.0, 14.0, 11.0], [11.0, 11.0, 14.0]]))


@pytest.mark.parametrize(
    "options",
    [{"unshared": 3, "share_a": 7, "share_b": 5}, {"unshared": 1, "share_a": 1, "share_b": 1}],
    ids=["nothing shared", "one chunk"],
)
def test_without_sharing_it_is_lora_to_the_bit(options: dict[str, int]) -> None:
    common: dict[str, Any] = {"rank": 3, "epochs": 2, "batch_size": 16, "optimizer": "adamw", "lr": 0.01}
    shared, lora = (
        train(strategy_of(method), cut(), stages=2).model
        for method in (PRoLoRA(alpha=6, **options, **common), SeqLoRA(alpha=6, **common))
    )
    assert bool(lora.update().any()) and torch.equal(shared.update(), lora.update())
    assert torch.equal(shared.head.weight, lora.head.weight)


def test_chunks_that_are_not_rotated_repeat() -> None:
    found = blocks(update(bank_of(rank=4, unshared=0, share_a=4, share_b=2, rotate=False)), 2, 4)
    assert torch.equal(found, found[:1, :1].expand_as(found))
    rotated = blocks(update(bank_of(rank=4, unshared=0, share_a=4, share_b=2)), 2, 4)
    assert not torch.allclose(rotated, rotated[:1, :1].expand_as(rotated))


def test_blocks_depend_on_the_difference_of_their_rotations() -> None:
    """With m = n chunks and m s = R, blocks (i, j) and (i + 1, j + 1) are equal."""
    found = blocks(update(bank_of(rank=8, unshared=0, share_a=4, share_b=4)), 4, 4)
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(found[i, j], found[0, (j - i) % 4])
    assert not torch.allclose(found[0, 0], found[0, 1])


def test_the_gradient_of_a_chunk_sums_those_of_its_copies() -> None:
    bank = bank_of(rank=5, unshared=1, share_a=3, share_b=2)
    A, B = bank.factors(0)
    A.retain_grad()
    (B @ A).pow(2).sum().backward()
    wide, stride = bank.chunks[0], bank.strides[0]
    assert (wide, stride) == (11, 1)
    assert A.grad is not None
    copies = torch.cat([A.grad[:, :, :4], torch.zeros(2, 2, 4, 3 * wide - DIM)], dim=3).split(wide, dim=3)
    torch.testing.assert_close(bank.A[0].grad, sum(copy.roll(j * stride, dims=2) for j, copy in enumerate(copies)))


@pytest.mark.parametrize(
    ("rank", "unshared", "shares", "numbers"), [(8, 1, 7, 3_076), (16, 4, 3, 12_288), (8, 8, 5, 12_288)]
)
def test_numbers_of_a_projection_of_vit_b(rank: int, unshared: int, shares: int, numbers: int) -> None:
    """3,072 are those of LoRA of rank 2, 12,288 of rank 8."""
    method = PRoLoRA(rank=rank, unshared=unshared, share_a=shares, share_b=shares)
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert method.direction_numbers(vit) == 12 * 2 * numbers


@pytest.mark.parametrize(("bound", "width"), [("full", DIM), ("chunk", 8)])
def test_chunks_start_in_the_bound_of_the_whole_width(bound: str, width: int) -> None:
    method = PRoLoRA(rank=8, unshared=2, share_a=4, share_b=4, bound=bound)  # type: ignore[arg-type]
    bank = method.bank(tiny_vit(), ("q", "v"), 8, None)
    bank.grow(8, torch.Generator().manual_seed(3), CPU)
    A, B, A_u, B_u = (parameter.detach() for parameter in bank.direction(0))
    assert 0.95 < float(A.abs().max()) * width**0.5 < 1 and 0.95 < float(A_u.abs().max()) * DIM**0.5 < 1
    assert not B.any() and not B_u.any()


@pytest.mark.parametrize("shares", [1, 3, 4])
def test_sharing_does_not_lower_the_rank(shares: int) -> None:
    bank = bank_of(rank=8, unshared=1, share_a=shares, share_b=shares).double()
    assert int(torch.linalg.matrix_rank(update(bank))) == 8


def test_strides_follow_from_the_shared_ranks_or_from_all() -> None:
    options: dict[str, int] = {"rank": 8, "unshared": 3, "share_a": 2, "share_b": 7}
    assert bank_of(**options).strides == (2, 1) and bank_of(stride="rank", **options).strides == (4, 1)


def test_traces_say_how_much_the_shared_ranks_do() -> None:
    """A projection has 2 * 32 numbers of its own and 3 (11 + 16) in chunks; LoRA of rank 4 would have 256."""
    method = PRoLoRA(rank=4, unshared=1, share_a=3, share_b=2, epochs=2, batch_size=16)
    strategy = train(strategy_of(method), cut(), stages=2)
    rows = strategy.traces["shared_ranks"]
    assert [(row["stage"], row["numbers"], row["of_lora"]) for row in rows] == [(t, 145, 145 / 256) for t in (0, 1)]
    assert all(0 < float(row["energy"]) < 1 for row in rows)
    bank = strategy.model.bank
    A, B = (factor.detach().double() for factor in bank.factors(0))
    parts = [float((B[..., cut] @ A[:, :, cut]).square().sum()) for cut in (slice(3), slice(3, 4))]
    assert float(rows[-1]["energy"]) == pytest.approx(parts[0] / sum(parts), rel=1e-4)


@pytest.mark.parametrize(
    ("methods", "fragments"),
    [
        ("prolora[unshared=9]", ["rank 8", "9 ranks unshared", "at most 8"]),
        ("prolora[share_a=193]", ["width of 192", "193 chunks", "share_a", "at most 192"]),
        ("prolora[share_b=0]", ["prolora.share_b", "greater than 0"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, methods: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", methods, *TRIAL), *fragments)
