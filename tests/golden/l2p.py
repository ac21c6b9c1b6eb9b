"""L2P's golden file, replayed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cl_bench.methods.l2p import L2P, L2PModel
from cl_bench.models.heads import cosine
from cl_bench.models.vit import ViT
from tests.golden import Check, Fixture, Kind
from tests.golden.recipe import GELUS, INPUTS, PRECISIONS, Network, Part, gradient


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    if fixture.any(r"a\."):
        network = Network(fixture, "l2p", r"a\.")
        size = fixture.size(r"a\.similarity", 1, fixture.size(r"a\..*grad\.e_|a\..*grad_e_k", 0, 10))
        # As many rows for the keys as for the values.
        shape = _shape(r"a\.grad\.e_p", 2 * fixture.size(r"a\.prompt_[KV]", 1, 20), 8, fixture, r"a\.")
        settings: dict[str, Any] = {"pool": size, "prompts": "prefix", "key_loss": "sum"} | shape
        for leaky in (True, False):
            method = L2P(**settings | {"as_published_leaky": leaky} | options)
            yield from _prefix(network, method, Part(fixture, "a."), leaky)
    if fixture.any(r"b\."):
        network = Network(fixture, "l2pb", r"b\.")
        size = fixture.size(r"b\..*similarity", 1, fixture.size(r"b\..*(grad\.(prompt|key)|vote_counts)", 0, 10))
        # All tokens but CLS and 4 patches.
        shape = _shape(r"b\..*grad\.prompt", fixture.size(r"b\..*tokens_out", 1, 30) - 5, 5, fixture, r"b\.")
        method = L2P(**{"pool": size} | shape | options)
        for gelu in GELUS:
            for dtype in PRECISIONS:
                yield from _prepended(network, method, Part(fixture, f"b.{gelu}.", dtype), gelu)


def _shape(pool: str, rows: int, length: int, fixture: Fixture, part: str) -> dict[str, int]:
    """Length of a prompt and how many a sample takes, of which the number of rows is the product.

    Args:
        pool: pattern of the pool's gradient.
        rows: of all prompts of a sample.
        length: of the recipe.
    """
    top = fixture.size(rf"{part}.*topk_idx", 1, 0)
    length = fixture.size(pool, 1, rows // top if top else length)
    return {"length": length, "top": top or rows // length}


def _model(network: Network, method: L2P, gelu: str = "erf") -> L2PModel:
    model = network.model(method, gelu)
    pool, keys = ("l2p.e_p.0", "l2p.e_k.0") if method.prompts == "prefix" else ("l2pb.prompt", "l2pb.key")
    model.pool.data = network(pool, model.pool.shape, 0.5)
    model.keys.data = network(keys, model.keys.shape, 0.5)
    return model


def _prefix(network: Network, method: L2P, part: Part, leaky: bool) -> Iterator[Check]:
    """The key loss as released, or that of each sample; both are greater than ours by a constant."""
    model, images = _model(network, method), network.images
    query = model.query(images)
    similarity = cosine(query, model.keys)
    chosen = model.chosen(similarity)
    with mock.patch.object(ViT, "features", autospec=True, side_effect=ViT.features) as spy:
        features = model.features(images)
    ((keys, values),) = spy.call_args.kwargs["prefixes"].values()
    yield from part.compare("query", query)
    yield from part.compare("similarity", similarity)
    yield from part.equal("topk_idx", chosen)
    yield from part.compare("prompt_K", keys)
    yield from part.compare("prompt_V", values)
    yield from part.compare("feature", features)
    yield from part.compare("logits", model(images))
    yield from part.compare("perm.logits", model(images[network.shuffled]))
    if "labels" not in part:
        return
    labels = part.labels(network.order)
    ce, loss = _losses(network, method, model, labels)
    constant = chosen.numel() * (len(images) if leaky else 1)
    yield from part.compare("ce", ce)
    yield from part.compare("grad.e_p.as_released", gradient(model.pool))
    for name, parameter in model.head.named_parameters():
        yield from part.compare(f"grad.head.{name}", gradient(parameter))
    if leaky:
        yield from part.compare("total_loss.as_released", loss + constant)
        yield from part.compare("key_loss.as_released", loss + constant - ce)
        yield from part.compare("grad.e_k.as_released", gradient(model.keys))
    else:
        yield from part.compare("key_loss.per_sample_sum", loss + constant - ce)
        yield from part.compare("key_loss.per_sample_grad_e_k", gradient(model.keys))


def _prepended(network: Network, method: L2P, part: Part, gelu: str) -> Iterator[Check]:
    if not part.fixture.any(re.escape(part.start)):
        return
    model = _model(network, method, gelu).to(part.dtype)
    images = network.images.to(part.dtype)
    query = model.query(images)
    similarity = cosine(query, model.keys)
    chosen = model.chosen(similarity)
    prompts = model.pool[chosen].flatten(1, 2)
    outputs = model.vit.tokens(images, prompts=prompts)
    yield from part.compare("query", query)
    yield from part.compare("similarity", similarity)
    yield from part.equal("topk_idx", chosen)
    yield from part.equal("vote_counts", torch.bincount(chosen.flatten(), minlength=len(model.keys)))
    yield from part.compare("reduce_sim", model.attraction(similarity, chosen).mean())
    yield from part.compare("tokens_out", outputs)
    yield from part.compare("cls_out", outputs[:, prompts.shape[1]])
    yield from part.compare("feature", model.features(images))
    yield from part.compare("logits", model(images))
    yield from part.compare("perm.logits", model(images[network.shuffled]))
    if "labels" not in part:
        return
    ce, loss = _losses(network, method, model, part.labels(network.order))
    yield from part.compare("ce", ce)
    yield from part.compare("total_loss", loss)
    yield from part.compare("grad.prompt", gradient(model.pool))
    yield from part.compare("grad.key", gradient(model.keys))
    for name, parameter in model.head.named_parameters():
        yield from part.compare(f"grad.head.{name}", gradient(parameter))


def _losses(network: Network, method: L2P, model: L2PModel, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and the whole loss of a training batch; gradients are left in the parameters."""
    width = network.width({f"{part}.labels": None for part in ("a", *(f"b.{gelu}" for gelu in GELUS))})
    task = network.task(model, int(labels[0]) // width, width)
    phase = method.phases(task)[0]
    assert phase.forward is not None
    logits, attraction = phase.forward(network.images.to(model.pool.dtype))
    loss = phase.loss((logits, attraction), labels).mean()
    loss.backward()
    return method.cross_entropy(task)(logits, labels).mean().detach(), loss.detach()


KIND = Kind(r"[ab]\.", INPUTS, checks)
