"""InfLoRA's golden file, replayed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.methods.inflora import InfLoRA, InfLoRAModel, Mode, remember, restrict
from cl_bench.models.lora import attention_covariances
from tests.golden import Check, Fixture, Kind, lora, normal, quantity, train

Batches = list[tuple[Tensor, Tensor]]


class Suite(lora.Suite):
    """One size of network; its recipes of batches and of updates."""

    letters = "kv"

    @property
    def tasks(self) -> range:
        return range(self.number("run"))

    def images(self, t: int) -> Tensor:
        return torch.cat([images.flatten() for images, _ in self.batches(t)])

    def batches(self, t: int) -> Batches:
        """The batches of a task: a template per class, and noise."""
        classes, batches = self.number("C"), []
        for i, n in enumerate(int(n) for n in np.atleast_1d(self.fixture[f"cfg/{self.name}/bs"])):
            labels = [t * classes + (7 * j + i + t) % classes for j in range(n)]
            noise = normal(f"{self.path}/task{t}/batch{i}/noise", (n, 3, 32, 32), self.real("noise"))
            templates = [normal(f"{self.path}/class{label}/template", (3, 32, 32), 0.5) for label in labels]
            batches.append((torch.stack(templates) + noise, torch.tensor(labels)))
        return batches

    def injected(self, t: int) -> Tensor:
        """G [L, P, D, D], which the projector on the span of A_t is multiplied with."""
        dim = self.number("D")
        names = [f"{self.path}/task{t}/{name}.G" for _, _, name in self.projections()]
        drawn = [normal(name, (dim, dim), self.real("gscale") / dim**0.5) for name in names]
        return torch.stack(drawn).unflatten(0, (-1, 2))

    def own(self, t: int) -> slice:
        """The head's rows of a task."""
        return slice(t * self.number("C"), (t + 1) * self.number("C"))


def checks(fixture: Fixture) -> Iterator[Check]:
    """All comparisons; checksums first."""
    for suite in Suite.all(fixture):
        if fixture.any(f"{suite.name}/t"):
            yield from trained(suite)
    yield from memories(fixture)
    yield from schedules(fixture)


def trained(suite: Suite, **options: Any) -> Iterator[Check]:
    """All tasks of a suite in order; options change the method."""
    classes, tasks = suite.number("C"), suite.number("run")
    settings: dict[str, Any] = {
        "rank": suite.number("r"),
        "lamb": suite.real("lamb"),
        "lame": suite.real("lame"),
        "optimizer": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "schedule": "cosine",
        "epochs": 3,
    }
    method = InfLoRA(**settings | options)
    model = method.build(suite.backbone, tasks * classes)
    assert isinstance(model, InfLoRAModel)
    for t in range(tasks):
        own, seen = tuple(range(t * classes, (t + 1) * classes)), tuple(range((t + 1) * classes))
        task = Task(t, own, seen, tasks * classes, suite.number("T"), model, ())
        batches = suite.batches(t)
        yield from _design(suite, model, t, batches)
        phase = method.phases(task)[0]
        suite.fill(model.head, tasks)
        yield from _train(suite, model, t, batches, phase)
        with torch.no_grad():
            model.bank.B[t].copy_(3 * suite.injected(t) @ model.bank.A[t].transpose(2, 3))
        suite.fill(model.head, tasks)
        yield from _forward(suite, model, t, batches[0], phase)
        yield from _memory(suite, model, t, batches, method)


def _design(suite: Suite, model: InfLoRAModel, t: int, batches: Batches) -> Iterator[Check]:
    fixture, key = suite.fixture, f"{suite.name}/t{t}"
    covariances, tokens = attention_covariances(model, batches)
    yield from fixture.equal(f"{key}/n_tokens", tokens)
    model.design(covariances, suite.number("r"))
    for block, name in suite.blocks():
        here = f"{key}/design/{name}"
        covariance, (basis, mode) = covariances[block], model.memory(block)
        yield from fixture.equal(f"{here}/mode", mode if basis.shape[1] else "none")
        yield from _covariance(fixture, here, covariance)
        yield from fixture.compare(f"{here}/cov_trace", covariance.trace(), 1e-4)
        yield from _singular_values(fixture, f"{here}/sv", restrict(covariance, basis, mode))
        # The same A serves all projections of a block.
        for A in model.bank.A[t].detach()[block].double():
            yield from fixture.compare(f"{here}/gram", A @ A.T, 1e-4)
            yield from fixture.compare(f"{here}/projector", torch.linalg.pinv(A) @ A, 1e-3)
            yield from fixture.compare(f"{here}/A", _signs(fixture, f"{here}/A", A)[:, None] * A, 1e-3)
            yield from _interference(fixture, here, A, basis, mode)
        if f"{here}/cov_frac_removed" in fixture:
            removed = (basis @ (basis.T @ covariance)).norm() / covariance.norm()
            yield from fixture.compare(f"{here}/cov_frac_removed", removed, 1e-4)


def _covariance(fixture: Fixture, here: str, covariance: Tensor) -> Iterator[Check]:
    yield from fixture.compare(f"{here}/cov", covariance, 1e-4)
    yield from _singular_values(fixture, f"{here}/cov_sv", covariance)


def _singular_values(fixture: Fixture, key: str, matrix: Tensor) -> Iterator[Check]:
    """Compare the leading ones, as many as are stored."""
    if key in fixture:
        yield from fixture.compare(key, torch.linalg.svdvals(matrix)[: len(fixture[key])], 1e-4)


def _interference(fixture: Fixture, here: str, A: Tensor, basis: Tensor, mode: Mode) -> Iterator[Check]:
    """How A lies to the memory's basis: it must not touch it (`remove`) or not leave it (`retain`)."""
    key = f"{here}/frac_in_basis"
    if key in fixture:
        inside = A @ basis
        yield from fixture.compare(key, inside.norm() / A.norm(), 1e-4, absolute=True)
        leak = inside @ basis.T - A if mode == "retain" else inside
        yield Check(f"{quantity(key)} [leak]", float(leak.norm() / A.norm()), 1e-4, key)
    if f"{here}/angles_to_basis" in fixture:
        yield from fixture.compare(f"{here}/angles_to_basis", _angles(A.T, basis), 3e-3, absolute=True)


def _signs(fixture: Fixture, key: str, A: Tensor) -> Tensor:
    """Of the rows of A, against those stored (whole or as a fingerprint)."""
    signs = torch.ones(len(A), dtype=torch.float64)
    if key in fixture.data:
        signs = (A * torch.from_numpy(fixture[key])).sum(dim=1).sign()
    elif key in fixture:
        probe = normal(f"{fixture.prefix}/probe/{A.shape[1]}", (A.shape[1],)).double()
        signs = ((A @ probe) * torch.from_numpy(fixture[f"{key}#probe"])).sign()
        signs[:8] = (A[:8, :8] * torch.from_numpy(fixture[f"{key}#corner"])).sum(dim=1).sign()
    return signs


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """Principal angles between two column spaces, in radians, ascending."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(one)[0].T @ torch.linalg.qr(other)[0])
    return cosines.clamp(max=1).arccos()


def _train(suite: Suite, model: InfLoRAModel, t: int, batches: Batches, phase: Phase) -> Iterator[Check]:
    fixture, key = suite.fixture, f"{suite.name}/t{t}/train"
    losses = train(phase, model, lambda epoch: batches)
    yield from fixture.compare(f"{key}/losses", losses, 1e-4)
    change = model.bank.B[t] @ model.bank.A[t]
    for block, p, name in suite.projections():
        yield from fixture.compare(f"{key}/deltaW_t/{name}", change[block, p], 1e-3)
    yield from fixture.compare(f"{key}/head_weight", model.head.weight[suite.own(t)], 1e-4)
    yield from fixture.compare(f"{key}/head_bias", model.head.bias[suite.own(t)], 1e-4)


def _forward(suite: Suite, model: InfLoRAModel, t: int, batch: tuple[Tensor, Tensor], phase: Phase) -> Iterator[Check]:
    fixture, key, own = suite.fixture, f"{suite.name}/t{t}/fwd", suite.own(t)
    images, labels = batch
    model.zero_grad()
    features = model.features(images)
    logits = model.head(features)
    loss = phase.loss(logits, labels).mean()
    loss.backward()
    yield from fixture.compare(f"{key}/features", features, 2e-4)
    yield from fixture.compare(f"{key}/logits", logits[:, own], 2e-4)
    yield from fixture.compare(f"{key}/logits_all_heads", logits[:, : own.stop], 2e-4)
    yield from fixture.compare(f"{key}/loss", loss, 2e-4)
    assert model.bank.B[t].grad is not None and model.head.weight.grad is not None
    gradient, A, update = model.bank.B[t].grad, model.bank.A[t].detach(), model.update()
    for block, p, name in suite.projections():
        grad = gradient[block, p]
        signs = _signs(fixture, f"{suite.name}/t{t}/design/blocks.{block}/A", A[block, p].double())
        yield from fixture.compare(f"{key}/grad_B_times_A/{name}", grad @ A[block, p], 1e-3)
        yield from fixture.compare(f"{key}/grad_B_fro/{name}", grad.norm(), 1e-3)
        yield from fixture.compare(f"{key}/grad_B_raw/{name}", grad * signs, 1e-3)
        yield from fixture.compare(f"{key}/deltaW_total/{name}", update[block, p], 1e-3)
    yield from fixture.compare(f"{key}/grad_head_weight", model.head.weight.grad[own], 1e-3)


def _memory(suite: Suite, model: InfLoRAModel, t: int, batches: Batches, method: InfLoRA) -> Iterator[Check]:
    fixture, key = suite.fixture, f"{suite.name}/t{t}/memory"
    threshold = method.threshold(t, suite.number("T"))
    yield from fixture.compare(f"{key}/threshold", threshold, 1e-9)
    covariances, _ = attention_covariances(model, batches)
    before = [model.memory(block) for block, _ in suite.blocks()]
    model.remember(covariances, threshold, dual=method.memory == "dual")
    for block, name in suite.blocks():
        here, old, new = f"{key}/{name}", before[block], model.memory(block)
        yield from _covariance(fixture, here, covariances[block])
        yield from _basis(fixture, here, *new, old[0])
        yield from fixture.equal(f"{here}/cut", _held(*new) - _held(*old))


def _held(basis: Tensor, mode: Mode) -> int:
    """Dimension of what a memory holds of old inputs."""
    return len(basis) - basis.shape[1] if mode == "retain" else basis.shape[1]


def _basis(fixture: Fixture, here: str, basis: Tensor, mode: Mode, old: Tensor) -> Iterator[Check]:
    yield from fixture.equal(f"{here}/dim", basis.shape[1])
    yield from fixture.equal(f"{here}/mode", mode)
    yield from fixture.compare(f"{here}/projector", basis @ basis.T, 1e-4)
    if f"{here}/angles_to_previous" in fixture:
        yield from fixture.compare(f"{here}/angles_to_previous", _angles(basis, old), 3e-3, absolute=True)


def memories(fixture: Fixture) -> Iterator[Check]:
    """The memory alone, on matrices of a recipe."""
    if not fixture.any("gpm/"):
        return
    dim, n, total, steps = (int(fixture[f"cfg/gpm/{name}"]) for name in ("d", "n", "T", "steps"))
    method = InfLoRA(**{name: float(fixture[f"cfg/gpm/{name}"]) for name in ("lamb", "lame")})
    recipe = list(zip(fixture["cfg/gpm/decay"].tolist(), fixture["cfg/gpm/repeat"].tolist(), strict=True))
    states: list[tuple[Tensor, Mode]] = [(torch.zeros(dim, 0, dtype=torch.float64), "remove") for _ in recipe]
    for step in range(steps):
        threshold = method.threshold(step, total)
        yield from fixture.compare(f"gpm/step{step}/threshold", threshold, 1e-9)
        for layer, (decay, repeat) in enumerate(recipe):
            here, source = f"gpm/step{step}/layer{layer}", 0 if repeat else step
            X = normal(f"{fixture.prefix}/gpm/step{source}/layer{layer}/X", (n, dim)).double()
            X = (X * torch.exp(-decay * torch.arange(dim, dtype=torch.float64))).roll(5 * source, dims=1)
            matrix = (X.T @ X / n).float().double()
            yield from fixture.compare(f"{here}/mat", matrix, 1e-4)
            old, mode = states[layer]
            states[layer] = remember(matrix, old, mode, threshold)
            yield from _basis(fixture, here, *states[layer], old)


def schedules(fixture: Fixture) -> Iterator[Check]:
    """The learning rate of every epoch."""
    for key in [key for key in fixture.data if re.fullmatch(r"sched/K\d+", key)]:
        method = InfLoRA(lr=5e-4, epochs=int(key.partition("K")[2]))
        backbone = VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=1, num_classes=0)
        model = InfLoRAModel(backbone, 1, method.targets, 1)
        model.grow(1, torch.Generator())
        phase = method.phases(Task(0, (0,), (0,), 1, 1, model, ()))[0]
        base = phase.optimizer(phase.parameters).param_groups[0]["lr"]
        rates = [base * phase.schedule(epoch, phase.epochs) for epoch in range(phase.epochs)]
        yield from fixture.compare(key, np.array(rates), 1e-9)


KIND = Kind(
    r"[^/]+/t\d+/(design|train|fwd|memory)/|gpm/step\d|sched/K\d",
    lora.INPUTS,
    checks,
    informative={
        r"[^/]+/t\d+/design/blocks\.\d+/gap": "`gap` = (sv[r-1]-sv[r])/sv[0], a conditioning hint",
        r"[^/]+/t\d+/memory/blocks\.\d+/margin": "distance of the energy share from the threshold",
        r"[^/]+/t\d+/memory/blocks\.\d+/cut_gap": "gap of the singular values at the cut, beside `margin`",
    },
)
