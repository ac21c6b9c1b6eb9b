"""Class statistics, alignment of the head on them, CODA-Prompt's components by QR; impossible options are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_bench.contract.method import build_model
from cl_bench.errors import UserError
from cl_bench.methods.coda import orthonormal_to
from cl_bench.models.statistics import RIDGE, ClassStatistics
from tests.helpers.command import Cli, assert_refused
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, cut, tiny_vit
from tests.helpers.training import strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 6


def features(generator: torch.Generator, counts: list[int], first: int) -> tuple[Tensor, Tensor]:
    """Correlated features of a few classes with labels from `first` on, shuffled."""
    labels = torch.cat([torch.full((count,), first + i) for i, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    mix = torch.randn(DIM, DIM, generator=generator)
    drawn = torch.randn(len(labels), DIM, generator=generator) @ mix + 3 * torch.randn(1, DIM, generator=generator)
    return drawn + labels[:, None], labels


COUNTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(tasks=COUNTS, seed=st.integers(0, 2**16))
def test_statistics_are_those_of_numpy(tasks: list[list[int]], seed: int) -> None:
    """For any tasks: means, unbiased covariances per class, variances, and one covariance pooled over classes."""
    generator = torch.Generator().manual_seed(seed)
    kinds = {kind: ClassStatistics(DIM, kind) for kind in ("full", "variance", "shared")}  # type: ignore[arg-type]
    seen: dict[int, np.ndarray] = {}
    for task, counts in enumerate(tasks):
        data, labels = features(generator, counts, len(seen))
        for statistics in kinds.values():
            statistics.update(data, labels, task)
        seen |= {int(label): data[labels == label].double().numpy() for label in labels.unique()}
    ridge = RIDGE * np.eye(DIM)
    covariances = [np.cov(part.T) if len(part) > 1 else np.zeros((DIM, DIM)) for part in seen.values()]
    for statistics in kinds.values():
        assert statistics.labels.tolist() == list(seen)
        assert [len(own) for own in statistics.by_task()] == [len(counts) for counts in tasks]
        np.testing.assert_allclose(statistics.means, [part.mean(axis=0) for part in seen.values()], atol=1e-4)
    full = kinds["full"].factors.double()
    scale = max(float(np.abs(covariances).max()), 1.0)
    np.testing.assert_allclose(full @ full.mT, np.array(covariances) + ridge, atol=1e-5 * scale)
    deviations = kinds["variance"].factors.double()
    expected = np.array([np.diag(each) for each in covariances]) + RIDGE
    np.testing.assert_allclose(deviations**2, expected, atol=1e-5 * scale)
    freedom = max(sum(len(part) - 1 for part in seen.values()), 1)
    pooled = sum((len(part) - 1) * each for part, each in zip(seen.values(), covariances, strict=True)) / freedom
    shared = kinds["shared"].factors[0].double()
    np.testing.assert_allclose(shared @ shared.T, pooled + ridge, atol=1e-4 * scale)


def test_drawn_features_have_the_moments_of_their_class() -> None:
    generator = torch.Generator().manual_seed(1)
    statistics = ClassStatistics(DIM)
    for task in range(2):
        statistics.update(*features(generator, [50, 50], 2 * task), task)
    batches = list(statistics.batches(20_000, ("test",)))
    assert [valid for _, _, valid in batches] == [20_000] * 4
    drawn, labels = (torch.cat(part) for part in zip(*((x, y) for x, y, _ in batches), strict=True))
    assert len(set(batches[0][1].tolist())) == 4, "not shuffled"
    for i, label in enumerate(statistics.labels):
        own = drawn[labels == label]
        assert len(own) == 20_000
        covariance = statistics.factors[i] @ statistics.factors[i].T
        assert torch.allclose(
            own.mean(dim=0), statistics.means[i], atol=0.05 * float(covariance.diagonal().max().sqrt())
        )
        assert torch.allclose(torch.cov(own.T), covariance, atol=0.05 * float(covariance.abs().max()))
    again = torch.cat([x for x, _, _ in statistics.batches(20_000, ("test",))])
    assert torch.equal(drawn, again)


def test_alignment_leaves_the_trained_head_alone() -> None:
    """The next task continues from the head as it was before alignment; the aligned head predicts."""
    with_it, without = (
        train(strategy_of(small(row, lr=0.01)), cut()).model for row in ("sdlora[align=true]", "sdlora")
    )
    assert all(torch.equal(with_it.head.state_dict()[key], value) for key, value in without.head.state_dict().items())
    assert not torch.equal(with_it.aligned.weight, with_it.head.weight)


def test_the_first_task_is_not_aligned() -> None:
    model = train(strategy_of(small("linear[align=true]", lr=0.01)), cut(), stages=1).model
    assert torch.equal(model.aligned.weight, model.head.weight) and len(model.statistics) == 4


def test_alignment_that_is_not_restored_has_one_head() -> None:
    model = train(strategy_of(small("linear[align=true,align_restore=false]", lr=0.01)), cut()).model
    assert model.aligned is None and len(model.statistics) == 12


def test_alignment_needs_a_head_to_align() -> None:
    with pytest.raises(UserError, match="align=true: RanPAC trains no linear head"):
        build_model(small("ranpac[align=true]"), tiny_vit(), CLASSES)


@settings(max_examples=30, deadline=None)
@given(old=st.integers(0, 20), new=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_components_by_qr_overlap_with_nothing(old: int, new: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, raw = torch.randn(old, 32, generator=generator), torch.randn(new, 32, generator=generator)
    rows = orthonormal_to(before, raw)
    assert torch.allclose(rows @ rows.T, torch.eye(new), atol=1e-5)
    assert old == 0 or float((rows @ before.T).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("methods", "parts"),
    [
        ("l2p[top=11]", ["l2p.top = 11", "pool of 10"]),
        ("l2p[prompts=prefix,length=5]", ["l2p.length = 5", "even"]),
        ("dualprompt[e_blocks=1+2]", ["name each block once"]),
        ("dualprompt[e_blocks=11+12]", ["only 12 blocks"]),
        ("hide[blocks=13]", ["hide's blocks", "only 12 blocks"]),
        ("ranpac[align=true]", ["align=true", "no linear head"]),
        ("simplecil[align=true]", ["align", "simplecil"]),
        ("ranpac[projection=-1]", ["ranpac.projection = '-1'"]),
        ("slca[align_shrink=1]", ["slca.align_shrink = '1'"]),
        ("dualprompt[keys=own]", ["dualprompt.keys = 'own'"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(cl_bench: Cli, methods: str, parts: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", methods), *parts)
