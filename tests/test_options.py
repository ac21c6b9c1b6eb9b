"""The one list of options: read alike on the command line, in suite files and in Python, and written back as typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.errors import UserError
from cl_bench.options import ExecutionOptions, RunOptions, options_of
from tests.helpers.command import Cli, assert_refused

SOME: dict[str, st.SearchStrategy[Any]] = {
    "methods": st.sampled_from(["sdlora", "sdlora[rank=4|8],coda", ["simplecil", "linear[lr=0.1]"]]),
    "seeds": st.sampled_from([0, "0-4", [0, 2, 5], "7,1"]),
    "benchmark": st.sampled_from(["icons-tune", ["icons-100", "cifar100"], "folder:my pets"]),
    "scenario": st.sampled_from(["class-incremental", "domain-incremental"]),
    "tasks": st.sampled_from([10, [5, 10], "50,5x10"]),
    "order": st.sampled_from(["natural", "permutation:3"]),
    "root": st.sampled_from(["data", "/some where"]),
    "skip_bad": st.just(True),
    "images": st.sampled_from(["resized", "files"]),
    "pretrained": st.sampled_from([False, "no"]),
    "size": st.integers(1, 999),
    "set": st.sampled_from(["lr=0.1", ["lr=0.1", "batch_size=8"]]),
    "epochs": st.integers(1, 99),
    "limit_train": st.integers(1, 99),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({"methods": SOME["methods"]}, optional={k: v for k, v in SOME.items() if k != "methods"}))
def test_what_is_read_is_written_as_flags_that_read_as_the_same(asked: dict[str, Any]) -> None:
    options = RunOptions.of(asked)
    program, command, *flags = shlex.split(options.command())
    assert (program, command) == ("cl-bench", "run")
    names = {option.flag: (name, option.kind) for name, option in options_of(RunOptions).items()}
    again: dict[str, Any] = {}
    while flags:
        name, kind = names[flags.pop(0)]
        again.setdefault(name, []).append(True if kind == "flag" else flags.pop(0))
    assert RunOptions.of(again) == options


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("epoch", 3, "unknown option 'epoch'; known: "),
        ("size", "-1", "--size '-1' is not valid; expected a whole number of at least 1"),
        ("tasks", "many", "--tasks 'many' cannot be read"),
        ("seeds", "4-1", "--seeds '4-1' cannot be read"),
        ("precision", "fp16", "unknown precision 'fp16'; known: auto, bf16, fp32"),
        ("images", "raw", "unknown way to keep images (--images) 'raw'"),
        ("order", "random", "--order 'random' is no class order"),
        ("pretrained", "maybe", "--pretrained 'maybe' is unknown; expected yes or no"),
        ("set", "lr", "--set 'lr'"),
        ("set", "coda.lr=1", "unknown method in --set 'coda'"),
    ],
)
def test_the_same_sentence_on_the_command_line_in_a_suite_and_in_python(
    name: str, value: Any, sentence: str, cl_bench: Cli
) -> None:
    with pytest.raises(UserError) as refused:
        RunOptions.of({"methods": "sdlora", name: value})
    assert str(refused.value).startswith(sentence)
    assert_refused(cl_bench("run", "--methods", "sdlora", f"--{name}", str(value)), sentence)
    Path("mine.yaml").write_text(f"title: mine\nruns:\n  - methods: sdlora\n    {name}: '{value}'\n")
    assert_refused(cl_bench("run", "--suite", "mine.yaml"), "suite 'mine.yaml', run 1: ", sentence)


@pytest.mark.parametrize("value", [None, {"a": 1}, [[1]], [None]])
def test_values_that_are_no_text_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="--seeds cannot be read"):
        RunOptions.of({"methods": "sdlora", "seeds": value})


@pytest.mark.parametrize("cls", [RunOptions, ExecutionOptions])
def test_help_lists_every_option_under_its_heading(cls: Any, cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = cl_bench("run", "--help").out
    headings = sorted({option.panel for option in options_of(cls).values()}, key=shown.index)
    assert all(heading in shown for heading in headings)
    for option in options_of(cls).values():
        start = shown.index(option.panel)
        assert option.flag in shown[start : shown.index("\u2570", start)], option.flag


def test_a_suites_options_give_way_to_the_command_lines() -> None:
    suite = RunOptions.of(
        {"methods": "sdlora", "benchmark": "cifar100", "backbone": "vit_x.y", "set": "lr=1", "seeds": 3}
    )
    assert suite.changed({"seeds": "0-1"}).seeds == (0, 1)
    assert suite.changed({"benchmark": "cifar100"}).backbone == ("vit_x.y",)
    elsewhere = suite.changed({"benchmark": "icons-100"})
    assert (elsewhere.backbone, elsewhere.set, elsewhere.seeds) == ((), ("lr=1",), (3,))
    assert suite.changed({"epochs": 2}).settings == ("epochs=2",), "all hyper-parameters that were set are replaced"


@pytest.mark.parametrize(
    ("given", "flags"),
    [({"compile": False}, ("--no-compile",)), ({"compile": True, "jobs": 2}, ("--compile", "--jobs", "2"))],
)
def test_a_flag_that_is_set_off_is_written_as_such(given: dict[str, Any], flags: tuple[str, ...]) -> None:
    assert ExecutionOptions.of(given).flags() == flags


@pytest.mark.parametrize("given", ["wandb,csv", ["wandb", "csv"], "wandb, csv,wandb"])
def test_several_names_are_one_value(given: Any) -> None:
    options = ExecutionOptions.of({"log": given})
    assert options.log == ("wandb", "csv") and options.flags() == ("--log", "wandb,csv")
