"""`cl-bench cite`: BibTeX on stdout for an independent parser, notes on stderr, and one sentence for bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from pybtex.database import parse_string

from tests.helpers.command import RUNS, Cli, Outcome, assert_refused
from tests.helpers.factories import record, write

HARNESS = "clbench"
VIT = ["dosovitskiy2021vit", "wightman2019timm"]
OWN = """
from dataclasses import dataclass
from cl_bench import GradientMethod

@dataclass(frozen=True, kw_only=True, eq=False)
class Mine(GradientMethod):
    lr: float = 0.1
"""


def keys(outcome: Outcome) -> list[str]:
    """The keys of what was printed, which must be BibTeX and nothing else."""
    assert outcome.code == 0, outcome
    entries = parse_string(outcome.out, "bibtex").entries
    rest = outcome.out
    for key in entries:
        _, _, rest = rest.partition(f"{{{key},")
        rest = rest[rest.index("\n}\n") + 3 :]
    assert rest == "" and outcome.out.startswith(f"@misc{{{HARNESS},")
    return list(entries)


def test_method_data_set_and_backbone_are_cited_once_each(cl_bench: Cli) -> None:
    names = ["sdlora", "imagenet-r", "vit_base_patch16_224.augreg_in21k"]
    outcome = cl_bench("cite", *names, "sdlora-rr")
    expected = [HARNESS, "wu2025sdlora", "hendrycks2021imagenetr", *VIT, "steiner2022augreg", "deng2009imagenet"]
    assert keys(outcome) == expected and outcome.err == ""
    assert cl_bench("cite", *names).out == outcome.out
    assert "Yichen" in outcome.out and "arXiv" in outcome.out


def test_without_a_name_cl_bench_alone_is_cited(cl_bench: Cli) -> None:
    outcome = cl_bench("cite")
    assert keys(outcome) == [HARNESS] and outcome.err == ""


@pytest.mark.parametrize(
    "name, cited",
    [
        ("coda", ["smith2023coda"]),
        ("coda[align=true,lr=0.1]", ["smith2023coda", "zhang2023slca"]),
        ("coda[align=false|true]", ["smith2023coda", "zhang2023slca"]),
        ("sdlora[rank=4|8]", ["wu2025sdlora"]),
        ("ranpac", ["mcdonnell2023ranpac", "chen2022adaptformer"]),
        ("ranpac[adaptation=ssf]", ["mcdonnell2023ranpac", "lian2022ssf"]),
        ("ranpac[adaptation=frozen]", ["mcdonnell2023ranpac"]),
        ("inflora[memory=plain]", ["liang2024inflora", "saha2021gpm"]),
        ("finetune[loss=masked,backbone_lr_scale=0.01]", ["smith2023coda", "zhang2023slca"]),
        ("finetune[backbone_lr_scale=1]", []),
        ("slca", ["zhang2023slca"]),
        ("sdlora[rank=4,lr=0.1],l2p, icons-100", ["wu2025sdlora", "wang2022l2p", "iconify"]),
        ("vit_tiny_patch4_32.tinyimagenet156", [*VIT, "le2015tinyimagenet", "russakovsky2015imagenet"]),
        ("vit_base_patch16_224", VIT),
    ],
)
def test_options_bring_the_papers_that_they_come_from(cl_bench: Cli, name: str, cited: list[str]) -> None:
    assert keys(cl_bench("cite", name)) == [HARNESS, *cited]


@pytest.mark.parametrize(
    "names, fragments",
    [
        (["sdlora", "sdlroa"], ["'sdlroa'", "Did you mean 'sdlora'?", "cl-bench ls methods"]),
        (["sdlora,codaa"], ["'codaa'", "Did you mean 'coda'?"]),
        (["codaa[align=true]"], ["backbone 'codaa'", "Did you mean 'coda'?"]),
        (["imagenetr"], ["'imagenetr'", "Did you mean 'imagenet-r'?"]),
        (["vit_base_patch16_224.augreg_in21"], ["Did you mean 'vit_base_patch16_224.augreg_in21k'?"]),
        (["coda[algn=true]"], ["hyper-parameter of 'coda' 'algn'", "Did you mean 'align'?"]),
        (["coda[align"], ["'coda[align'", "NAME[key=value"]),
        ([","], ["','", "names nothing"]),
        ([""], ["''", "names nothing"]),
        (["--results", "nowhere"], ["'nowhere'", "no folder"]),
        (["mine", "--method-file", "absent.py"], ["'absent.py'", "cannot be read"]),
    ],
    ids=str,
)
def test_bad_names_end_in_one_sentence(cl_bench: Cli, names: list[str], fragments: list[str]) -> None:
    assert_refused(cl_bench("cite", *names), *fragments)


def test_what_has_no_paper_is_said_on_stderr(cl_bench: Cli) -> None:
    outcome = cl_bench("cite", "joint", "folder:/data/mine", "vit_base_patch16_224:mine.pth")
    assert keys(outcome) == [HARNESS, *VIT]
    for fragment in ("'joint' is a baseline", "'folder:/data/mine' is data of your own", "mine.pth' come from a file"):
        assert fragment in outcome.err
    assert "model card" in cl_bench("cite", "vit_base_patch16_clip_224.datacompxl").err


def test_a_method_file_brings_its_own_bibtex(cl_bench: Cli) -> None:
    Path("mine.py").write_text(OWN)
    without = cl_bench("cite", "mine", "--method-file", "mine.py")
    assert keys(without) == [HARNESS] and "method 'mine' declares no citation" in without.err

    bibtex = "@misc{me2026mine,\n  title = {Mine}\n}\n"
    Path("mine.py").write_text(OWN + f'    bibtex = """{bibtex}"""\n    citations = ("hu2022lora",)\n')
    given = cl_bench("cite", "mine[lr=1],sdlora", "--method-file", "mine.py")
    assert keys(given) == [HARNESS, "hu2022lora", "me2026mine", "wu2025sdlora"] and given.err == ""
    assert bibtex in given.out


@pytest.mark.parametrize(
    "attribute, fragments",
    [
        ('    bibtex = "@misc{me"\n', ["BibTeX of method 'mine'", "line 1"]),
        ('    bibtex = "Me, 2026"\n', ["BibTeX of method 'mine'", "no entry"]),
        ('    citations = ("hu2021lora",)\n', ["citation of method 'mine' 'hu2021lora'", "Did you mean 'hu2022lora'?"]),
    ],
)
def test_a_method_file_with_a_wrong_citation_is_named(cl_bench: Cli, attribute: str, fragments: list[str]) -> None:
    Path("mine.py").write_text(OWN + attribute)
    assert_refused(cl_bench("cite", "mine", "--method-file", "mine.py"), *fragments)


def test_keys_stay_unique(cl_bench: Cli) -> None:
    """A shipped paper that the user's file has, too, is printed once; another paper gets another key."""
    Path("mine.py").write_text(
        OWN + '    bibtex = """@misc{lora,\n  title = {LoRA: low-rank adaptation of {Large} Language Models}\n}\n'
        '@misc{wu2025sdlora,\n  title = {Not that one}\n}\n"""\n'
    )
    outcome = cl_bench("cite", "seqlora", "sdlora", "mine", "--method-file", "mine.py")
    assert keys(outcome) == [HARNESS, "hu2022lora", "wu2025sdlora", "wu2025sdlorab"]
    assert "Not that one" in outcome.out and "two papers have the key 'wu2025sdlora'" in outcome.err


def test_all_stored_runs_are_cited(cl_bench: Cli) -> None:
    write(RUNS, record("ranpac", hyperparameters={"adaptation": "ssf"}))
    write(RUNS, record("coda", seed=1, benchmark="cifar100", hyperparameters={"align": True}))
    write(RUNS, record("coda", seed=2, benchmark="gone", backbone="vit_base_patch16_224.augreg_in21k"))
    write(RUNS, record("mine", revision="file:0123456789abcdef"))
    write(RUNS, record("sdlora", revision="file:0123456789abcdef"))
    write(RUNS, record("alpha"))
    outcome = cl_bench("cite", "--results", str(RUNS))
    methods = ["smith2023coda", "zhang2023slca", "mcdonnell2023ranpac", "lian2022ssf"]
    data, weights = ["krizhevsky2009cifar", "iconify"], [*VIT, "steiner2022augreg", "deng2009imagenet"]
    assert keys(outcome) == [HARNESS, *methods, *data, *weights]
    for name in ("'alpha'", "'mine'", "'sdlora'", "benchmark 'gone'"):
        assert outcome.err.count(f"{name} is not installed") == 1, outcome.err

    Path("mine.py").write_text(OWN + '    bibtex = "@misc{mine, title = {Mine},\\n}\\n"\n')
    own = cl_bench("cite", "--results", str(RUNS), "--method-file", "mine.py")
    assert "mine" in keys(own) and "wu2025sdlora" not in keys(own)
    (RUNS / "damaged-icons-100-s0-0123456789abcdef.json").write_text("{")
    assert "skipped a damaged result" in cl_bench("cite", "--results", str(RUNS)).err


def test_all_prints_the_whole_bibliography(cl_bench: Cli) -> None:
    found = keys(cl_bench("cite", "--all"))
    assert found[0] == HARNESS and len(found) == len(set(found)) > 30


def test_show_says_how_a_method_is_cited(cl_bench: Cli) -> None:
    assert "cl-bench cite sdlora" in cl_bench("show", "sdlora").out
