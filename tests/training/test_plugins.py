"""Plugins and metrics of Avalanche in a plain script: each works or is refused, as the documentation says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import metrics as avalanche_metrics
from avalanche.training import plugins as avalanche_plugins

from cl_bench.errors import UserError
from cl_bench.training.plugins import REFUSED, REFUSED_ON_CPU
from tests.helpers import ROOT
from tests.helpers.avalanche_metrics import LABELLED, METRICS, measured
from tests.helpers.avalanche_metrics import table as avalanche_metrics_table
from tests.helpers.avalanche_plugins import NO_PLUGINS, WORKS, instance, plugin, table, watch
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, cut
from tests.helpers.training import Spy, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = (ROOT / "docs" / "avalanche-plugins.md").read_text(encoding="utf-8")
SHIPPED = {name for name in dir(avalanche_plugins) if isinstance(getattr(avalanche_plugins, name), type)}


def test_no_plugin_of_avalanche_is_left_out() -> None:
    refused = REFUSED.keys() | REFUSED_ON_CPU.keys()
    assert WORKS.keys() | refused == SHIPPED - NO_PLUGINS and not WORKS.keys() & refused


@pytest.mark.parametrize("name", sorted(WORKS))
def test_a_plugin_has_its_effect(name: str) -> None:
    torch.manual_seed(0)
    assert WORKS[name][1]()


def test_no_effect_is_seen_without_a_plugin() -> None:
    """So each of the checks above can fail."""
    seen = watch()
    assert not any(map(any, seen.added)) and not any(map(any, seen.turned)) and seen.epochs == [2, 2]
    assert [{int(y) for labels in task for y in labels} for task in seen.labels] == [set(t) for t in cut().tasks[:2]]
    assert not torch.equal(*seen.first)


@pytest.mark.parametrize("name", sorted(SHIPPED & (REFUSED.keys() | REFUSED_ON_CPU.keys())))
def test_a_plugin_without_effect_is_refused_when_the_strategy_is_made(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} has no effect here: "):
        strategy_of(small("finetune"), instance(name))
    later = strategy_of(small("finetune"))
    later.plugins.append(instance(name))
    with pytest.raises(UserError, match=f"^{name} has no effect here: "):
        train(later, cut(), stages=1)


def test_the_documentation_says_which_plugins_work() -> None:
    assert table() in TEXT, f"the table of docs/avalanche-plugins.md should be:\n{table()}"


# --- plugins of others -----------------------------------------------------------------------------------------


class OtherLoader(SupervisedPlugin):
    """Replaces the dataloader by one that the loop does not know."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.dataloader = iter([])


class HoldsScheduler(SupervisedPlugin):
    """Steps a scheduler of its own."""

    def __init__(self) -> None:
        super().__init__()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)


def test_what_the_loop_never_does_is_refused() -> None:
    with pytest.raises(UserError, match=r"replaces the dataloader by list_iterator.*\(OtherLoader\)|\(OtherLoader\)"):
        train(strategy_of(small("finetune"), OtherLoader()), cut(), stages=1)
    with pytest.raises(UserError, match="^Spy defines before_task, which the loop never calls"):
        strategy_of(small("finetune"), Spy(before_task=lambda s: None))
    with pytest.raises(UserError, match="^HoldsScheduler holds a scheduler and has no effect here"):
        strategy_of(small("finetune"), HoldsScheduler())
    adds = Spy(before_backward=lambda s: None)
    with pytest.raises(UserError, match="^Spy defines before_backward, which is never called.*without gradient steps"):
        train(strategy_of(small("simplecil"), adds), cut(), stages=1)
    changes = strategy_of(small("finetune"), Spy(after_eval_forward=lambda s: None))
    with pytest.raises(UserError, match="^Spy defines after_eval_forward, which count_matrix never calls"):
        changes.count_matrix(cut().test)


def test_replay_that_cannot_be_honoured_is_refused() -> None:
    with pytest.raises(UserError, match="to replay old classes, which loss=masked leaves out; set loss=all"):
        train(strategy_of(small("finetune", loss="masked", epochs=1), plugin("ReplayPlugin")), cut(), stages=2)
    with pytest.raises(UserError, match="asks for 5 samples of the task per batch, but the method's batch_size is 16"):
        train(strategy_of(small("finetune", epochs=1), plugin("ReplayPlugin", batch_size=5)), cut(), stages=2)
    with pytest.raises(UserError, match="Replay replays exemplars of its own; leave the replay plugin out"):
        train(strategy_of(small("replay", epochs=1), plugin("ReplayPlugin")), cut(), stages=2)


def test_what_a_plugin_makes_of_a_batch_reaches_the_loss() -> None:
    """All of it, also in the last batch of an epoch, which is padded if no plugin looks."""

    def double(strategy: Any) -> None:
        strategy.mbatch = [torch.cat([tensor, tensor]) for tensor in strategy.mbatch]

    sizes: list[tuple[int, int]] = []
    look = Spy(before_backward=lambda s: sizes.append((len(s.mb_y), len(s.mb_output))))
    strategy = strategy_of(small("finetune", epochs=1), Spy(before_training_iteration=double), look)
    train(strategy, cut(), stages=1)
    assert sizes == [(32, 32), (8, 8)]
    assert bool(torch.tensor([row["loss"] for row in strategy.traces["loss"]]).isfinite().all())


# --- metrics ---------------------------------------------------------------------------------------------------


def test_no_metric_of_avalanche_is_left_out() -> None:
    assert METRICS.keys() == {name for name in dir(avalanche_metrics) if name.endswith("_metrics")}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_gives_results(name: str) -> None:
    _, results = measured(name in LABELLED)
    start = METRICS[name][1]
    assert [key for key in results if key.startswith(start)], f"no result of {name} among {sorted(results)}"


def test_metrics_agree_with_the_counts_of_two_tasks() -> None:
    strategy, results = measured()
    counts = strategy.count_matrix(cut().test[:2])
    hits, total = sum(int(h or 0) for h in counts.correct), sum(counts.total)
    assert results["Top1_Acc_Stream/eval_phase/test_stream"] == pytest.approx(hits / total)
    confusion = results["ConfusionMatrix_Stream/eval_phase/test_stream"]
    matrix = np.zeros((CLASSES, CLASSES))
    np.add.at(matrix, (counts.label, counts.predicted), 1)
    np.testing.assert_array_equal(confusion.best_supported_value(torch.Tensor).numpy(), matrix)
    for label in cut().tasks[0]:
        accuracy = (counts.predicted == label)[counts.label == label].mean()
        assert results[f"Top1_ClassAcc_Stream/eval_phase/test_stream/Task000/{label}"] == pytest.approx(accuracy)
    assert results["MAC_Epoch/train_phase/train_stream"] > 0
    assert 0 < results["Loss_Stream/eval_phase/test_stream"] < 100


def test_the_documentation_says_which_metrics_work() -> None:
    assert avalanche_metrics_table() in TEXT, f"the table of metrics should be:\n{avalanche_metrics_table()}"
