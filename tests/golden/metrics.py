"""Accuracies and forgetting of small hit counts, by the helpers of released code and the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cl_bench import metrics
from tests.golden import Check, Fixture, Kind

TOLERANCE = 1e-12

Counts = list[list[int | None]]

FUNCTIONS: dict[str, Callable[[Counts, list[int]], Any]] = {
    "last_sample_weighted": metrics.acc,
    "last_mean_of_tasks": metrics.acc_task,
    "curve_sample_weighted": metrics.accuracy_curve,
    "curve_mean_of_tasks": metrics.accuracy_curve_task,
    "aaa_sample_weighted": metrics.aaa,
    "aaa_mean_of_tasks": metrics.aaa_task,
    "learning_accuracy": metrics.learning_accuracy,
    "forgetting_curve_max_before": metrics.forgetting_rwalk_curve,
    "forgetting_coda": metrics.forgetting_coda,
    "forgetting_max_incl_last_minus_last": metrics.forgetting,
    "forgetting_max_before_last_minus_last": metrics.forgetting_rwalk,
    "forgetting_first_minus_last": lambda hits, counts: -metrics.bwt(hits, counts),
    "bwt": metrics.bwt,
    "bwt_diaz_rodriguez": metrics.bwt_all,
    "pilot_avg_top1_percent": metrics.pilot_aaa,
    "pilot_forgetting_percent": metrics.pilot_forgetting,
}


def checks(fixture: Fixture) -> Iterator[Check]:
    """All values of all cases; a quantity is called like its key in `expected`."""
    for case in sorted({key.split("/")[1] for key in fixture.data if key.startswith("cases/")}):
        at = f"cases/{case}"
        hits, counts = fixture[f"{at}/hits"].tolist(), fixture[f"{at}/counts"].tolist()
        learned: Counts = [[hit if j <= t else None for j, hit in enumerate(row)] for t, row in enumerate(hits)]
        values = {name: function(learned, counts) for name, function in FUNCTIONS.items()}
        if f"{at}/random_init_accuracy" in fixture:
            values["fwt"] = metrics.fwt(hits, counts, fixture[f"{at}/random_init_accuracy"].tolist())
        if f"{at}/joint_reference_accuracy" in fixture:
            reference = fixture[f"{at}/joint_reference_accuracy"].tolist()
            values["intransigence_per_task"] = metrics.intransigence_per_task(learned, counts, reference)
            values["intransigence_mean"] = metrics.intransigence(learned, counts, reference)
        for name, value in values.items():
            yield from fixture.compare(f"{at}/expected/{name}", np.asarray(value), TOLERANCE, absolute=True)


KIND = Kind(
    r"cases/[^/]+/hits$",
    r"^cases/[^/]+/(hits|counts|random_init_accuracy|joint_reference_accuracy)$",
    checks,
    informative={
        r"definitions/\w+/(formula|defined_by)$": "formula and source of each key",
        r"layout$": "what rows and columns of `hits` are, in words",
        r"tolerance$": "values are float64 (tolerance 1e-12)",
    },
)
