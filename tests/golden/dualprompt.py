"""DualPrompt's golden file, replayed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cl_bench.methods.dualprompt import DualPrompt, DualPromptModel
from tests.golden import Check, Fixture, Kind
from tests.golden.recipe import GELUS, INPUTS, PRECISIONS, Network, Part, gradient


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    pool = Pool.of(Network(fixture, "dual"))
    settings: dict[str, Any] = {
        "g_length": fixture.size(r"g_prompt_[KV]\.", 0, fixture.size(r".*grad\.g_p\.", 0, 6) // 2),
        "e_length": fixture.size(r".*e_prompt_[KV]\.", -2, fixture.size(r".*grad\.e_p_slot\.", 0, 8) // 2),
        "g_blocks": pool.places(r"g_prompt_[KV]|.*grad\.g_p", [0, 1]),
        "e_blocks": pool.places(r".*(?:e_prompt_[KV]|grad\.e_[pk]_slot)|test\.(?:slot|similarity)", [2, 3, 4]),
    }
    method = DualPrompt(**settings | {"keys": "per-block", "key_loss": "sum"} | options)
    for t in fixture.numbers(r"t(\d+)\."):
        yield from _training(pool, method, Part(fixture, f"t{t}."), t)
    yield from _test(pool, method, Part(fixture, ""))
    method = DualPrompt(**settings | options)
    for gelu in GELUS:
        for dtype in PRECISIONS:
            part = Part(fixture, f"sharedkey.{gelu}.", dtype)
            if "labels" in part:
                yield from _training(pool, method, part, int(part.labels(pool.network.order)[0]) // pool.width, gelu)
            yield from _test(pool, method, part, gelu)


@dataclass(frozen=True)
class Pool:
    """The recipe of prompts and keys, for so many tasks of so many classes."""

    network: Network
    slots: int
    width: int

    @classmethod
    def of(cls, network: Network) -> Pool:
        """Of a file."""
        fixture = network.fixture
        slots = fixture.size(r".*similarity", 1, max(4, *fixture.numbers(r"t(\d+)\."), 0) + 1)
        labels: dict[str, int | None] = {f"t{t}.labels": t for t in fixture.numbers(r"t(\d+)\.")}
        labels |= {f"sharedkey.{gelu}.labels": None for gelu in GELUS}
        return cls(network, slots, network.width(labels, slots))

    def places(self, pattern: str, default: Sequence[int]) -> tuple[int, ...]:
        """The blocks that keys tell of."""
        return tuple(self.network.fixture.numbers(rf"(?:{pattern})\.(\d+)$") or default)

    @torch.no_grad()
    def model(self, method: DualPrompt, slots: int, gelu: str, dtype: torch.dtype | None) -> DualPromptModel:
        """The model with the first slots of the pool."""
        network = self.network
        model = network.model(method, gelu)
        G = network.stacked([f"dual.g_p.{e}" for e in method.g_blocks], (2 * method.g_length, network.dim), 0.5)
        E = network.stacked(
            [f"dual.e_p.{e}" for e in method.e_blocks], (self.slots, 2 * method.e_length, network.dim), 0.5
        )
        names = [f"dual.e_k.{e}" for e in method.e_blocks] if method.keys == "per-block" else ["dual.shared_key"]
        K = network.stacked(names, (self.slots, network.dim), 0.5)
        model.G.copy_(G.unflatten(1, (2, -1)))
        for slot in range(slots):
            model.grow(torch.Generator())
            model.E[slot].copy_(E[:, slot].unflatten(1, (2, -1)))
            model.K[slot].copy_(K[:, slot])
        return model.to(dtype or torch.float32)


def _training(pool: Pool, method: DualPrompt, part: Part, t: int, gelu: str = "erf") -> Iterator[Check]:
    """A batch of task t, which is the last so far."""
    network, model = pool.network, pool.model(method, t + 1, gelu, part.dtype)
    task = network.task(model, t, pool.width)
    phase = method.phases(task)[0]
    assert phase.forward is not None
    images = network.images.to(model.G.dtype)
    prefixes = model.prefixes(torch.full((1, len(images)), t))
    logits, attraction = phase.forward(images)
    yield from part.compare("train.feature", model.vit.features(images, prefixes=prefixes))
    yield from part.compare("train.logits", logits)
    yield from part.compare("train.perm.logits", phase.forward(images[network.shuffled])[0])
    yield from part.compare("key_loss_per_block", (1 - model.similarity(model.query(images))[..., t]).sum(dim=1))
    yield from part.compare("reduce_sim", attraction.mean())
    for block in method.e_blocks:
        for name, rows in zip("KV", prefixes[block], strict=True):
            for row in rows:
                yield from part.compare(f"train.e_prompt_{name}.{block}", row)
    if "labels" not in part:
        return
    labels = part.labels(network.order)
    ce = method.cross_entropy(task)(logits, labels).mean()
    loss = phase.loss((logits, attraction), labels).mean()
    loss.backward()
    # Released: the loss has 1 - cosine in it, once per block and sample.
    constant = len(images) * len(method.e_blocks) if part.dtype is None else 0
    yield from part.compare("ce", ce)
    yield from part.compare("total_loss", loss + constant)
    yield from part.compare("key_loss", loss + constant - ce)
    for i, block in enumerate(method.g_blocks):
        yield from part.compare(f"grad.g_p.{block}", gradient(model.G)[i].flatten(0, 1))
    for i, block in enumerate(method.e_blocks):
        yield from part.compare(f"grad.e_p_slot.{block}", gradient(model.E[t])[i].flatten(0, 1))
    for suffix, row in zip(_suffixes(method), gradient(model.K[t]), strict=True):
        yield from part.compare(f"grad.{'e_k_slot' if suffix else 'shared_key_slot'}{suffix}", row)
    for name, parameter in model.head.named_parameters():
        yield from part.compare(f"grad.head.{name}", gradient(parameter))
    yield from part.untouched("grad.head.weight", model, phase)


def _test(pool: Pool, method: DualPrompt, part: Part, gelu: str = "erf") -> Iterator[Check]:
    """Predictions with all slots."""
    if not part.fixture.any(re.escape(part.start) + r"(test\.|similarity)"):
        return
    network = pool.network
    model = pool.model(method, pool.slots, gelu, part.dtype)
    images = network.images.to(model.G.dtype)
    query = model.query(images)
    similarity = model.similarity(query)
    experts = similarity.argmax(dim=2)
    prefixes = model.prefixes(experts)
    yield from part.compare("query", query)
    yield from part.compare("test.feature", model.features(images))
    yield from part.compare("test.logits", model(images))
    yield from part.compare("test.perm.logits", model(images[network.shuffled]))
    for suffix, cosines, slots in zip(_suffixes(method), similarity, experts, strict=True):
        yield from part.compare(f"{'test.' if suffix else ''}similarity{suffix}", cosines)
        yield from part.equal(f"test.slot{suffix}", slots)
    for block in method.e_blocks:
        for name, rows in zip("KV", prefixes[block], strict=True):
            yield from part.compare(f"test.e_prompt_{name}.{block}", rows)
    for block in method.g_blocks:
        for name, rows in zip("KV", prefixes[block], strict=True):
            for row in rows:
                yield from part.compare(f"g_prompt_{name}.{block}", row)


def _suffixes(method: DualPrompt) -> list[str]:
    """What follows the names of what there is once per key."""
    return [f".{block}" for block in method.e_blocks] if method.keys == "per-block" else [""]


KIND = Kind(
    r"sharedkey\.|query$|g_prompt_|test\.(slot|similarity|e_prompt|feature|logits|perm)"
    r"|t\d+\.(train|key_loss|grad\.(g_p|e_))",
    INPUTS,
    checks,
)
