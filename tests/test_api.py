"""The Python API: `cl_bench.run`, `load` and `report` do what the command line does."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cl_bench as package
from cl_bench import metrics
from cl_bench.reporting.frames import run_frame
from cl_bench.reporting.runs import label_runs
from cl_bench.store import CHECKPOINTS, Store
from tests.helpers import ROOT, logs, processes
from tests.helpers.command import RUNS, TRIAL, Cli, computed, rows, stored, tree
from tests.helpers.damage import cut_short
from tests.helpers.factories import record, write

pytestmark = pytest.mark.usefixtures("plain_and_single_threaded")

CUT: dict[str, Any] = {"limit_tasks": 2, "limit_train": 3, "limit_test": 2}
"""`TRIAL` in Python."""


def saved(script: str, folder: Path) -> Path:
    """The script as a file there."""
    path = folder / "script.py"
    path.write_text(script)
    return path


# --- import cl_bench ------------------------------------------------------------------------------------------


def public() -> dict[str, str]:
    """The names that type checkers see in `cl_bench`, with the modules they come from."""
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or "": node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_and_python_see_the_same_names() -> None:
    names = public()
    assert set(dir(package)) == {*names, "__version__"}
    assert names.keys() >= {"run", "load", "report", "Method", "GradientMethod", "Task", "Phase", "FeatureModel"}
    for name, module in names.items():
        value = getattr(package, name)
        assert value is getattr(importlib.import_module(module), name)
        assert value.__module__ == module, f"{name} is not defined in {module}"
    assert (ROOT / "cl_bench" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="module 'cl_bench' has no attribute 'runs'"):
        _ = package.runs


def test_results_are_read_without_torch(tmp_path: Path) -> None:
    write(tmp_path / RUNS, record())
    script = saved(
        "import sys\nimport cl_bench\n"
        "assert not {'torch', 'avalanche', 'timm', 'pandas', 'rich'} & set(sys.modules), 'at import'\n"
        "assert len(cl_bench.load()) == 10\n"
        "assert cl_bench.report().is_file()\n"
        "cl_bench.RunsFailed, cl_bench.UserError\n"
        "assert not {'torch', 'avalanche', 'timm'} & set(sys.modules), 'for results'\n",
        tmp_path,
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_functions_are_callable_after_every_module_has_been_imported(tmp_path: Path) -> None:
    """A module of the same name, an old one included, would stand where the function is."""
    write(tmp_path / RUNS, record())
    script = saved(
        "import importlib, pkgutil, warnings\nimport cl_bench\nfrom cl_bench._aliases import MOVED\n"
        "warnings.simplefilter('ignore')\n"
        "cl_bench.report, cl_bench.run, cl_bench.load\n"
        "found = [module.name for module in pkgutil.walk_packages(cl_bench.__path__, 'cl_bench.')]\n"
        "assert len(found) > 100\n"
        "for name in (*found, *(f'cl_bench.{old}' for old in MOVED)):\n"
        "    importlib.import_module(name)\n"
        "from cl_bench.report.tables import build\nimport cl_bench.report.charts\nimport cl_bench.report as old\n"
        "assert cl_bench.report.charts.Chart and callable(build) and old.tables_of\n"
        "(missing,) = cl_bench.run('simplecil', seeds=1, dry_run=True).missing\n"
        "assert missing == 'simplecil seed 1'\n"
        "assert len(cl_bench.load('results/runs')) == 10\n"
        "assert str(cl_bench.report('results/runs', out='pages')) == 'pages/index.html'\n"
        "from cl_bench import report\nassert report is cl_bench.report\n",
        tmp_path,
    )
    done = processes.run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr


# --- run ------------------------------------------------------------------------------------------------------


def test_the_command_line_and_python_make_the_same_records(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "sdlora[epochs=1],simplecil", "--seeds", "0-1", *TRIAL)
    ours = package.run(["sdlora[epochs=1]", "simplecil"], seeds=range(2), results="python", log="csv", **CUT)
    same = ("key", "label", "recipe", "experiment", "correct", "correct_task_aware", "total", "arrays_sha256")
    theirs = stored()
    assert len(theirs) == 4
    assert [{n: run[n] for n in same} for run in stored(Path("python"))] == [
        {n: run[n] for n in same} for run in theirs
    ]
    assert sorted(run.key for run in ours.records) == sorted(run["key"] for run in theirs)
    assert [(run.label, run.experiment.seed) for run in ours.records] == [
        (label, seed) for label in ("sdlora[epochs=1]", "simplecil") for seed in (0, 1)
    ]
    assert ours.missing == () and ours.folder == Path("python")
    assert logs.read(Path("python/logs")).keys() == {run.key for run in ours.records}
    # The same table, as numbers.
    printed = rows(outcome.out)
    for row in ours.table().to_dict("records"):
        texts = [f"{row[f'{name}, %']:.2f} ± {row[f'{name} ±']:.2f}" for name in ("acc", "aaa", "forgetting")]
        assert [*texts, str(row["seeds"])] == printed[row["method"]][:4]
    # And what one has stored, the other finds.
    before = tree(RUNS)
    assert package.run("sdlora[epochs=1],simplecil", seeds="0-1", **CUT).records == tuple(
        Store(RUNS).find(run.experiment) for run in ours.records
    )
    assert tree(RUNS) == before
    again = cl_bench("run", "--methods", "simplecil", "--seeds", "0,1", "--results", "python", *TRIAL)
    assert computed(again) == (0, 2)


def test_options_are_those_of_the_command_line(nowhere: None, tmp_path: Path) -> None:
    parameters = inspect.signature(package.run).parameters
    assert list(parameters)[0] == "methods" and {"benchmark", "seeds"} <= parameters.keys()

    def planned(*methods: Any, **options: Any) -> tuple[str, ...]:
        return package.run(*methods, dry_run=True, **CUT | options).missing

    expected = ("simplecil seed 0", "simplecil seed 2")
    assert planned("simplecil", seeds="0,2") == planned(["simplecil"], seeds=[0, 2]) == expected
    assert planned("simplecil", seeds=range(0, 3, 2)) == planned(("simplecil",), seeds=(0, 2), tasks=None) == expected
    assert planned("simplecil", seeds=2) == ("simplecil seed 2",)
    assert planned("linear[lr=0.1|0.2]", set="epochs=1") == (
        "linear[epochs=1,lr=0.1] seed 0",
        "linear[epochs=1,lr=0.2] seed 0",
    )
    suite = tmp_path / "mine.yaml"
    suite.write_text("title: mine\nruns:\n  - {methods: simplecil, seeds: [0, 2]}\n")
    assert planned(suite=suite) == planned(suite=str(suite)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"], "a dry run leaves nothing behind"


BAD: dict[str, dict[str, Any]] = {
    "unknown method": {"methods": "sdlroa"},
    "unknown benchmark": {"methods": "simplecil", "benchmark": "icons-10"},
    "no such seeds": {"methods": "simplecil", "seeds": "a-b"},
    "not a number": {"methods": "sdlora", "set": "rank=many"},
    "tasks that do not divide": {"methods": "simplecil", "tasks": 7},
    "unknown executor": {"methods": "simplecil", "executor": "there"},
    "for ray": {"methods": "simplecil", "address": "auto"},
    "unknown device": {"methods": "simplecil", "device": "gpu"},
    "results is a file": {"methods": "simplecil", "results": "blocked"},
    "methods and suite": {"methods": "simplecil", "suite": "quickstart"},
    "nothing to run": {},
    "no such suite": {"suite": "quickstrat"},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_the_sentence_of_the_command_line(cl_bench: Cli, case: str) -> None:
    Path("blocked").write_text("a file")
    options = BAD[case]
    typed = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    outcome = cl_bench("run", *typed)
    assert outcome.code == 2
    with pytest.raises(package.UserError) as caught:
        package.run(**options)
    assert outcome.err == f"error: {caught.value}\n"
    assert [path for path, content in tree().items() if content is not None] == ["blocked"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sedes": 3}, "unknown option 'sedes'; known: .* Did you mean 'seeds'?"),
        ({"seeds": []}, "--seeds is an empty list; give a value or leave it out"),
        ({"seeds": {0, 1}}, r"--seeds cannot be read \(\{0, 1\}\); expected a text, a number or a list of them"),
    ],
)
def test_what_only_python_can_say_wrong(nowhere: None, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(package.UserError, match=sentence):
        package.run("simplecil", **options)


def shaky(failure: str) -> None:
    """A method file in the current folder that fails like this before its second task while there is a file `stop`."""
    source = (ROOT / "cl_bench" / "assets" / "new_method.py.txt").read_text()
    source = source.replace("$class_name", "Shaky").replace("$name", "shaky")
    broken = source.replace(
        "        return [self.phase(",
        "        from pathlib import Path\n"
        f"        if task.index == 1 and Path('stop').exists():\n            raise {failure}\n"
        "        return [self.phase(",
    )
    assert broken != source
    Path("shaky.py").write_text(broken)
    Path("stop").touch()


def test_runs_that_fail_are_named_and_the_others_are_stored(nowhere: None) -> None:
    shaky("ValueError('out of ideas')")
    with pytest.raises(package.RunsFailed) as caught:
        package.run("shaky[epochs=1],simplecil", method_file="shaky.py", seeds="0,1", **CUT)
    (line,) = (n for n, text in enumerate(Path("shaky.py").read_text().splitlines(), 1) if "raise" in text)
    assert caught.value.failures == tuple(
        f"shaky[epochs=1] seed {seed} failed: ValueError: out of ideas (shaky.py, line {line}, in phases)"
        for seed in (0, 1)
    )
    assert all(failure in str(caught.value) for failure in caught.value.failures)
    assert str(caught.value).startswith("2 of 4 run(s): ") and str(RUNS) in str(caught.value)
    results = caught.value.results
    assert results.missing == ("shaky[epochs=1] seed 0", "shaky[epochs=1] seed 1")
    assert [run.label for run in results.records] == ["simplecil"] * 2 == [run["label"] for run in stored()]
    with pytest.raises(package.RunsFailed) as caught:
        package.run("shaky[epochs=1],simplecil", method_file="shaky.py", seeds=2, fail_fast=True, **CUT)
    assert caught.value.results.missing == ("shaky[epochs=1] seed 2", "simplecil seed 2")


def test_an_interrupted_run_goes_on_from_its_checkpoint(nowhere: None) -> None:
    shaky("KeyboardInterrupt")
    options: dict[str, Any] = {"method_file": "shaky.py", "epochs": 1, **CUT}
    with pytest.raises(KeyboardInterrupt):
        package.run("shaky", **options)
    assert [path.name for path in RUNS.iterdir()] == [CHECKPOINTS]
    Path("stop").unlink()
    (there,) = package.run("shaky", **options).records
    assert there.sessions == 2 and not (RUNS / CHECKPOINTS).exists()
    (straight,) = package.run("shaky", results="straight", **options).records
    assert (straight.sessions, straight.correct, straight.arrays_sha256) == (1, there.correct, there.arrays_sha256)


def test_the_random_numbers_of_the_caller_stay_as_they_were(nowhere: None) -> None:
    import torch

    def drawn() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    seeds = (torch.manual_seed, np.random.seed, random.seed)
    for seed in seeds:
        seed(3)
    expected = drawn()
    for seed in seeds:
        seed(3)
    package.run("linear[epochs=1]", **CUT)
    assert drawn() == expected


def test_a_damaged_result_is_computed_again_and_named(nowhere: None) -> None:
    (first,) = package.run("simplecil", **CUT).records
    (path,) = RUNS.glob("*.json")
    cut_short(path)
    with pytest.warns(UserWarning, match=f"a stored result is damaged and will be computed again: {path}"):
        (again,) = package.run("simplecil", **CUT).records
    assert again.arrays_sha256 == first.arrays_sha256


def test_progress_is_shown_in_terminals_only(
    nowhere: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package.run("simplecil", seeds=0, **CUT)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    package.run("simplecil", seeds=1, **CUT)
    out, shown = capfd.readouterr()
    assert "simplecil seed 1" in shown and "task 2/2" in shown and out == ""
    package.run("simplecil", seeds=2, progress=False, **CUT)
    assert capfd.readouterr() == ("", "")


def test_a_plain_script_runs_methods_side_by_side(nowhere: None, tmp_path: Path) -> None:
    """Worker processes do not execute the script again, which has no `if __name__ == "__main__"`."""
    script = f"import cl_bench\nprint(len(cl_bench.run('simplecil', jobs=2, **{CUT}).records))\n"
    done = processes.run_script(saved(script, tmp_path), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


# --- results --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two rows of two seeds, and joint training."""
    several = [record(name, seed) for name in ("alpha", "beta") for seed in (0, 1)]
    write(tmp_path / "kept", *several, record("joint", joint=True))
    return tmp_path / "kept"


def test_a_frame_has_every_stage_of_every_run(folder: Path) -> None:
    frame = package.load(folder)
    records = {run.key: run for run in Store(folder).records(print)}
    assert len(frame) == 4 * 10 + 1 and not frame.duplicated(["key", "stage"]).any()
    assert set(frame["label"]) == {"alpha", "beta", "joint"} and set(frame["origin"]) == {"kept"}
    for row in frame.to_dict("records"):
        run, stage = records[row["key"]], row["stage"]
        experiment = run.experiment
        for name in ("benchmark", "scenario", "tasks", "backbone", "seed", "class_order", "precision", "method"):
            assert row[name] == getattr(experiment, name)
        assert (row["recipe"], row["train_seconds"], row["stored"]) == (
            run.recipe,
            run.train_seconds[stage],
            run.stored[stage],
        )
        seen = row["tasks_seen"]
        assert seen == (10 if row["label"] == "joint" else stage + 1)
        assert row["acc"] == pytest.approx(sum(run.correct[stage][:seen]) / sum(run.total[:seen]), abs=1e-12)
        aware = sum(run.correct_task_aware[stage][:seen]) / sum(run.total[:seen])
        assert row["acc_task_aware"] == pytest.approx(aware, abs=1e-12)
        if row["label"] == "joint" or stage == 0:
            assert np.isnan(row["forgetting"]) and np.isnan(row["bwt"])
            continue
        rate = np.array(run.correct, dtype=float)[: stage + 1, : stage + 1] / run.total[: stage + 1]
        assert row["forgetting"] == pytest.approx(np.mean(np.nanmax(rate, axis=0)[:-1] - rate[-1][:-1]), abs=1e-12)
        own = frame[(frame["key"] == row["key"]) & (frame["stage"] <= stage)]
        assert row["aaa"] == pytest.approx(own["acc"].mean(), abs=1e-12)
    assert np.isnan(frame.loc[frame["label"] == "joint", "aaa"]).all()


def test_the_last_stage_of_a_frame_is_what_tables_show(folder: Path) -> None:
    last = package.load(folder).sort_values("stage").groupby("key").last(skipna=False)
    runs = run_frame(label_runs((run, "kept") for run in Store(folder).records(print))).set_index("key")
    shared = [*metrics.METRICS, "label", "limits", "split", "weights"]
    pd.testing.assert_frame_equal(last.sort_index()[shared], runs.sort_index()[shared])


def test_damaged_files_are_named_and_the_rest_is_read(folder: Path) -> None:
    victim = sorted(folder.glob("*.json"))[0]
    cut_short(victim)
    with pytest.warns(UserWarning, match=f"skipped a damaged result: {victim}"):
        assert package.load(folder)["key"].nunique() == 4
    with pytest.warns(UserWarning, match=f"skipped a damaged result: {victim}"):
        package.report(folder, out=folder.parent / "pages")


@pytest.mark.parametrize("read", [package.load, package.report])
def test_folders_without_results_end_in_one_sentence(
    read: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(package.UserError, match=r"^no results in 'empty'; make some with `cl-bench run"):
        read("empty")
    for folders in (["nowhere"], [folder, "nowhere"]):
        with pytest.raises(package.UserError, match=r"^results folder 'nowhere' is not there; name one"):
            read(*folders)
    with pytest.raises(package.UserError, match="no results in 'results/runs'"):
        read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept"]


def test_several_folders_are_read_each_run_once(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    write(tmp_path / "copy", record("gamma"))
    frame = package.load(str(folder), tmp_path / "copy")
    assert frame.groupby("origin")["key"].nunique().to_dict() == {"kept": 5, "copy": 1}


def test_the_page_is_the_one_of_the_command_line(cl_bench: Cli, tmp_path: Path) -> None:
    write(RUNS, record("alpha"), record("beta", 1))
    assert cl_bench("report", "--results", str(RUNS), "--out", "pages").code == 0
    theirs = tree(Path("pages"))
    shutil.rmtree("pages")
    assert package.report(RUNS, out="pages") == Path("pages/index.html")
    assert tree(Path("pages")) == theirs and "pages/index.html" in theirs
    package.report(RUNS, out="drawn", pictures=["png", "pdf"])
    drawn = {path.suffix for path in Path("drawn/figures").iterdir()}
    assert drawn == {".csv", ".png", ".pdf"}
    with pytest.raises(package.UserError, match="unknown pictures 'gif'; known: pdf, png, svg"):
        package.report(RUNS, pictures="gif")


def test_results_are_shown_and_reported_alone(nowhere: None, tmp_path: Path) -> None:
    other = record("alpha")
    write(RUNS, other)
    results = package.run("simplecil", seeds=range(2), **CUT)
    assert repr(results) == f"<Results: 2 runs in {RUNS}>" and len(results) == 2
    assert "<td" in results._repr_html_() and "simplecil" in results._repr_html_()
    frame = results.frame()
    assert set(frame["label"]) == {"simplecil"} and len(frame) == 4
    everything = package.load()
    of_these = everything[everything["label"] == "simplecil"].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, of_these)
    page = results.report("pages")
    assert page == Path("pages/index.html")
    shown = page.read_text()
    assert all(run.key in shown for run in results.records) and other.key not in shown


def test_results_of_nothing_have_their_columns(nowhere: None) -> None:
    results = package.run("simplecil", dry_run=True, **CUT)
    assert len(results) == 0 and results.missing == ("simplecil seed 0",)
    assert repr(results) == f"<Results: 0 runs in {RUNS}, 1 missing>"
    assert results.table().empty and {"method", "acc, %", "acc ±", "seeds"} <= set(results.table())
    assert results.frame().empty and {"label", "stage", "acc", "forgetting"} <= set(results.frame())
    with pytest.raises(package.UserError, match="none of these runs is stored in 'results/runs' yet"):
        results.report()


def test_a_table_has_numbers_and_marks_what_is_undefined(folder: Path) -> None:
    found = tuple(Store(folder).records(print))
    table = package.Results(found, folder).table().set_index("method")
    assert list(table["acc, %"]) == sorted(table["acc, %"], reverse=True)
    alpha = np.array([100 * metrics.acc(run.correct, run.total) for run in found if run.label == "alpha"])
    assert table.loc["alpha", "acc, %"] == pytest.approx(alpha.mean())
    # The t quantile of one degree of freedom is tan(pi (0.975 - 0.5)).
    half = np.tan(np.pi * 0.475) * alpha.std(ddof=1) / np.sqrt(2)
    assert table.loc["alpha", "acc ±"] == pytest.approx(half)
    joint = table.loc["joint"]
    assert joint["acc, %"] > 0 and joint["seeds"] == 1
    assert all(
        np.isnan(joint[name]) for name in ("acc ±", "aaa, %", "aaa ±", "forgetting, %", "forgetting ±", "tuning")
    )


def test_nothing_is_warned_of_without_a_reason(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = package.load(folder)
    assert json.loads(frame.iloc[[0]].to_json(orient="records"))[0]["stage"] == 0
