"""Paired comparisons of rows on common seeds and class orders: tables of tests, ranks, and per-seed bootstraps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from cl_bench import metrics, stats
from cl_bench.errors import counted
from cl_bench.reporting import precision
from cl_bench.reporting.cells import order_text
from cl_bench.reporting.charts import Chart, Ranks
from cl_bench.reporting.reference import ORIGIN
from cl_bench.reporting.runs import Run, Section
from cl_bench.reporting.text_tables import DASH, Column, TextTable
from cl_bench.stats import Equivalence, Paired
from cl_bench.store import Arrays, DamagedRecord, Store

Block = tuple[int, str]
"""A seed and a class order: two rows are compared on the blocks for which both have a run."""


@dataclass(frozen=True)
class Pair:
    """Comparison of two rows, in percent or percentage points.

    Attributes:
        row, other: labels of the rows; differences are `row` minus `other`.
        holm: p-value with Holm's correction over all pairs that were tested together; None without a test.
        equivalence: None unless a margin was given.
        blocks: the blocks for which both rows have a run.
    """

    row: str
    other: str
    result: Paired
    holm: float | None
    equivalence: Equivalence | None
    blocks: tuple[Block, ...]


def values(section: Section, metric: str) -> pd.DataFrame:
    """A metric of every run in percent, shape [blocks, rows]; NaN without a run or where the metric is undefined."""
    found = {
        label: {
            (run.record.experiment.seed, run.record.experiment.class_order): 100
            * metrics.value(metric, run.record.correct, run.record.total)
            for run in runs
        }
        for label, runs in section.rows.items()
    }
    return pd.DataFrame(found).sort_index()


def why_undefined(section: Section, row: str, metric: str) -> str:
    """Reason why the metric is undefined for every run of a row; empty if it is defined for one."""
    runs, kind = section.rows[row], metrics.METRICS[metric]
    if any(np.isfinite(metrics.value(metric, run.record.correct, run.record.total)) for run in runs):
        return ""
    if max(len(run.record.total) for run in runs) < kind.tasks:
        return f"{metric} is not defined where a single task is learned"
    return f"{metric} needs tasks learned one after the other"


def against(
    section: Section, baseline: str, rows: Sequence[str] = (), metric: str = "acc", margin: float | None = None
) -> list[Pair]:
    """Compare rows (by default all) with a baseline, with Holm's correction over these comparisons.

    The rows are paired as they are: `precision.by_precision` gives sections with rows of one precision.
    """
    table = values(section, metric)
    chosen = [row for row in _rows_to_compare(section, baseline, rows) if row in table]
    return _compared(table, [(row, baseline) for row in chosen], metric, margin)


def _rows_to_compare(section: Section, baseline: str, rows: Sequence[str]) -> list[str]:
    """Rows to compare with the baseline, without duplicates: each would count as another test in the correction."""
    return [row for row in dict.fromkeys(rows or section.rows) if row != baseline]


def pairwise(section: Section, metric: str = "acc") -> list[Pair]:
    """Compare all pairs of rows of the same precision, with Holm's correction over all of them."""
    table, precisions = values(section, metric), section.precisions
    pairs = [(a, b) for a, b in combinations(table.columns, 2) if precisions[a] == precisions[b]]
    return _compared(table, pairs, metric, None)


def _compared(table: pd.DataFrame, pairs: Sequence[tuple[str, str]], metric: str, margin: float | None) -> list[Pair]:
    """Compare the pairs that have a block in common; others are left out."""
    higher = metrics.METRICS[metric].higher
    columns = {row: table[row].to_numpy(dtype=np.float64) for row in table}
    blocks = list(table.index)
    made = []
    for row, other in pairs:
        both = np.isfinite(columns[row]) & np.isfinite(columns[other])
        if both.any():
            a, b = columns[row][both], columns[other][both]
            same = stats.equivalence(a, b, margin) if margin is not None else None
            shared = tuple(block for block, there in zip(blocks, both, strict=True) if there)
            made.append((row, other, stats.paired(a, b, higher), same, shared))
    tested = [result.p for _, _, result, _, _ in made if result.p is not None]
    corrected = iter(stats.holm(tested))
    return [
        Pair(row, other, result, None if result.p is None else next(corrected), same, blocks)
        for row, other, result, same, blocks in made
    ]


def text_table(
    section: Section,
    baseline: str,
    rows: Sequence[str] = (),
    metric: str = "acc",
    margin: float | None = None,
    folders: Sequence[Path] = (),
    left_out: Sequence[str] = (),
) -> TextTable | None:
    """Build the table of comparisons with a baseline; None if no row has a block in common with it.

    Args:
        margin: in percentage points: also test equivalence within this margin.
        folders: results folders with the stored predictions: also compare on the same images, seed by seed. Without
            folders there is no such column.
        left_out: sentences on rows that the section lacks, for the notes.
    """
    pairs = against(section, baseline, rows, metric, margin)
    if not section.chosen:
        pairs.sort(key=lambda pair: -pair.result.difference.mean)
    if not pairs:
        return None
    kind = metrics.METRICS[metric]
    names = _names(pairs)
    lines, data, unseen = [], [], 0
    for pair in pairs:
        result = pair.result
        inside = _on_same_images(section, pair, names, folders) if folders else []
        unseen += len(pair.blocks) - len(inside)
        cells = [
            pair.row,
            str(len(pair.blocks)),
            difference_text(pair),
            probability(result.p),
            probability(pair.holm),
            DASH if result.effect is None else signed(result.effect),
            f"{result.wins}/{result.ties}/{result.losses}",
        ]
        if margin is not None:
            same = pair.equivalence
            cells += [DASH if same is None else "yes" if same.equivalent else "not shown"]
            cells += [probability(same.p if same else None)]
        if folders:
            cells.append("; ".join(text for _, text in inside) or DASH)
        lines.append(tuple(cells))
        data.append(_numbers(pair, metric, inside))
    limits = section.protocol.limits_text()
    numbers = pd.DataFrame(data)
    return TextTable(
        f"{section.slug}-{metric}-against-{baseline}",
        f"{section.protocol.benchmark}, {section.protocol.shape}: {kind.title.removesuffix(', %')} minus that of "
        f"{baseline}, in percentage points (protocol {section.protocol.digest}, {precision.text(section)})."
        + (f" A cut-down trial: {limits}." if limits else ""),
        _columns(margin, numbers, bool(folders)),
        tuple(lines),
        (
            *_notes(pairs, metric, margin),
            *(_about_samples(section, folders, unseen, sum(len(one.blocks) for one in pairs)) if folders else ()),
            *_left_out(section, baseline, rows, pairs),
            *precision.across_note(section, [baseline, *(pair.row for pair in pairs)]),
            *left_out,
        ),
        bold=frozenset(
            (r, c) for r, pair in enumerate(pairs) if pair.row in section.highlight for c in range(len(lines[r]))
        ),
        data=numbers,
    )


def _columns(margin: float | None, numbers: pd.DataFrame, samples: bool) -> tuple[Column, ...]:
    """The columns of `text_table`."""
    columns = [
        Column("row", numeric=False),
        Column("runs", name="runs", fields=("n",)),
        Column("difference", name="difference", fields=("difference", "low", "high")),
        Column("p", name="p", fields=("t", "p")),
        Column("p (Holm)", name="holm", fields=("p_holm",)),
        Column("effect", name="effect", fields=("effect",)),
        Column("win/tie/loss", name="wins", fields=("wins", "ties", "losses")),
    ]
    if margin is not None:
        columns.append(Column(f"within {margin:g}", name="within", fields=("margin",)))
        columns.append(Column("p (TOST)", name="tost", fields=("p_tost", "low_90", "high_90")))
    if samples:
        seeds = tuple(field for field in map(str, numbers) if field.startswith("seed_"))
        title = "final accuracy on the same images, by seed"
        columns.append(Column(title, numeric=False, name="samples", fields=seeds))
    return tuple(columns)


def _numbers(pair: Pair, metric: str, inside: Sequence[tuple[dict[str, float], str]]) -> dict[str, object]:
    result, same = pair.result, pair.equivalence
    numbers: dict[str, object] = {
        "row": pair.row,
        "baseline": pair.other,
        "metric": metric,
        "n": len(pair.blocks),
        "difference": result.difference.mean,
        "low": result.difference.low,
        "high": result.difference.high,
        "t": result.t,
        "p": result.p,
        "p_holm": pair.holm,
        "effect": result.effect,
        "wins": result.wins,
        "ties": result.ties,
        "losses": result.losses,
    }
    if same is not None:
        numbers |= {"margin": same.margin, "p_tost": same.p, "low_90": same.low, "high_90": same.high}
    for seed in inside:
        numbers |= seed[0]
    return numbers


def _notes(pairs: Sequence[Pair], metric: str, margin: float | None) -> list[str]:
    counts = sorted({len(pair.blocks) for pair in pairs})
    span = "" if len(counts) == 1 else f"{counts[0]} to "
    runs = span + counted(counts[-1], "pair of runs", "pairs of runs")
    better = "more" if metrics.METRICS[metric].higher else "less"
    tests = sum(pair.holm is not None for pair in pairs)
    notes = [
        f"{metric}: {metrics.METRICS[metric].description}; {better} is better.",
        f"Difference: mean over {runs} of the same seed and class order ± half-width of its 95 % "
        "Student-t interval; p: paired t test, two-sided.",
        f"p (Holm): corrected for the {counted(tests, 'test')} of this table; effect: Cohen's d of the "
        "differences with Hedges' correction, for 3 pairs or more.",
    ]
    single = [pair.row for pair in pairs if len(pair.blocks) == 1]
    if single:
        who = "" if len(single) == len(pairs) else f" ({', '.join(single)})"
        notes.append(f"One pair: no interval and no test{who}.")
    constant = [pair.row for pair in pairs if len(pair.blocks) > 1 and pair.result.p is None]
    if constant:
        notes.append(f"Same difference in every pair, so no variance for a test: {', '.join(constant)}.")
    if any(1 < count <= 5 for count in counts):
        notes.append("No signed-rank test is shown: with 5 pairs or fewer it cannot reach p = 0.05 (0.0625 at best).")
    if margin is not None:
        points = f"{margin:g} point{'' if margin == 1 else 's'}"
        notes.append(
            f"within {margin:g}: equivalence within {points}, by two one-sided tests (TOST) at the 5 % level, not "
            "corrected for the number of rows; 'not shown' does not mean different."
        )
    return notes


def _about_samples(section: Section, folders: Sequence[Path], unseen: int, blocks: int) -> list[str]:
    notes = [
        "On the same images: difference in final accuracy on one seed, with the 95 % percentile interval of a "
        "paired bootstrap over the test images of each task; the interval covers the choice of images, not of seeds."
    ]
    if unseen:
        packaged = any(run.origin == ORIGIN for run in section.runs) and all(one.name != ORIGIN for one in folders)
        why = "; the reference results that come with cl-bench hold counts alone" if packaged else ""
        notes.append(f"No stored predictions on the same images: {unseen} of {counted(blocks, 'pair')} of runs{why}.")
    return notes


def _left_out(section: Section, baseline: str, rows: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    """A note on requested rows that have no block in common with the baseline on which the metric is defined."""
    compared = {pair.row for pair in pairs}
    missing = [row for row in _rows_to_compare(section, baseline, rows) if row not in compared]
    if not missing:
        return []
    return [
        "Not compared, because no run with a seed and class order of the baseline defines the metric: "
        f"{', '.join(missing)}."
    ]


def _on_same_images(
    section: Section, pair: Pair, names: Mapping[Block, str], folders: Sequence[Path]
) -> list[tuple[dict[str, float], str]]:
    """Comparison on the same test images after the last task, per common block: numbers for the CSV, and a text."""
    found = []
    runs = {label: {_block(run): run for run in section.rows[label]} for label in (pair.row, pair.other)}
    for block in pair.blocks:
        one, other = (_arrays(runs[label][block], folders) for label in (pair.row, pair.other))
        if (
            one is None
            or other is None
            or not all(np.array_equal(one[part], other[part]) for part in ("label", "task"))
        ):
            continue
        hits, others = (arrays["predicted"][-1] == arrays["label"] for arrays in (one, other))
        result = stats.bootstrap_difference(hits, others, one["task"], seed=block[0])
        numbers = {
            f"seed_{names[block].replace(' ', '_')}_{part}": 100 * float(getattr(result, part))
            for part in ("difference", "low", "high", "disagreement")
        }
        text = f"{signed(100 * result.difference)} [{100 * result.low:.2f}, {100 * result.high:.2f}]"
        found.append((numbers, f"{names[block]}: {text.replace('-', '−')}"))
    return found


def _names(pairs: Sequence[Pair]) -> dict[Block, str]:
    """Names of blocks: the seed, with the class order if the table has several blocks of that seed."""
    blocks = sorted({block for pair in pairs for block in pair.blocks})
    uses = Counter(seed for seed, _ in blocks)
    return {(seed, order): f"{seed}" if uses[seed] == 1 else f"{seed} {order_text(order)}" for seed, order in blocks}


def _block(run: Run) -> Block:
    return run.record.experiment.seed, run.record.experiment.class_order


def _arrays(run: Run, folders: Sequence[Path]) -> Arrays | None:
    """Stored predictions of a run, from the first folder that has them undamaged; None if there is none."""
    for folder in folders:
        store = Store(folder)
        if store.json_path(run.record.experiment).exists():
            try:
                return store.arrays(run.record)
            except DamagedRecord:
                continue
    return None


def ranks(sections: Sequence[Section], metric: str = "acc") -> Chart | None:
    """Critical-difference diagram: average ranks over the blocks of all protocols that are not cut-down trials.

    Rows are ranked among those of the same protocol and precision.

    Rows that learn all tasks at once (joint training) are left out. None unless at least three rows have runs on the
    same ten blocks.
    """
    tables = {}
    for section in (part for whole in sections for part in precision.by_precision(whole)):
        at_once = section.ceilings
        sequential = [label for label in section.rows if label not in at_once]
        if sequential and not section.protocol.limits_text():
            tables[section.protocol.digest, precision.text(section)] = values(section, metric)[sequential]
    table = pd.concat(tables) if tables else pd.DataFrame()
    best: pd.DataFrame | None = None
    # A row with few runs must not remove blocks from the others: add rows, those with most runs first, as long as
    # enough blocks are complete.
    for row in table.notna().sum().sort_values(ascending=False, kind="stable").index:
        wider = table[[*(best.columns if best is not None else []), row]].dropna()
        if len(wider) >= stats.FEWEST_BLOCKS:
            best = wider
    if best is None or best.shape[1] < 3:
        return None
    ranking = stats.average_ranks(best, metrics.METRICS[metric].higher)
    used = len({digest for digest, *_ in best.index})
    note = (
        f"average rank by {metric} over {ranking.blocks} blocks (stream x seed) of {counted(used, 'protocol')}; "
        f"bars: no significant difference by Nemenyi's test at 5 %; Friedman p: {probability(ranking.p)}"
    )
    panel = Ranks("", tuple(ranking.ranks.items()), ranking.groups, note)
    caption = (
        f"Average ranks (1 is best) of {len(ranking.ranks)} rows over {ranking.blocks} blocks, each a stream with one "
        "seed and class order; rows joined by a bar do not differ significantly (Nemenyi's test at 5 %; Demsar, JMLR "
        "2006)."
    )
    highlight = tuple(dict.fromkeys(label for section in sections for label in section.highlight))
    return Chart("ranks", "Critical differences", caption, (panel,), highlight=highlight)


def difference_text(pair: Pair) -> str:
    """Text of the difference of a pair with the half-width of its interval, if it has one: `+1.20 ± 0.31`."""
    half = pair.result.difference.half_width
    return signed(pair.result.difference.mean) + ("" if half is None else f" ± {half:.2f}")


def signed(number: float) -> str:
    """Format with two decimals and a sign; minus is the typographic one."""
    return f"{number:+.2f}".replace("-", "−")


def probability(p: float | None) -> str:
    """Format a p-value with three decimals, or as `<0.001`."""
    return DASH if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
