"""Compare cl-bench with the released programs: pair records and print the tables of docs/findings/parity.md.

    python -m tools.parity.report --authors results/authors --results results/parity [--out parity.md]

Two records are a pair if they have the same key: the same weights, images, class order, transforms, hyper-parameters
and seed. Only the random numbers differ, so each difference is random. The differences over the class orders of a
method are judged by a 95 % Student-t interval and by two one-sided tests (TOST) with a margin of one point: once
with the variance of that method alone, and once with a pooled variance of all methods, which has more power with three
orders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_bench import metrics, stats
from cl_bench.errors import UserError
from cl_bench.files import write_atomically
from cl_bench.store import Store
from cl_bench.store.record import RunRecord

MARGIN = 1.0
"""Equivalence margin, in percentage points."""
FIELDS = (
    "method", "repository", "commit", "key", "experiment", "correct", "total", "seconds", "replaced",
    "losses", "peak_gpu_bytes", "peak_process_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One experiment, run by cl-bench (ours) and by the released program (theirs).

    Attributes:
        ours, theirs: accuracy in percent after each stage, [stages].
        loss: training loss of the last epoch, mean over the tasks, ours and theirs, in nats.
        seconds: duration of the whole run, ours and theirs.
        peak: peak memory in bytes of the GPU's allocator, or of the process on a CPU, ours and theirs.
    """

    method: str
    order: str
    seed: int
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]
    loss: tuple[float, float]
    seconds: tuple[float, float]
    peak: tuple[int, int]

    @property
    def acc(self) -> tuple[float, float]:
        """Final accuracy, ours and theirs."""
        return float(self.ours[-1]), float(self.theirs[-1])

    @property
    def aaa(self) -> tuple[float, float]:
        """Accuracy averaged over the stages, ours and theirs."""
        return float(self.ours.mean()), float(self.theirs.mean())


def read(folder: Path) -> list[dict[str, Any]]:
    """Read the records written by `tools.parity.run`.

    Raises:
        UserError: there are none, or one is damaged.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            metrics.accuracy_matrix(content["correct"], content["total"])
            records.append({name: content[name] for name in FIELDS})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{path}' is no record of a released program ({error!r}); run it again") from error
    if not records:
        raise UserError(f"there are no records in '{folder}'; 'python -m tools.parity.run' writes them")
    return records


def pairs(theirs: Iterable[Mapping[str, Any]], ours: Iterable[RunRecord]) -> list[Pair]:
    """Match records by key; pairs are sorted by method and seed.

    Raises:
        UserError: a record of a program has no counterpart, or another number of test images.
    """
    known = {record.key: record for record in ours}
    found = []
    for record in theirs:
        own = known.get(record["key"])
        seed, order = record["experiment"]["seed"], record["experiment"]["class_order"]
        if own is None:
            raise UserError(
                f"cl-bench has no run {record['key']} ({record['method']}, seed {seed}); run the same suite with "
                "'cl-bench run', with the same weights and data"
            )
        if own.total != record["total"]:
            raise UserError(f"run {record['key']} has test sets of {own.total} and {record['total']} images")
        curves = [100 * metrics.accuracy_curve(one, own.total) for one in (own.correct, record["correct"])]
        # Rows are in the order of epochs, so the last epoch of each stage remains.
        last = {row["stage"]: row["loss"] for row in own.traces["loss"]}
        loss = fmean(last.values()), fmean(task[-1] for task in record["losses"])
        seconds = own.seconds, float(record["seconds"])
        peak = own.peak_memory_bytes, int(record["peak_gpu_bytes"] or record["peak_process_bytes"])
        found.append(Pair(record["method"], order, seed, curves[0], curves[1], loss, seconds, peak))
    return sorted(found, key=lambda pair: (pair.method, pair.seed))


def table(found: Sequence[Pair]) -> list[str]:
    """Markdown tables: accuracies of each pair, verdict on each method, losses and cost of each pair.

    Args:
        found: pairs sorted by method, as returned by `pairs`.
    """
    return [*_accuracies(found), "", *_verdicts(found), "", *_training(found)]


def _accuracies(found: Sequence[Pair]) -> list[str]:
    lines = [
        "| method | class order | acc, % ours | theirs | ours - theirs | aaa, % ours | theirs | ours - theirs "
        "| largest difference of a stage |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in found:
        cells = [f"{a:.2f} | {b:.2f} | {a - b:+.2f}" for a, b in (pair.acc, pair.aaa)]
        gap = pair.ours - pair.theirs
        stage = int(np.abs(gap).argmax())
        cells.append(f"{gap[stage]:+.2f} after task {stage + 1}")
        lines.append(f"| `{pair.method}` | {pair.order} | {' | '.join(cells)} |")
    return lines


def _verdicts(found: Sequence[Pair]) -> list[str]:
    lines = [
        f"| method | metric | orders | ours - theirs, points | 90 % interval | within {MARGIN:g} point (TOST) "
        "| 90 % interval, one spread for all | within |",
        "|---|---|---:|---:|---:|---|---:|---|",
    ]
    by_method = {name: list(mine) for name, mine in groupby(found, key=lambda pair: pair.method)}
    for metric in ("acc", "aaa"):
        values = {name: [getattr(pair, metric) for pair in mine] for name, mine in by_method.items()}
        pooled = stats.equivalence_pooled([[a - b for a, b in both] for both in values.values()], MARGIN)
        for (name, both), together in zip(values.items(), pooled or [None] * len(values), strict=True):
            ours, theirs = zip(*both, strict=True)
            lines.append(f"| `{name}` | {metric} | {len(both)} | {_judged(ours, theirs)} | {_within(together)} |")
    return lines


def _training(found: Sequence[Pair]) -> list[str]:
    lines = [
        "| method | class order | loss of the last epoch, ours | theirs | ours - theirs | minutes ours | theirs "
        "| peak MiB ours | theirs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in found:
        cells = [f"{pair.loss[0]:.4f} | {pair.loss[1]:.4f} | {pair.loss[0] - pair.loss[1]:+.4f}"]
        cells += [f"{seconds / 60:.1f}" for seconds in pair.seconds]
        cells += [f"{peak / 2**20:,.0f}" for peak in pair.peak]
        lines.append(f"| `{pair.method}` | {pair.order} | {' | '.join(cells)} |")
    return lines


def _judged(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Three cells: mean difference with its 95 % interval, 90 % interval, verdict."""
    difference = stats.paired(ours, theirs).difference
    spread = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    return f"{difference.mean:+.2f}{spread} | {_within(stats.equivalence(ours, theirs, MARGIN))}"


def _within(test: stats.Equivalence | None) -> str:
    """Two cells: 90 % interval, verdict."""
    if test is None:
        return "– | no test: too few orders, or no spread"
    verdict = "yes" if test.equivalent else "not shown"
    return f"{test.low:+.2f} to {test.high:+.2f} | {verdict} (p = {test.p:.3f})"


def sources(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Markdown list of the programs' commits, and of what was replaced in them."""
    lines = []
    for title, replaced in {
        (f"`{one['method']}`: {one['repository']} @ {one['commit'][:7]}", tuple(one["replaced"])): None
        for one in records
    }:
        lines += [f"- {title}; replaced:", *(f"    - {text}" for text in replaced)]
    return lines


def text(authors: Path, results: Sequence[Path]) -> str:
    """The whole comparison as Markdown.

    Args:
        authors: folder with the records of the programs.
        results: folders with our runs.

    Raises:
        UserError: as in `read` and `pairs`.
    """
    theirs = read(authors)
    ours = [record for folder in results for record in Store(folder).records(lambda line: print(line, file=sys.stderr))]
    return "\n".join([*table(pairs(theirs, ours)), "", *sources(theirs)]) + "\n"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compare cl-bench with the released programs.")
    parser.add_argument(
        "--authors",
        type=Path,
        default=Path("results/authors"),
        help="folder with the records of the programs (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, action="append", help="folders with our runs (default: results/parity)")
    parser.add_argument("--out", type=Path, help="file to write (default: print to stdout)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = parse_arguments(argv)
    try:
        found = text(arguments.authors, arguments.results or [Path("results/parity")])
        if arguments.out is not None:
            write_atomically(arguments.out, found.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.out is None:
        print(found, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
