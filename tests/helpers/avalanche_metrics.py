"""Every metric of Avalanche in one run of fine-tuning on two tasks of the tiny stream."""

from __future__ import annotations

from functools import cache
from typing import Any

from avalanche.benchmarks import with_task_labels
from avalanche.evaluation import metrics as avalanche_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

from cl_bench.training.strategy import ContinualStrategy
from tests.helpers import ROOT
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, cut
from tests.helpers.training import strategy_of

OFTEN: dict[str, Any] = {"minibatch": True, "epoch": True, "experience": True}
EVERYWHERE = OFTEN | {"stream": True}
AVERAGED: dict[str, Any] = {"experience": True, "stream": True}

METRICS: dict[str, tuple[dict[str, Any], str, str]] = {
    "MAC_metrics": (
        OFTEN,
        "MAC_Epoch",
        "too low: it misses layers of the blocks, which are not called one by one; records have `flops_per_image`",
    ),
    "accuracy_matrix_metrics": ({}, "EvalStream/Acc_Matrix", "after the first task"),
    "accuracy_metrics": (EVERYWHERE, "Top1_Acc_Stream", "equal to the counts of cl-bench"),
    "amca_metrics": ({}, "Top1_AMCA_Stream", ""),
    "bwt_metrics": (AVERAGED, "StreamBWT", "last minus first accuracy"),
    "class_accuracy_metrics": (EVERYWHERE, "Top1_ClassAcc_Stream", "equal to the counts of cl-bench"),
    "confusion_matrix_metrics": (
        {"stream": True, "num_classes": CLASSES},
        "ConfusionMatrix_Stream",
        "equal to the counts of cl-bench; name `num_classes`, as images of unseen classes are never predicted as such",
    ),
    "cpu_usage_metrics": (EVERYWHERE, "CPUUsage_Epoch", ""),
    "disk_usage_metrics": (
        {"paths_to_monitor": str(ROOT / "methods")} | EVERYWHERE,
        "DiskUsage_Epoch",
        "of `paths_to_monitor`",
    ),
    "forgetting_metrics": (
        AVERAGED,
        "StreamForgetting",
        "first minus last accuracy, which is not cl-bench's forgetting",
    ),
    "forward_transfer_metrics": (AVERAGED, "StreamForwardTransfer", "with `eval_every=0` of the strategy"),
    "gpu_usage_metrics": ({"gpu_id": 0} | EVERYWHERE, "MaxGPU0Usage_Epoch", "0 without a GPU"),
    "images_samples_metrics": ({}, "images/train_phase", "of the test view: the loop augments images on the device"),
    "labels_repartition_metrics": ({}, "Repartition/train_phase", ""),
    "loss_metrics": (EVERYWHERE, "Loss_Stream", "in training that of the method, with what plugins add"),
    "mean_scores_metrics": ({}, "MeanScores/eval_phase", ""),
    "ram_usage_metrics": ({"every": 0.05} | EVERYWHERE, "MaxRAMUsage_Epoch", ""),
    "timing_metrics": (EVERYWHERE, "Time_Epoch", ""),
    "topk_acc_metrics": (
        EVERYWHERE,
        "Topk_3_Acc_Stream",
        "on a stream with task labels: `with_task_labels(stream.train[0].benchmark).streams`",
    ),
}
"""Options, start of a result's name, and what is worth knowing, by the name of the helper."""
LABELLED = frozenset({"topk_acc_metrics"})
"""Helpers that need task labels."""


@cache
def measured(labelled: bool = False) -> tuple[ContinualStrategy, dict[str, Any]]:
    """A strategy after two tasks with all metrics, and all their results; `labelled`: those that need task labels."""
    chosen = {name: options for name, (options, _, _) in METRICS.items() if (name in LABELLED) == labelled}
    made = [getattr(avalanche_metrics, name)(**options) for name, options in chosen.items()]
    evaluator = EvaluationPlugin(*made, loggers=[BaseLogger()])
    strategy = strategy_of(small("finetune", epochs=1, lr=0.02), evaluator=evaluator, eval_every=0)
    streams: Any = {"train": cut().train, "test": cut().test}
    if labelled:
        streams = with_task_labels(cut().train[0].benchmark).streams
    tests = streams["test"][:2]
    for experience in streams["train"][:2]:
        strategy.train(experience, eval_streams=[tests])
        results = strategy.eval(tests)
    return strategy, results


def table() -> str:
    """The table of the documentation, in Markdown."""
    lines = ["| metric | note |", "| --- | --- |"]
    lines += [
        f"| `{name}` | {note} |" for name, (_, _, note) in sorted(METRICS.items(), key=lambda each: each[0].lower())
    ]
    return "\n".join(lines)
