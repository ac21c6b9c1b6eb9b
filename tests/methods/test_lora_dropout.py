"""LoRA Dropout: what masks take from updates and gradients, their mean, the ensemble, and the row that is LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_bench.methods.lora_dropout import DropoutBank, LoRADropout, Masks
from cl_bench.methods.seqlora import SeqLoRA
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.tiny import CLASSES, cut, tiny_vit
from tests.helpers.training import Spy, all_images, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON: dict[str, Any] = {"rank": 3, "epochs": 1, "batch_size": 16, "optimizer": "adamw", "lr": 0.01}


def model_of(**options: Any) -> Any:
    """A model with one direction that is not 0."""
    model = LoRADropout(rank=3, **options).build(tiny_vit(), CLASSES)
    model.bank.grow(3, torch.Generator().manual_seed(0), torch.device("cpu"), zero=False)
    return model


def draw(bank: DropoutBank, kept: float = 1.0, seed: int = 1) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    shape = (bank.blocks, len(bank.targets), bank.dim)
    return tuple((torch.rand(shape, generator=generator) >= 0.5) * kept for _ in range(2))  # type: ignore[return-value]


def masks_of(strategy: Any) -> list[Tensor]:
    """Masks of the present step: of A and of B, [N, L, P, d]."""
    scratch = strategy.task.scratch
    return [scratch[name].clone() for name in scratch if name.startswith("masks")]


@pytest.mark.parametrize("instances", [1, 2])
def test_without_dropout_it_is_lora_to_the_bit(instances: int) -> None:
    ours, lora = (
        train(strategy_of(method), cut(), stages=2).model
        for method in (LoRADropout(rate=0, instances=instances, **COMMON), SeqLoRA(**COMMON))
    )
    assert bool(lora.update().any()) and torch.equal(ours.update(), lora.update())
    assert torch.equal(ours(all_images()), lora(all_images()))


def test_whole_rows_and_columns_are_dropped() -> None:
    model = model_of()
    columns, rows = masks = draw(model.bank)
    pattern = rows[..., None] * columns[..., None, :]
    assert torch.equal(model.masked(masks).detach() != 0, pattern != 0)
    torch.testing.assert_close(model.masked(masks), model.update() * pattern)
    assert 0.6 < float((pattern == 0).float().mean()) < 0.9


def test_what_is_dropped_gets_no_gradient() -> None:
    model = model_of()
    columns, rows = masks = draw(model.bank)
    model.masked(masks).square().sum().backward()
    A, B = (parameter.grad for parameter in model.bank.direction(0))
    assert torch.equal(A.ne(0).any(dim=2), columns != 0) and torch.equal(B.ne(0).any(dim=3), rows != 0)


@pytest.mark.parametrize(("rescale", "expected"), [("never", 0.25), ("train", 1.0)])
def test_the_mean_of_many_masks(rescale: Any, expected: float) -> None:
    """Of 4,000 draws, which miss the mean by 2.7 % on average."""
    model = model_of(rescale=rescale)
    update = model.update().detach()
    with torch.no_grad():
        columns, rows = zip(*(draw(model.bank, model.kept, seed) for seed in range(4_000)), strict=True)
        pattern = torch.einsum("nlpi,nlpj->lpij", torch.stack(rows), torch.stack(columns)) / len(rows)
    assert float((update * pattern - expected * update).norm() / update.norm()) < 0.05 * expected


def test_every_step_has_masks_of_its_own_that_all_its_passes_share_with_no_other() -> None:
    seen: list[list[Tensor]] = []
    spy = Spy(after_forward=lambda strategy: seen.append(masks_of(strategy)))
    method = LoRADropout(**COMMON, rate=0.25, instances=2, share_masks=True)
    strategy = train(strategy_of(method, spy), cut(), stages=2)
    values = {value for masks in seen for mask in masks for value in mask.unique().tolist()}
    assert sorted(values) == pytest.approx([0, 4 / 3])
    columns, rows = (torch.stack([masks[kind] for masks in seen]) for kind in (0, 1))
    assert len(columns.flatten(2).flatten(0, 1).unique(dim=0)) == 2 * len(seen)
    assert torch.equal(columns[:, :, :, 0], columns[:, :, :, 1]) and not torch.equal(rows[:, :, :, 0], rows[:, :, :, 1])
    assert float((columns == 0).float().mean()) == pytest.approx(0.25, abs=0.04)
    # The passes of a step differ, so their logits do.
    assert strategy.traces["masks"] and all(0 < float(row["kept"]) < 1 for row in strategy.traces["masks"])


def test_an_update_without_masks_can_be_shrunk_instead() -> None:
    update = model_of(rescale="never").eval().update()
    torch.testing.assert_close(model_of(rescale="test").eval().update(), update / 4)
    assert torch.equal(model_of().eval().update(), update)


@pytest.mark.parametrize("on", ["probabilities", "logits"])
def test_an_ensemble_averages_masked_models(on: Any) -> None:
    method = LoRADropout(**COMMON, ensemble=3, ensemble_on=on)
    strategy = train(strategy_of(method), cut(), stages=2)
    model, images = strategy.model.eval(), all_images()
    with torch.no_grad():
        members = torch.stack([model.head(model.masked_features(images, masks)) for masks in model.draws()])
        found, again, alone = model(images), model(images), model(images[3:4])
        merged = model.merged()(images)
    assert len(members) == 3 and not torch.allclose(members[0], members[1])
    seen = list(strategy.seen)
    if on == "logits":
        torch.testing.assert_close(found, members.mean(0))
    else:
        torch.testing.assert_close(found[:, seen].softmax(1), members[:, :, seen].softmax(2).mean(0))
        torch.testing.assert_close(found[:, seen].exp().sum(1), torch.ones(len(images)))
    # A prediction depends on its image alone.
    assert torch.equal(found, again)
    torch.testing.assert_close(alone, found[3:4])
    torch.testing.assert_close(merged, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.update(), torch.stack([model.masked(m) for m in model.draws()]).mean(0))


def test_masks_of_the_ensemble_are_those_of_the_last_task() -> None:
    strategy = strategy_of(LoRADropout(**COMMON, ensemble=2))
    assert strategy.method.passes(1) == 2 and LoRADropout().passes(1) == 1
    stored = []
    for experience in cut().train[:2]:
        strategy.train(experience, eval_streams=[])
        stored.append(torch.stack([strategy.model.columns, strategy.model.rows]).clone())
    assert not torch.equal(stored[0], stored[1]) and 0.4 < float(stored[1].float().mean()) < 0.6


@pytest.mark.parametrize("rescale", ["never", "train", "test"])
def test_earlier_directions_count_with_the_mean_of_their_masks(rescale: Any) -> None:
    model = model_of(rescale=rescale)
    whole = model.update().detach() * (4 if rescale == "test" else 1)
    model.bank.grow(3, torch.Generator().manual_seed(5), torch.device("cpu"))
    torch.testing.assert_close(model.masked(draw(model.bank)), whole * (1.0 if rescale == "train" else 0.25))
    torch.testing.assert_close(model.update(), whole * (1.0 if rescale == "train" else 0.25))


@pytest.mark.parametrize(
    ("methods", "fragments"),
    [
        ("lora-dropout[rate=1]", ["lora-dropout.rate", "less than 1"]),
        ("lora-dropout[instances=0]", ["lora-dropout.instances", "greater than 0"]),
        ("lora-dropout[ensemble=2,rescale=test]", ["rescale=test", "ensemble", "rescale=never or rescale=train"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, methods: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", methods, *TRIAL), *fragments)
