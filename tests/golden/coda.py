"""CODA-Prompt's golden file, replayed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.methods.coda import CODAModel, CODAPrompt
from tests.golden import Check, Fixture, Kind
from tests.golden.recipe import INPUTS, Network, Part, gradient, normals

WEIGHT = 0.1
"""Of the penalty that is stored by itself."""


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    network = Network(fixture, "coda")
    tasks = fixture.numbers(r"t(\d+)\.")
    blocks = fixture.numbers(r"t\d+\.(?:gs_new\.\w|prompt_[KV]|mu[\d.]+\.grad\.\w)\.(\d+)$")
    width = network.width({f"t{t}.labels": t for t in tasks})
    share = fixture.size(r".*(gs_new|grad)\.[KA]\.\d+$", 0, 4)
    settings: dict[str, Any] = {
        "components": share * (max(tasks, default=0) + 1),
        "length": fixture.size(r".*(gs_new|grad)\.P\.\d+$", 1, 2 * fixture.size(r".*prompt_K\.", 1, 2)),
        "blocks": max(blocks, default=fixture.size(r".*per_block$", 0, 5) - 1) + 1,
        "orthogonality": WEIGHT,
    }
    method = CODAPrompt(**settings | options)
    model = network.model(method)
    for t in range(max(tasks, default=-1) + 1):
        task = network.task(model, t, width, max(tasks) + 1)
        yield from _components(network, method, task)
        yield from _forward(network, method, task)
        for mu in sorted({match[1] for key in fixture.data if (match := re.match(rf"t{t}\.mu([\d.]+)\.\w", key))}):
            yield from _backward(network, CODAPrompt(**settings | {"orthogonality": float(mu)} | options), task, mu)


def _banks(model: CODAModel) -> dict[str, nn.ParameterList]:
    return {"P": model.P, "K": model.K, "A": model.A}


def _components(network: Network, method: CODAPrompt, task: Task) -> Iterator[Check]:
    """New components, and the drift that stands for training them."""
    t, model, dim = task.index, task.model, network.dim

    def raw() -> Iterator[Tensor]:
        for letter, width in (("P", method.length * dim), ("K", dim), ("A", dim)):
            names = [f"coda.gs.t{t}.{letter}.{e}" for e in range(method.blocks)]
            yield network.stacked(names, (method.components // (task.num_tasks or 1), width))

    drawn = raw()
    with torch.no_grad(), normals(lambda *shape, generator: next(drawn)):
        method.before_task(task, TaskSamples(None, (), model.device))  # type: ignore[arg-type]
    for letter, bank in _banks(model).items():
        for e, rows in enumerate(bank[-1]):
            yield from network.fixture.compare(f"t{t}.gs_new.{letter}.{e}", rows, 1e-5)
        names = [f"coda.drift.t{t}.{letter}.{e}" for e in range(method.blocks)]
        bank[-1].data += network.stacked(names, bank[-1].shape[1:], 0.3 if letter == "P" else 0.08)


def _forward(network: Network, method: CODAPrompt, task: Task) -> Iterator[Check]:
    part, model = Part(network.fixture, f"t{task.index}."), task.model
    query = model.query(network.images)
    yield from part.compare("query", query)
    for block, (keys, values) in model.prefixes(query).items():
        yield from part.compare(f"prompt_K.{block}", keys)
        yield from part.compare(f"prompt_V.{block}", values)
    yield from part.compare("ortho_penalty", WEIGHT * model.orthogonality())
    each = torch.stack([_one_block(model, e).orthogonality() for e in range(method.blocks)])
    yield from part.compare("ortho_penalty_per_block", WEIGHT * each)
    for name, order in (("", network.order), ("perm.", network.shuffled)):
        images = network.images[order]
        logits = model(images)
        yield from part.compare(f"{name}feature", model.features(images))
        yield from part.compare(f"{name}logits", logits)
        if "labels" in part:
            yield from part.compare(f"{name}ce", method.cross_entropy(task)(logits, part.labels(order)).mean())


def _one_block(model: CODAModel, e: int) -> CODAModel:
    """The same components of one block only."""
    one = CODAModel(model.backbone, model.head.out_features, [model.blocks[e]])
    for name, bank in _banks(model).items():
        setattr(one, name, nn.ParameterList(nn.Parameter(part[e : e + 1].detach()) for part in bank))
    return one


def _backward(network: Network, method: CODAPrompt, task: Task, mu: str) -> Iterator[Check]:
    part, model = Part(network.fixture, f"t{task.index}."), task.model
    if "labels" not in part:
        return
    phase = method.phases(task)[0]
    model.zero_grad()
    loss = phase.loss(model(network.images), part.labels(network.order)).mean()
    loss.backward()
    yield from part.compare(f"mu{mu}.total_loss", loss)
    for letter, bank in _banks(model).items():
        for e, rows in enumerate(gradient(bank[-1])):
            yield from part.compare(f"mu{mu}.grad.{letter}.{e}", rows)
    yield from part.untouched(f"mu{mu}.grad.P.0", model, phase)
    for name, parameter in model.head.named_parameters():
        yield from part.compare(f"grad.head.{name}", gradient(parameter))


KIND = Kind(r"t\d+\.(gs_new|mu\d|ortho_penalty|prompt_[KV]|query|feature|logits|perm)", INPUTS, checks)
