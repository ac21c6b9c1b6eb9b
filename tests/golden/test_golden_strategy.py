"""Golden numbers of methods on frozen features, through the strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor
from torch.utils.data import TensorDataset

from cl_bench.contract.method import Method
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.methods.ranpac import RanPAC
from cl_bench.methods.simplecil import SimpleCIL
from cl_bench.methods.slca import SLCA
from cl_bench.training.strategy import ContinualStrategy
from tests import golden
from tests.golden.prototypes import Aligned, Features, Given, Stream, drawn, stored_order

FIXTURE = golden.Fixture.load(golden.FOLDER / "prototypes.npz")
DATA = FIXTURE.data


def benchmark(train: list[Given], test: list[Given]) -> Any:
    def datasets(given: list[Given]) -> list[Any]:
        found = []
        for each in given:
            data: Any = TensorDataset(each.features, each.labels)
            data.targets = each.labels.tolist()
            found.append(as_classification_dataset(data))
        return found

    return benchmark_from_datasets(train=datasets(train), test=datasets(test))


def strategy_of(method: Method, dim: int, num_classes: int) -> ContinualStrategy:
    return ContinualStrategy(plugins=[method], backbone=Features(dim), num_classes=num_classes)


@pytest.mark.parametrize(
    ("method", "name", "tolerance"),
    [(SimpleCIL(), "simplecil", 1e-5), (RanPAC(adaptation="frozen", projection=96), "ranpac", 2e-4)],
    ids=["simplecil", "ranpac"],
)
def test_heads_logits_and_predictions_after_each_task(method: Method, name: str, tolerance: float) -> None:
    stream = Stream(FIXTURE)
    assert stream.test is not None
    features, labels = stream.test.features, stream.test.labels
    own = [task.labels.unique() for task in stream.tasks]
    rows = [torch.isin(labels, classes).nonzero()[:, 0] for classes in own]
    streams = benchmark(stream.tasks, [Given(features[chosen], labels[chosen]) for chosen in rows]).streams
    strategy = strategy_of(method, stream.dim, stream.classes)
    head = strategy.model.head
    if name == "ranpac":
        head.projection.copy_(stream("ranpac.W", head.projection.shape))
    for t, experience in enumerate(streams["train"]):
        with stored_order():
            strategy.train(experience, eval_streams=[])
        weight = DATA[f"{name}.{'proto' if name == 'simplecil' else 'head'}.t{t}"]
        found = head.prototypes if name == "simplecil" else head.weight.T
        seen = len(weight)
        assert golden.error(found[:seen], weight) < tolerance
        assert not found[seen:].any()
        logits = DATA[f"{name}.logits.t{t}"]
        assert golden.error(strategy.model.eval()(features)[:, :seen].detach(), logits) < tolerance
        counts = strategy.count_matrix(streams["test"])
        expected = logits.argmax(axis=1)[torch.cat(rows)]
        np.testing.assert_array_equal(counts.predicted, np.where(counts.label < seen, expected, -1))
    predicted = torch.from_numpy(logits.argmax(axis=1))
    assert counts.correct == [int((predicted == labels)[chosen].sum()) for chosen in rows]
    if name == "simplecil":
        np.testing.assert_array_equal(predicted, DATA["simplecil.pred"])
    else:
        assert [trace["value"] for trace in method.traces(strategy.task)["ridge"]] == [DATA["ranpac.lambda.t2"]]  # type: ignore[arg-type]


class AlignmentOnly(SLCA):
    """Without the training before."""

    def phases(self, task: Task) -> list[Phase]:
        return []


def test_alignment_after_the_last_task() -> None:
    aligned = Aligned(FIXTURE)
    given = [aligned.given(t) for t in range(aligned.heads)]
    streams = benchmark(given, given).streams
    method = AlignmentOnly(align_epochs=aligned.epochs, align_samples=aligned.samples)
    strategy = strategy_of(method, aligned.dim, aligned.classes)
    aligned.fill(strategy.model.head)
    before = strategy.model.head.weight.detach().clone()
    for experience in streams["train"]:
        with drawn(aligned):
            strategy.train(experience, eval_streams=[])
    for k, rows in enumerate(strategy.model.aligned.weight.detach().split(aligned.width)):
        assert golden.error(rows, DATA[f"slca.ca.final_head.weight.{k}"]) < 5e-5
    bias: Tensor = strategy.model.aligned.bias.detach()
    assert golden.error(bias, np.concatenate([DATA[f"slca.ca.final_head.bias.{k}"] for k in range(3)])) < 5e-5
    # The next task goes on with the head as it was; the aligned one predicts.
    assert torch.equal(strategy.model.head.weight, before)
    features = given[0].features
    assert torch.equal(strategy.model.eval()(features), strategy.model.aligned(features))
