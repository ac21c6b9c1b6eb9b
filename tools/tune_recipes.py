"""Tune the recipes of the embedded stream by the search declared in a TOML file, the same for every method.

    python tools/tune_recipes.py tools/recipes/tuning.toml --results DIR --out cl_bench/assets/recipes.toml

Runs are stored as any others, so an interrupted search goes on where it was. The recipes file is rewritten.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADER = """\
# Hyper-parameters per benchmark, resolved to numbers before a run gets its key.
#
# A recipe applies to `method` on `benchmarks` if the user's own options include all of `when`; the one with the most
# conditions wins. What the user sets wins over any recipe.

# For data without a tuned recipe: the same budget for every method, the learning rate from the method's own defaults.
[unified]
epochs = {epochs}
batch_size = {batch_size}

# Written by tools/tune_recipes.py from tools/recipes/tuning.toml: for every row the best by average anytime accuracy on
# {benchmark} (behind each row, mean of seeds {seeds}) of {trials} settings:
{search}
"""

Trial = tuple[str, dict[str, Any], dict[str, Any]]
"""Method, its row's options, and the tried values."""


def main() -> None:
    """Run the search and write the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path)
    parser.add_argument("--results", type=Path, required=True, help="results store of the trials")
    parser.add_argument("--out", type=Path, required=True, help="recipes file to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    args = parser.parse_args()
    declared = tomllib.loads(args.search.read_text())
    names = list(declared["search"])
    values = [dict(zip(names, choice, strict=True)) for choice in itertools.product(*declared["search"].values())]
    trials: list[Trial] = [
        (row["method"], row.get("options", {}), {**declared["budget"], **value})
        for row in declared["rows"]
        for value in values
    ]
    work = [(trial, seed, declared["benchmark"], args) for trial in trials for seed in declared["seeds"]]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        accuracies = pool.map(_run, work, chunksize=1)
    per_trial = [
        sum(accuracies[i : i + len(declared["seeds"])]) / len(declared["seeds"])
        for i in range(0, len(work), len(declared["seeds"]))
    ]
    text = HEADER.format(
        **declared["budget"],
        trials=len(values),
        search="\n".join(f"#   {name} in {options}" for name, options in declared["search"].items()),
        benchmark=declared["benchmark"],
        seeds=declared["seeds"],
    )
    for row in declared["rows"]:
        options = row.get("options", {})
        scored = [
            (mean, trial[2])
            for mean, trial in zip(per_trial, trials, strict=True)
            if trial[0] == row["method"] and trial[1] == options
        ]
        best, chosen = max(scored, key=lambda pair: pair[0])
        text += _recipe(row["method"], options, declared["apply_to"], chosen, best)
        for mean, tried in sorted(scored, key=lambda pair: -pair[0]):
            settings = " ".join(f"{name}={tried[name]}" for name in names)
            print(f"{row['method']} {_inline(options)} {settings}: {100 * mean:.2f}")
    args.out.write_text(text)


def _run(item: tuple[Trial, int, str, argparse.Namespace]) -> float:
    """Average anytime accuracy of one trial (fraction), computed or from the store."""
    import torch

    from cl_bench import metrics, plan, registry, runner
    from cl_bench.store import Store

    (name, options, values), seed, benchmark, args = item
    torch.set_num_threads(1)
    (planned,) = plan.plan([(registry.find(name), {**values, **options})], [seed], benchmark=benchmark)
    store = Store(args.results)
    record = store.find(planned.experiment) or runner.run(planned, store, runner.pick_device(args.device))
    return metrics.aaa(record.correct, record.total)


def _recipe(
    method: str, options: Mapping[str, Any], benchmarks: list[str], values: Mapping[str, Any], acc: float
) -> str:
    when = f"when = {_inline(options)}\n" if options else ""
    return (
        f"\n[[tuned]]  # {100 * acc:.2f} %\nmethod = {json.dumps(method)}\nbenchmarks = {json.dumps(benchmarks)}\n"
        f"{when}values = {_inline(values)}\n"
    )


def _inline(values: Mapping[str, Any]) -> str:
    """A TOML inline table."""
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items()) + " }"


if __name__ == "__main__":
    main()
