"""The command line, through its entry point: what it computes, refuses, survives and prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cl_bench import backbones
from cl_bench.store import CHECKPOINTS
from tests.helpers import ROOT, gate, processes
from tests.helpers.command import RUNS, TRIAL, Cli, Outcome, assert_refused, computed, rows, stored, tree
from tests.helpers.factories import experiment, record, write

pytestmark = pytest.mark.usefixtures("plain_and_single_threaded")

QUICK = [*TRIAL, "--epochs", "1"]


def recomputed(run: dict[str, Any]) -> tuple[float, float, float]:
    """acc, aaa and forgetting in percent, from the definitions and a stored JSON alone."""
    correct, total = run["correct"], run["total"]
    curve = [sum(row[: t + 1]) / sum(total[: t + 1]) for t, row in enumerate(correct)]
    lost = [
        max(correct[t][j] for t in range(j, len(total))) / total[j] - correct[-1][j] / total[j]
        for j in range(len(total) - 1)
    ]
    return 100 * curve[-1], 100 * sum(curve) / len(curve), 100 * sum(lost) / len(lost)


# --- run and report -----------------------------------------------------------------------------------------


def test_run_stores_counts_that_give_the_printed_table(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "sdlora[epochs=2],coda[epochs=1]", *TRIAL)
    assert outcome.code == 0 and computed(outcome) == (2, 0)
    records = sorted(RUNS.glob("*.json"))
    assert len(records) == 2 and set(RUNS.iterdir()) == {*records, *map(arrays_of, records)}
    printed = rows(outcome.out)
    assert set(printed) == {"sdlora[epochs=2]", "coda[epochs=1]"}
    for run in stored():
        assert run["total"] == [20, 20]
        (first, unseen), last = run["correct"]
        assert unseen is None and all(type(hits) is int and 0 <= hits <= 20 for hits in (first, *last))
        assert all(type(hits) is int and 0 <= hits <= 20 for row in run["correct_task_aware"] for hits in row)
        assert printed[run["label"]][:3] == [f"{value:.2f}" for value in recomputed(run)]
        assert printed[run["label"]][3] == "1"


def test_run_computes_nothing_twice_unless_forced(cl_bench: Cli) -> None:
    command = ["run", "--methods", "sdlora,simplecil", *TRIAL]
    set_epochs = ["--set", "sdlora.epochs=1"]
    first = cl_bench(*command, *set_epochs)
    files = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in RUNS.iterdir()}
    again = cl_bench(*command, *set_epochs)
    assert computed(again) == (0, 2) and "task" not in again.err
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in RUNS.iterdir()} == files
    assert rows(again.out) == rows(first.out)

    same = ("key", "correct", "correct_task_aware", "arrays_sha256")
    results = [[run[field] for field in same] for run in stored()]
    forced = cl_bench(*command, *set_epochs, "--force")
    assert computed(forced) == (2, 0)
    assert [[run[field] for field in same] for run in stored()] == results
    records = sorted(RUNS.glob("*.json"))
    assert len(records) == 2 and set(RUNS.iterdir()) == {*records, *map(arrays_of, records)}
    assert all(path.stat().st_mtime_ns > files[path][1] for path in RUNS.glob("*.json"))


def test_a_value_for_all_methods_applies_to_those_that_have_it(cl_bench: Cli) -> None:
    """The others run as they do without it, under the same keys, and one line names them."""
    options = ["--epochs", "1", "--set", "rank=2"]
    outcome = cl_bench("run", "--methods", "simplecil,linear,sdlora", *options, "--dry-run", *TRIAL)
    assert outcome.code == 0
    planned = [line.split()[0] for line in outcome.out.splitlines() if " icons-100 " in line]
    assert planned == ["simplecil", "linear[epochs=1]", "sdlora[epochs=1,rank=2]"]
    assert outcome.err.splitlines() == [
        "warning: rank=2 does not apply to simplecil, linear, which have no 'rank'",
        "warning: epochs=1 does not apply to simplecil, which has no 'epochs'",
    ]
    assert computed(cl_bench("run", "--methods", "simplecil", *TRIAL)) == (1, 0)
    assert computed(cl_bench("run", "--methods", "simplecil,linear", "--epochs", "1", *TRIAL)) == (1, 1)


def test_a_suite_takes_a_value_that_one_of_its_grids_has(cl_bench: Cli) -> None:
    Path("two.yaml").write_text("title: two grids\nruns: [{methods: simplecil}, {methods: linear}]\n")
    outcome = cl_bench("run", "--suite", "two.yaml", "--epochs", "1", "--dry-run", *TRIAL)
    assert outcome.code == 0 and "linear[epochs=1]" in outcome.out
    assert outcome.err.splitlines() == ["warning: epochs=1 does not apply to simplecil, which has no 'epochs'"]
    assert_refused(cl_bench("run", "--suite", "two.yaml", "--set", "epoch=1", *TRIAL), "Did you mean 'epochs'?")


def test_seeds_give_an_interval(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "simplecil", "--seeds", "0-1,3", *TRIAL)
    values = np.array([recomputed(run) for run in stored()])
    assert len(values) == 3 and len({run["key"] for run in stored()}) == 3
    half = stats.t.ppf(0.975, 2) * values.std(axis=0, ddof=1) / 3**0.5
    printed = rows(outcome.out)["simplecil"]
    assert printed[:3] == [f"{m:.2f} ± {h:.2f}" for m, h in zip(values.mean(axis=0), half, strict=True)]
    assert printed[3] == "3"


def test_report_renders_the_same_table_from_the_store_alone(cl_bench: Cli, tmp_path: Path) -> None:
    run = cl_bench("run", "--methods", "sdlora[epochs=1],simplecil", "--seeds", "0,1", *TRIAL)
    moved = tmp_path / "elsewhere" / "kept"
    shutil.copytree(RUNS, moved)
    shutil.rmtree("results")
    before = tree(moved)
    outcome = cl_bench("report", "--results", str(moved), "--out", "pages")
    assert outcome.code == 0 and outcome.err == ""
    assert rows(outcome.out) == rows(run.out) and len(rows(run.out)) == 2
    assert tree(moved) == before
    assert "pages/index.html" in outcome.out
    page = Path("pages/index.html").read_text()
    for label, cells in rows(run.out).items():
        assert label in page and cells[0] in page
    files = [path for path in Path("pages").rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.parent.name == "tables"} == {".md", ".csv", ".tex", ".html"}
    assert {path.suffix for path in files if path.parent.name == "figures"} == {".csv"}
    assert all(path.stat().st_size for path in files)


def test_report_reads_the_default_folders(cl_bench: Cli) -> None:
    write(RUNS, record("alpha"))
    write(Path("results/reference"), record("beta"))
    outcome = cl_bench("report")
    assert outcome.code == 0 and set(rows(outcome.out)) == {"alpha", "beta"}
    assert Path("reports/index.html").is_file()


def test_light_commands_import_neither_torch_nor_avalanche(tmp_path: Path) -> None:
    (path,) = write(tmp_path / RUNS, record())
    key = json.loads(path.read_text())["key"]
    code = f"""
import sys
from cl_bench import cli
citing = (["cite", "coda"], ["cite", "--results", "{RUNS}"])
for arguments in (["--help"], ["run", "--help"], ["show", "{key}"], ["report"], *citing):
    sys.argv = ["cl-bench", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, arguments
    heavy = {{"torch", "avalanche", "timm"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert key in done.stdout and "new-method" in done.stdout
    assert (tmp_path / "reports" / "index.html").is_file()


# --- bad input ----------------------------------------------------------------------------------------------

SDLORA = ["run", "--methods", "sdlora", *TRIAL]
BAD = {
    "unknown method": (["run", "--methods", "sdlroa"], ["'sdlroa'", "Did you mean 'sdlora'?"]),
    "one of two methods unknown": (["run", "--methods", "sdlora,codas"], ["'codas'", "Did you mean 'coda'?"]),
    "unknown benchmark": ([*SDLORA, "--benchmark", "icons-10"], ["'icons-10'", "Did you mean 'icons-100'?"]),
    "unknown backbone": (
        [*SDLORA, "--backbone", "vit_tiny_patch8_32.icon"],
        ["'vit_tiny_patch8_32.icon'", "Did you mean 'vit_tiny_patch8_32.icons'?"],
    ),
    "unknown key": ([*SDLORA, "--set", "sdlora.rnak=2"], ["'rnak'", "Did you mean 'rank'?"]),
    "unknown unqualified key": ([*SDLORA, "--set", "rnak=2"], ["'rnak'", "Did you mean 'rank'?"]),
    "unknown key in brackets": (["run", "--methods", "sdlora[rnak=2]"], ["'rnak'", "Did you mean 'rank'?"]),
    "not a number": ([*SDLORA, "--set", "sdlora.rank=many"], ["sdlora.rank = 'many'", "integer"]),
    "negative": ([*SDLORA, "--set", "sdlora.rank=-1"], ["sdlora.rank = '-1'", "greater than 0"]),
    "not a choice": ([*SDLORA, "--set", "optimizer=foo"], ["optimizer = 'foo'", "'sgd', 'adam' or 'adamw'"]),
    "not key=value": ([*SDLORA, "--set", "rank"], ["'rank'", "key=value"]),
    "not key=value nor a key": ([*SDLORA, "--set", "fast"], ["'fast'", "key=value"]),
    "no value": ([*SDLORA, "--set", "sdlora.rank="], ["'sdlora.rank='", "key=value"]),
    "--set for another method": ([*SDLORA, "--set", "coda.lr=1"], ["'coda'", "--methods"]),
    "--set that no method has": (
        ["run", "--methods", "sdlora,coda,simplecil", "--set", "rnak=2"],
        ["hyper-parameter of these methods 'rnak'", "Did you mean 'rank'?"],
    ),
    "--set for a method that lacks it": (
        ["run", "--methods", "simplecil,sdlora", "--set", "simplecil.epochs=1"],
        ["hyper-parameter of 'simplecil' 'epochs'"],
    ),
    "both kinds of --set, for a method that lacks it": (
        ["run", "--methods", "simplecil,sdlora", "--set", "epochs=1", "--set", "simplecil.epochs=1"],
        ["hyper-parameter of 'simplecil' 'epochs'"],
    ),
    "--epochs for methods without": (["run", "--methods", "simplecil", "--epochs", "1"], ["'simplecil' 'epochs'"]),
    "bracket left open": (["run", "--methods", "sdlora[rank=2"], ["'sdlora[rank=2'", "NAME[key=value"]),
    "bracket never opened": (["run", "--methods", "sdlora]"], ["'sdlora]'", "NAME[key=value"]),
    "nested brackets": (["run", "--methods", "sdlora[rank=[2]]"], ["'sdlora[rank=[2]]'", "NAME[key=value"]),
    "bracket without value": (["run", "--methods", "sdlora[rank]"], ["'rank'", "key=value"]),
    "missing alternative": (["run", "--methods", "sdlora[rank=2|]"], ["sets an option twice or to nothing", "key=a|b"]),
    "two commas": (["run", "--methods", "sdlora,,coda"], ["'sdlora,,coda'", "separated by commas"]),
    "no methods": (["run", "--methods", ""], ["--methods", "empty", "sdlora,coda"]),
    "letters as seeds": ([*SDLORA, "--seeds", "a-b"], ["--seeds 'a-b'", "0-4 or 0,2"]),
    "falling seeds": ([*SDLORA, "--seeds", "4-2"], ["--seeds '4-2'", "rising"]),
    "no seeds": ([*SDLORA, "--seeds", ""], ["--seeds ''", "0-4 or 0,2"]),
    "seed too large": ([*SDLORA, "--seeds", "4294967296"], ["--seeds '4294967296'", "at most 4294967295"]),
    "unknown order": ([*SDLORA, "--order", "sorted"], ["--order 'sorted'", "natural, permutation:K"]),
    "order without number": ([*SDLORA, "--order", "permutation:x"], ["'permutation:x'", "natural, permutation:K"]),
    "order too large": ([*SDLORA, "--order", "permutation:4294967296"], ["'permutation:4294967296'", "4294967295"]),
    "empty order": ([*SDLORA, "--order", ""], ["--order ''", "natural, permutation:K"]),
    "tasks that do not divide": ([*SDLORA, "--tasks", "7"], ["--tasks 7", "100 classes", "icons-100"]),
    "more trial tasks than tasks": (
        ["run", "--methods", "simplecil", "--limit-tasks", "11", "--limit-train", "1"],
        ["--limit-tasks 11", "10 tasks"],
    ),
    "fewer components than tasks": (
        ["run", "--methods", "coda[components=5]", "--limit-train", "1"],
        ["coda.components = 5", "10 tasks", "at least 10"],
    ),
    "results below a file": ([*SDLORA, "--results", "blocked/runs"], ["'blocked/runs'", "writable folder"]),
    "results is a file": ([*SDLORA, "--results", "blocked"], ["'blocked'", "writable folder"]),
    "unknown device": ([*SDLORA, "--device", "gpu"], ["--device 'gpu'", "auto, cpu, cuda or cuda:N"]),
    "report onto a file": (["report", "--out", "blocked"], ["'blocked'", "cannot be written"]),
    "report below a file": (["report", "--out", "blocked/pages"], ["'blocked/pages'", "cannot be written"]),
    "report on an empty folder": (["report", "--results", "empty"], ["'empty'", "cl-bench run"]),
    "report on no folder": (["report", "--results", "nowhere"], ["'nowhere'", "cl-bench run"]),
    "show nothing known": (["show", "sdlroa"], ["'sdlroa'", "Did you mean 'sdlora'?"]),
    "show a paper's name": (
        ["show", "clora"],
        ["Did you mean 'controlled-lora'? 'controlled-lora' is CLoRA (ACL 2025"],
    ),
    "show an unknown key": (["show", "0123456789abcdef"], ["'0123456789abcdef'", "method, benchmark, backbone or run"]),
    "show on an unknown benchmark": (
        ["show", "sdlora", "--benchmark", "icons-10"],
        ["'icons-10'", "Did you mean 'icons-100'?"],
    ),
    "new method with a bad name": (["new-method", "My-Method"], ["'My-Method'", "my_method"]),
    "new method with no letters": (["new-method", "_"], ["'_'", "my_method"]),
    "new method that --methods cannot name": (["new-method", "über"], ["'über'", "my_method"]),
    "new method that exists": (["new-method", "taken"], ["'taken.py'", "exists already"]),
    "new method nowhere": (["new-method", "mine", "--folder", "nowhere"], ["'nowhere/mine.py'", "cannot be written"]),
}


@pytest.fixture
def furnished(cl_bench: Cli) -> Cli:
    """The command line in a folder with a stored result, a file in the way and an empty folder."""
    write(RUNS, record())
    Path("blocked").write_text("a file")
    Path("taken.py").write_text("# mine\n")
    Path("empty").mkdir()
    return cl_bench


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence(furnished: Cli, case: str) -> None:
    arguments, fragments = BAD[case]
    before = tree()
    assert_refused(furnished(*arguments), *fragments)
    assert tree() == before


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["run"], "--methods"),
        ([*SDLORA, "--tasks", "ten"], "--tasks"),
        ([*SDLORA, "--epochs", "0"], "--epochs"),
        ([*SDLORA, "--limit-train", "0"], "--limit-train"),
        (["train"], "train"),
        (["run", "--method", "sdlora"], "unknown option 'method'"),
    ],
)
def test_wrong_usage_is_explained(furnished: Cli, arguments: list[str], fragment: str) -> None:
    before = tree()
    outcome = furnished(*arguments)
    assert outcome.code == 2 and fragment in outcome.err and "Traceback" not in outcome.err
    assert tree() == before


# --- what runs are the same ---------------------------------------------------------------------------------


def test_alternatives_in_brackets_are_runs_of_their_own(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "sdlora[rank=2|4]", *QUICK)
    assert computed(outcome) == (2, 0)
    assert set(rows(outcome.out)) == {"sdlora[epochs=1,rank=2]", "sdlora[epochs=1,rank=4]"}
    assert sorted(run["experiment"]["hyperparameters"]["rank"] for run in stored()) == [2, 4]


def test_every_way_to_set_an_option_is_the_same_run(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "sdlora[rank=2,epochs=1]", *TRIAL)
    assert computed(outcome) == (1, 0) and len(stored()) == 1
    for arguments in (
        ["sdlora", "--set", "sdlora.rank=2", "--epochs", "1"],
        ["sdlora", "--set", "rank=2", "--set", "epochs=1"],
        ["sdlora[rank=2]", "--set", "sdlora.epochs=1"],
        [" sdlora[ rank = 2 , epochs = 1 ] "],
        # Brackets win over --set, and --set METHOD.key over --set key.
        ["sdlora[rank=2]", "--epochs", "1", "--set", "sdlora.rank=4"],
        ["sdlora", "--set", "sdlora.rank=2", "--set", "rank=4", "--epochs", "1"],
        ["sdlora[rank=2]", "--set", "sdlora.epochs=1", "--epochs", "3"],
    ):
        again = cl_bench("run", "--methods", *arguments, *TRIAL)
        assert computed(again) == (0, 1), arguments
        assert rows(again.out) == rows(outcome.out)


def test_the_same_run_asked_for_twice_is_computed_once(cl_bench: Cli) -> None:
    assert computed(cl_bench("run", "--methods", "simplecil,simplecil", "--seeds", "0,0-1", *TRIAL)) == (2, 0)
    assert computed(cl_bench("run", "--methods", "sdlora[rank=2|2]", *QUICK)) == (1, 0)


def test_a_seed_sets_the_class_order_unless_it_is_pinned(cl_bench: Cli) -> None:
    command = ["run", "--methods", "simplecil", *TRIAL]
    cl_bench(*command, "--seeds", "0,1", "--results", "free")
    cl_bench(*command, "--seeds", "0,1", "--order", "permutation:7", "--results", "pinned")
    cl_bench(*command, "--order", "natural", "--results", "natural")
    free, pinned, (natural,) = stored(Path("free")), stored(Path("pinned")), stored(Path("natural"))
    assert [run["experiment"]["class_order"] for run in free] == ["permutation:0", "permutation:1"]
    assert [run["experiment"]["seed"] for run in pinned] == [0, 1]
    assert {run["experiment"]["class_order"] for run in pinned} == {"permutation:7"}
    assert len({run["key"] for run in [*free, *pinned, natural]}) == 5
    order = np.random.RandomState(7).permutation(100)
    assert [run["classes"] for run in pinned] == [[natural["classes"][i] for i in order]] * 2
    assert natural["classes"] == sorted(natural["classes"]) and free[0]["classes"] != free[1]["classes"]
    # The order that the seed would have set anyway makes no other run.
    assert computed(cl_bench(*command, "--order", "permutation:0", "--results", "free")) == (0, 1)


def test_trials_and_task_counts_are_runs_of_their_own(cl_bench: Cli) -> None:
    for arguments in ([], ["--tasks", "5"], ["--limit-train", "2"], ["--benchmark", "icons-tune"]):
        assert computed(cl_bench("run", "--methods", "simplecil", *TRIAL, *arguments)) == (1, 0)
    by_tasks = {(run["experiment"]["benchmark"], run["experiment"]["tasks"]): run for run in stored()}
    assert len({run["key"] for run in stored()}) == 4
    assert by_tasks["icons-100", 5]["total"] == [40, 40] and by_tasks["icons-tune", 10]["total"] == [8, 8]


# --- damaged results ----------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def arrays_of(path: Path) -> Path:
    """The npz that belongs to a stored JSON."""
    (found,) = path.parent.glob(f"{path.stem}-*.npz")
    return found


def move_a_hit(data: dict[str, Any]) -> None:
    data["correct"][0][0] += 1 if data["correct"][0][0] < data["total"][0] else -1


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "empty": lambda path: path.write_bytes(b""),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 9),
    "impossible count": lambda path: edit(path, lambda data: data["correct"][0].__setitem__(0, data["total"][0] + 1)),
    "edited experiment": lambda path: edit(path, lambda data: data["experiment"].update(seed=77)),
    "edited key": lambda path: edit(path, lambda data: data.update(key="0" * 16)),
    "lost field": lambda path: edit(path, lambda data: data.pop("total")),
    "missing npz": lambda path: arrays_of(path).unlink(),
    "altered npz": lambda path: flip(arrays_of(path)),
    "flipped count": lambda path: edit(path, move_a_hit),
    "newer schema": lambda path: edit(path, lambda data: data.update(schema_version=data["schema_version"] + 1)),
}


@pytest.fixture(scope="module")
def computed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a run of simplecil leaves it for the others."""
    return tmp_path_factory.mktemp("computed") / "runs"


@pytest.mark.parametrize("damage", DAMAGES)
def test_run_computes_a_damaged_result_again(cl_bench: Cli, computed_once: Path, damage: str) -> None:
    command = ["run", "--methods", "simplecil", *TRIAL]
    if computed_once.exists():
        shutil.copytree(computed_once, RUNS)
    else:
        cl_bench(*command)
        shutil.copytree(RUNS, computed_once)
    (path,) = RUNS.glob("*.json")
    intact = stored()[0]
    DAMAGES[damage](path)
    outcome = cl_bench(*command)
    assert outcome.code == 0 and computed(outcome) == (1, 0)
    assert outcome.err.count("warning:") == 1 and "will be computed again" in outcome.err and path.stem in outcome.err
    assert [run["correct"] for run in stored()] == [intact["correct"]]
    after = cl_bench(*command)
    assert computed(after) == (0, 1) and "warning" not in after.err


def test_report_names_damaged_results_and_renders_the_others(cl_bench: Cli) -> None:
    intact = write(RUNS, record("alpha"), record("beta"))
    damaged = write(RUNS, *(record("beta", seed) for seed in range(1, len(DAMAGES) + 1)))
    for damage, path in zip(DAMAGES.values(), damaged, strict=True):
        damage(path)
    outcome = cl_bench("report")
    assert outcome.code == 0
    warnings = outcome.err.splitlines()
    assert len(warnings) == len(damaged) and all(line.startswith("warning: skipped") for line in warnings)
    page = Path("reports/index.html").read_text()
    for path in damaged:
        assert sum(path.stem in line for line in warnings) == 1, path
        assert path.stem in page
    printed = rows(outcome.out)
    assert set(printed) == {"alpha", "beta"} and printed["beta"][3] == "1"
    for path in intact:
        run = json.loads(path.read_text())
        assert printed[run["label"]][0] == f"{recomputed(run)[0]:.2f}"


def test_a_renamed_result_is_not_taken_for_another(cl_bench: Cli) -> None:
    command = ["run", "--methods", "simplecil", "--seeds", "0,1", *TRIAL]
    cl_bench(*command)
    first, second = sorted(RUNS.glob("*.json"))
    intact = stored()
    shutil.copy(first, second)
    shutil.copy(first, RUNS / "copy.json")
    report = cl_bench("report")
    assert report.code == 0 and report.err.count("warning:") == 2
    assert second.name in report.err and "copy.json" in report.err
    assert rows(report.out)["simplecil"][3] == "1"
    outcome = cl_bench(*command)
    assert computed(outcome) == (1, 1) and second.name in outcome.err
    (RUNS / "copy.json").unlink()
    assert [run["correct"] for run in stored()] == [run["correct"] for run in intact]


def test_a_store_with_damaged_results_only_is_no_report(cl_bench: Cli) -> None:
    (path,) = write(RUNS, record())
    DAMAGES["truncated"](path)
    assert_refused(cl_bench("report"), path.name)
    assert not Path("reports").exists()


# --- faults -------------------------------------------------------------------------------------------------


def test_corrupt_assets_are_refused(tmp_path: Path) -> None:
    copied = tmp_path / "site" / "cl_bench"
    for folder in ("cl_bench", "methods"):
        shutil.copytree(ROOT / folder, copied.parent / folder, ignore=shutil.ignore_patterns("__pycache__"))
    names = ["icons.npz.xz", backbones.find("vit_tiny_patch8_32.icons").asset]
    for name in names:
        shutil.copy(copied / "assets" / name, tmp_path / name)
        flip(copied / "assets" / name)
    # One process for both, because importing takes most of the time: the first file is mended for the second call.
    code = f"""
import shutil, sys
from pathlib import Path
from cl_bench import cli
assets = Path(cli.__file__).parents[1] / "assets"
assert assets.samefile({str(copied / "assets")!r})
for name in {names!r}:
    sys.argv = ["cl-bench", "run", "--methods", "simplecil", *{TRIAL!r}]
    try:
        cli.main()
    except SystemExit as stop:
        print(stop.code)
    shutil.copy(name, assets)
"""
    env = os.environ | {"PYTHONPATH": str(copied.parent), "COLUMNS": "200"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "2"] and done.returncode == 0, done
    lines = done.stderr.splitlines(keepends=True)
    assert len(lines) == 2, done.stderr
    for name, line in zip(names, lines, strict=True):
        assert_refused(Outcome(2, "", line), name, "damaged", "SHA-256", "reinstall")
    assert not list((tmp_path / RUNS).iterdir())


def test_interrupt_keeps_finished_runs(cl_bench: Cli, tmp_path: Path) -> None:
    command = ["run", *gate.GATED, "gated", "--seeds", "0-2", "--set", "epochs=1", "--set", "batch_size=8", *TRIAL]
    log = tmp_path / "log"
    gate.lay(tmp_path, 0, 1)
    started = processes.start(tmp_path, *command)
    # Through both gates of the first run and the first one of the second; each is closed again behind it.
    for task, following in ((0, 1), (1, 0), (0, 1)):
        gate.wait(partial(gate.reached, tmp_path, task), started.is_alive, log)
        gate.close(tmp_path, following)
        (tmp_path / f"closed-{task}").unlink()
    gate.wait(partial(gate.reached, tmp_path, 1), started.is_alive, log)
    assert started.pid is not None
    os.kill(started.pid, signal.SIGINT)
    started.join()
    gate.open_gates(tmp_path)
    assert started.exitcode == 130, log.read_text()
    of_all, *progress, last = log.read_text().splitlines()
    assert of_all.startswith("gated[batch_size=8,epochs=1]: ")
    assert last.startswith("interrupted;") and all(line.startswith("[") for line in progress)
    assert any(line.startswith("[2/3]") for line in progress)
    finished = stored()
    assert len(finished) == 1
    # Besides these, only the checkpoint of the run that was interrupted.
    assert {path.suffix for path in RUNS.iterdir() if path.name != CHECKPOINTS} == {".json", ".npz"}
    assert not [path for path in RUNS.iterdir() if path.name.startswith(".") and path.name != CHECKPOINTS]
    outcome = cl_bench(*command)
    assert not (RUNS / CHECKPOINTS).exists()
    assert computed(outcome) == (3 - len(finished), len(finished)) and "warning" not in outcome.err
    assert [run["experiment"]["seed"] for run in stored()] == [0, 1, 2]
    assert [run for run in stored() if run["key"] in {r["key"] for r in finished}] == finished


def test_a_run_that_fails_is_reported_and_not_stored(cl_bench: Cli) -> None:
    assert cl_bench("new-method", "shaky").code == 0
    source = Path("shaky.py").read_text()
    broken = source.replace(
        "        loss = ", "        if task.index == 1:\n            raise ValueError('out of ideas')\n        loss = "
    )
    assert broken != source
    Path("shaky.py").write_text(broken)
    outcome = cl_bench("run", "--method-file", "shaky.py", "--methods", "shaky,simplecil", "--seeds", "0,1", *TRIAL)
    assert outcome.code == 1 and computed(outcome) == (2, 0)
    *_, first, second = outcome.err.splitlines()
    (line,) = (number for number, text in enumerate(broken.splitlines(), start=1) if "out of ideas" in text)
    place = f"(shaky.py, line {line}, in phases)"
    assert first == f"error: shaky seed 0 failed: ValueError: out of ideas {place}"
    assert second == f"error: shaky seed 1 failed: ValueError: out of ideas {place}"
    assert [run["label"] for run in stored()] == ["simplecil"] * 2
    assert len([path for path in RUNS.iterdir() if path.name != CHECKPOINTS]) == 4
    assert set(rows(outcome.out)) == {"simplecil"}


# --- what is printed ----------------------------------------------------------------------------------------


def test_progress_is_plain_lines_where_there_is_no_terminal(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "sdlora,simplecil", "--set", "sdlora.epochs=1", *TRIAL)
    for text in (outcome.out, outcome.err):
        assert all(character.isprintable() or character == "\n" for character in text)
    of_sdlora, of_simplecil, *progress, last = outcome.err.splitlines()
    assert of_sdlora.startswith("sdlora[epochs=1]: tuned, best of 16 settings, epochs=1, batch_size=32, lr=")
    assert of_simplecil == "simplecil: no hyper-parameters"
    names = ["[1/2] sdlora[epochs=1]", "[2/2] simplecil"]
    expected = [f"{name} seed 0 task {task}/2" for name in names for task in (1, 2)]
    assert [line.split(":")[0] for line in progress] == expected
    assert all(re.search(r": [\d.]+ % after \d+ s$", line) for line in progress)
    by_label = {run["label"]: run for run in stored()}
    assert f"2/2: {recomputed(by_label['simplecil'])[0]:.1f} %" in progress[3]
    assert str(RUNS) in last


def test_listings_name_the_facts(cl_bench: Cli) -> None:
    methods, benchmarks = cl_bench("ls", "methods").out, cl_bench("ls", "benchmarks").out
    assert re.search(r"^ *sdlora +SD-LoRA .*2501\.13198\) +1 .*no *$", methods, re.MULTILINE)
    assert re.search(r"^ *coda +CODA-Prompt .*2211\.13218\) +2 .*yes *$", methods, re.MULTILINE)
    assert re.search(r"^ *icons-100 +10 +100 ", benchmarks, re.MULTILINE)
    assert re.search(r"^ *icons-tune +10 +40 ", benchmarks, re.MULTILINE)
    weights = backbones.find("vit_tiny_patch8_32.icons").weights
    assert re.search(
        rf"^ *vit_tiny_patch8_32\.icons +1x32x32 +{weights[:8]} ", cl_bench("ls", "backbones").out, re.MULTILINE
    )


def test_show_prints_the_recipe_for_a_backbone_and_what_it_was_trained_on(cl_bench: Cli) -> None:
    name = "vit_tiny_patch4_32.tinyimagenet156"
    shown = cl_bench("show", "sdlora", "--benchmark", "cifar100", "--backbone", name)
    assert shown.code == 0 and re.search(r"^ *lr +0\.01 +0\.16 *$", shown.out, re.MULTILINE), shown.out
    card = " ".join(cl_bench("show", name).out.split())
    assert "77,993 images of 156 classes (images of ImageNet: non-commercial research)" in card
    assert "frozen, on CIFAR-100: nearest mean 44.2 %" in card
    unknown = cl_bench("show", "sdlora", "--backbone", "vit_tiny.nothing")
    assert unknown.code == 2 and "vit_tiny.nothing" in unknown.err


def test_show_prints_methods_benchmarks_and_backbones(cl_bench: Cli) -> None:
    method = cl_bench("show", "sdlora")
    assert method.code == 0 and "2501.13198" in method.out and "revision" in method.out
    assert re.search(r"^ *alpha_init +0\.8 ", method.out, re.MULTILINE)
    benchmark = cl_bench("show", "icons-100").out
    assert "100 classes in 10 tasks" in benchmark and re.search(r"[1-9]\d* training images", benchmark)
    cl_bench("run", "--methods", "simplecil", "--order", "natural", *TRIAL)
    assert all(name in benchmark.replace("\n", " ") for name in stored()[0]["classes"])
    backbone = cl_bench("show", "vit_tiny_patch8_32.icons").out
    assert backbones.find("vit_tiny_patch8_32.icons").weights in backbone and "patch_size" in backbone


def test_show_finds_a_run_by_the_start_of_its_key(cl_bench: Cli) -> None:
    run = record("alpha", 3)
    write(RUNS, run, record("beta", 4))
    outcome = cl_bench("show", run.key[:8])
    assert outcome.code == 0 and run.key in outcome.out and "alpha seed 3" in outcome.out
    assert '"class_order": "permutation:3"' in outcome.out
    first = 100 * (run.correct[0][0] or 0) / run.total[0]
    assert re.search(rf"stage 1 \D*{first:.1f}\b", outcome.out)


def test_show_asks_for_more_digits_where_two_runs_fit(cl_bench: Cli) -> None:
    seen: dict[str, int] = {}
    for seed in count():
        start = experiment(seed=seed).key[:4]
        if start in seen:
            break
        seen[start] = seed
    one, two = record(seed=seen[start]), record(seed=seed)
    write(RUNS, one, two)
    assert_refused(cl_bench("show", start), f"'{start}'", "2 runs", "more digits")
    length = next(n for n in range(4, 17) if one.key[:n] != two.key[:n])
    assert two.key in cl_bench("show", two.key[:length]).out
