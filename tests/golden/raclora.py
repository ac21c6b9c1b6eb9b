"""RAC-LoRA's golden file, replayed: chains on an MLP, with one optimiser for all links.

The released program trains an MLP, not a ViT. The replay's own are this network, its factors' shapes, the injected
draws, and merging by a plain addition of weights. What it takes from the method: how epochs are divided among links,
which factors of a link are trained, the scale, the loss, and the phases with their optimisers, whose state goes on from
link to link. The bank's factors of all layers lie in one flat parameter each, because optimisers work by entries.

A link's factors are first [in, r] and second [r, out], so first^T is A, second^T is B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.contract.phase import ParameterGroup, Phase
from cl_bench.contract.task import Task
from cl_bench.methods.raclora import RACLoRA
from tests.golden import Check, Fixture, Kind, normal, train

CASES: dict[str, dict[str, Any]] = {
    "train_first": {"sketch": "left", "train": "one"},
    "train_second": {"sketch": "right", "train": "one"},
    "both": {"sketch": "left", "train": "both"},
}
_CLOSE, _MOVED, _GRADIENT = 1e-4, 3e-3, 1e-4
_CLASSES, _PIXELS = 5, 28 * 28


class Links:
    """Stands in for the bank: the chain's directions, each of which has one flat parameter per kind of factor."""

    def __init__(self, directions: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._directions = [[nn.Parameter(A), nn.Parameter(B)] for A, B in directions]

    def __len__(self) -> int:
        return len(self._directions)

    def direction(self, k: int) -> list[nn.Parameter]:
        """A and B of link k, each [sum of its sizes over the layers]."""
        return self._directions[k]


class MLP(nn.Module):
    """Three frozen layers with ReLU, changed by the sum of all links; maps [B, 1, 28, 28] to logits [B, 5].

    Attributes:
        shapes: [out, in] of each layer.
        bank: the links.
        head: nothing that a link could train.
    """

    def __init__(self, fixture: Fixture, scale: float, rank: int) -> None:
        super().__init__()
        hidden, prefix = int(fixture["cfg/mlp/hidden"]), fixture.prefix
        self.shapes = {"l1": (hidden, _PIXELS), "l2": (hidden, hidden), "l3": (_CLASSES, hidden)}
        self.frozen = {
            name: normal(f"{prefix}/mlp/{name}.weight", shape, shape[1] ** -0.5) for name, shape in self.shapes.items()
        }
        self.biases = {name: normal(f"{prefix}/mlp/{name}.bias", shape[:1], 0.1) for name, shape in self.shapes.items()}
        self.scale, self.rank, self.bank, self.head = scale, rank, Links([]), nn.Module()

    def parts(self, flat: Tensor, kind: str) -> dict[str, Tensor]:
        """Views of a flat parameter: first [in, r] of every layer of A, second [r, out] of B."""
        sizes = {name: shape[1] if kind == "A" else shape[0] for name, shape in self.shapes.items()}
        pieces = flat.split([size * self.rank for size in sizes.values()])
        layouts = [(size, self.rank) if kind == "A" else (self.rank, size) for size in sizes.values()]
        return {name: piece.view(layout) for name, piece, layout in zip(sizes, pieces, layouts, strict=True)}

    def change(self, links: int) -> dict[str, Tensor]:
        """Sum of the first links, [out, in] by layer."""
        changes = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for k in range(links):
            A, B = self.bank.direction(k)
            first, second = self.parts(A, "A"), self.parts(B, "B")
            changes = {name: value + self.scale * (first[name] @ second[name]).T for name, value in changes.items()}
        return changes

    def forward(self, images: Tensor, merged: dict[str, Tensor] | None = None) -> Tensor:
        """Logits with all links, or with merged changes [out, in] by layer in their place."""
        changes = self.change(len(self.bank)) if merged is None else merged
        x = images.flatten(1)
        for name in self.shapes:
            x = nn.functional.linear(x, self.frozen[name] + changes[name], self.biases[name])
            x = x.relu() if name != "l3" else x
        return x


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    for case in CASES:
        if fixture.any(f"mlp/{case}/"):
            yield from _case(fixture, case, **options)


def _case(fixture: Fixture, case: str, **options: Any) -> Iterator[Check]:
    images = normal(f"{fixture.prefix}/mlp/x", (int(fixture["cfg/mlp/bs"]), 1, 28, 28), 0.5)
    fixture.checksum("mlp/x_checksum", images, 1e-10)
    labels = torch.from_numpy(fixture["mlp/labels"]).long()
    rank, chains, steps = (int(fixture[f"cfg/mlp/{name}"]) for name in ("rank", "chains", "steps_per_chain"))
    settings = CASES[case] | {
        "rank": rank,
        # The program does not divide by the rank.
        "alpha": float(fixture["cfg/mlp/alpha"]) * rank,
        "links": chains,
        "epochs": chains * steps,
        "lr": float(fixture["cfg/mlp/lr"]),
        "weight_decay": 0.01,
        "moments": "keep",
        "loss": "all",
    }
    method = RACLoRA(**{**settings, **options})
    assert method.alpha is not None
    model = MLP(fixture, method.alpha / method.rank, rank)
    model.bank = Links(_drawn(fixture, model, case, chains))
    every = tuple(range(_CLASSES))
    task = Task(0, every, every, _CLASSES, None, model, ())
    phases = method.phases(task)
    key, compare = f"mlp/{case}", fixture.compare
    yield from fixture.equal(f"{key}/trainable", sum(parameter.numel() for parameter in phases[0].trainable()))
    yield from _gradients(fixture, key, method, model, (images, labels), task)
    losses: list[Tensor] = []
    made: list[torch.optim.Optimizer] = []
    for link, phase in enumerate(phases):
        A, B = model.bank.direction(link)
        # Only the phase's parameters are trained, as in the strategy.
        for k in range(chains):
            for parameter in model.bank.direction(k):
                parameter.requires_grad_(any(parameter is each for each in phase.trainable()))
        losses.append(train(_watched(phase, made), model, lambda epoch: [(images, labels)]))
        place = f"{key}/chain{link}"
        trained = model.parts(B, "B") if case == "train_second" else model.parts(A, "A")
        merged = model.change(link + 1)
        with torch.no_grad():
            before, after = (model(images, changes).log_softmax(1) for changes in (None, merged))
        yield from compare(f"{place}/logprob", before, _CLOSE)
        yield from compare(f"{place}/logprob_after_merge", after, _CLOSE)
        for layer in model.shapes:
            yield from compare(f"{place}/{layer}/trained", trained[layer], _MOVED)
            yield from compare(f"{place}/{layer}/merged", merged[layer], _MOVED)
    yield from compare(f"{key}/losses_steps", torch.cat(losses), _CLOSE)
    counted = {int(state["step"]) for state in made[-1].state.values()}
    yield from fixture.equal(f"{key}/optimizer_steps_at_end", counted.pop() if len(counted) == 1 else -1)


def _drawn(fixture: Fixture, model: MLP, case: str, chains: int) -> list[tuple[Tensor, Tensor]]:
    """The links at their start: the case's draws in order of the layers, then of the links; the other factor is 0."""
    numbers = iter(range(chains * len(model.shapes)))
    directions = []
    for _ in range(chains):
        kind = "A" if case == "train_second" else "B"
        drawn = []
        for out, width in model.shapes.values():
            shape = (width, model.rank) if kind == "A" else (model.rank, out)
            drawn.append(normal(f"{fixture.prefix}/mlp/{case}/draw{next(numbers)}", shape))
        flat = torch.cat([values.flatten() for values in drawn])
        zero = torch.zeros(sum(shape[0 if kind == "A" else 1] for shape in model.shapes.values()) * model.rank)
        directions.append((flat, zero) if kind == "A" else (zero, flat))
    return directions


def _gradients(
    fixture: Fixture, key: str, method: RACLoRA, model: MLP, batch: tuple[Tensor, Tensor], task: Task
) -> Iterator[Check]:
    """Of the first link's trained factors, at the start."""
    A, B = model.bank.direction(0)
    method.objective(task)(model(batch[0]), batch[1]).mean().backward()
    trained = {id(parameter) for parameter in method.trained(A, B)}
    for kind, factor in (("A", A), ("B", B)):
        if id(factor) in trained:
            assert factor.grad is not None
            for layer, gradient in model.parts(factor.grad, kind).items():
                yield from fixture.compare(f"{key}/grad/{layer}_lora_{kind}", gradient, _GRADIENT)


def _watched(phase: Phase, made: list[torch.optim.Optimizer]) -> Phase:
    """The phase; its optimiser is appended to a list when it is made."""

    def optimizer(groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        made.append(phase.optimizer(groups))
        return made[-1]

    return replace(phase, optimizer=optimizer)


KIND = Kind(
    r"mlp/\w+/chain\d+/",
    r"^cfg/|/x_checksum|/labels$",
    checks,
    {
        r"mlp/\w+/draws": "the program draws once more after the last merge, which nothing uses",
        r"kaiming64/.*": "an option of the program that bounds draws by the rank, which the method leaves out",
    },
)
