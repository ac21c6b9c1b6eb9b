"""The audit: shipped methods pass it, and every kind of leak is caught by the checks that it violates and no other."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from cl_bench import streams
from cl_bench.cli import audit_view as audit_console
from cl_bench.contract import registry
from cl_bench.contract.method import Method
from cl_bench.contract.task import Task
from cl_bench.experiment import LEAKY_OPTION, Limits
from cl_bench.studies import audit as audits
from cl_bench.studies.audit import CHECKS, AuditedMethod, AuditReport, Ceiling, Finding, Slice
from cl_bench.studies.audit.checks import backbone_passes
from cl_bench.studies.audit.module_state import ModuleState
from cl_bench.studies.audit.observation import ReadRecordingImages
from cl_bench.studies.audit.predictions import Difference, full_pieces
from cl_bench.studies.audit.reruns import reruns
from cl_bench.studies.audit.trials import trial
from tests.helpers import ROOT, SOAK, leaky
from tests.helpers.command import Cli, assert_refused
from tests.helpers.rows import NAMES, ROWS, small
from tests.helpers.tiny import TRANSFORMS, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread", "plain_and_single_threaded")

WHERE = Slice(
    source=streams.find("icons-tune").source(),
    backbone=tiny_vit,
    tasks=10,
    order="permutation:3",
    transforms=TRANSFORMS,
    limits=Limits(tasks=3, train_per_class=5, test_per_class=2),
)
SMALLER = replace(WHERE, limits=Limits(tasks=2, train_per_class=2, test_per_class=1))
LEAKS = [
    leaky.BatchMean(),
    leaky.BatchNorm(),
    leaky.Neighbours(),
    leaky.LargeBatches(),
    leaky.MergedBatchMean(),
    leaky.TaskMask(),
    leaky.TaskLabel(),
    leaky.PreviousTask(),
    leaky.TrueLabel(),
    leaky.MergedOtherwise(),
    leaky.AdaptsAtTest(),
    leaky.AnswersTwice(),
    leaky.CountsQueries(),
    leaky.DeclaresState(),
    leaky.HidesAPass(),
    *(leaky.MovesTheBackbone(when=when) for when in ("iteration", "experience", "before", "after")),
    leaky.MovesAnOldAdapter(),
    leaky.CountsEvaluations(),
    leaky.ReadsEverything(),
    leaky.Replays(),
    leaky.ReadsTestImages(),
    leaky.NeighboursAtTest(),
    *(leaky.DecidesByTestImages(at=place) for place in ("after_phase", "phases")),
    leaky.KeepsImages(),
    leaky.DeclaresNumbersOnly(),
    leaky.KeepsMoreExemplars(),
    *(leaky.Hides(where=where) for where in ("attribute", "plugin")),
    *(leaky.GlobalGenerator(source=source) for source in ("torch", "numpy", "python")),
    *(leaky.KeepsScratch(on=place) for place in ("global", "plugin", "number", "model")),
    leaky.PredictsByAnAttribute(),
    leaky.DoesNotRestore(),
    leaky.RemembersDecisions(),
    leaky.KnowsTheTestImages(),
    leaky.HoardsTestImages(),
    *(leaky.UsesNumTasks(through=through) for through in ("strategy", "stream", "future", "check", "error")),
]
HONEST = [
    leaky.Honest(),
    leaky.AddsLayers(),
    leaky.Distils(),
    leaky.TakesMorePasses(),
    leaky.Decides(),
    leaky.NeedsTheNumberOfTasks(),
    leaky.DeclaresNothing(),
]


def name(method: Method) -> str:
    """Name of a method in `leaky`, with the values of its own options."""
    own = [
        str(value)
        for field, value in method.values().items()
        if field in ("when", "where", "on", "at", "source", "through")
    ]
    return "-".join([type(method).__name__, *own])


@cache
def best() -> Ceiling:
    """Joint training that is better than any method after few steps on the tiny ViT."""
    return audits.ceiling([AuditedMethod("joint", small("joint[train=lora]", lr=0.1, epochs=30))], WHERE)


REPORTS: dict[str, AuditReport] = {}


def audit(method: Method) -> AuditReport:
    """The report on a method, made once for all tests that use it."""
    key = repr((type(method), method.values()))
    if key not in REPORTS:
        (REPORTS[key],) = audits.audit([AuditedMethod("row", method)], WHERE, best())
    return REPORTS[key]


def by_check(report: AuditReport) -> dict[str, Finding]:
    assert report.error is None
    return {finding.check: finding for finding in report.findings}


# --- methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS if SOAK else NAMES)
def test_shipped_methods_pass(row: str) -> None:
    report = audit(small(row, lr=0.01))
    assert report.good and report.failed == (), report
    statuses = {check: finding.status for check, finding in by_check(report).items()}
    assert tuple(statuses) == CHECKS
    assert statuses.pop("number of tasks") == ("declared" if small(row).needs_num_tasks else "pass")
    assert set(statuses.values()) == {"pass"}, "a shipped method declares what it stores"


@pytest.mark.parametrize("row", [name for name in NAMES if LEAKY_OPTION in registry.find(name).defaults])
def test_leaks_of_released_code_are_caught(row: str) -> None:
    # Many prompts, little trained: otherwise all images of a random backbone want the same ones, as the batch does.
    method = small(f"{row}[{LEAKY_OPTION}=true]", lr=1e-4, pool=40)
    assert set(audit(method).failed) == {"batch size", "batch company"}


@pytest.mark.parametrize("method", HONEST, ids=name)
def test_the_honest_pass(method: Method) -> None:
    report = audit(method)
    assert report.good and not report.failed, report
    statuses = {finding.status for finding in report.findings}
    others = {"NeedsTheNumberOfTasks": {"declared"}, "DeclaresNothing": {"skipped"}}
    assert statuses == {"pass"} | others.get(type(method).__name__, set())


FIRST = {type(method): method for method in reversed(LEAKS)}


@pytest.mark.parametrize("method", LEAKS if SOAK else [*FIRST.values()][::-1], ids=name)
def test_a_leak_is_caught_by_the_checks_that_it_violates(method: Any) -> None:
    report = audit(method)
    assert report.error is None and set(report.failed) == method.violates, report
    assert not report.good and replace(report, audited=replace(report.audited, leaky=True)).good
    for finding in report.findings:
        assert bool(finding.detail) is (finding.status == "fail")


@pytest.mark.parametrize("where", leaky.Place.__args__)
def test_what_is_hidden_is_found_where_it_is(where: str) -> None:
    places = {
        "numbers": "model.head.means",
        "dictionary": "model.backbone.means",
        "plugin": "method.means",
        "class": "Hides.stash",
        "strategy": "strategy.means",
        "buffer": "model._buffers",
        "teacher": "model.teacher",
        "parameter": "model.head._parameters",
    }
    # Of 20 images of a task one number each, of all three where it collects them; 80 bytes; a head; what is shown.
    numbers = {"list": 60, "numbers": 60, "bytes": 80, "teacher": 1320, "strategy": 3}.get(where, 20)
    found = by_check(audit(leaky.Hides(where=where)))["memory"]  # type: ignore[arg-type]
    assert found.detail == f"{numbers:,} hidden in {places.get(where, 'model.means')}"


@pytest.mark.parametrize("detour", leaky.Detour.__args__)
def test_passes_are_counted_whatever_way_they_take(detour: str) -> None:
    method = leaky.HidesAPass(detour=detour)  # type: ignore[arg-type]
    modules = ModuleState(method)
    finding = backbone_passes(trial(method, SMALLER, modules))
    modules.restore()
    assert (finding.status, finding.figure) == ("fail", "1.5 of 1" if detour == "half" else "2 of 1")


@pytest.mark.parametrize("place", leaky.Shelf.__args__)
def test_what_survives_a_task_is_found_where_it_is(place: str) -> None:
    method = leaky.KeepsScratch(on=place)  # type: ignore[arg-type]
    modules = ModuleState(method)
    repeats, restart, tasks = reruns(trial(method, SMALLER, modules), SMALLER, modules)
    assert (repeats.status, tasks.status, restart.status) == ("pass", "pass", "fail")
    assert restart.detail == "restarted between tasks: different after task 2: head.bias"
    modules.restore()


def test_every_check_has_a_leak_that_only_it_finds() -> None:
    alone = {check for method in LEAKS for check in method.violates if len(method.violates) == 1}
    # A dependence on other images of the batch is also one on the batch size, since single images have no others.
    assert alone == set(CHECKS) - {"batch company"}


def test_findings_say_what_is_wrong() -> None:
    details = {
        leaky.MovesTheBackbone(): (
            "frozen weights",
            r"^backbone\.norm\.weight changed in a phase that does not list it$",
        ),
        leaky.MovesAnOldAdapter(): ("frozen weights", r"^old changed in a phase that does not list it$"),
        leaky.CountsEvaluations(): ("frozen weights", r"^extra changed while no task was learned$"),
        leaky.PreviousTask(): ("earlier predictions", "^logits of a later count_matrix differ from the first ones$"),
        leaky.DeclaresState(): ("earlier predictions", "^declared: predictions depend on earlier ones$"),
        leaky.HidesAPass(): ("passes", r"^more than the method declares"),
        leaky.KeepsImages(): ("memory", r"^21,800 stored after task 1, but 1,320 declared; .* after task 3"),
        leaky.DeclaresNumbersOnly(): (
            "memory",
            r"^images of task 1 are kept in 81,920 bytes, but 0 MB of exemplars declared; .* task 3",
        ),
        leaky.KeepsMoreExemplars(): (
            "memory",
            r"^images of task 2 are kept in 163,840 bytes, but 0.1 MB of exemplars declared; .* task 3",
        ),
        leaky.KnowsTheTestImages(): ("ceiling", r"^100\.0 %, but joint reaches \d"),
        leaky.KeepsScratch(): ("restart", r"^restarted between tasks: different after task 2: head\.bias$"),
        leaky.PredictsByAnAttribute(): ("restart", "^restarted between tasks: different at the end: logits$"),
        leaky.DoesNotRestore(): (
            "restart",
            r"^restarted between tasks: .*cannot load its own state.*scale\.bias",
        ),
        leaky.RemembersDecisions(): ("restart", "^restarted inside a task: .*was in phase 1 of task 1 and lists 1 now"),
        leaky.UsesNumTasks(through="error"): ("number of tasks", "^TypeError: unsupported operand"),
    }
    for method, (check, pattern) in details.items():
        assert re.search(pattern, by_check(audit(method))[check].detail), by_check(audit(method))[check]


def test_figures_are_measured() -> None:
    figures = {check: finding.figure for check, finding in by_check(audit(leaky.ReadsEverything())).items()}
    images = len(WHERE.source.train)
    # Of 40 classes, 3 x 4 with 5 training and 2 test images each are in the slice.
    assert figures["old samples"] == f"{3 * images - 3 * 4 * 5} of other tasks, 0 test images, 0 at test"
    assert figures["memory"] == "1,320 of 1,320, 0 hidden"
    assert figures["batch size"].endswith("0 of 24 change")
    assert figures["repeatability"] == figures["restart"] == figures["number of tasks"]
    assert figures["passes"] == "1 of 1" and figures["earlier predictions"] == "0, 0 of 12 change"
    assert re.fullmatch(r"0 of 24 images, 0 of \d+ tensors differ", figures["repeatability"])
    figures = {check: finding.figure for check, finding in by_check(audit(leaky.KnowsTheTestImages())).items()}
    difference = 100 * (1 - best().hits)
    half = 2.0687 * difference.std(ddof=1) / 24**0.5  # t with 23 degrees of freedom
    assert figures["ceiling"] == f"{difference.mean():+.1f} ± {half:.1f} points"


def test_a_method_that_does_not_run_is_reported_and_the_others_go_on() -> None:
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Broken(leaky.Honest):
        def before_task(self, task: Task, images: Any) -> None:
            raise ValueError("out of ideas")

    streamed: list[AuditReport] = []
    rows = [
        AuditedMethod("broken", Broken()),
        AuditedMethod("honest", leaky.Honest()),
        AuditedMethod("leak", Broken(), leaky=True),
    ]
    reports = audits.audit(rows, WHERE, None, streamed.append)
    assert reports == streamed and [report.good for report in reports] == [False, True, False]
    assert reports[0].error == "ValueError: out of ideas" and reports[0].findings == ()
    skipped = {finding.check for finding in reports[1].findings if finding.status == "skipped"}
    assert skipped == {"ceiling"}, "there was none to compare with"


def test_the_ceiling_is_the_best_of_its_rows() -> None:
    rows = [
        AuditedMethod("poor", small("joint[train=linear]", epochs=1)),
        AuditedMethod("joint", small("joint[train=lora]", lr=0.1)),
    ]
    found = [audits.ceiling([row], WHERE) for row in rows]
    both = audits.ceiling(rows, WHERE)
    assert both.accuracy == max(one.accuracy for one in found) and both.label in ("poor", "joint")


def test_an_audit_leaves_the_method_and_the_global_generators_alone() -> None:
    method = leaky.Hides(where="plugin")
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    fields = dict(vars(method))
    audits.audit([AuditedMethod("row", method)], WHERE, None)
    assert vars(method) == fields
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


# --- what the checks are made of -------------------------------------------------------------------------------


def test_differences_are_relative_to_the_range_of_the_logits() -> None:
    one = torch.tensor([[0.0, 4.0, 9.0], [10.0, 14.0, -9.0]])
    other = one + torch.tensor([[0.0, 0.0, 5.0], [1.0, 0.0, 5.0]])
    found = Difference.between(one, other, [0, 1])
    assert (found.relative, found.changed, found.total) == (0.25, 0, 2)
    swapped = one.clone()
    swapped[0, :2] = torch.tensor([4.0, 0.0])
    assert Difference.between(one, swapped, [0, 1]).changed == 1


def test_a_tie_that_rounding_decides_is_no_failure() -> None:
    one = torch.tensor([[1.0, 1.0 + 1e-6, 0.0]])
    found = Difference.between(one, one[:, [1, 0, 2]], [0, 1, 2])
    assert found.changed == 1 and found.tolerable


@pytest.mark.parametrize(
    ("value", "tolerable"), [(float("nan"), False), (float("inf"), False), (-float("inf"), False), (2.0, True)]
)
def test_what_is_not_finite_only_agrees_with_the_same_infinity(value: float, tolerable: bool) -> None:
    one = torch.tensor([[1.0, 2.0, 0.0]])
    other = torch.tensor([[1.0, value, 0.0]])
    assert Difference.between(one, other, [0, 1, 2]).tolerable is tolerable
    assert Difference.between(other, other, [0, 1, 2]).tolerable is not np.isnan(value)


def test_counted_images_note_every_way_of_reading() -> None:
    images = np.arange(24).reshape(6, 4)
    for read, rows in (
        (lambda counted: counted[2], {2}),
        (lambda counted: counted[np.array([5, 1])], {1, 5}),
        (lambda counted: counted[1:3], {1, 2}),
        (lambda counted: counted[-1:, 0], {5}),
        (lambda counted: counted[np.arange(6) > 3], {4, 5}),
        (lambda counted: np.asarray(counted), set(range(6))),
        (lambda counted: [row.sum() for row in counted], set(range(6))),
        (lambda counted: copy.deepcopy(counted), set(range(6))),
        (lambda counted: (len(counted), counted.shape, counted.dtype), set()),
    ):
        seen: set[int] = set()
        read(ReadRecordingImages(images, seen))
        assert seen == rows


def test_batches_of_one_size_are_filled_up_within_their_group() -> None:
    groups = [np.array([0, 1, 2]), np.array([3])]
    assert [batch.tolist() for batch in full_pieces(groups, 2)] == [[0, 1], [2, 0], [3, 3]]


# --- the command line ------------------------------------------------------------------------------------------

QUICK = ["--benchmark", "icons-tune", "--limit-tasks", "2", "--limit-train", "2", "--limit-test", "1"]
QUICK += ["--ceiling", "joint[train=linear,epochs=8]"]


def test_a_clean_method_exits_with_0_and_shows_every_check(cl_bench: Cli) -> None:
    outcome = cl_bench("audit", "linear[epochs=1]", *QUICK)
    assert outcome.code == 0, outcome
    for check in CHECKS:
        assert re.search(rf"^ *{check} +pass +\S", outcome.out, re.MULTILINE)
    assert "linear[epochs=1]: no check fails" in outcome.out
    assert "icons-tune, the first 2 of 10 tasks, 2 training and 1 test images per class" in outcome.out
    assert re.search(r"ceiling joint\[epochs=8,train=linear\], [\d.]+ %", outcome.out.replace("\n", " "))
    ceiling, *steps, last = outcome.err.splitlines()
    assert ceiling == "ceiling: joint[epochs=8,train=linear]"
    began = ["training", *CHECKS[:8], "repeatability, restart and number of tasks"]
    assert steps == [f"[1/1] linear[epochs=1]: {step}" for step in began]
    assert re.fullmatch(r"\[1/1\] linear\[epochs=1\]: no check fails after \d+ s", last)


def test_a_leak_exits_with_1_and_its_table_goes_between_the_markers(cl_bench: Cli) -> None:
    cl_bench("new-method", "leaks")
    source = Path("leaks.py").read_text()
    source = source.replace("return Classifier(", "class Leaky(Classifier):\n" + " " * 12 + "def forward(self, x):\n")
    Path("leaks.py").write_text(
        source.replace(
            "backbone.requires_grad_(False), num_classes)",
            " " * 12 + "    return (logits := super().forward(x)) - logits.mean(dim=0)\n\n"
            "        return Leaky(backbone.requires_grad_(False), num_classes)",
        )
    )
    Path("audit.md").write_text("before\n<!-- audit -->\nold\n<!-- /audit -->\nafter\n")
    rows = ["simplecil", "leaks[epochs=1]"]
    outcome = cl_bench("audit", *rows, "--method-file", "leaks.py", "--out", "audit.md", *QUICK)
    assert outcome.code == 1, outcome
    assert "leaks[epochs=1]: fails batch size, batch company" in outcome.out
    assert re.search(r"^ *batch size +FAIL +\S", outcome.out, re.MULTILINE)
    passed = f"( +pass){{{len(CHECKS) - 2}}}"
    assert re.search(rf"^ *leaks\[epochs=1\] +FAIL +FAIL{passed}", outcome.out, re.MULTILINE)
    written = Path("audit.md").read_text()
    assert written.startswith("before\n<!-- audit -->\n") and written.endswith("<!-- /audit -->\nafter\n")
    assert "old\n" not in written and "| `leaks[epochs=1]` | **fails:** " in written
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(CHECKS) + 2} and len(lines) == 2 + len(rows)


@pytest.fixture
def findings_by_option(monkeypatch: pytest.MonkeyPatch) -> list[Method]:
    """Checks without training: only methods with the leaky option fail. Returns the audited methods."""
    audited: list[Method] = []

    def findings(method: Method, where: Slice, best: Ceiling | None, on_step: object) -> tuple[Finding, ...]:
        audited.append(method)
        leaks = bool(method.values().get(LEAKY_OPTION))
        return tuple(Finding.judge(check, not leaks, "0 of 9", "it leaks") for check in CHECKS)

    monkeypatch.setattr(audits, "findings", findings)
    monkeypatch.setattr(audits, "ceiling", lambda rows, where, on_step: Ceiling(rows[0].label, np.array([True])))
    return audited


def test_all_means_every_method_and_every_leak(
    cl_bench: Cli, findings_by_option: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cl_bench("audit", "--all", "--out", "new.md")
    assert outcome.code == 0, outcome
    leaks = [name for name in NAMES if LEAKY_OPTION in registry.find(name).defaults]
    assert len(findings_by_option) == len(NAMES) + len(leaks)
    tuned = [method for method in findings_by_option if type(method) is registry.find("sdlora").cls]
    assert tuned[0].values()["epochs"] == 4, "not at the recipe of the stream"
    honest, _, caught = outcome.out.partition("Leaks of released code, which must be caught")
    for leak in leaks:
        assert f"{leak}[as_published_leaky=true]: caught by batch size, " in outcome.out
        assert f"{leak}[as_published_leaky=true] " in caught
    text = Path("new.md").read_text()
    assert text.startswith("<!-- audit -->\n") and text.count("**fails:** 0 of 9") == len(CHECKS) * len(leaks)

    # A leak that no check finds is a failure of the audit.
    monkeypatch.setattr(audits, "findings", lambda *_: (Finding.judge("batch size", True, "0"),))
    outcome = cl_bench("audit", "--all")
    assert outcome.code == (1 if leaks else 0)
    assert outcome.out.count("leaks, but was not caught") == len(leaks)


@pytest.mark.parametrize(
    ("row", "joint", "best"),
    [
        ("linear[epochs=9]", "joint[train=linear]", "joint[epochs=9,train=linear]"),
        ("linear[epochs=2]", "joint[train=linear]", "joint[train=linear]"),
        ("linear[epochs=9]", "joint[train=linear,epochs=3]", "joint[epochs=3,train=linear]"),
        ("simplecil", "joint[train=linear]", "joint[train=linear]"),
    ],
)
def test_the_ceiling_trains_as_long_as_the_method_unless_it_says_otherwise(
    cl_bench: Cli, findings_by_option: list[Method], row: str, joint: str, best: str
) -> None:
    outcome = cl_bench("audit", "simplecil", row, *QUICK, "--ceiling", joint)
    assert outcome.code == 0 and f"ceiling {best}" in " ".join(outcome.out.split())


def test_a_named_leak_fails_like_any_other(cl_bench: Cli, findings_by_option: list[Method]) -> None:
    leaks = [name for name in NAMES if LEAKY_OPTION in registry.find(name).defaults]
    outcome = cl_bench("audit", *(f"{leak}[as_published_leaky=true|false]" for leak in leaks))
    assert outcome.code == 1 and outcome.out.count(": no check fails") == outcome.out.count(": fails ") == len(leaks)


def test_the_default_is_a_slice_and_the_whole_can_be_had(
    cl_bench: Cli, findings_by_option: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Slice] = []
    monkeypatch.setattr(audits, "findings", lambda method, where, best, on_step: seen.append(where) or ())
    for arguments in ([], ["--whole"], ["--whole", "--limit-test", "2"], ["--limit-tasks", "1", "--seed", "7"]):
        cl_bench("audit", "simplecil", *arguments)
    cuts = [(s.limits.tasks, s.limits.train_per_class, s.limits.test_per_class) for s in seen]
    assert cuts == [(3, 8, 5), (None, None, None), (None, None, 2), (1, 8, 5)]
    assert [(s.order, s.seed, s.length) for s in seen[2:]] == [("permutation:0", 0, 10), ("permutation:7", 7, 1)]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["name the methods", "--all"]),
        (["--all", "sdlora"], ["not both"]),
        (["sdlorra"], ["unknown method 'sdlorra'", "'sdlora'"]),
        (["sdlora[rnk=3]"], ["'rnk'", "'rank'"]),
        (["sdlora[rank=none]"], ["sdlora.rank"]),
        (["sdlora["], ["'sdlora['"]),
        (["sdlora", "--benchmark", "icon-100"], ["'icons-100'"]),
        (["sdlora", "--backbone", "vit"], ["unknown backbone 'vit'"]),
        (["sdlora", "--ceiling", "simplecil"], ["--ceiling", "'simplecil'"]),
        (["sdlora", "--limit-tasks", "11"], ["11", "10 tasks"]),
        (["sdlora", "--out", "nowhere/audit.md"], ["'nowhere/audit.md'", "folder"]),
        (["sdlora", "--out", "plain.md"], ["'plain.md'", "<!-- audit -->"]),
        (["sdlora", "--out", "."], ["'.'"]),
    ],
)
def test_bad_input_exits_with_2(cl_bench: Cli, arguments: list[str], fragments: list[str]) -> None:
    Path("plain.md").write_text("no markers\n")
    assert_refused(cl_bench("audit", *arguments), *fragments)
    assert Path("plain.md").read_text() == "no markers\n"


def test_help_shows_how_options_are_written(cl_bench: Cli) -> None:
    shown = cl_bench("audit", "--help").out
    assert "'coda[length=4]'" in shown and "'l2p[as_published_leaky=true]'" in shown


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_are_whole_at_usual_widths(width: int) -> None:
    def found(status: Any, detail: str = "") -> tuple[Finding, ...]:
        return tuple(Finding(check, status, "123 of 240 images, 12 of 162 tensors differ", detail) for check in CHECKS)

    label = "finetune[backbone_lr_scale=0.1,loss=masked]"
    sentence = "backbone.blocks.11.attn.qkv.weight differs from its pre-trained value; and 149 more"
    reports = [
        AuditReport(AuditedMethod("sdlora", leaky.Honest()), found("pass")),
        AuditReport(AuditedMethod(label, leaky.Honest()), found("fail", sentence)),
        AuditReport(AuditedMethod("coda", leaky.Honest()), found("declared")),
        AuditReport(AuditedMethod("broken", leaky.Honest()), (), "ValueError: out of ideas"),
        AuditReport(AuditedMethod("l2p[as_published_leaky=true]", leaky.Honest(), leaky=True), found("fail", sentence)),
    ]
    out = Console(file=io.StringIO(), width=width)
    for table in [*map(audit_console._findings, reports), *audit_console._overviews(reports)]:
        out.print(table)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert text.count("123 of 240 images, 12 of 162 tensors differ") == 4 * len(CHECKS)
    overview = text[text.index("All rows") :]
    for row, word in (("sdlora", "pass"), ("coda", r"decl\.")):
        assert re.search(rf"^ *{row}( +{word}){{{len(CHECKS)}}} *$", overview, re.MULTILINE)
    assert re.search(r"^ *broken +error *$", overview, re.MULTILINE)
    assert len(re.findall(rf"^ *\S+( +FAIL){{{len(CHECKS)}}} *$", overview, re.MULTILINE)) == 2


# --- the page --------------------------------------------------------------------------------------------------


def test_the_page_names_every_check_and_the_command() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    for check in CHECKS:
        assert f"**{check.capitalize()}.**" in text
    assert audit_console.AUDIT_BEGIN in text and audit_console.AUDIT_END in text
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "cl-bench audit --all --out docs/audit.md" in text and "make soak" in text
    assert re.search(r"^soak:.*\n(\t.*\n)*\t.*cl-bench audit --all --whole ", makefile, re.MULTILINE)
