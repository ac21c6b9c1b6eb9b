"""Numbers in the prose of README.md and docs/ are what the stored results, the recipes and the code give today.

A claim is a part of a page with its numbers computed anew; every mean with its interval is part of one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from cl_bench import stats
from cl_bench.contract import registry
from cl_bench.reporting.confusions.predicted import KINDS
from cl_bench.reporting.runs import Section
from cl_bench.running import recipes
from cl_bench.running.recipes import Tuned
from tests.helpers import ROOT, reference
from tests.helpers.reference import Number, Stream

GENERATED = re.compile(
    r"<!-- (table|compare|parity|options|audit)\b.*?<!-- /\1 -->|^```.*?^```", re.DOTALL | re.MULTILINE
)
INTERVAL = re.compile(r"[\d.]+ ± [\d.]+")
MEASURED = {"docs/performance.md": "runs in several precisions, of which one is stored"}
"""Pages whose intervals are not of `results/reference`, and why."""
RECIPES = ROOT / "cl_bench" / "assets" / "recipes.toml"
PREFIX = "l2p[prompts=prefix]"
SLOW, MASKED = "finetune[backbone_lr_scale=0.1,loss=masked]", "finetune[loss=masked]"
ALIGNED_MASKED = "finetune[align=true,loss=masked]"
CURRENT, SHARED, FIRST = "sdlora[magnitudes=current]", "sdlora[directions=shared]", "sdlora[directions=first]"
ABLATIONS = (CURRENT, SHARED, FIRST)


def aligned(row: str) -> str:
    return f"{row}[align=true]"


@dataclass(frozen=True)
class Results:
    """The streams of `results/reference`."""

    sections: Sequence[Section]

    def stream(self, benchmark: str, tasks: int, backbone: str = "") -> Stream:
        return reference.stream(self.sections, benchmark, tasks, backbone)

    @cached_property
    def photos(self) -> Stream:
        return self.stream("cifar100", 10)

    @cached_property
    def photos20(self) -> Stream:
        return self.stream("cifar100", 20)

    @cached_property
    def other(self) -> Stream:
        """On the backbone from another seed."""
        return self.stream("cifar100", 10, ".s1")

    @cached_property
    def icons(self) -> Stream:
        return self.stream("icons-100", 10)

    @cached_property
    def icons5(self) -> Stream:
        return self.stream("icons-100", 5)

    @cached_property
    def icons20(self) -> Stream:
        return self.stream("icons-100", 20)


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(reference.load())


def span(values: Sequence[float], spec: str = ".1f") -> str:
    """From the least to the most."""
    return f"{format(min(values), spec)} to {format(max(values), spec)}"


def means(numbers: Sequence[Number]) -> list[float]:
    return [float(number.values.mean()) for number in numbers]


def readme(now: Results) -> Iterator[str]:
    c, c20, s1 = now.photos, now.photos20, now.other
    prompts = ("l2p", PREFIX, "dualprompt", "coda", "inflora")
    gains = [c.gap(aligned(row), row) for row in ("sdlora", "seqlora", "inflora", "coda", "linear")]
    (trials,) = {run.tuning_trials for run in c.runs("sdlora")}
    epochs = c.runs("sdlora")[0].experiment.hyperparameters["epochs"]
    yield f"the best of {trials} settings for every row, {epochs} epochs a task"
    yield f"by {span(means([c.gap('sdlora', row) for row in prompts]))} points, in every order"
    yield (
        f"Its lead over InfLoRA is {c.gap('sdlora', 'inflora'):.1f±}, in 20 tasks {c20.gap('sdlora', 'inflora'):.1f±}, "
        f"on the other backbone {s1.gap('sdlora', 'inflora'):.1f±}"
    )
    yield f"sequential LoRA with the masked loss is {c.gap('sdlora', 'seqlora'):.1f±} below it"
    yield f"SD-LoRA by {c.gap('simplecil', 'sdlora'):.1f±} points: training never compares"
    yield (
        f"`align=true` adds {span(means(gains))} points to LoRA, CODA-Prompt and the linear probe; RanPAC "
        f"({c.metric('ranpac'):.1f}) and HiDe-Prompt ({c.metric('hide'):.1f})"
    )
    yield f"Joint training, the ceiling, reaches {c.metric('joint[train=lora]'):.1f}"


def in_short(now: Results) -> Iterator[str]:
    c, c20 = now.photos, now.photos20
    assert all(c.equivalent(row, "sdlora") for row in ("sdlora-rr", "sdlora-kd"))
    assert sum(c.equivalent(row, "sdlora") for row in ABLATIONS) == 2
    assert 0 < c.gap("sdlora", "seqlora").values.mean() < 1
    yield (
        f"SD-LoRA by {c.gap('simplecil', 'sdlora'):.1f±} points, although SD-LoRA, told the task, is right on "
        f"{c.task_aware('sdlora'):.1f} % of the images and the nearest mean on {c.task_aware('simplecil'):.1f} %"
    )
    yield f"SLCA ({c.metric('slca'):.1f}) and SD-LoRA with alignment ({c.metric(aligned('sdlora')):.1f})"
    yield (
        f"SD-LoRA {c20.metric('sdlora'):.1f}, the nearest mean {c20.metric('simplecil'):.1f}, RanPAC "
        f"{c20.metric('ranpac'):.1f}"
    )


def rows_of(page: str, start: str) -> list[list[str]]:
    """The cells of the rows of tables of a page that begin like this, without emphasis."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if line.startswith(start)]


def speed(now: Results) -> Iterator[str]:
    """The README repeats what the page on speed has measured."""
    page = "docs/performance.md"
    (first,), (tenth,) = (rows_of(page, f"| sdlora, task {task} |") for task in (1, 10))
    (step,) = {f"{float(row[3]):.0f}" for row in (first, tenth)}
    plain, single = ([round(float(row[column]) / float(row[3])) for row in (first, tenth)] for column in (1, 2))
    yield (
        f"a training step of SD-LoRA takes {step} ms in every task, {plain[0]} times (task 1) to {plain[1]} times "
        f"(task 10) less than the released computation in fp32, and {single[0]} to {single[1]} times less than that "
        "with TF32"
    )


def precision(now: Results) -> Iterator[str]:
    """The page on commands repeats what the page on speed says of bf16."""
    page = "docs/performance.md"
    p_values = [row[3].removeprefix("< ") for row in rows_of(page, "| ") if len(row) == 6 and row[4].endswith("%")]
    equivalent = sum(float(p) < 0.05 for p in p_values)
    assert (equivalent, len(p_values)) == (6, 8)
    yield "results are equivalent for six of eight methods that were compared"


def parity(now: Results) -> Iterator[str]:
    """What the README and the page on parity say of the table that a command makes there."""
    runs = [row for row in rows_of("docs/findings/parity.md", "| `") if row[1].startswith("permutation:")]
    losses = [(float(row[2]), float(row[3])) for row in runs if len(row) == 9 and float(row[2]) < 10]
    assert len(losses) == 9
    worst = max(abs(ours - theirs) / theirs for ours, theirs in losses)
    pairs = [abs(float(row[4])) for row in runs if float(row[2]) > 10]
    means = [row for row in rows_of("docs/findings/parity.md", "| `") if row[1] == "acc"]
    differences = [float(row[3].split()[0]) for row in means]
    shown = sum(row[7].startswith("yes") for row in means)
    yield (
        f"training losses within {100 * worst:.1f} % in every pair, final accuracies within {max(pairs):.2f} points in "
        f"every pair and {max(map(abs, differences)):.2f} in the mean"
    )
    assert shown == 1
    yield "equivalence within a point is shown for one of the three"


def parity_page(now: Results) -> Iterator[str]:
    means = {row[0].strip("`"): row for row in rows_of("docs/findings/parity.md", "| `") if row[1] == "acc"}
    differences = [float(row[3].split()[0]) for row in means.values()]
    runs = [row for row in rows_of("docs/findings/parity.md", "| `") if row[1].startswith("permutation:")]
    losses = [(row[0], float(row[2]), float(row[3])) for row in runs if float(row[2]) < 10]
    assert max(abs(ours - theirs) for _, ours, theirs in losses) < 0.013
    for method in means:
        assert abs(np.mean([ours - theirs for name, ours, theirs in losses if name == f"`{method}`"])) < 0.003
    worst = max(abs(ours - theirs) / theirs for _, ours, theirs in losses)
    yield f"differs by less than 0.013 in every pair ({100 * worst:.1f} %), and by less than 0.003 in the mean"
    pairs = [float(row[4]) for row in runs if float(row[2]) > 10]
    yield (
        f"differ by at most {max(map(abs, pairs)):.2f} points in any pair**, by {min(differences):+.2f} to "
        f"{max(differences):+.2f} in the mean"
    )
    ours, half = (float(number) for number in means["sdlora"][3].split(" ± "))
    yield f"by {ours:.1f} ± {half:.1f}: this can be chance, and if it is not, it is less than {ours + half:.1f}"


def photographs(now: Results) -> Iterator[str]:
    c, c20, s1 = now.photos, now.photos20, now.other

    def fall(row: str) -> Number:
        return c.metric(row) - c20.metric(row)

    def lead(stream: Stream, row: str) -> Number:
        return stream.gap("sdlora", row)

    searched = tuned("tiny-imagenet-44")
    (trials,) = {entry.trials for entry in searched}
    yield (
        f"{trials} settings a row, one seed, 5 epochs a task and batches of 128, {number_of_runs(searched)} runs and "
        f"{sum(entry.minutes for entry in searched):.0f} minutes in all"
    )
    rates = {entry.method: entry.values["lr"] for entry in searched}
    (rate,) = {f"{rates[row]:.2f}" for row in ("inclora", "sdlora-kd")}
    (most,) = {registry.find(row).cls.space["lr"].high for row in ("inclora", "sdlora-kd")}
    yield (
        f"The rates of `inclora` and `sdlora-kd` ({rate}) lie near the upper end of the range that was searched "
        f"({most})"
    )
    yield (
        f"So SD-LoRA falls by {fall('sdlora'):.1f±} points from 10 tasks to 20, InfLoRA by {fall('inflora'):.1f±} and "
        f"CODA-Prompt by {fall('coda'):.1f±}, while RanPAC ({fall('ranpac'):.1f±}) and SLCA ({fall('slca'):.1f±}) fall "
        f"little and the nearest mean not at all. Told the task, SD-LoRA is right on {c20.task_aware('sdlora'):.1f} % "
        f"after 20 tasks, joint training on {c20.task_aware('joint'):.1f}"
    )
    yield (
        f"over InfLoRA it is {lead(s1, 'inflora'):.1f±} instead of {lead(c, 'inflora'):.1f±} (paired over orders, "
        f"{lead(s1, 'inflora') - lead(c, 'inflora'):.1f±}), over CODA-Prompt {lead(s1, 'coda'):.1f±} instead of "
        f"{lead(c, 'coda'):.1f±}, under RanPAC {s1.gap('ranpac', 'sdlora'):.1f±} instead of "
        f"{c.gap('ranpac', 'sdlora'):.1f±}. Sequential LoRA is equivalent to SD-LoRA within a point here "
        f"({lead(s1, 'seqlora'):.1f±})"
    )
    assert s1.equivalent("seqlora", "sdlora")


def claims_of_the_paper(now: Results) -> Iterator[str]:
    c, c20, s1 = now.photos, now.photos20, now.other

    def lead(row: str, stream: Stream = c) -> Number:
        return stream.gap("sdlora", row)

    def same(row: str, spec: str) -> str:
        assert c.equivalent(row, "sdlora")
        return f"{lead(row):{spec}±}, equivalent within 1 point"

    prompts = sorted(("l2p", PREFIX, "dualprompt", "coda"), key=lambda row: lead(row).values.mean())
    yield f"+2.6 | {lead('inflora'):+.1f±}; on the other backbone {lead('inflora', s1):+.1f±}"
    more = lead("inflora", c20) - lead("inflora")
    yield f"{lead('inflora', c20):+.1f±}, which is {more:.1f±} more than in 10 |"
    yield f"{lead(prompts[0]):+.1f±} to {lead(prompts[-1]):+.1f±} |"
    yield f"+2.7 | {lead('hide'):+.1f±}"
    yield (
        f"{lead('finetune'):+.1f±} plain, {lead(MASKED):+.1f±} masked, {lead(SLOW):+.1f±} masked with a slow backbone "
        f"| holds; the last is not certain (Holm {c.holm(SLOW, 'sdlora'):.3f})"
    )
    assert c.equivalent("sdlora-rr", "sdlora") and c.equivalent("sdlora-kd", "sdlora")
    for row in ("sdlora-rr", "sdlora-kd"):
        yield f"{c.gap(row, 'sdlora'):+.2f±}, equivalent within 1 point"
    yield f"+3.1 | {same(CURRENT, '+.1f')}"
    yield f"+6.7 | {same(SHARED, '+.1f')}"
    assert (lead(FIRST).values > 0).all()
    yield f"+2.5 | {lead(FIRST):+.1f±}, lower in all five orders (Holm {c.holm(FIRST, 'sdlora'):.3f})"
    first, *others = c.magnitudes()[:, -1].mean(axis=0)
    yield f"{first:.1f} for the first, {min(others):.2f} to {max(others):.1f} for the others | holds"
    yield (
        f"{c.metric('sdlora', 'forgetting'):.1f}; told the task, {c.task_aware('sdlora'):.1f} % right after the last "
        "task"
    )

    best = aligned("sdlora")
    yield (
        f"SD-LoRA gains {c.gap(best, 'sdlora'):.1f±} and is {c.gap('hide', best):.1f±} below HiDe-Prompt, instead of "
        f"{c.gap('hide', 'sdlora'):.1f±}"
    )
    yield f"is {lead('seqlora'):.1f±} below (Holm {c.holm('seqlora', 'sdlora'):.2f})"
    yield (
        f"told the task, SD-LoRA is right on {c.task_aware('sdlora'):.1f} % of all images after the last task, "
        f"sequential LoRA on {c.task_aware('seqlora'):.1f}, joint LoRA training on "
        f"{c.task_aware('joint[train=lora]'):.1f}, the linear probe on "
        f"{c.task_aware('linear'):.1f} and the nearest mean on {c.task_aware('simplecil'):.1f}"
    )
    floor = [f"{c.gap(row, 'simplecil'):.1f±}" for row in ("sdlora", "inflora", "coda")]
    yield f"(SD-LoRA {floor[0]}, InfLoRA {floor[1]}, CODA-Prompt {floor[2]})"
    gain = {row: f"{c.gap(aligned(row), row):.1f}" for row in ("linear", "coda", "inflora", "sdlora", "seqlora")}
    yield (
        f"adds {gain['linear']} points to the linear probe, {gain['coda']} to CODA-Prompt, {gain['inflora']} to "
        f"InfLoRA, {gain['sdlora']} to SD-LoRA and {gain['seqlora']} to sequential LoRA"
    )
    above = {row: f"{c.gap(best, aligned(row)):.1f±}" for row in ("linear", "seqlora", "inflora", "coda")}
    yield (
        f"SD-LoRA is {above['linear']} points above the linear probe, {above['seqlora']} above sequential LoRA, "
        f"{above['inflora']} above InfLoRA and {above['coda']} above CODA-Prompt"
    )
    by_lora = "joint[train=lora]"
    yield (
        f"{c.metric(by_lora):.1f} by LoRA and {c.metric('joint'):.1f} by full fine-tuning, "
        f"{c.gap(by_lora, 'ranpac'):.1f±} and {c.gap('joint', 'ranpac'):.1f±} above RanPAC"
    )
    yield (
        f"SD-LoRA is {c.gap(by_lora, 'sdlora'):.1f±} below; told the task it is "
        f"{c.task_aware(by_lora) - c.task_aware('sdlora'):.1f} below"
    )
    yield (
        f"with it, fine-tuning with the masked loss is at {c.metric(ALIGNED_MASKED):.1f}, "
        f"{c.gap(MASKED, ALIGNED_MASKED):.1f±} lower than without"
    )
    by_stage = c.magnitudes()[:, :, 0].mean(axis=0)
    learned = c.magnitudes()[:, -1].mean(axis=0)
    yield (
        f"the first direction's is {by_stage[0]:.1f} after its own task and {span(by_stage[1:])} from the second on, "
        f"later ones fall to {learned[-1]:.1f}"
    )
    fits = np.concatenate(c.residuals())
    assert fits.min() > 0.9995
    yield f"(relative residual above 0.9995 in all {len(fits)} fits)"


def count(number: float) -> str:
    """As the table of costs writes it."""
    if number >= 1e5:
        return f"{number / 1e6:.2f} M" if number < 2e6 else f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.0f} k" if number else "0"


def costs(now: Results) -> Iterator[str]:
    c = now.photos
    for row in (
        *("simplecil", "linear", "seqlora", "sdlora-rr", "sdlora", "inflora", "coda", aligned("sdlora")),
        *("ranpac", "hide", "slca"),
    ):
        runs = c.runs(row)
        trained, kept = max(max(run.trainable) for run in runs), np.mean([run.stored[-1] for run in runs])
        name = row.replace("[", "\\[").replace("]", "\\]")
        flops = runs[0].flops_per_image / 1e9
        yield f"| {name} | {count(trained)} | {count(kept)} | {flops:.2f} | {c.metric(row):.1f} |"
    yield f"one direction for all tasks keeps an eighth, at {c.gap('sdlora', SHARED):.1f±} points"
    kept = {row: c.runs(row)[0].stored[-1] for row in ("sdlora", "sdlora-rr", SHARED)}
    assert kept["sdlora-rr"] / kept["sdlora"] == pytest.approx(4 / 5, abs=0.02)
    assert kept[SHARED] / kept["sdlora"] == pytest.approx(1 / 8, abs=0.01)


def icons(now: Results) -> Iterator[str]:
    i = now.icons

    def lead(row: str) -> str:
        return f"{i.gap('sdlora', row):.1f±}"

    near = ("sdlora-rr", "sdlora-kd", *ABLATIONS, "seqlora", "linear")
    assert all(abs(number) < 1 for number in means([i.gap("sdlora", row) for row in near]))
    yield (
        f"above CODA-Prompt by {lead('coda')} points (paired, 95 % interval) and above masked slow fine-tuning by "
        f"{lead(SLOW)}; over InfLoRA ({lead('inflora')}), SeqLoRA ({lead('seqlora')}) and the linear probe "
        f"({lead('linear')})"
    )
    yield f"SD-LoRA differs from it by {i.gap('sdlora', 'simplecil'):.1f±}"
    (told,) = {f"{i.task_aware(row):.0f}" for row in ("sdlora", "seqlora", "inflora", "joint", "joint[train=lora]")}
    yield (
        f"Told the task, the adapted models are right on {told} % of the images, more often than the nearest mean "
        f"({i.task_aware('simplecil'):.0f} %)"
    )
    gains = [i.gap(aligned(row), row) for row in ("sdlora", "inflora", "seqlora", "coda", "linear")]
    yield f"the linear probe by {span(means(gains))} points, all but CODA-Prompt to within half a point of each other"
    assert np.ptp(means([i.metric(aligned(row)) for row in ("sdlora", "inflora", "seqlora", "linear")])) < 0.5
    yield f"**RanPAC is above joint training** ({i.gap('ranpac', 'joint'):.1f±} points)"
    yield f"on seed 0 ({i.metric('joint').values[0]:.1f} with 4; RanPAC: {i.metric('ranpac').values[0]:.1f})"


def lora_family(now: Results) -> Iterator[str]:
    i, i5, i20 = now.icons, now.icons5, now.icons20

    notes = {"seqlora": " (one LoRA, nothing against forgetting)", "linear": " (no adapter at all)"}
    for row in ("sdlora-rr", "sdlora-kd", "seqlora", *ABLATIONS, "linear", "inflora", "nlora", "olora"):
        differences = f"{i.gap(row, 'sdlora'):+.1f±} | {i.gap(row, 'simplecil'):+.1f±}"
        yield f"| `{row}`{notes.get(row, '')} | {differences} |"
    yield f"| `sdlora` | | {i.gap('sdlora', 'simplecil'):+.1f±} |"
    yield f"those over CODA-Prompt ({i.gap('sdlora', 'coda'):.1f±}) and fine-tuning are"
    yield (
        f"in 20 tasks the lead over InfLoRA is certain ({i20.gap('sdlora', 'inflora'):.1f±}), in 5 tasks there is none "
        f"({i5.gap('sdlora', 'inflora'):.1f±})"
    )
    (told,) = {f"{i.task_aware(row):.0f}" for row in ("sdlora", *ABLATIONS, "seqlora", "linear", "joint")}
    yield f"are right on {told} % of the images, as is joint training"
    fits = i.residuals()
    every = np.concatenate(fits)
    yield f"of the {len(every)} fits (nine tasks, five seeds) lies between {every.min():.5f} and {every.max():.0f}"
    kept = [np.mean([1 + (run >= tau).sum() for run in fits]) for tau in (0.9999, 0.99999, 1)]
    yield f"| {kept[0]:.1f}* | {kept[1]:.0f}* | {kept[2]:.0f} |"

    width = 192
    rms = " | ".join(f"{tau / width:.1e}".replace("e-0", "e-") for tau in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95))
    yield f"| tau as rms (width {width}) | {rms} |"
    yield f"(rms; {9e-4 * width:.2f} relative at this width, {9e-4 * 768:.2f} at width 768)"
    yield f"{(width / 8) ** 1.5:.0f} times at width {width} and rank 8"

    searched = tuned(
        "icons-tune", "sdlora", "inflora", "seqlora", "inclora", "olora", "nlora", "linear", "joint", "finetune"
    )
    others = [entry.minutes for entry in searched if entry.method != "inflora"]
    (slowest,) = [entry.minutes for entry in searched if entry.method == "inflora"]
    yield f"{number_of_runs(searched)} runs on one H200"
    yield f"InfLoRA's search took {slowest:.0f} minutes of run time against {span(others, '.0f')} for the others"


def prompts(now: Results) -> Iterator[str]:
    i = now.icons
    pairs = {row: aligned(row) for row in ("linear", "sdlora", "seqlora", "coda", "inflora")} | {MASKED: ALIGNED_MASKED}
    for row, other in pairs.items():
        name = f"`{row}` (frozen backbone)" if row == "linear" else f"`{row}`"
        yield f"| {name} | {i.metric(row):.1f} | {i.metric(other):.1f} | {i.gap(other, row):+.1f±} |"
    kept = i.runs(aligned("sdlora"))[0].stored[-1] - i.runs("sdlora")[0].stored[-1]
    yield f"a covariance per class, {kept / 1e6:.1f} million numbers here"
    yield f"RanPAC: M = {i.runs('ranpac')[0].experiment.hyperparameters['projection']:,} random projections"
    yield f"every method is above the nearest mean ({i.metric('simplecil'):.1f})"
    best = aligned("sdlora")
    yield (
        f"within half a point of each other ({i.gap(best, aligned('seqlora')):+.2f±} and "
        f"{i.gap(best, aligned('linear')):+.2f±}), and of `slca`, which fine-tunes the whole network slowly "
        f"({i.gap(best, 'slca'):.2f±})"
    )
    yield f"({i.metric('ranpac'):.1f} and {i.metric('hide'):.1f})"
    yield f"**RanPAC is above joint training** ({i.gap('ranpac', 'joint'):+.1f±})"
    yield (
        f"on seed 0 instead of {i.metric('joint').values[0]:.1f}, RanPAC has {i.metric('ranpac').values[0]:.1f} there"
    )
    yield f"({i.gap('dualprompt', 'sdlora'):+.1f±} for DualPrompt)"
    (above,) = {f"{i.gap(row, 'coda'):.0f}" for row in ("dualprompt", PREFIX)}
    yield f"and {above} points above CODA-Prompt"
    told = means([i.task_aware(row) for row in ("dualprompt", PREFIX, "coda")])
    yield f"Told the task, all three are right on {span(told, '.0f')} % of the images"
    yield f"(prepended prompts) is {i.gap(PREFIX, 'l2p'):.1f±} points below its prefix form"
    searched = tuned("icons-tune", "coda", "dualprompt", "l2p", "hide", "ranpac", "slca")
    minutes = {entry.method: entry.minutes for entry in searched}
    others = [entry.minutes for entry in searched if entry.method not in ("hide", "slca")]
    yield (
        f"Search: {number_of_runs(searched)} runs on one H200, 15 side by side. HiDe-Prompt's took "
        f"{minutes['hide']:.0f} minutes of run time, SLCA's {minutes['slca']:.0f}, the others {span(others, '.0f')}"
    )


def paper_figures(now: Results) -> Iterator[str]:
    i, i5, i20 = now.icons, now.icons5, now.icons20
    yield (
        f"by {i20.gap('sdlora', 'inflora'):.1f±} points and above CODA-Prompt by {i20.gap('sdlora', 'coda'):.1f±} "
        f"(paired; p after Holm {i20.holm('inflora', 'sdlora'):.3f} and {i20.holm('coda', 'sdlora'):.3f}); in 5 tasks "
        f"above CODA-Prompt by {i5.gap('sdlora', 'coda'):.1f±}, and not certainly above InfLoRA "
        f"({i5.gap('sdlora', 'inflora'):.1f±})"
    )
    for stream in (i5, i, i20):
        gaps = means([stream.gap("sdlora", f"sdlora-{kind}") for kind in ("rr", "kd")])
        # 0.32 in ten tasks.
        assert max(map(abs, gaps)) < 0.35
        assert all(stream.equivalent(f"sdlora-{kind}", "sdlora") for kind in ("rr", "kd"))
    assert all(stream.equivalent(row, "sdlora") for stream in (i5, i) for row in ABLATIONS)
    (ways5, weights5), (ways, weights) = i5.distances(), i.distances()
    yield f"are {ways5:.2f} in 5 tasks and {ways:.2f} in 10: nearly sqrt(2)"
    yield f"||W_i - W_j|| / ||W_0||, they are {weights5:.3f} and {weights:.3f}"
    found = [stream.magnitudes() for stream in (i5, i, i20)]
    ends = [f"{np.nanmean(each):.2f}" for each in found]
    least, most = min(map(np.nanmin, found)), max(map(np.nanmax, found))
    yield f"{ends[0]} on average in 5 tasks, {ends[1]} in 10 and {ends[2]} in 20, between {least:.2f} and {most:.2f}"
    first, *_, last = now.photos.magnitudes()[:, -1].mean(axis=0)
    yield f"magnitudes fall from {first:.1f} for the first direction to {last:.1f} for the last"


def statistics(now: Results) -> Iterator[str]:
    i = now.icons
    numbers = [
        [f"{i.metric(row, name):.1f}" for name in ("acc", "learning", "forgetting")] for row in ("sdlora", "finetune")
    ]
    (acc, learning, forgetting), others = numbers
    yield f"acc {acc} (joint training: {i.metric('joint'):.1f}), learning {learning}, forgetting {forgetting}"
    yield f"Plain fine-tuning: {', '.join(others)}"
    for row in ("seqlora", "inflora", "coda"):
        yield f"| `{row}` | {i.gap(row, 'sdlora'):.2f±} |"


INSIDE, OLDER, NEWER = KINDS[1:]


def lean(stream: Stream, row: str) -> Number:
    """How much more errors go to newer than to older tasks, in percent of the test images."""
    return stream.share(row, NEWER) - stream.share(row, OLDER)


def where_errors_go(now: Results) -> Iterator[str]:
    c, c20, s1, i = now.photos, now.photos20, now.other, now.icons
    rows = ("joint", "ranpac", "simplecil", "sdlora", "inflora", "coda", MASKED, "finetune")
    for row in rows:
        cells = " | ".join(f"{c.share(row, kind):.1f±}" for kind in KINDS)
        yield f"| `{row}` | {cells} | {lean(c, row):+.1f±} |"
    yield (
        f"SD-LoRA errs on {c.share('sdlora', INSIDE):.1f} % of the images inside the task and on "
        f"{c.share('sdlora', OLDER).values.mean() + c.share('sdlora', NEWER).values.mean():.1f} % between tasks"
    )

    def more(row: str, kind: str, stream: Stream = c) -> str:
        return f"{stream.share(row, kind) - stream.share('sdlora', kind):.1f±}"

    yield (
        f"{more('coda', NEWER)} points more of the images to newer tasks than SD-LoRA's (paired over orders), and no "
        f"more to older ones ({more('coda', OLDER)}); in 20 tasks {more('coda', NEWER, c20)}, on the other backbone "
        f"{more('coda', NEWER, s1)}"
    )
    yield (
        f"{more('inflora', OLDER)} points more to older tasks, in 20 tasks {more('inflora', OLDER, c20)}, on the other "
        f"backbone {more('inflora', OLDER, s1)}, and no more to newer ones ({more('inflora', NEWER)})"
    )
    first = {row: Number(c.errors(row).shares_by_task()[:, 0, 0]) for row in ("sdlora", "coda", "joint")}
    yield (
        f"right on {first['coda']:.1f} % of the images of the first task, SD-LoRA on {first['sdlora']:.1f} % "
        f"(difference {first['sdlora'] - first['coda']:.1f±}), joint training on {first['joint']:.1f} %"
    )
    lost = {
        row: Number(np.array([100 * run.forgotten.mean() for run in c.errors(row).runs]))
        for row in ("simplecil", "sdlora", "coda", "finetune")
    }
    yield (
        f"The nearest mean, which never changes a class mean, still loses {lost['simplecil']:.1f±} % of the test "
        f"images so, SD-LoRA {lost['sdlora']:.1f±}, CODA-Prompt {lost['coda']:.1f±} and plain fine-tuning "
        f"{lost['finetune']:.1f±}"
    )

    def less(row: str, kind: str) -> Number:
        return c.share(row, kind) - c.share(aligned(row), kind)

    yield (
        f"takes {less('sdlora', OLDER):.1f±} points from the errors to older tasks and {less('sdlora', NEWER):.1f±} "
        "from those to newer ones"
    )
    gained = c.share(aligned("inflora"), NEWER) - c.share("inflora", NEWER)
    lost_by = less("inflora", OLDER)
    yield f"InfLoRA loses {lost_by:.1f±} points of errors to older tasks and gains {gained:.1f±} to newer ones"
    for row in ("sdlora", "inflora", "coda"):
        between = stats.summarise(lean(c, row).values)
        assert between.low is not None and between.high is not None and between.low < 0 < between.high
    worst = c.errors("sdlora").pairs(3)
    yield "; ".join(
        f"{pair.true.replace('_', ' ')} for {pair.predicted.replace('_', ' ')} ({pair.share:.1f} %, the other way "
        f"{pair.reverse:.1f} %)"
        for pair in worst
    )
    assert (
        {"girl", "oak_tree", "whale"}
        == {pair.true for pair in worst}
        == {pair.true for pair in c.errors("coda").pairs(3)}
    )
    yield (
        f"SD-LoRA {i.share('sdlora', OLDER):.1f} % and {i.share('sdlora', NEWER):.1f} %, CODA-Prompt "
        f"{i.share('coda', OLDER):.1f} % and {i.share('coda', NEWER):.1f} %"
    )


def tuned(stream: str, *methods: str) -> list[Tuned]:
    """The shipped recipes that were found there, of methods whose names begin so."""
    return [
        entry for entry in recipes.read(RECIPES) if entry.stream == stream and entry.method.startswith(methods or "")
    ]


def number_of_runs(searched: Sequence[Tuned]) -> int:
    return sum(entry.trials * len(entry.seeds) for entry in searched)


CLAIMS: dict[str, list[Callable[[Results], Iterator[str]]]] = {
    "README.md": [readme, speed, parity],
    "docs/usage.md": [precision],
    "docs/findings/results.md": [in_short, photographs, claims_of_the_paper, costs, icons],
    "docs/findings/lora-family.md": [lora_family],
    "docs/findings/prompts-and-prototypes.md": [prompts],
    "docs/paper-figures.md": [paper_figures],
    "docs/findings/parity.md": [parity_page],
    "docs/findings/where-errors-go.md": [where_errors_go],
    "docs/statistics.md": [statistics],
}


def prose(page: str) -> str:
    """A page without blocks that are made by a command, in one line, with one kind of minus."""
    text = GENERATED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return " ".join(text.split()).replace("−", "-")


@pytest.mark.parametrize("page", CLAIMS)
def test_numbers_are_what_is_stored(page: str, results: Results) -> None:
    text, wrong = prose(page), []
    covered = defaultdict(bool)
    for claims in CLAIMS[page]:
        for claim in claims(results):
            place = text.find(claim)
            if place < 0:
                wrong.append(claim)
            for match in INTERVAL.finditer(claim):
                covered[place + match.start()] = place >= 0
    assert not wrong, "not in the page, with these numbers:\n" + "\n".join(wrong)
    assert [match.group() for match in INTERVAL.finditer(text) if not covered[match.start()]] == [], "no claim"


def test_every_interval_is_on_a_page_with_claims() -> None:
    pages = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
    found = {page for page in pages if INTERVAL.search(prose(page))}
    assert found - CLAIMS.keys() == set(MEASURED)
