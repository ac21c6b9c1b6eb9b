"""The golden file of methods on frozen features, replayed: SimpleCIL, the second phase of RanPAC, SLCA's alignment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.losses import masked_cross_entropy
from cl_bench.contract.method import build_model
from cl_bench.contract.phase import Loss, Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import Samples, TaskSamples
from cl_bench.methods.ranpac import RIDGES, RanPAC, validation_errors
from cl_bench.methods.simplecil import SimpleCIL
from cl_bench.methods.slca import SLCA
from cl_bench.randomness import Key
from tests.golden import Check, Fixture, Kind, train
from tests.golden.recipe import CANCELS, Recipe, normals

SCATTER = 3.0
"""Of features around their class mean."""


class Features(VisionTransformer):
    """A backbone whose input is the feature itself."""

    def __init__(self, dim: int) -> None:
        super().__init__(img_size=8, patch_size=8, embed_dim=dim, depth=1, num_heads=1, num_classes=0)

    def forward(self, features: Tensor) -> Tensor:
        return features


@dataclass
class Given(Samples):
    """Samples [n, d] that are features already."""

    features: Tensor
    labels: Tensor

    def views(self, positions: np.ndarray, key: Any, device: torch.device, batch_size: int) -> Iterator[Tensor]:
        """Features of some samples."""
        yield from self.features[torch.from_numpy(positions)].split(batch_size)

    @property
    def images(self) -> TaskSamples:
        """What a method is given."""
        return TaskSamples(self, (), torch.device("cpu"))


class Stream(Recipe):
    """Tasks of features, and test features of all classes."""

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.tasks: list[Given] = []
        while f"feat.t{len(self.tasks)}" in fixture and f"labels.t{len(self.tasks)}" in fixture:
            self.tasks.append(self._given(f"feat.t{len(self.tasks)}", f"labels.t{len(self.tasks)}"))
        self.test = self._given("test.feat", "test.labels") if "test.labels" in fixture else None
        self.classes = fixture.size(r"meta\.class_counts|ranpac\.head_fixed", 0, fixture.size(r"ranpac\.Q", 1, 10))
        self.dim = fixture.size(r"(test\.feat|feat\.t\d+)$", 1, 64)

    def _given(self, features: str, labels: str) -> Given:
        return Given(torch.from_numpy(self.fixture[features]), torch.from_numpy(self.fixture[labels]).long())

    def task(self, model: nn.Module, t: int) -> Task:
        """A task of the stream."""
        own = tuple(self.tasks[t].labels.unique().tolist())
        return Task(t, own, tuple(range(max(own) + 1)), self.classes, None, model, ())

    def checks(self) -> Iterator[Check]:
        """The inputs themselves, which are stored, against their recipe."""
        fixture, counts = self.fixture, np.zeros(self.classes, dtype=np.int64)
        means = self("proto.mu", (self.classes, self.dim))
        for t, task in enumerate(self.tasks):
            counts += np.bincount(task.labels, minlength=self.classes)
            n = len(task.labels)
            yield from fixture.equal(f"labels.t{t}", task.labels.sort().values[self.order(f"proto.order.t{t}", n)])
            noise = self(f"proto.noise.t{t}", (n, self.dim), SCATTER)
            yield from fixture.compare(f"feat.t{t}", means[task.labels] + noise, 1e-6)
        if "meta.class_counts" in fixture:
            # Classes of tasks that are not stored cannot be counted.
            stored = fixture["meta.class_counts"]
            yield from fixture.equal("meta.class_counts", np.where(counts, counts, stored))
        if self.test is not None:
            labels = self.test.labels
            yield from fixture.equal("test.labels", torch.arange(len(labels)) % self.classes)
            noise = self("proto.test_noise", (len(labels), self.dim), SCATTER)
            yield from fixture.compare("test.feat", means[labels] + noise, 1e-6)

    def order(self, name: str, n: int) -> Tensor:
        """A permutation."""
        return torch.from_numpy(np.argsort(self(name, (n,)).numpy(), kind="stable"))


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change SLCA."""
    stream = Stream(fixture)
    yield from stream.checks()
    yield from simplecil(stream)
    for dtype in (torch.float32, torch.float64):
        yield from ranpac(stream, dtype)
    yield from slca(fixture, **options)


def simplecil(stream: Stream) -> Iterator[Check]:
    """Prototypes and predictions after each task."""
    fixture, method = stream.fixture, SimpleCIL()
    if not fixture.any(r"simplecil\."):
        return
    model: Any = method.build(Features(stream.dim), stream.classes)
    for t, given in enumerate(stream.tasks):
        task = stream.task(model, t)
        seen = len(task.seen)
        method.after_task(task, given.images)
        yield from fixture.compare(f"simplecil.proto.t{t}", model.head.prototypes[:seen], 1e-5)
        if stream.test is not None:
            logits = model(stream.test.features)[:, :seen]
            yield from fixture.compare(f"simplecil.logits.t{t}", logits, 1e-5)
            if t + 1 == len(stream.tasks):
                yield from fixture.equal("simplecil.pred", logits.argmax(dim=1))


@contextmanager
def stored_order() -> Iterator[None]:
    """RanPAC holds out the last rows as they are stored, not of a random order."""
    with mock.patch.object(torch, "randperm", lambda n, generator: torch.arange(n)):
        yield


def ranpac(stream: Stream, dtype: torch.dtype) -> Iterator[Check]:
    """Second moments, choice of lambda and heads after each task."""
    fixture = stream.fixture
    if not fixture.any(r"ranpac\."):
        return
    double = dtype == torch.float64
    variant, exact = (" [float64]", 1e-9) if double else (" [float32]", 2e-4)
    size = fixture.size(r"ranpac\.(test_H|head)", 1, fixture.size(r"ranpac\.[QG]\.", 0, 96))
    method = RanPAC(adaptation="frozen", projection=size)
    # Second moments are in fp64 anyway.
    models: dict[str, Any] = {
        kind: replace(method, head=kind).build(Features(stream.dim), stream.classes) for kind in ("linear", "cosine")
    }
    head, cosine = (model.double().head if double else model.head for model in models.values())
    head.projection.copy_(stream("ranpac.W", head.projection.shape))

    def compare(key: str, value: Any, tolerance: float, of: str = "") -> Iterator[Check]:
        yield from fixture.compare(f"ranpac.{key}", value, tolerance, variant + of)

    for t, given in enumerate(stream.tasks):
        task, features = stream.task(models["linear"], t), given.features.to(dtype)
        seen = slice(len(task.seen))
        with stored_order():
            method.after_task(task, Given(features, given.labels).images)
        cosine.load_state_dict(head.state_dict())
        yield from compare(f"G.t{t}", head.gram, 1e-5)
        yield from compare(f"G_trace.t{t}", head.gram.trace(), 1e-5)
        yield from compare(f"Q.t{t}", head.moments, 1e-5)
        yield from fixture.equal(f"ranpac.lambda.t{t}", float(head.ridge), variant)
        yield from compare(f"head.t{t}", head.weight.T[seen], 2e-4)
        yield from compare(f"head_f64.t{t}", head.weight.T[seen], exact)
        errors = validation_errors(head.project(features), nn.functional.one_hot(given.labels, stream.classes))
        yield from compare(f"val_mse_f64.t{t}", errors, 3e-3)
        if f"ranpac.val_mse_f64.t{t}" in fixture:
            # Where lambda is smaller, the curve is rounding noise.
            noisy = np.array(RIDGES) < 0.1
            curve = np.where(noisy, fixture[f"ranpac.val_mse_f64.t{t}"], errors)
            yield from compare(f"val_mse_f64.t{t}", curve, 1e-9 if double else 1e-5, " [lambda >= 0.1]")
        if stream.test is not None:
            test = stream.test.features.to(dtype)
            yield from compare("test_H", head.project(test), 1e-5)
            yield from compare(f"logits.t{t}", head(test)[:, seen], 2e-4)
            yield from compare(f"logits_cosine_head.t{t}", cosine(test)[:, seen], 2e-4)
    for key in [key for key in fixture.data if key.startswith("ranpac.head_fixed_lambda_")]:
        head.ridge.fill_(float(key.rpartition("_")[2]))
        head.solve()
        yield from compare(key.removeprefix("ranpac."), head.weight.T, 1e-9 if double else 5e-4)


@contextmanager
def drawn(stream: Recipe) -> Iterator[None]:
    """Features of old classes are drawn, and put in order, with the recipe's numbers."""

    def normal(classes: int, per_class: int, dim: int, generator: Key) -> Tensor:
        return torch.stack([stream(f"slca.z.e{generator[-2]}.c{c}", (per_class, dim)) for c in range(classes)])

    def order(key: Key, n: int) -> np.ndarray:
        return np.argsort(stream(f"slca.perm.e{key[-2]}", (n,)).numpy(), kind="stable")

    statistics = "cl_bench.models.statistics"
    # The key, which holds the epoch, takes the place of its generator.
    key_itself = mock.patch(f"{statistics}.generator", lambda key: key)
    with normals(normal), key_itself, mock.patch(f"{statistics}.permutation", order):
        yield


class Aligned(Recipe):
    """Tasks of features, and the head that is aligned after the last one."""

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.features = torch.from_numpy(fixture["slca.feat"])
        self.classes, _, self.dim = self.features.shape
        self.heads = len(fixture.numbers(r"slca\.ca\.\w+\.(?:weight|bias)\.(\d+)$")) or self.classes // 2
        self.width = self.classes // self.heads
        self.samples = fixture.size(r"slca\.ca\.first_(norm_logits|targets)", 0, 256)
        self.epochs = fixture.size(r"slca\.ca\.losses", 0, 2 * self.classes) // self.classes

    def given(self, t: int) -> Given:
        """Features of a task's classes."""
        own = torch.arange(t * self.width, (t + 1) * self.width)
        return Given(self.features[own].flatten(0, 1), own.repeat_interleave(self.features.shape[1]))

    @torch.no_grad()
    def fill(self, head: nn.Linear) -> None:
        """Make the head the recipe's, whose tasks have different scales."""
        for k, rows in enumerate(head.weight.split(self.width)):
            rows.copy_(self(f"slca.head.{k}.weight", (self.width, self.dim), 0.1 * (k + 1)))
        head.bias.copy_(torch.cat([self(f"slca.head.{k}.bias", (self.width,), 0.02) for k in range(self.heads)]))

    def rows(self, name: str, weight: Any, bias: Any) -> Iterator[Check]:
        """Compare a head, or its gradients, task by task."""
        for k in range(self.heads):
            own = slice(k * self.width, (k + 1) * self.width)
            yield from self.fixture.compare(f"slca.ca.{name}.weight.{k}", weight[own], 5e-5)
            yield from self.fixture.compare(f"slca.ca.{name}.bias.{k}", bias[own], 5e-5, floor=CANCELS)

    def checks(self) -> Iterator[Check]:
        """The inputs themselves, which are stored, against their recipe."""
        means = self("slca.mu", (self.classes, self.dim))
        mixes = self.stacked([f"slca.mix.c{c}" for c in range(self.classes)], (self.dim, self.dim), 0.15)
        noise = self.stacked([f"slca.noise.c{c}" for c in range(self.classes)], self.features.shape[1:])
        yield from self.fixture.compare("slca.feat", means[:, None] + noise @ (torch.eye(self.dim) + mixes), 1e-5)


def slca(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """Class statistics, and the training of the head on what is drawn from them; options change the method."""
    if "slca.feat" not in fixture:
        return
    aligned = Aligned(fixture)
    yield from aligned.checks()
    method = SLCA(**{"align_epochs": aligned.epochs, "align_samples": aligned.samples} | options)
    model: Any = build_model(method, Features(aligned.dim), aligned.classes)
    aligned.fill(model.head)
    phases: list[Phase] = []
    seen_by_loss: list[Tensor] = []

    def cross_entropy(classes: Any, num_classes: int) -> Loss:
        loss = masked_cross_entropy(classes, num_classes)

        def recording(logits: Tensor, labels: Tensor) -> Tensor:
            seen_by_loss.append(logits)
            return loss(logits, labels)

        return recording

    with mock.patch("cl_bench.contract.alignment.masked_cross_entropy", cross_entropy):
        for t in range(aligned.heads):
            given = aligned.given(t)
            own = tuple(given.labels.unique().tolist())
            task = Task(t, own, tuple(range(own[-1] + 1)), aligned.classes, None, model, ())
            phases = method.alignment.phases(task, given.images)
    statistics = model.statistics
    yield from fixture.compare("slca.class_mean", statistics.means, 5e-5)
    yield from fixture.compare("slca.class_cov", statistics.factors @ statistics.factors.transpose(-1, -2), 5e-5)
    nothing = torch.zeros(len(statistics), 1, aligned.dim)
    yield from fixture.compare("slca.scaled_mean", statistics.draw(nothing, method.align_shrink)[:, 0], 5e-5)
    if phases:
        yield from _alignment(aligned, phases[0], seen_by_loss)


def _alignment(aligned: Aligned, phase: Phase, seen_by_loss: list[Tensor]) -> Iterator[Check]:
    fixture, forward, batches, (weight, bias) = aligned.fixture, phase.forward, phase.batches, phase.trainable()
    assert forward is not None and batches is not None and phase.loss is not None
    with drawn(aligned):
        features, labels, _ = next(iter(batches(0)))
        phase.loss(forward(features), labels).mean().backward()
        yield from fixture.equal("slca.ca.first_targets", labels)
        yield from fixture.compare("slca.ca.first_norm_logits", seen_by_loss[0], 5e-5)
        yield from aligned.rows("first_grad", weight.grad, bias.grad)
        losses = train(phase, forward, lambda epoch: ((x, y) for x, y, _ in batches(epoch)))
    yield from fixture.compare("slca.ca.losses", losses, 5e-5)
    yield from aligned.rows("final_head", weight, bias)


KIND = Kind(r"(simplecil|ranpac|slca)\.|(feat|labels)\.t\d", r"^meta\.(?!class_counts)", checks)
