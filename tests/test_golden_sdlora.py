"""SD-LoRA against numbers from its authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_bench.method import masked_cross_entropy
from cl_bench.methods.sdlora import SDLoRA, SDLoRAModel
from tests import golden

DATA = np.load(golden.FOLDER / "sdlora.npz")
PREFIX = str(DATA["cfg/prefix"])
CASES = [
    (suite, int(t), case)
    for suite in ("d64", "d768")
    for t in DATA[f"cfg/{suite}/tasks"]
    for case in ("mid", "init")
    if f"{suite}/t{t}/{case}/loss" in DATA
]


class Case:
    """One golden case, with our model in the state it describes."""

    def __init__(self, suite: str, t: int, case: str) -> None:
        cfg = {name: int(DATA[f"cfg/{suite}/{name}"]) for name in ("D", "depth", "heads", "r", "C", "bs")}
        self.key = f"{suite}/t{t}/{case}/"
        self.depth, rank, dim, classes = cfg["depth"], cfg["r"], cfg["D"], cfg["C"]
        path = f"{PREFIX}/{suite}"

        def weight(name: str, shape: tuple[int, ...]) -> Tensor:
            full = f"{path}/vit/{name}"
            if name.endswith(".bias"):
                return golden.normal(full, shape, 0.02)
            if "norm" in name:
                return golden.normal(full, shape, 0.1, 1.0)
            if name in ("cls_token", "pos_embed"):
                return golden.normal(full, shape, 0.2)
            return golden.normal(full, shape, 1 / float(np.sqrt(np.prod(shape[1:]))))

        vit = golden.tiny_vit(dim, self.depth, cfg["heads"], weight)
        for name, value in vit.state_dict().items():
            flat = value.double().flatten()
            key = f"{suite}/checksum/{name}"
            if key in DATA:
                checksum = torch.cat([flat.sum()[None], flat.abs().sum()[None], flat[:4]])
                np.testing.assert_allclose(checksum, DATA[key], rtol=1e-10)

        self.model = SDLoRAModel(vit, (t + 1) * classes)
        for _ in range(t + 1):
            self.model.grow(rank, 0.8, torch.Generator())
        with torch.no_grad():
            for k in range(t + 1):
                for b in range(self.depth):
                    for p, projection in enumerate("qv"):
                        name = f"{path}/task{k}/blocks.{b}.{projection}"
                        self.model.directions.A[k][b, p] = golden.normal(f"{name}.A", (rank, dim), dim**-0.5)
                        self.model.directions.B[k][b, p] = golden.normal(f"{name}.B", (dim, rank), 0.1)
                rows = slice(k * classes, (k + 1) * classes)
                head = f"{path}/head/task{k}"
                self.model.head.weight[rows] = golden.normal(f"{head}/weight", (classes, dim), dim**-0.5)
                self.model.head.bias[rows] = golden.normal(f"{head}/bias", (classes,), 0.1)
            if case == "init":
                self.model.directions.B[t].zero_()
            else:
                for k, value in enumerate(
                    [*np.atleast_1d(DATA[self.key + "alpha_prev"]), DATA[self.key + "alpha_cur"]]
                ):
                    self.model.magnitudes[k].fill_(float(value))
        self.images = golden.normal(f"{path}/t{t}/images", (cfg["bs"], 3, 32, 32), 0.5)
        self.labels = torch.from_numpy(DATA[self.key + "labels"]).long()
        self.loss = masked_cross_entropy(range(t * classes, (t + 1) * classes), (t + 1) * classes)

    def check(self, name: str, value: Tensor, tolerance: float) -> None:
        """Compare with a stored array, or with the fingerprint of a large one."""
        value = value.detach()
        if self.key + name in DATA:
            assert golden.error(value, DATA[self.key + name]) < tolerance, name
            return
        assert golden.error(value.norm(), DATA[f"{self.key}{name}#fro"]) < tolerance, name
        assert golden.error(value[:8, :8], DATA[f"{self.key}{name}#corner"]) < tolerance, name
        length = max(value.shape)
        probe = golden.normal(f"{PREFIX}/probe/{length}", (length,))
        product = value @ probe if value.shape[0] <= value.shape[1] else value.T @ probe
        assert golden.error(product, DATA[f"{self.key}{name}#probe"]) < tolerance, name

    def per_projection(self) -> list[tuple[int, int, str]]:
        return [(b, p, f"blocks.{b}.{name}") for b in range(self.depth) for p, name in enumerate("qv")]


@pytest.mark.parametrize(("suite", "t", "case"), CASES)
def test_forward_and_gradients(suite: str, t: int, case: str) -> None:
    c = Case(suite, t, case)
    bank = c.model.directions
    update = c.model.update()
    c.check("features", bank.features(c.model.backbone, update, c.images), 1e-5)
    logits = c.model(c.images)
    c.check("logits", logits, 1e-5)
    loss = c.loss(logits, c.labels).mean()
    c.check("loss", loss, 1e-5)
    loss.backward()
    for block, p, name in c.per_projection():
        c.check(f"deltaW/{name}", update[block, p], 1e-4)
        assert bank.A[-1].grad is not None and bank.B[-1].grad is not None
        c.check(f"grad_A/{name}", bank.A[-1].grad[block, p], 1e-4)
        c.check(f"grad_B/{name}", bank.B[-1].grad[block, p], 1e-4)
    gradients = [m.grad for m in c.model.magnitudes]
    c.check("grad_alpha_cur", gradients[-1], 1e-4)
    if t:
        c.check("grad_alpha_prev", torch.stack(gradients[:-1]), 1e-4)
    c.check("grad_head_weight", c.model.head.weight.grad, 1e-4)
    c.check("grad_head_bias", c.model.head.bias.grad, 1e-4)
    assert all(a.grad is None and b.grad is None for a, b in zip(bank.A[:-1], bank.B[:-1], strict=True))


@pytest.mark.parametrize(("suite", "t", "case"), [c for c in CASES if c[0] == "d64"])
def test_three_steps_of_the_released_optimiser(suite: str, t: int, case: str) -> None:
    c = Case(suite, t, case)
    method = SDLoRA()

    class _Task:
        model, classes, num_classes = c.model, (0,), c.model.head.out_features

    phase = method.phases(_Task())[0]  # type: ignore[arg-type]
    optimizer = phase.optimizer(phase.parameters)
    before = {"A": c.model.directions.A[-1].detach().clone(), "B": c.model.directions.B[-1].detach().clone()}
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = c.loss(c.model(c.images), c.labels).mean()
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    c.check("losses_steps", torch.stack(losses), 1e-5)
    c.check("after3/logits", c.model(c.images), 1e-5)
    # Raw values move by less than 1 %, so it is the change that is compared.
    for letter, bank, tolerance in (
        ("B", c.model.directions.B[-1], 5e-4),
        ("A", c.model.directions.A[-1], 1e-3 if case == "mid" else 1e-1),
    ):
        for block, p, name in c.per_projection():
            start = before[letter][block, p].double().numpy()
            now = bank.detach()[block, p].double().numpy()
            key = f"{c.key}after3/{letter}/{name}"
            if key in DATA:
                assert golden.error(now - start, DATA[key].astype(np.float64) - start) < tolerance, name
            else:
                reference = DATA[f"{key}#corner"].astype(np.float64) - start[:8, :8]
                assert golden.error((now - start)[:8, :8], reference) < tolerance, name
