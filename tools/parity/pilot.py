"""Shared code for programs derived from PILOT: data manager, configuration and evaluation."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.parity.cells import Cell, Outcome, views

Judged = tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]
"""Labels, predictions among all classes seen, and predictions among the classes of the image's own task, if any."""


_LOSS = re.compile(r"Task (\d+), Epoch (\d+)/\d+ => Loss ([\d.]+)")


def losses(text: str) -> list[list[float]]:
    """Training losses [tasks][epochs] as printed, with three decimals; lines may be printed more than once."""
    found = {(int(task), int(epoch)): float(loss) for task, epoch, loss in _LOSS.findall(text)}
    return [[found[key] for key in sorted(found) if key[0] == task] for task in sorted({task for task, _ in found})]


def give(manager: Any, cell: Cell) -> str:
    """Make `utils.data_manager` use the cell's images, class order and transforms; return a description."""
    train, test = views(cell.experiment.transforms)
    data = SimpleNamespace(
        download_data=lambda: None,
        train_data=cell.train,
        train_targets=cell.train_labels,
        test_data=cell.test,
        test_targets=cell.test_labels,
        use_path=False,
        train_trsf=train,
        test_trsf=test,
        common_trsf=[],
        class_order=list(range(cell.tasks * cell.increment)),
    )
    manager._get_idata = lambda *_: data
    return "data: utils.data_manager._get_idata gives the experiment's images in its class order, and its transforms"


def config(cell: Cell, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all these programs have under the same names."""
    return {
        "seed": [cell.experiment.seed],
        "init_cls": cell.increment,
        "increment": cell.increment,
        "init_epoch": values["epochs"],
        "epochs": values["epochs"],
        "init_lr": values["lr"],
        "lrate": values["lr"],
        "batch_size": values["batch_size"],
    }


def observe(learner: Any, outcome: Outcome, cell: Cell, judged: Callable[[Any], Judged]) -> None:
    """Record the hits of each `_eval_cnn`, and the accuracy and time of each `eval_task`, in `outcome`.

    Args:
        learner: the program's learner class, which is patched.
        judged: converts the result of `_eval_cnn` to `Judged`.
    """
    predict, evaluate = learner._eval_cnn, learner.eval_task
    started = [time.perf_counter()]

    def _eval_cnn(self: Any, loader: Any) -> Any:
        found = predict(self, loader)
        labels, predicted, aware = judged(found)
        labels = np.asarray(labels)
        outcome.correct.append(outcome.hits(np.asarray(predicted) == labels, labels, cell))
        if aware is not None:
            outcome.task_aware.append(outcome.hits(np.asarray(aware) == labels, labels, cell))
        return found

    def eval_task(self: Any) -> Any:
        found = evaluate(self)
        outcome.reported.append(float(found[0]["top1"]))
        now = time.perf_counter()
        outcome.seconds.append(now - started[0])
        started[0] = now
        return found

    learner._eval_cnn, learner.eval_task = _eval_cnn, eval_task
