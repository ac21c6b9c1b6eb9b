"""Suites: grids of runs in a file or by name, and dry runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import tomli_w
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_bench.contract import registry
from cl_bench.errors import UserError
from cl_bench.options import RunOptions, options_of
from cl_bench.running import recipes, suites
from cl_bench.running.sweep import wanted_options
from tests.helpers import SOAK, trees
from tests.helpers.command import RUNS, TRIAL, Cli, assert_refused

SUITE = """\
title: two methods, one of them twice
defaults: {benchmark: icons-tune, seeds: [0, 1]}
runs:
  - methods: [simplecil, 'linear[lr=0.1|0.2]']
    set: linear.epochs=1
  - methods: linear
    seeds: 3
    tasks: [4, '20,10,10']
    set: [epochs=1, lr=0.3]
"""


HEAD = "title: x\nruns:\n- methods: sdlora\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize("name", suites.names())
def test_shipped_suites_are_whole(name: str) -> None:
    suite = suites.find(name)
    assert suite.title
    for grid in suite.runs:
        assert grid.seeds == ((0,) if name == "quickstart" else (0, 1, 2, 3, 4))


UNEQUAL = {
    # Half of these numbers are not trained.
    "inflora[rank=16]": 147_456,
    "raclora[rank=4,links=4]": 147_456,
    "raclora[rank=16,links=1]": 147_456,
    # Two thirds belong to blocks that a booster leaves out.
    "xgblora[rank=6,links=4]": 221_184,
    "xgblora[links=4]": 36_864,
}
"""Rows of the suite which-lora whose directions of a task have other numbers than those trained, or fewer of them."""


def test_rows_of_which_lora_train_equally_many_numbers() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    rows = {
        str(spec): spec for grid in suites.find("which-lora").runs for cell in grid.cells() for spec in cell.methods
    }
    assert set(UNEQUAL) <= set(rows)
    for row, spec in rows.items():
        method = registry.find(spec.name).configure(spec.options)
        stored = method.storage(backbone, 100, [10])
        numbers = sum(stored.get(kind, 0) for kind in ("directions", "orthogonal", "residual"))
        assert numbers == pytest.approx(UNEQUAL.get(row, 8 * 2 * 192 * 2 * 12), rel=0.01), row


def test_the_papers_tables_are_there() -> None:
    assert {f"sdlora-table{number}" for number in (2, 3, 4, 5, 6)} <= set(suites.names())
    cells = [cell for grid in suites.find("sdlora-table2").runs for cell in grid.cells()]
    assert {cell.benchmark for cell in cells} == {("imagenet-r",)}
    assert {cell.tasks for cell in cells} == {(5,), (10,), (20,)}
    assert {cell.backbone for cell in cells} == {("vit_base_patch16_224.augreg2_in21k_ft_in1k",)}
    methods = {spec.name for cell in cells for spec in cell.methods}
    assert methods == {"finetune", "l2p", "dualprompt", "coda", "hide", "inflora", "sdlora", "sdlora-rr", "sdlora-kd"}


def test_a_suite_runs_all_its_combinations_once(cl_bench: Cli) -> None:
    Path("mine.yaml").write_text(SUITE)
    for _ in range(2):
        outcome = cl_bench("run", "--suite", "mine.yaml", *TRIAL)
        assert outcome.code == 0, outcome
    assert "0 run(s) computed" in outcome.err and "8 already there" in outcome.err
    found = [json.loads(path.read_text())["experiment"] for path in RUNS.glob("*.json")]
    rows = sorted((run["method"], run["hyperparameters"].get("lr", 0), run["seed"], str(run["tasks"])) for run in found)
    assert rows == sorted(
        [("simplecil", 0, seed, "10") for seed in (0, 1)]
        + [("linear", lr, seed, "10") for lr in (0.1, 0.2) for seed in (0, 1)]
        + [("linear", 0.3, 3, "4"), ("linear", 0.3, 3, "[20, 10, 10]")]
    )


def test_the_command_line_wins_over_the_file(cl_bench: Cli) -> None:
    Path("mine.yaml").write_text(SUITE)
    changes = ["--benchmark", "icons-100", "--seeds", "7", "--tasks", "5"]
    assert cl_bench("run", "--suite", "mine.yaml", *changes, *TRIAL).code == 0
    found = [json.loads(path.read_text())["experiment"] for path in RUNS.glob("*.json")]
    assert {(run["benchmark"], run["seed"], run["tasks"]) for run in found} == {("icons-100", 7, 5)}
    assert len(found) == 4


def test_a_papers_suite_on_the_embedded_stream(cl_bench: Cli) -> None:
    """Recipes, weights and tasks of the paper's benchmark do not go along, the numbers of tasks do."""
    outcome = cl_bench("run", "--suite", "sdlora-table4", "--benchmark", "icons-100", "--seeds", "0", "--dry-run")
    assert outcome.code == 0, outcome
    lines = [line for line in outcome.out.splitlines() if "icons-100" in line]
    assert len(lines) == 8 and all("vit_tiny_patch8_32.icons" in line and "missing" in line for line in lines)
    assert not RUNS.exists()


def test_a_dry_run_needs_neither_data_nor_weights(
    cl_bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    outcome = cl_bench("run", "--suite", "sdlora-table4", "--seeds", "0", "--dry-run", "--device", "cpu")
    assert outcome.code == 0, outcome
    lines = [line for line in outcome.out.splitlines() if "imagenet-r" in line and "no data" in line]
    assert len(lines) == 8 and "8 run(s): 0 stored, 8 to do" in outcome.out
    assert "cl-bench data prepare imagenet-r" in outcome.err and "are not on this machine" in outcome.err
    refused = cl_bench("run", "--suite", "sdlora-table4", "--seeds", "0", "--device", "cpu")
    assert_refused(refused, "imagenet-r is not there")


def test_a_folder_of_ones_own_needs_no_network(cl_bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for part in ("train", "test"):
        for label in "abcd":
            trees.save(tmp_path / "pictures" / part / label / "1.png")
    command = ("run", "--methods", "simplecil", "--benchmark", "folder:pictures", "--device", "cpu")
    outcome = cl_bench(*command)
    assert outcome.code == 0, outcome
    assert "runs on vit_tiny_patch4_32.tinyimagenet156, which ships with cl-bench; --backbone names" in outcome.err
    wanted = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert_refused(cl_bench(*command, "--backbone", wanted), f"the weights of '{wanted}' are not on this machine")


def test_a_dry_run_tells_what_is_there_and_how_long_the_rest_takes(cl_bench: Cli) -> None:
    command = ["run", "--methods", "sdlora[epochs=1],coda[epochs=1]", *TRIAL]
    assert cl_bench(*command, "--seeds", "0").code == 0
    outcome = cl_bench(*command, "--seeds", "0-1", "--dry-run")
    assert outcome.code == 0, outcome
    states = [line.split()[-2:] for line in outcome.out.splitlines() if line.strip().startswith(("sdlora", "coda"))]
    assert [state for state, _ in states if state == "missing"] == ["missing"] * 2
    assert len([line for line in outcome.out.splitlines() if line.rstrip().endswith("stored")]) == 2
    # Another seed of a stored run, so that its time can be estimated.
    assert all(float(minutes) >= 0 for state, minutes in states if state == "missing")
    assert "4 run(s): 2 stored, 2 to do" in outcome.out
    unknown = cl_bench("run", "--methods", "linear", "--dry-run")
    assert "no times" in " ".join(unknown.out.split())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("title: x\nruns: []", ["mine.yaml", "no list 'runs'"]),
        (
            "title: x\nruns:\n  - methods: sdlora\n    seed: 3",
            ["mine.yaml", "run 1", "unknown option 'seed'", "Did you mean 'seeds'"],
        ),
        ("title: x\nruns:\n  - benchmark: icons-100", ["mine.yaml", "run 1", "option 'methods' is missing"]),
        ("title: x\nruns: sdlora", ["no list 'runs'"]),
        ("title: x\nruns: [sdlora]", ["must be fields"]),
        ("{", ["is no YAML"]),
        ("title: x\nruns:\n  - methods: sdlroa", ["unknown method 'sdlroa'", "Did you mean 'sdlora'"]),
        ("title: x\nruns:\n  - methods: sdlora\n    tasks: many", ["--tasks 'many' cannot be read"]),
        ("title: x\nruns:\n  - methods: sdlora\n    size: -1", ["mine.yaml", "--size '-1' is not valid", "at least 1"]),
        ("", ["mine.yaml", "no list 'runs'"]),
        ("runs: [{methods: sdlora}]", ["has no title"]),
        ("title: x\ndefaults:\nruns: [{methods: sdlora}]", ["must be fields"]),
        ("null: 1\ntitle: x\nruns: [{methods: sdlora}]", ["unknown field", "'null'"]),
        (f"{HEAD}  seeds:\n", ["run 1: --seeds cannot be read (nothing)"]),
        (f"{HEAD}  seeds: true\n", ["run 1: --seeds 'true' cannot be read"]),
        (f"{HEAD}  seeds: 2026-01-01\n", ["--seeds '2026-01-01' cannot be read"]),
        (f"{HEAD}  seeds: 1:30\n", ["--seeds '1:30' cannot be read"]),
        (f"{HEAD}  seeds: .inf\n", ["--seeds '.inf' cannot be read"]),
        (f"{HEAD}  seeds: [[0]]\n", ["--seeds cannot be read ([0])"]),
        (f"{HEAD}  seeds: {{a: 1}}\n", ["--seeds cannot be read ({'a': 1})"]),
        (f"{HEAD}  seeds: {'9' * 5_000}\n", ["--seeds '999", "is out of range"]),
        (f"{HEAD}  order: permutation:{'1' * 5_000}\n", ["--order 'permutation:111", "is no class order"]),
        (f"{HEAD}  seeds: 1\n  seeds: 2\n", ["line 5", "the key 'seeds' comes twice"]),
        (f"{HEAD}\tseeds: 1\n", ["line 4", "tab"]),
        (f"{HEAD}  ? [seeds]\n  : 1\n", ["line 4", "a key must be a text"]),
        (f"{HEAD}  1: 2\n", ["unknown option '1'"]),
        (f"{HEAD}  seeds: !!python/name:os.system x\n", ["line 4", "the tag", "os.system' is unknown"]),
        (f"{HEAD}---\ntitle: y\n", ["line 4", "a second document"]),
        (f'{HEAD}  method_file: "a\\0.py"\n', ["line 4", "zero byte"]),
        (f"{HEAD}  root: {'a' * 5_000}\n", ["--root 'aaa", "can be no path"]),
        (f"{HEAD}  benchmark: folder:{'a' * 5_000}\n", ["there is no folder '"]),
        ("title: x\nruns: " + "[" * 20_000, ["line 2", "nested more than 20 deep"]),
        ("a: &a [*a]", ["line 1", "there is no '&a' before '*a'"]),
        (BOMB, ["aliases stand for more than 10,000 values"]),
    ],
)
def test_files_that_are_no_suites(cl_bench: Cli, content: str, parts: list[str]) -> None:
    Path("mine.yaml").write_text(content)
    assert_refused(cl_bench("run", "--suite", "mine.yaml"), *parts)


TUNED = """\
[[tuned]]
method = "sdlora"
stream = "icons-tune"
score = 0.9
trials = 16
seeds = [100, 101]
minutes = 7.0
revision = 1
values = {lr = 0.1}
"""


def test_recipes_are_read_with_a_byte_order_mark_and_kept_when_others_are_written(tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text("\ufeff[unified]\nepochs = 3\n" + TUNED, encoding="utf-8")
    (entry,) = recipes.read(path)
    assert entry.values == {"lr": 0.1}
    recipes.write(path, [entry.model_copy(update={"method": "coda"})])
    assert [other.method for other in recipes.read(path)] == ["coda", "sdlora"]
    assert "epochs = 3" in path.read_text()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["holds no recipes"]),
        ("tunned = []", ["unknown field of the file 'tunned'", "Did you mean 'tuned'"]),
        ("tuned = 3", ["tuned: input should be a valid list"]),
        (TUNED.replace("method", "metod"), ["unknown field of entry 1 of 'tuned' 'metod'", "Did you mean 'method'"]),
        (TUNED.replace("score = 0.9\n", ""), ["entry 1 of 'tuned' has no 'score'"]),
        (TUNED + TUNED.replace("16", "true"), ["entry 2 of 'tuned': trials: input should be a valid integer"]),
        (TUNED.replace("[100, 101]", "[[100]]"), ["entry 1 of 'tuned': seeds.0: input should be a valid integer"]),
        (TUNED.replace("0.1", "nan"), ["tuned.1.values.lr is nan", "finite"]),
        (TUNED.replace("0.9", "inf"), ["tuned.1.score is inf"]),
        (TUNED.replace("0.1", "2026-01-01"), ["tuned.1.values.lr is a date"]),
        (TUNED.replace("0.1", "[[1]]"), ["entry 1 of 'tuned': values.lr: expected a text, a number"]),
        (TUNED.replace("0.1", "9" * 5_000), ["no TOML", "too many digits"]),
        (TUNED.replace("0.1", "0x" + "f" * 5_000), ["values.lr is a number of more than 18 digits"]),
        (TUNED.replace("0.1", "[" * 20_000), ["no TOML", "nested too deeply"]),
        (TUNED + "values = 3\n# end\n", ["no TOML", "line 10"]),
        ("a." * 100_000 + "a = 1", ["line 1", "50 parts"]),
        ("x = {" + "a . " * 100_000 + "a = 1}", ["line 1", "50 parts"]),
    ],
)
def test_files_that_are_no_recipes(cl_bench: Cli, content: str, parts: list[str]) -> None:
    Path("mine.toml").write_text(content)
    refused = cl_bench("run", "--methods", "sdlora", "--recipes", "mine.toml")
    assert_refused(refused, "recipes file 'mine.toml'", *parts)
    assert len(refused.err) < 500


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_suite_is_read_however_it_is_encoded(mark: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes((mark + SUITE).replace("\n", "\r\n").encode(encoding))
    assert [grid.seeds for grid in suites.find(str(path)).runs] == [(0, 1), (3,)]


def test_numbers_are_decimal_and_fields_can_be_merged(tmp_path: Path) -> None:
    """YAML 1.1 would read 010 as 8."""
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\ndefaults: &all {seeds: 010}\nruns:\n- {<<: *all, methods: joint}\n- methods: joint\n")
    assert [grid.seeds for grid in suites.find(str(path)).runs] == [(10,), (10,)]


@pytest.mark.parametrize("flag", ["--suite", "--recipes", "--method-file", "--split-list", "--order"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_at_once(cl_bench: Cli, flag: str, kind: str) -> None:
    os.mkfifo("mine.yaml") if kind == "pipe" else Path("mine.yaml").mkdir()
    Path("own").mkdir()
    what = {"--suite": [], "--split-list": ["--methods", "joint", "--benchmark", "folder:own"]}
    assert_refused(cl_bench("run", *what.get(flag, ["--methods", "joint"]), flag, "mine.yaml"), "mine.yaml")


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["sdlora", "0-4"])
)
FIELDS = st.sampled_from(["title", "runs", "defaults", *options_of(RunOptions), "x"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3))
RUN = st.dictionaries(FIELDS, VALUES, max_size=3).map(lambda run: {"methods": "sdlora"} | run)
TOML = st.recursive(
    LEAVES.filter(lambda leaf: leaf is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys((*recipes.Tuned.model_fields, "metod"), TOML))
ENTRIES = st.lists(ENTRY, max_size=2) | TOML
DOCUMENTS = VALUES | st.fixed_dictionaries({"title": st.just("x"), "runs": st.lists(RUN, max_size=2)})


@settings(deadline=None, max_examples=2_000 if SOAK else 40, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.text(), st.text("[]{}:,-&*!?|>'\"#%@ \n\ta1"), DOCUMENTS.map(yaml.dump), DOCUMENTS.map(json.dumps)))
def test_any_text_is_a_suite_or_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert wanted_options({}, str(path))
    except UserError as error:
        assert "any.yaml" in str(error) and "\n" not in str(error)


@settings(deadline=None, max_examples=2_000 if SOAK else 40, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(st.text(), st.text("[]{}=.,'\"# \nae1"), st.dictionaries(st.sampled_from(["tuned", "unified"]), ENTRIES))
)
def test_any_text_is_a_recipes_file_or_one_sentence(tmp_path: Path, text: str | dict[str, object]) -> None:
    path = tmp_path / "any.toml"
    path.write_text(text if isinstance(text, str) else tomli_w.dumps(text), encoding="utf-8")
    try:
        assert all(isinstance(entry, recipes.Tuned) for entry in recipes.read(path))
    except UserError as error:
        assert "any.toml" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--suite", "sdlora-table7"], ["unknown suite 'sdlora-table7'", "sdlora-table"]),
        (["--suite", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--suite", "quickstart", "--methods", "sdlora"], ["--suite", "not both"]),
        ([], ["--methods"]),
    ],
)
def test_commands_that_name_no_suite(cl_bench: Cli, arguments: list[str], parts: list[str]) -> None:
    assert_refused(cl_bench("run", *arguments), *parts)


FAILING = """
from cl_bench.methods.simplecil import SimpleCIL
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, eq=False)
class Failing(SimpleCIL):
    fails: bool = True

    def after_task(self, task, images):
        if self.fails:
            raise RuntimeError("this method cannot learn")
        super().after_task(task, images)
"""


@pytest.mark.parametrize("fast", [False, True])
def test_a_run_that_fails_stops_the_others_only_if_wanted(cl_bench: Cli, fast: bool) -> None:
    Path("failing.py").write_text(FAILING)
    methods = "failing[fails=true|false],simplecil"
    command = ["run", "--method-file", "failing.py", "--methods", methods, *TRIAL]
    outcome = cl_bench(*command, *(["--fail-fast"] if fast else []))
    assert outcome.code == 1
    assert "failed: RuntimeError: this method cannot learn" in outcome.err
    assert len(list(RUNS.glob("*.json"))) == (0 if fast else 2)
    assert ("2 not begun (--fail-fast)" in outcome.err) == fast
