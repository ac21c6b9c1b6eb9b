"""HiDe-Prompt against its formulas (arXiv 2310.07234, sections 3 and 4), computed a second time in plain torch.

Its authors' program cannot be replayed step by step (it reads the prompts of a batch in another layout than it gathers
them), so the numbers are made here: three tasks, in fp64, from a ViT written out by hand and torch's own optimisers.
Nothing of the method, of its model or of the strategy is called. What is drawn at random is a function of its key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, gelu, layer_norm, linear

from cl_bench.methods.hide import HiDePrompt
from cl_bench.randomness import Key, generator, permutation, seeded
from cl_bench.training.strategy import ContinualStrategy
from tests.golden import error
from tests.golden.comparators import dataset, stored_order
from tests.helpers.tiny import tiny_vit

SIZES, PER_CLASS, CLASSES = (3, 2, 2), 4, 7
DIM, HEADS, BLOCKS, LENGTH, BATCH = 32, 2, 2, 3, 5
LR, EPOCHS, INFERENCE_LR, INFERENCE_EPOCHS, CLIP = 0.02, 3, 0.005, 2, 1.0
MOMENTUM, CONTRAST, HEAD_SCALE = 0.3, 0.5, 0.5
ALIGN_LR, ALIGN_EPOCHS, SAMPLES = 0.02, 2, 8
Weights = dict[str, Tensor]
TOLERANCES = {
    "inference": 1e-2,  # entries whose gradient is all but 0
    "head": 1e-3,
    "prompts": 1e-3,
    "means": 1e-4,
    "covariances": 1e-3,
    "query means": 1e-5,
    "query covariances": 1e-4,
    "logits": 2e-4,
}
"""Of max|x - ref| / max|ref|; of what is trained, x is its change since the beginning."""


def classes_of(t: int) -> list[int]:
    return list(range(sum(SIZES[:t]), sum(SIZES[: t + 1])))


@cache
def images_of(t: int, part: str) -> tuple[Tensor, Tensor]:
    """Noisy images [n, 1, 32, 32] around one of each class, and labels [n]; one of each class after the other."""
    labels = torch.tensor(classes_of(t)).repeat(PER_CLASS)
    means = torch.stack([torch.randn(1, 32, 32, generator=generator(("mean", int(c)))) for c in labels])
    return means + 0.5 * torch.randn(means.shape, generator=generator((part, t))), labels


# --- the formulas ------------------------------------------------------------------------------------------------


class Reference:
    """The whole method, in fp64.

    Args:
        vit: weights of the backbone by timm's names.
        inference: starting weights of the task-identity inference: mlp (0, 2), norm, head.
        head: starting weights of the head.
    """

    def __init__(self, vit: Weights, inference: Weights, head: Weights) -> None:
        self.vit, self.inference, self.head = ({n: v.double() for n, v in w.items()} for w in (vit, inference, head))
        self.prompts: list[Tensor] = []  # [blocks, keys or values, length, d] of each task
        self.owner: list[int] = []  # task of each class
        self.queries: list[tuple[Tensor, Tensor]] = []  # mean and covariance of each class's q(x)
        self.statistics: list[tuple[Tensor, Tensor]] = []  # the same of its prompted features
        self.inferred: Tensor

    def features(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """CLS features [B, d]; prompts [B, blocks, 2, length, d] stand in front of the keys and values."""
        w = self.vit
        patches = conv2d(images.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
        for b in range(BLOCKS):
            p = f"blocks.{b}."
            y = layer_norm(x, (DIM,), w[f"{p}norm1.weight"], w[f"{p}norm1.bias"], eps=1e-6)
            q, k, v = linear(y, w[f"{p}attn.qkv.weight"], w[f"{p}attn.qkv.bias"]).split(DIM, dim=2)
            if prompts is not None:
                k, v = torch.cat([prompts[:, b, 0], k], dim=1), torch.cat([prompts[:, b, 1], v], dim=1)
            mixed = []
            for own in torch.arange(DIM).split(DIM // HEADS):
                weights = (q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(DIM // HEADS)).softmax(dim=2)
                mixed.append(weights @ v[..., own])
            x = x + linear(torch.cat(mixed, dim=2), w[f"{p}attn.proj.weight"], w[f"{p}attn.proj.bias"])
            y = layer_norm(x, (DIM,), w[f"{p}norm2.weight"], w[f"{p}norm2.bias"], eps=1e-6)
            y = gelu(linear(y, w[f"{p}mlp.fc1.weight"], w[f"{p}mlp.fc1.bias"]))
            x = x + linear(y, w[f"{p}mlp.fc2.weight"], w[f"{p}mlp.fc2.bias"])
        return layer_norm(x, (DIM,), w["norm.weight"], w["norm.bias"], eps=1e-6)[:, 0]

    def infer(self, query: Tensor) -> Tensor:
        """Logits [B, C] of the classes, from q(x)."""
        w = self.inference
        hidden = gelu(linear(query, w["mlp.0.weight"], w["mlp.0.bias"]))
        y = query + linear(hidden, w["mlp.2.weight"], w["mlp.2.bias"])
        y = layer_norm(y, (DIM,), w["norm.weight"], w["norm.bias"], eps=1e-6)
        return linear(y, w["head.weight"], w["head.bias"])

    def classify(self, features: Tensor) -> Tensor:
        return linear(features, self.head["weight"], self.head["bias"])

    def learn(self, t: int) -> None:
        """A task."""
        images, labels = images_of(t, "train")
        own, old = classes_of(t), sum(SIZES[:t])
        query = self.features(images)
        self.queries += gaussians(query, labels, own)
        self.owner += [t] * len(own)
        if t == 0:
            drawn = torch.rand(BLOCKS, 2, LENGTH, DIM, generator=generator((0, "task", 0, "prompts")))
            self.prompts.append((2 * drawn - 1).double())
        else:
            self.prompts.append(self.prompts[-1].clone())
        batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))

        def identity(rows: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(among(self.infer(self.features(rows)), own), targets)

        descend([{"params": leaves(self.inference), "lr": INFERENCE_LR}], identity, batches, INFERENCE_EPOCHS)
        if t:
            self.align(self.infer, leaves(self.inference), self.queries, (0, "task", t, "inference"))

        earlier = torch.stack(self.prompts[:-1]).mean(dim=0) if t else None
        means = torch.stack([mean for mean, _ in self.statistics]) if t else torch.zeros(0, DIM).double()
        assert len(means) == old

        def ensemble() -> Tensor:
            return self.prompts[t] if earlier is None else (1 - MOMENTUM) * self.prompts[t] + MOMENTUM * earlier

        def loss(rows: Tensor, targets: Tensor) -> Tensor:
            features = self.features(rows, ensemble().expand(len(rows), -1, -1, -1, -1))
            everything = torch.cat([means, features])
            similar = everything @ everything.T / 0.8
            apart = -similar.log_softmax(dim=1).diagonal().mean()
            return cross_entropy(among(self.classify(features), own), targets) + CONTRAST * apart

        groups = [
            {"params": [self.prompts[t].requires_grad_()], "lr": LR},
            {"params": leaves(self.head), "lr": HEAD_SCALE * LR},
        ]
        descend(groups, loss, batches, EPOCHS, lambda e: (1 + math.cos(math.pi * e / EPOCHS)) / 2)
        self.prompts[t] = ensemble().detach()

        with torch.no_grad():
            features = self.features(images, self.prompts[t].expand(len(images), -1, -1, -1, -1))
        self.statistics += gaussians(features, labels, own)
        if t:
            self.align(self.classify, leaves(self.head), self.statistics, (0, "task", t, "align"))

    def align(
        self, head: Callable[[Tensor], Tensor], trained: list[Tensor], of: list[tuple[Tensor, Tensor]], key: Key
    ) -> None:
        """Train a head on features drawn from Gaussians of all classes, on which all of them compete."""
        seen = list(range(len(of)))
        optimizer = torch.optim.SGD(trained, lr=ALIGN_LR, momentum=0.9, weight_decay=5e-4)
        for epoch in range(ALIGN_EPOCHS):
            optimizer.param_groups[0]["lr"] = ALIGN_LR * (1 + math.cos(math.pi * epoch / ALIGN_EPOCHS)) / 2
            noise = torch.randn(len(of), SAMPLES, DIM, generator=generator((*key, epoch, "noise"))).double()
            drawn = torch.cat(
                [mean + z @ torch.linalg.cholesky(cov).T for z, (mean, cov) in zip(noise, of, strict=True)]
            )
            labels = torch.tensor(seen).repeat_interleave(SAMPLES)
            for rows in torch.from_numpy(permutation((*key, epoch, "order"), len(labels))).split(SAMPLES):
                optimizer.zero_grad()
                cross_entropy(among(head(drawn[rows]), seen), labels[rows]).backward()
                optimizer.step()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits of the classes seen, each image prompted for the task of its most likely class."""
        best = self.infer(self.features(images))[:, : len(self.owner)].argmax(dim=1)
        self.inferred = torch.tensor(self.owner)[best]
        return self.classify(self.features(images, torch.stack(self.prompts)[self.inferred]))[:, : len(self.owner)]


def leaves(weights: Weights) -> list[Tensor]:
    return [weight.requires_grad_() for weight in weights.values()]


def among(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits of which only those of these classes are left."""
    outside = torch.full((logits.shape[1],), -math.inf, dtype=logits.dtype)
    outside[list(classes)] = 0
    return logits + outside


def gaussians(features: Tensor, labels: Tensor, classes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance of each class's features."""
    of_class = [features[labels == c].detach() for c in classes]
    return [(rows.mean(dim=0), torch.cov(rows.T) + 1e-4 * torch.eye(DIM).double()) for rows in of_class]


def descend(
    groups: list[dict[str, object]],
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: list[tuple[Tensor, Tensor]],
    epochs: int,
    schedule: Callable[[int], float] = lambda epoch: 1.0,
) -> None:
    """Adam, with the norm of the whole gradient clipped."""
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(epoch)
        for rows, labels in batches:
            optimizer.zero_grad()
            loss(rows, labels).backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP)
            optimizer.step()


# --- ours ----------------------------------------------------------------------------------------------------------


def learned() -> Iterator[tuple[Reference, ContinualStrategy, Weights]]:
    """Both after each task, and what ours started with."""
    method = HiDePrompt(
        length=LENGTH,
        blocks=BLOCKS,
        momentum_prompt=MOMENTUM,
        contrast=CONTRAST,
        head_lr_scale=HEAD_SCALE,
        inference_epochs=INFERENCE_EPOCHS,
        inference_lr=INFERENCE_LR,
        epochs=EPOCHS,
        batch_size=BATCH,
        lr=LR,
        schedule="cosine",
        clip_norm=CLIP,
        align_epochs=ALIGN_EPOCHS,
        align_lr=ALIGN_LR,
        align_samples=SAMPLES,
    )
    with seeded(("hide",)):
        strategy = ContinualStrategy(plugins=[method], backbone=tiny_vit(), num_classes=CLASSES)
    start = {name: value.clone() for name, value in strategy.model.state_dict().items()}

    def below(prefix: str) -> Weights:
        return {name.removeprefix(prefix): v.clone() for name, v in start.items() if name.startswith(prefix)}

    reference = Reference(*map(below, ("backbone.", "inference.", "head.")))
    given = [dataset(*images_of(t, "train")) for t in range(len(SIZES))]
    for t, experience in enumerate(benchmark_from_datasets(train=given, test=given).streams["train"]):
        reference.learn(t)
        with stored_order():
            strategy.train(experience, eval_streams=[])
        yield reference, strategy, start


@cache
def differences() -> dict[tuple[int, str], float]:
    """Scaled maximum error of each quantity after each task."""
    found = {}
    for t, (reference, strategy, start) in enumerate(learned()):
        model = strategy.model.eval()

        def changed(part: str, weights: Weights, model: nn.Module = model, start: Weights = start) -> float:
            state = model.state_dict()
            errors = []
            for name, value in weights.items():
                old = start[f"{part}.{name}"].double()
                errors.append(error(state[f"{part}.{name}"].double() - old, (value.detach() - old).numpy()))
            return max(errors)

        found[t, "inference"] = changed("inference", reference.inference)
        found[t, "head"] = changed("head", reference.head)
        begin = reference.prompts[0].new_zeros(()) if t == 0 else reference.prompts[t - 1]
        assert len(model.E) == t + 1
        found[t, "prompts"] = max(
            error(model.E[t].detach().double() - begin, (reference.prompts[t] - begin).numpy()),
            *(error(ours.detach(), theirs.numpy()) for ours, theirs in zip(model.E, reference.prompts, strict=True)),
        )
        for name, ours, theirs in (
            ("", model.statistics, reference.statistics),
            ("query ", model.queries, reference.queries),
        ):
            means, covariances = map(torch.stack, zip(*theirs, strict=True))
            factors = ours.factors.double()
            found[t, f"{name}means"] = error(ours.means, means.numpy())
            found[t, f"{name}covariances"] = error(factors @ factors.transpose(1, 2), covariances.numpy())
        images = torch.cat([images_of(k, "test")[0] for k in range(t + 1)])
        logits = reference.predict(images).numpy()
        with torch.no_grad():
            found[t, "logits"] = error(model(images)[:, : logits.shape[1]], logits)
            inferred = model.inferred(model.query(images))
        np.testing.assert_array_equal(inferred, reference.inferred)
        # Else it would not show which prompts an image gets.
        assert len(set(inferred.tolist())) == t + 1
        assert model.task_of.tolist() == reference.owner + [-1] * (CLASSES - len(reference.owner))
    return found


@pytest.mark.parametrize("quantity", TOLERANCES)
@pytest.mark.parametrize("t", range(len(SIZES)))
def test_hide_follows_its_formulas(t: int, quantity: str) -> None:
    assert differences()[t, quantity] <= TOLERANCES[quantity]
