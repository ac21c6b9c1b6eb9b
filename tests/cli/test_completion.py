"""Shell completion (in this process, another one, and a real bash), `--version`, and help without arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm

import cl_bench as package
from cl_bench import backbones
from cl_bench.contract import registry
from tests.helpers.command import RUNS, Cli, assert_refused
from tests.helpers.factories import record, write

Tab = Callable[..., list[str]]
PLAIN_VIT_TAGS = 300
"""Fewer than timm has."""


@pytest.fixture
def tab(cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> Tab:
    """`tab("run", "--methods", "sd")`: the words that the shell is given for the last one."""

    def call(*words: str) -> list[str]:
        with monkeypatch.context() as environment:
            environment.setenv("_CL_BENCH_COMPLETE", "complete_bash")
            environment.setenv("COMP_WORDS", "\n".join(["cl-bench", *words]))
            environment.setenv("COMP_CWORD", str(len(words)))
            outcome = cl_bench()
        assert outcome.code == 0 and outcome.err == "", outcome
        return outcome.out.split()

    return call


@pytest.mark.parametrize(
    "words, offered",
    [
        (["--vers"], ["--version"]),
        (["run", "--method-f"], ["--method-file"]),
        (["run", "--methods", "sdlora"], ["sdlora", "sdlora-kd", "sdlora-rr"]),
        (["run", "--methods", "sdlora,cod"], ["sdlora,coda"]),
        (["run", "--methods", "sdlora[rank=4|8],hi"], ["sdlora[rank=4|8],hide"]),
        (["run", "--methods", "sdlora[ra"], []),
        (["run", "--methods", "sdlora[rank=4,hi"], []),
        (["audit", "hid"], ["hide"]),
        (["run", "--benchmark", "icons-1"], ["icons-100"]),
        (["run", "--backbone", "vit_tiny_patch8"], ["vit_tiny_patch8_32.icons"]),
        (["run", "--backbone", "vit_base_patch16_224.augreg2"], ["vit_base_patch16_224.augreg2_in21k_ft_in1k"]),
        (["run", "--suite", "quick"], ["quickstart"]),
        (["run", "--recipe", "uni"], ["unified"]),
        (["run", "--recipe", "published:imagenet-r"], ["published:imagenet-r"]),
        (["run", "--precision", ""], ["auto", "fp32", "bf16"]),
        (["run", "--pretrained", ""], ["yes", "no"]),
        (["run", "--scenario", "domain"], ["domain-incremental"]),
        (["tune", "--stream", "icons-t"], ["icons-tune"]),
        (["table", "sdlora-table2"], ["sdlora-table2"]),
        (["figure", "ran"], ["ranks"]),
        (["figure", "sdlora-fig2", "--format", "png,s"], ["png,svg"]),
        (["compare", "--metric", "aaa_"], ["aaa_task"]),
        (["data", "prepare", "cub"], ["cub200"]),
        (["show", "simple"], ["simplecil"]),
        (["run", "--methods", "nothing-like-that"], []),
    ],
    ids=" ".join,
)
def test_names_are_completed(tab: Tab, words: list[str], offered: list[str]) -> None:
    assert sorted(tab(*words)) == sorted(offered)


def test_all_methods_and_stored_keys_are_offered(tab: Tab) -> None:
    key = write(RUNS, record())[0].stem.rpartition("-")[2]
    assert tab("run", "--methods", "") == registry.names()
    for command in (["show"], ["repeat"], ["results", "show"]):
        assert tab(*command, key[:6]) == [key]


def test_a_damaged_data_folder_does_not_disturb_the_prompt(tab: Tab) -> None:
    RUNS.parent.mkdir(parents=True)
    RUNS.symlink_to("/proc/1/mem")
    assert tab("repeat", "0") == []


def test_weights_of_timm_are_known_without_timm() -> None:
    known = set(backbones.timm_tags())
    of_timm = {
        name
        for module in ("vision_transformer", "deit")
        for name in timm.list_models(module=module, pretrained=True, include_tags=True)
    }
    assert len(known & of_timm) > PLAIN_VIT_TAGS and set(backbones.VIT_B16) <= known
    assert len(known - of_timm) < 10


def test_completion_imports_neither_torch_nor_avalanche() -> None:
    code = """
import sys
from cl_bench.cli import completion
for complete in vars(completion).values():
    if getattr(complete, "__name__", "") == "complete":
        complete("")
assert completion.ANYTHING("sdlora") and completion.BACKBONE("vit_tiny_patch8_32")
assert not {"torch", "avalanche", "timm"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_by_the_script_that_it_is_given(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    script = """
source <(_CL_BENCH_COMPLETE=source_bash cl-bench)
complete -p cl-bench
COMP_WORDS=(cl-bench run --methods sdlora,cod)
COMP_CWORD=3
_cl_bench_completion cl-bench
echo "${COMPREPLY[@]}"
"""
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done
    registered, offered = done.stdout.splitlines()
    assert registered.endswith("-F _cl_bench_completion cl-bench") and offered == "sdlora,coda"


def test_version_is_an_option_and_a_command(cl_bench: Cli) -> None:
    for arguments in (["--version"], ["version"], ["--version", "run"]):
        outcome = cl_bench(*arguments)
        assert (outcome.code, outcome.out, outcome.err) == (0, f"{package.__version__}\n", "")
    assert_refused(cl_bench("--verion"), "unknown option 'verion'", "Did you mean 'version'?")


def test_without_arguments_there_is_the_help_and_no_error(cl_bench: Cli) -> None:
    for group in ([], ["ls"]):
        outcome = cl_bench(*group)
        assert (outcome.code, outcome.err) == (2, "") and outcome.out.strip() == cl_bench(*group, "--help").out.strip()
