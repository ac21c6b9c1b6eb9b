"""CODA-Prompt against numbers from its authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_bench.method import masked_cross_entropy
from cl_bench.methods.coda import CODAModel, orthogonal_to
from tests import golden

DATA = np.load(golden.FOLDER / "coda.npz")
PREFIX = "clpub1."
BLOCKS, SHARE, LENGTH, DIM = 5, 4, 4, 64
BANKS = {"P": (LENGTH, DIM), "K": (DIM,), "A": (DIM,)}
SCALES = [
    ("attn.qkv.weight", 0.2),
    ("attn.proj.weight", 0.15),
    ("mlp.fc1.weight", 0.15),
    ("mlp.fc2.weight", 0.08),
    ("patch_embed.proj.weight", 0.05),
    ("cls_token", 0.5),
    ("pos_embed", 0.5),
    (".bias", 0.02),
]


def z(name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return golden.normal(PREFIX + name, shape, scale, shift)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    if "norm" in name and name.endswith(".weight"):
        return z(f"vit.{name}", shape, 0.1, 1.0)
    return z(f"vit.{name}", shape, next(scale for ending, scale in SCALES if name.endswith(ending)))


def replay() -> list[tuple[CODAModel, dict[str, Tensor]]]:
    """The model in the state of tasks 0, 1 and 2, each with the new components as they were before the drift."""
    states = []
    for tasks in (1, 2, 3):
        model = CODAModel(golden.tiny_vit(DIM, 6, 4, weight), 10, range(BLOCKS))
        new: dict[str, Tensor] = {}
        with torch.no_grad():
            model.head.weight.copy_(z("head.weight", (10, DIM), 0.2))
            model.head.bias.copy_(z("head.bias", (10,), 0.02))
            for t in range(tasks):
                model.grow(SHARE, LENGTH, torch.Generator())
                for letter, shape in BANKS.items():
                    bank = getattr(model, letter)
                    width = int(np.prod(shape))
                    for e in range(BLOCKS):
                        old = torch.cat([part[e].flatten(1) for part in list(bank)[:-1]] or [torch.zeros(0, width)])
                        rows = orthogonal_to(old, z(f"coda.gs.t{t}.{letter}.{e}", (SHARE, width)))
                        new[f"t{t}.gs_new.{letter}.{e}"] = rows
                        drift = z(f"coda.drift.t{t}.{letter}.{e}", (SHARE, *shape), 0.3 if letter == "P" else 0.08)
                        bank[-1][e] = rows.unflatten(1, shape) + drift
        states.append((model, new))
    return states


@pytest.mark.parametrize("t", [0, 1, 2])
def test_components_prompts_losses_and_gradients(t: int) -> None:
    model, new = replay()[t]
    for name, rows in new.items():
        reference = DATA[name]
        assert golden.error(rows.reshape(reference.shape), reference) < 1e-5, name
    images = z("coda.images", (5, 3, 32, 32))
    labels = torch.from_numpy(DATA[f"t{t}.labels"]).long()
    query = model.backbone(images)
    assert golden.error(query.detach(), DATA[f"t{t}.query"]) < 2e-5
    for block, (keys, values) in model.prefixes(query).items():
        assert golden.error(keys.detach(), DATA[f"t{t}.prompt_K.{block}"]) < 2e-5
        assert golden.error(values.detach(), DATA[f"t{t}.prompt_V.{block}"]) < 2e-5
    penalty = 0.1 * model.orthogonality()
    assert golden.error(penalty.detach(), DATA[f"t{t}.ortho_penalty"]) < 2e-5
    for mu in ("0.0", "0.1"):
        model.zero_grad()
        logits = model(images)
        assert golden.error(logits.detach(), DATA[f"t{t}.logits"]) < 2e-5
        ce = masked_cross_entropy((2 * t, 2 * t + 1), 10)(logits, labels).mean()
        assert golden.error(ce.detach(), DATA[f"t{t}.ce"]) < 2e-5
        total = ce + float(mu) * model.orthogonality()
        assert golden.error(total.detach(), DATA[f"t{t}.mu{mu}.total_loss"]) < 2e-5
        total.backward()
        for letter in BANKS:
            bank = getattr(model, letter)
            for e in range(BLOCKS):
                reference = DATA[f"t{t}.mu{mu}.grad.{letter}.{e}"]
                assert golden.error(bank[-1].grad[e].reshape(reference.shape), reference) < 1e-4
            assert all(part.grad is None for part in list(bank)[:-1])
        assert golden.error(model.head.weight.grad, DATA[f"t{t}.grad.head.weight"]) < 1e-4
        assert golden.error(model.head.bias.grad, DATA[f"t{t}.grad.head.bias"]) < 1e-4
