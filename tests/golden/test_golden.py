"""Methods against numbers from their authors' code: every quantity of every golden file, and wrong variants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partialmethod
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_bench.contract.alignment import Alignment
from cl_bench.contract.phase import Phase, StepBatch
from cl_bench.contract.task import Task
from cl_bench.methods.coda import CODAModel
from cl_bench.methods.controlled_lora import CLoRA
from cl_bench.methods.dualprompt import DualPromptModel
from cl_bench.methods.l2p import L2PModel
from cl_bench.methods.nlora import absolute_sum
from cl_bench.methods.olora import overlap
from cl_bench.methods.prolora import PRoLoRABank
from cl_bench.methods.ranpac import RIDGES, RidgeHead, validation_errors
from cl_bench.models.adapters import Adapters
from cl_bench.models.lora import LoRABank
from cl_bench.models.prompts import PromptModel, split
from cl_bench.models.statistics import ClassStatistics
from cl_bench.models.vit import Prefix
from tests import golden
from tests.golden import (
    Check,
    Fixture,
    beamlora,
    cllora,
    coda,
    dualprompt,
    ease,
    inflora,
    l2p,
    mos,
    penalised,
    prolora,
    prototypes,
    raclora,
    recipe,
    sdlora,
    sema,
    sora,
)
from tests.golden.replay import KINDS
from tests.helpers import SOAK
from tests.helpers.kinds.cllora import CLLoRA
from tests.helpers.kinds.ease import Prototypes
from tests.helpers.kinds.mos import MOSModel, self_similarity
from tests.helpers.kinds.sema import Expert, Mixture


@cache
def fixture(kind: str) -> Fixture:
    return Fixture.load(golden.FOLDER / f"{kind}.{'json' if kind == 'metrics' else 'npz'}")


@cache
def results(kind: str) -> dict[str, list[Check]]:
    return by_quantity(KINDS[kind].checks(fixture(kind)))


def by_quantity(checks: Iterator[Check]) -> dict[str, list[Check]]:
    """The checks of each quantity: several where it is computed or judged in several ways."""
    found = defaultdict(list)
    for check in golden.worst(checks):
        found[check.name.partition(" [")[0]].append(check)
    return dict(found)


@pytest.mark.parametrize(
    ("kind", "quantity"), [(kind, name) for kind in KINDS for name in KINDS[kind].quantities(fixture(kind))]
)
def test_quantity(kind: str, quantity: str) -> None:
    assert results(kind).get(quantity), "nothing was compared"
    for check in results(kind)[quantity]:
        assert check.passed, check


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_used_and_every_check_is_a_test(kind: str) -> None:
    assert set(results(kind)) == set(KINDS[kind].quantities(fixture(kind)))
    assert KINDS[kind].unused(fixture(kind)) == []


# --- wrong variants ------------------------------------------------------------------------------------------------


def with_the_last(bank: LoRABank) -> Tensor:
    """O-LoRA's overlap with the last of the earlier directions alone."""
    return (bank.A[-2] @ bank.A[-1].transpose(2, 3)).abs().sum() if len(bank) > 1 else torch.zeros(())


def scaled(method: CLoRA, task: Task) -> dict[str, Tensor]:
    """CLoRA's products with the factors that the model uses."""
    (A, B), (P_in, P_out) = task.model.bank.factors(-1), method.subspaces(task)
    return {"input": A @ P_in, "output": B.transpose(2, 3) @ P_out}


def backwards(bank: PRoLoRABank, k: int) -> tuple[Tensor, Tensor]:
    """PRoLoRA's chunks rotated downwards and to the right."""
    (m, n), (s_A, s_B) = bank.shares, bank.strides
    A = torch.cat([bank.A[k].roll(j * s_A, dims=2) for j in range(m)], dim=3)
    B = torch.cat([bank.B[k].roll(j * s_B, dims=3) for j in range(n)], dim=2)
    return A[..., : bank.dim], B[:, :, : bank.dim]


def swapped(prompts: Tensor) -> Prefix:
    """Values where keys should be."""
    keys, values = split(prompts)
    return values, keys


def composed(model: CODAModel, query: Tensor, softmax: bool = False, attention: bool = True) -> dict[int, Prefix]:
    """CODA-Prompt's prefixes, term by term."""
    P, K, A = (torch.cat(list(bank), dim=1) for bank in (model.P, model.K, model.A))
    seen = query[None, :, None] * (A[:, None] if attention else 1)
    weights = nn.functional.cosine_similarity(seen, K[:, None], dim=3)
    prompts = torch.einsum("ebm,emld->ebld", weights.softmax(dim=2) if softmax else weights, P)
    return dict(zip(model.blocks, map(split, prompts), strict=True))


def by_qr(old: Tensor, raw: Tensor) -> Tensor:
    """New rows that are truly orthogonal to old ones."""
    rows = torch.linalg.qr(torch.cat([old, raw]).T)[0].T[len(old) :]
    return rows * (rows * raw).sum(dim=1, keepdim=True).sign()


def unnormed(model: PromptModel, images: Tensor) -> Tensor:
    """The query without the final norm."""
    [(_, prefix)] = model.backbone.get_intermediate_layers(images, n=1, return_prefix_tokens=True)
    return prefix[:, 0]


def swapped_experts(model: DualPromptModel, experts: Tensor) -> dict[int, Prefix]:
    return {block: (values, keys) for block, (keys, values) in _PREFIXES(model, experts).items()}


def cls_token(model: L2PModel, images: Tensor, chosen: Tensor) -> Tensor:
    """Of the prepended form the CLS token, not the mean of the prompts."""
    if model.prompts == "prefix":
        return _PROMPTED(model, images, chosen)
    rows = model.pool[chosen].flatten(1, 2)
    return model.vit.tokens(images, prompts=rows)[:, rows.shape[1]]


def from_the_front(H: Tensor, Y: Tensor) -> Tensor:
    """The first rows held out, not the last."""
    return validation_errors(H.flip(0), Y.flip(0))


def in_single(H: Tensor, Y: Tensor) -> Tensor:
    """The whole validation in fp32."""
    H, Y = H.float(), Y.float()
    fitted = int(0.8 * len(H))
    gram, moments = H[:fitted].T @ H[:fitted], H[:fitted].T @ Y[:fitted]
    weights = [torch.linalg.solve(gram + ridge * torch.eye(len(gram)), moments) for ridge in RIDGES]
    return torch.stack([(H[fitted:] @ weight - Y[fitted:]).square().mean() for weight in weights]).double()


def rounded(head: RidgeHead, H: Tensor, Y: Tensor) -> None:
    """Second moments kept in fp32."""
    _UPDATE(head, H, Y)
    head.gram.copy_(head.gram.float())


def biased(statistics: ClassStatistics, covariance: Tensor) -> Tensor:
    """The factor of a covariance over n."""
    n = fixture("prototypes").data["slca.feat"].shape[1]
    return _FACTOR(statistics, covariance * (n - 1) / n)


def evenly(head: Prototypes, seen: Sequence[int], once: bool) -> None:
    """Synthesised prototypes that are the mean of those that they are made of."""
    for j in range(1, head.prototypes.shape[1]):
        classes = torch.tensor(seen)
        older = head.own[classes] < j
        head.prototypes[classes[older], j] = head.prototypes[classes[~older], j].mean(dim=0)


def towards_drifted(model: MOSModel, adapters: Adapters, earlier: int) -> None:
    """Merges towards the copies that predict, and have been merged themselves."""
    drifted = model.drifting[:earlier]
    for own, *others in zip(*(each.parameters() for each in (adapters, *drifted)), strict=True):
        if others:
            own.data.lerp_(torch.stack(others).mean(dim=0), model.momentum)


def one_sided(expert: Expert, inputs: Tensor) -> Tensor:
    """How many standard deviations the errors are above their mean."""
    return ((expert.error(inputs) - expert.mean) / expert.std).mean()


def mixed_evenly(mixture: Mixture, x: Tensor) -> Tensor:
    """The mean of the experts."""
    return torch.stack([expert.adapter(x) for expert in mixture]).mean(dim=0)


def one_after_the_other(method: CLLoRA, task: Task) -> list[Phase]:
    """The gradient of the cross-entropy at what the distillation has changed already."""
    (phase,) = _CLLORA(method, task)

    def step(batch: StepBatch) -> Tensor:
        batch.update(method.distillation * method.distance(task, batch.inputs), adjust=lambda: method.adjust(task))
        logits = method.logits(task, task.model.own_features(batch.inputs))
        targets = torch.searchsorted(torch.tensor(task.classes), batch.labels)
        loss = method.classification(logits, targets) + method.penalty * method.similarity(task)
        batch.update(loss)
        return loss

    return [replace(phase, step=step)] if task.index else [phase]


def not_for_the_head(method: CLLoRA, task: Task, images: Tensor) -> Tensor:
    """A distillation from which the head learns through the student only."""
    model, logits = task.model, method.logits
    old = model.early_features(images, task.scratch.call("teacher", model.shared, model.backbone))
    new = model.early_features(images, model.shared(model.backbone))
    target = (logits(task, old).detach() / method.temperature).softmax(dim=1)
    return nn.functional.cross_entropy(logits(task, new) / method.temperature, target)


_PREFIXES, _PROMPTED = DualPromptModel.prefixes, L2PModel.prompted
_UPDATE, _FACTOR = RidgeHead.update, ClassStatistics._factor
_CLLORA, _OF_CLLORA = CLLoRA.phases, "tests.helpers.kinds.cllora.CLLoRA"
_GELUS = "tests.golden.recipe.GELUS"
_OLORA, _NLORA = "cl_bench.methods.olora", "cl_bench.methods.nlora"
_SCALED = "cl_bench.models.lora.LoRABank.factors"
_INSIDE = "cl_bench.methods.controlled_lora.CLoRA.inside"
_SHARED = "cl_bench.methods.prolora.PRoLoRABank.shared"
_QUERY = "cl_bench.models.prompts.PromptModel.query"
_CODA_PREFIXES = "cl_bench.methods.coda.CODAModel.prefixes"
_MOS = "tests.helpers.kinds.mos"
_SURPRISE = "tests.helpers.kinds.sema.Expert.surprise"
_MIXTURE = "tests.helpers.kinds.sema.Mixture.forward"
_SYNTHESISE = "tests.helpers.kinds.ease.Prototypes.synthesise"
_VALIDATION = ("cl_bench.methods.ranpac.validation_errors", "tests.golden.prototypes.validation_errors")
_EXCHANGED = {"erf": recipe.GELUS["tanh"], "tanh": recipe.GELUS["erf"]}


@dataclass(frozen=True)
class Wrong:
    """A mistake, and the least errors of quantities that must tell of it.

    Attributes:
        options: of the method.
        patch: what stands in for names of the code.
    """

    kind: str
    caught: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    patch: Mapping[str, Any] = field(default_factory=dict)


PARTS: Mapping[str, Callable[..., Iterator[Check]]] = {
    "sdlora": lambda **options: sdlora.released(sdlora.Suite(fixture("sdlora"), "d64"), 3, "mid", **options),
    "inflora": lambda **options: inflora.trained(inflora.Suite(fixture("inflora"), "d64"), **options),
    "olora": lambda **options: penalised.OLORA.checks(fixture("olora"), **options),
    "nlora": lambda **options: penalised.NLORA.checks(fixture("nlora"), **options),
    "clora": lambda **options: penalised.CLORA.checks(fixture("clora"), **options),
    "prolora": lambda **options: prolora.checks(fixture("prolora"), **options),
    "raclora": lambda **options: raclora.checks(fixture("raclora"), **options),
    "sora": lambda **options: sora.checks(fixture("sora"), **options),
    "beamlora": lambda **options: beamlora.checks(fixture("beamlora"), **options),
    "coda": lambda **options: coda.checks(fixture("coda"), **options),
    "dualprompt": lambda **options: dualprompt.checks(fixture("dualprompt"), **options),
    "l2p": lambda **options: l2p.checks(fixture("l2p"), **options),
    "prototypes": lambda **options: prototypes.checks(fixture("prototypes"), **options),
    "cllora": lambda **options: cllora.checks(fixture("cllora"), **options),
    "ease": lambda **options: ease.checks(fixture("ease"), ("main",), **options),
    "mos": lambda **options: mos.checks(fixture("mos"), ("once",), **options),
    "mos released": lambda **options: mos.checks(fixture("mos"), ("rel",), **options),
    "sema": lambda **options: sema.checks(fixture("sema"), **options),
}

WRONG = {
    "sdlora, norm of the product": Wrong(
        "sdlora", {"d64/t3/mid/features": 1e-2, "d64/t3/mid/deltaW": 1e-2}, {"norm": "frobenius"}
    ),
    "sdlora, k for q": Wrong("sdlora", {"d64/t3/mid/features": 1e-2}, {"targets": ("k", "v")}),
    "sdlora, all classes": Wrong("sdlora", {"d64/t3/mid/loss": 1e-1, "d64/t3/mid/grad_B": 1e-1}, {"loss": "all"}),
    "sdlora, current direction normalised": Wrong("sdlora", {"d64/t3/mid/features": 1e-1}, {"normalise_current": True}),
    "sdlora, no momentum": Wrong("sdlora", {"d64/t3/mid/after3/B": 1e-1}, {"momentum": 0.0}),
    "sdlora, old magnitudes frozen": Wrong("sdlora", {"d64/t3/mid/after3/alpha_prev": 0.5}, {"magnitudes": "current"}),
    "inflora, q for k": Wrong("inflora", {"d64/t0/fwd/features": 1e-2}, {"targets": ("q", "v")}),
    "inflora, all classes": Wrong("inflora", {"d64/t1/train/losses": 1e-2}, {"loss": "all"}),
    "inflora, no momentum": Wrong("inflora", {"d64/t0/train/deltaW_t": 1e-1}, {"momentum": 0.0}),
    "inflora, constant rate": Wrong("inflora", {"d64/t0/train/deltaW_t": 1e-2}, {"schedule": "constant"}),
    "inflora, plain memory": Wrong("inflora", {"d64/t3/memory/mode": 1.0}, {"memory": "plain"}),
    "inflora, other threshold": Wrong(
        "inflora", {"d64/t0/memory/threshold": 1e-2, "d64/t0/memory/dim": 1.0}, {"lamb": 0.9}
    ),
    "olora, overlap squared": Wrong(
        "olora",
        {"d32/t2/mid/loss": 0.1, "d32/t2/init/grad_A": 0.1, "d48/t1/clipped/after3/A": 0.1},
        patch={f"{_OLORA}.overlap": lambda bank: overlap(bank).square()},
    ),
    "olora, no shrinkage": Wrong("olora", {"d32/t0/mid/loss": 0.1, "d32/t0/init/grad_A": 0.5}, {"shrinkage": 0.0}),
    "olora, only the last earlier direction": Wrong(
        "olora", {"d32/t2/mid/loss": 1e-2, "d32/t2/init/grad_A": 1e-2}, patch={f"{_OLORA}.overlap": with_the_last}
    ),
    "olora, no orthogonality": Wrong(
        "olora", {"d32/t2/mid/loss": 0.1, "d48/t1/mid/grad_A": 0.1}, {"orthogonality": 0.0}
    ),
    "olora, own classes only": Wrong("olora", {"d32/t2/mid/loss": 0.1}, {"loss": "masked"}),
    "olora, not scaled": Wrong("olora", {"d32/t0/scaled/features": 0.1}, patch={_SCALED: LoRABank.direction}),
    "nlora, the paper's matrix": Wrong(
        "nlora", {"d32/t0/mid/loss": 1.0, "d32/t2/scaled/grad_B": 0.1}, {"product": "BA"}
    ),
    "nlora, squared": Wrong(
        "nlora",
        {"d32/t0/mid/loss": 0.1, "d32/t0/paper64/penalty": 0.1},
        patch={f"{_NLORA}.absolute_sum": lambda bank, product: absolute_sum(bank, product).square()},
    ),
    "nlora, the penalty scaled": Wrong(
        "nlora",
        {"d32/t0/scaled/loss": 0.1, "d32/t0/scaled/grad_B": 1e-2},
        patch={f"{_NLORA}.absolute_sum": lambda bank, product: absolute_sum(bank, product) * (bank.scale or 1)},
    ),
    "nlora, no penalty": Wrong("nlora", {"d32/t0/mid/loss": 0.1, "d48/t1/mid/grad_B": 0.1}, {"sparsity": 0.0}),
    "nlora, decayed": Wrong("nlora", {"d32/t0/mid/after3/B": 5e-2}, {"weight_decay": 1.0}),
    "clora, inputs only": Wrong("clora", {"d32/t0/mid/loss": 1e-2, "d32/t0/mid/grad_B": 1e-2}, {"sides": "input"}),
    "clora, without the factor of a half": Wrong(
        "clora", {"d32/t0/mid/loss": 0.1, "d48/t1/init/grad_A": 0.1}, {"control": 2.0}
    ),
    "clora, the penalty scaled": Wrong(
        "clora", {"d32/t0/scaled/reg_B": 1.0, "d48/t1/scaled/loss": 0.1}, patch={_INSIDE: scaled}
    ),
    "clora, own classes only": Wrong("clora", {"d32/t2/mid/loss": 0.1}, {"loss": "masked"}),
    "prolora, not rotated": Wrong(
        "prolora",
        {"d64-uneven/expanded/A": 0.5, "d64-even/deltaW": 0.5, "d64-even/features": 1e-2},
        {"rotate": False},
    ),
    "prolora, rotated the other way": Wrong(
        "prolora",
        {"d64-uneven/expanded/B": 0.5, "d64-even/deltaW": 0.5, "d64-uneven/grad/B0": 0.5},
        patch={_SHARED: backwards},
    ),
    "prolora, strides from all ranks": Wrong(
        "prolora", {"d64-uneven/stride": 1.0, "d64-even/stride": 1.0, "d64-even/deltaW": 0.5}, {"stride": "rank"}
    ),
    "prolora, started in the bound of a chunk": Wrong("prolora", {"d64-even/init_max_abs": 0.3}, {"bound": "chunk"}),
    "prolora, not scaled": Wrong("prolora", {"d64-even/deltaW": 0.4, "d64-uneven/features": 1e-2}, {"alpha": 8.0}),
    "raclora, a new optimiser for every link": Wrong(
        "raclora",
        {"mlp/train_first/chain1/l2/trained": 0.5, "mlp/both/optimizer_steps_at_end": 1.0},
        {"moments": "fresh"},
    ),
    "raclora, alpha over rank": Wrong("raclora", {"mlp/train_second/grad/l2_lora_B": 0.4}, {"alpha": 1.0}),
    "raclora, both factors": Wrong(
        "raclora", {"mlp/train_first/trainable": 1.0, "mlp/train_second/chain0/l2/merged": 5e-3}, {"train": "both"}
    ),
    "raclora, decayed": Wrong("raclora", {"mlp/train_first/chain2/l1/merged": 5e-3}, {"weight_decay": 1.0}),
    "sora, a soft threshold": Wrong(
        "sora",
        {"prox/out": 0.3, "d64/code/gates_steps": 3e-3, "d64/code/zeros_steps": 1.0},
        {"threshold_rule": "soft"},
    ),
    "sora, the penalty summed": Wrong(
        "sora", {"d64/code/loss": 10.0, "d64/lr/grad/gate": 10.0}, {"penalty_mean": False}
    ),
    "sora, gates at a rate of their own": Wrong("sora", {"d64/lr/gates_steps": 1e-2}, {"gate_lr": 0.01}),
    "sora, the gradient not clipped": Wrong(
        "sora", {"d64/code/after/A": 0.1, "d64/lr/after/B": 0.1}, {"clip_norm": 100.0}
    ),
    "beamlora, scores at another temperature": Wrong(
        "beamlora", {"d64/run/score": 0.1, "d64/run/features": 1e-2}, {"temperature": 0.1}
    ),
    "beamlora, pruned within each projection": Wrong(
        "beamlora", {"d64/run/pruned_counts": 1.0, "d64/run/reset/A": 0.5}, {"scope": "module"}
    ),
    "beamlora, present states of partners": Wrong(
        "beamlora", {"d64/run/reset/A": 1e-2, "d64/run/after/gate": 1e-2}, {"history": "current"}
    ),
    "beamlora, moments inherited": Wrong(
        "beamlora", {"d64/run/reset/moment1/A": 0.5, "d64/run/after/B": 1e-2}, {"moments": "inherit"}
    ),
    "beamlora, partners best first": Wrong(
        "beamlora",
        {"d64/run/reset/gate": 0.1},
        patch={"tests.golden.beamlora.Reversed.order": lambda self, task, step, block, p, count: torch.arange(count)},
    ),
    "coda, keys and values swapped": Wrong(
        "coda",
        {"t0.prompt_K": 1.0, "t2.prompt_V": 1.0, "t1.logits": 4e-2, "t2.mu0.1.grad.K": 1.0},
        patch={"cl_bench.methods.coda.split": swapped},
    ),
    "coda, softmax": Wrong(
        "coda",
        {"t0.prompt_K": 1.0, "t2.logits": 4e-2, "t2.mu0.0.grad.A": 0.5},
        patch={_CODA_PREFIXES: partialmethod(composed, softmax=True)},
    ),
    "coda, A ignored": Wrong(
        "coda",
        {"t0.prompt_K": 1.0, "t1.logits": 4e-2, "t0.mu0.0.grad.A": 0.9},
        patch={_CODA_PREFIXES: partialmethod(composed, attention=False)},
    ),
    "coda, query before the final norm": Wrong(
        "coda", {"t0.query": 1.0, "t0.prompt_K": 1e-1, "t1.logits": 1e-2}, patch={_QUERY: unnormed}
    ),
    "coda, truly orthogonal": Wrong(
        "coda",
        {"t1.gs_new.P": 1e-2, "t1.gs_new.K": 5e-2, "t2.gs_new.A": 5e-2, "t1.logits": 1e-3},
        patch={"cl_bench.methods.coda.orthogonal_to": by_qr},
    ),
    "coda, all classes": Wrong("coda", {"t1.ce": 0.5, "t2.perm.ce": 0.5, "t1.grad.head.bias": 0.5}, {"loss": "all"}),
    "coda, tanh": Wrong("coda", {"t0.query": 1e-4, "t0.logits": 1e-4}, patch={_GELUS: _EXCHANGED}),
    "dualprompt, neighbours' prompts": Wrong(
        "dualprompt",
        {"t0.train.e_prompt_K": 1.0, "t1.train.logits": 1e-1, "test.e_prompt_V": 0.5, "test.logits": 5e-2},
        {"as_published_leaky": True},
    ),
    "dualprompt, keys and values swapped": Wrong(
        "dualprompt",
        {"g_prompt_K": 1.0, "t3.train.e_prompt_V": 1.0, "test.logits": 5e-2, "sharedkey.erf.test.logits": 5e-2},
        patch={"cl_bench.methods.dualprompt.DualPromptModel.prefixes": swapped_experts},
    ),
    "dualprompt, query before the final norm": Wrong(
        "dualprompt",
        {"query": 1.0, "test.similarity": 1e-1, "test.slot": 1.0, "t0.grad.e_k_slot": 1e-1},
        patch={_QUERY: unnormed},
    ),
    "dualprompt, mean of key losses": Wrong(
        "dualprompt", {"t0.key_loss": 1e-2, "t1.total_loss": 1e-2, "t3.grad.e_k_slot": 0.5}, {"key_loss": "mean"}
    ),
    "dualprompt, sum of key losses": Wrong(
        "dualprompt",
        {"sharedkey.erf.total_loss": 1e-1, "sharedkey.tanh.grad.shared_key_slot": 1.0},
        {"key_loss": "sum"},
    ),
    "dualprompt, tanh": Wrong(
        "dualprompt",
        {"t0.train.logits": 1e-4, "sharedkey.erf.test.logits": 1e-4, "sharedkey.tanh.train.feature": 1e-4},
        patch={_GELUS: _EXCHANGED},
    ),
    "l2p, vote of the batch and all pairs": Wrong(
        "l2p",
        {
            "a.key_loss.per_sample_sum": 5e-2,
            "a.key_loss.per_sample_grad_e_k": 1.0,
            "b.erf.topk_idx": 1.0,
            "b.erf.vote_counts": 1.0,
            "b.erf.logits": 0.4,
            "b.tanh.feature": 0.4,
        },
        {"as_published_leaky": True},
    ),
    "l2p, each sample's own keys": Wrong(
        "l2p",
        {"a.key_loss.as_released": 1e-2, "a.total_loss.as_released": 1e-2, "a.grad.e_k.as_released": 0.5},
        {"as_published_leaky": False},
    ),
    "l2p, mean of key losses": Wrong("l2p", {"a.grad.e_k.as_released": 0.5}, {"key_loss": "mean"}),
    "l2p, keys and values swapped": Wrong(
        "l2p",
        {"a.prompt_K": 1.0, "a.prompt_V": 1.0, "a.logits": 6e-2},
        patch={"cl_bench.methods.l2p.split": swapped},
    ),
    "l2p, CLS token": Wrong(
        "l2p",
        {"b.erf.feature": 0.7, "b.tanh.logits": 0.7},
        patch={"cl_bench.methods.l2p.L2PModel.prompted": cls_token},
    ),
    "l2p, query before the final norm": Wrong(
        "l2p", {"a.query": 1.0, "a.similarity": 1e-1, "b.erf.topk_idx": 1.0}, patch={_QUERY: unnormed}
    ),
    "l2p, tanh": Wrong(
        "l2p", {"a.logits": 1e-4, "b.erf.logits": 1e-4, "b.tanh.logits": 1e-4}, patch={_GELUS: _EXCHANGED}
    ),
    "simplecil, normalised before the mean": Wrong(
        "prototypes",
        {"simplecil.proto.t0": 0.5, "simplecil.logits.t2": 1e-2},
        patch={"cl_bench.models.base.FeatureModel.features": lambda model, x: nn.functional.normalize(x, dim=1)},
    ),
    "ranpac, validation in fp32": Wrong(
        "prototypes",
        {"ranpac.val_mse_f64.t0": 1.0, "ranpac.val_mse_f64.t1": 1.0},
        patch=dict.fromkeys(_VALIDATION, in_single),
    ),
    "ranpac, moments in fp32": Wrong(
        "prototypes",
        {"ranpac.head_f64.t0": 1e-7, "ranpac.head_fixed_lambda_1": 1e-6},
        patch={"cl_bench.methods.ranpac.RidgeHead.update": rounded},
    ),
    "ranpac, other rows held out": Wrong(
        "prototypes",
        {"ranpac.val_mse_f64.t1": 1e-1, "ranpac.lambda.t0": 1.0, "ranpac.logits.t2": 1.0},
        patch=dict.fromkeys(_VALIDATION, from_the_front),
    ),
    "slca, no norm of logits": Wrong(
        "prototypes",
        {"slca.ca.first_norm_logits": 1.0, "slca.ca.losses": 0.5, "slca.ca.final_head.bias": 0.5},
        patch={"cl_bench.contract.alignment.task_norm": lambda logits, tasks: torch.ones(len(logits), 1)},
    ),
    "slca, neither norm nor temperature": Wrong(
        "prototypes", {"slca.ca.losses": 0.5, "slca.ca.first_grad.weight": 0.5}, {"align_temperature": None}
    ),
    "slca, means not scaled": Wrong(
        "prototypes", {"slca.scaled_mean": 5e-2, "slca.ca.losses": 1e-2}, {"align_shrink": 0.0}
    ),
    "slca, biased covariance": Wrong(
        "prototypes",
        {"slca.class_cov": 1e-2, "slca.ca.losses": 5e-3},
        patch={"cl_bench.models.statistics.ClassStatistics._factor": biased},
    ),
    "slca, shared covariance": Wrong(
        "prototypes", {"slca.class_cov": 1.0, "slca.ca.losses": 1e-1}, {"align_covariance": "shared"}
    ),
    "ease, constant rate": Wrong(
        "ease", {"main.t0.losses": 1e-3, "main.t2.after.1.up_proj.weight": 0.1}, {"schedule": "constant"}
    ),
    "ease, no weight decay": Wrong(
        "ease", {"main.t0.after.0.up_proj.weight": 0.1, "main.t1.after.proxy.weight": 1e-2}, {"weight_decay": 0.0}
    ),
    "ease, synthesised once": Wrong("ease", {"main.t2.weight": 0.1, "main.t2.logits": 5e-3}, {"synthesis": "once"}),
    "ease, cosine of the concatenation": Wrong("ease", {"main.t1.logits": 0.1}, {"reweighted": False}),
    "ease, synthesised from all newer classes alike": Wrong(
        "ease", {"main.t1.weight": 1e-2, "main.t2.weight": 1e-2}, patch={_SYNTHESISE: evenly}
    ),
    "mos, merged in every pass": Wrong(
        "mos", {"once.t1.stored.0.up_proj.bias": 1e-3, "once.t2.test.outputs": 3e-4}, {"merge": "released"}
    ),
    "mos, never merged": Wrong(
        "mos", {"once.t1.stored.0.up_proj.bias": 1e-3, "once.t2.losses": 1e-4}, {"merge_momentum": 0.0}
    ),
    "mos, similarity of the batch only": Wrong(
        "mos", {"once.t1.orth": 1e-2}, patch={f"{_MOS}.self_similarity": lambda rows: self_similarity(rows[-8:])}
    ),
    "mos, head at the rate of the adapters": Wrong("mos", {"once.t0.losses": 1e-2}, patch={f"{_MOS}.HEAD_LR": 1.0}),
    "mos, the alignment's usual weight decay": Wrong(
        "mos",
        {"once.t2.head.weight": 1e-3},
        patch={f"{_MOS}.Alignment": lambda **given: Alignment(**given | {"weight_decay": 5e-4})},
    ),
    "mos, temperature of the alignment": Wrong(
        "mos",
        {"once.t1.ca_losses": 1e-2},
        patch={f"{_MOS}.Alignment": lambda **given: Alignment(**given | {"temperature": 0.1})},
    ),
    "mos, not refined": Wrong("mos", {"once.t2.test.outputs": 1e-3}, patch={f"{_MOS}.LOOK_UPS": 1}),
    "mos released, one merge in a step": Wrong(
        "mos released", {"rel.t1.losses": 1e-4, "rel.t2.stored.0.up_proj.bias": 1e-3}, {"merge": "step"}
    ),
    "mos released, towards adapters that drifted": Wrong(
        "mos released", {"rel.t2.stored.1.down_proj.bias": 1e-3}, patch={f"{_MOS}.MOSModel.merge": towards_drifted}
    ),
    "mos released, statistics of all classes at once": Wrong(
        "mos released",
        {"rel.t1.current_after_statistics.0.up_proj.bias": 1e-4},
        patch={f"{_MOS}.ClassByClass": Alignment},
    ),
    "sema, never expanded": Wrong("sema", {"t1.phases": 1.0, "t2.test.logits": 1e-2}, {"threshold": 9.0}),
    "sema, only larger errors surprise": Wrong("sema", {"t1.phases": 1.0}, patch={_SURPRISE: one_sided}),
    "sema, experts mixed evenly": Wrong(
        "sema", {"t1.ce": 1e-3, "t1.test.logits": 1e-3, "t2.detect.3.1.error": 1e-3}, patch={_MIXTURE: mixed_evenly}
    ),
    "sema, constant rate": Wrong("sema", {"t0.ce": 1e-3, "t0.record.2": 1e-3}, {"schedule": "constant"}),
    "sema, no weight decay": Wrong("sema", {"t0.after.2.router.weight": 1e-4}, {"weight_decay": 0.0}),
    "sema, all classes": Wrong("sema", {"t1.ce": 0.5, "t2.test.logits": 1e-2}, {"loss": "all"}),
    "sema, the last errors of one batch": Wrong("sema", {"t0.record.2": 1e-2}, {"recent": 12}),
    "cllora, cross-entropy at what the distillation has changed": Wrong(
        "cllora",
        {"clean.t1.ce_step.grad.0.q.up": 1e-3, "clean.t2.ce_step.grad.block_weight": 1e-3},
        patch={f"{_OF_CLLORA}.phases": one_after_the_other},
    ),
    "cllora, gradients as they are": Wrong(
        "cllora", {"clean.t1.kd_step2.grad.0.q.up": 0.1}, patch={f"{_OF_CLLORA}.adjust": lambda method, task: None}
    ),
    "cllora, a head that does not learn from the teacher": Wrong(
        "cllora", {"clean.t1.kd_step.grad.proxy.weight": 0.5}, patch={f"{_OF_CLLORA}.distance": not_for_the_head}
    ),
    "cllora, no penalty": Wrong("cllora", {"clean.t1.ce_step.grad.block_weight": 1e-4}, {"penalty": 0.0}),
    "cllora, no temperature": Wrong("cllora", {"clean.t1.kd": 1e-2}, {"temperature": 1.0}),
    "cllora, no weight decay": Wrong("cllora", {"clean.t2.after.0.q.up": 1e-2}, {"weight_decay": 0.0}),
}


def _tried() -> dict[str, Wrong]:
    """All of them in `make soak`; else three of each kind."""
    names = sorted(WRONG, key=lambda name: WRONG[name].kind)
    of_kind = [list(group) for _, group in groupby(names, key=lambda name: WRONG[name].kind)]
    return {name: WRONG[name] for group in of_kind for name in (group if SOAK else group[:3])}


@pytest.mark.parametrize("wrong", _tried().values(), ids=_tried())
def test_wrong_variants_are_caught(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, replacement in wrong.patch.items():
        monkeypatch.setattr(name, replacement)
    found = by_quantity(PARTS[wrong.kind](**wrong.options))
    for name, least in wrong.caught.items():
        assert any(not check.passed and check.error > least for check in found[name]), found[name]


def test_without_a_mistake_the_stand_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of its variants are theirs, not those of how they are written."""
    monkeypatch.setattr(_CODA_PREFIXES, composed)
    assert all(check.passed for check in golden.worst(coda.checks(fixture("coda"))))
