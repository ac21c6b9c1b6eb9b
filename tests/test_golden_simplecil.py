"""SimpleCIL against numbers from its authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import TensorDataset

from cl_bench.adapters.heads import CosinePrototypes
from cl_bench.methods.simplecil import SimpleCIL
from cl_bench.strategy import ContinualStrategy
from tests import golden

DATA = np.load(golden.FOLDER / "prototypes.npz")
TASKS = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
DIM, CLASSES = 64, 10


class Features(VisionTransformer):
    """A backbone whose input is the feature itself."""

    def __init__(self) -> None:
        super().__init__(img_size=8, patch_size=8, embed_dim=DIM, depth=1, num_heads=1, num_classes=0)

    def forward(self, features: Tensor) -> Tensor:
        return features


def dataset(features: np.ndarray, labels: np.ndarray) -> Any:
    data = TensorDataset(torch.from_numpy(features), torch.from_numpy(labels))
    data.targets = labels.tolist()  # type: ignore[attr-defined]
    return as_classification_dataset(data)


def test_inputs_are_those_of_the_fixture() -> None:
    np.testing.assert_array_equal(golden.normal("clpub1.probe", (4,)), DATA["meta.crc_probe"])
    for t, own in enumerate(TASKS):
        counts = np.bincount(DATA[f"labels.t{t}"], minlength=CLASSES)
        np.testing.assert_array_equal(counts[list(own)], DATA["meta.class_counts"][list(own)])


@pytest.mark.parametrize("t", [0, 1, 2])
def test_cosine_prototypes(t: int) -> None:
    prototypes = DATA[f"simplecil.proto.t{t}"]
    head = CosinePrototypes(DIM, CLASSES)
    head.prototypes[: len(prototypes)] = torch.from_numpy(prototypes)
    logits = head(torch.from_numpy(DATA["test.feat"]))
    assert golden.error(logits[:, : len(prototypes)], DATA[f"simplecil.logits.t{t}"]) < 1e-5
    assert not logits[:, len(prototypes) :].any()


def test_the_method_on_the_fixtures_stream() -> None:
    """Prototypes, logits and predictions after each task, through the strategy."""
    train = [dataset(DATA[f"feat.t{t}"], DATA[f"labels.t{t}"]) for t in range(len(TASKS))]
    features, labels = DATA["test.feat"], DATA["test.labels"]
    rows = [np.flatnonzero(np.isin(labels, own)) for own in TASKS]
    test = [dataset(features[chosen], labels[chosen]) for chosen in rows]
    benchmark = benchmark_from_datasets(train=train, test=test)
    strategy = ContinualStrategy(plugins=[SimpleCIL()], backbone=Features(), num_classes=CLASSES)
    for t, experience in enumerate(benchmark.streams["train"]):
        strategy.train(experience, eval_streams=[])
        prototypes, logits = DATA[f"simplecil.proto.t{t}"], DATA[f"simplecil.logits.t{t}"]
        seen = len(prototypes)
        assert golden.error(strategy.model.head.prototypes[:seen], prototypes) < 1e-5
        assert not strategy.model.head.prototypes[seen:].any()
        found = strategy.model.eval()(torch.from_numpy(features))
        assert golden.error(found[:, :seen].detach(), logits) < 1e-5
        counts = strategy.count_matrix(benchmark.streams["test"])
        predicted = np.where(np.isin(counts.label, range(seen)), logits.argmax(axis=1)[np.concatenate(rows)], -1)
        np.testing.assert_array_equal(counts.predicted, predicted)
    np.testing.assert_array_equal(counts.predicted, DATA["simplecil.pred"][np.concatenate(rows)])
    assert counts.correct == [int((DATA["simplecil.pred"] == labels)[chosen].sum()) for chosen in rows]
