"""`cl-bench results`: listing, merging, verifying, exporting and pruning stores, and the index that makes it fast."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cl_bench as cl_bench_api
from cl_bench import metrics
from cl_bench.files import open_regular
from cl_bench.reporting.frames import run_frame
from cl_bench.reporting.runs import collect
from cl_bench.store import DamagedRecord, RunRecord, Store, index, record, upkeep
from tests.helpers import ROOT, factories
from tests.helpers.command import TRIAL, Cli, assert_refused, stored
from tests.helpers.damage import one_bit, to_folder
from tests.helpers.factories import variant

REFERENCE = ROOT / "results" / "reference"
RUNS = Path("results/runs")
OLD = 2 * 3600


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != index.NAME}


def aged(*paths: Path) -> None:
    """Set an old time of modification, as a copy that keeps times does; the time of change cannot be set."""
    for path in paths:
        os.utime(path, (time.time() - OLD,) * 2)


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`wait(seconds)` advances the clock that `upkeep` reads."""
    begin = time.time

    def wait(seconds: float) -> None:
        monkeypatch.setattr("cl_bench.store.upkeep.time.time", lambda: begin() + seconds)

    return wait


# --- ls and show -----------------------------------------------------------------------------------------------


def listed(text: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.splitlines()[1:]]


def test_ls_lists_each_run_of_each_folder_on_a_line(cl_bench: Cli) -> None:
    label = "alpha[note=[red],rate=5%,more=" + "x" * 150 + "]"
    runs = [factories.record("alpha", seed, label=label) for seed in range(2)]
    factories.write(RUNS, *runs)
    factories.write(Path("results/reference"), factories.record("beta", 3, benchmark="folder:/my photos"))
    outcome = cl_bench("results", "ls")
    assert outcome.code == 0 and "3 runs" in outcome.err
    rows = listed(outcome.out)
    assert {row[0] for row in rows[:2]} == {run.key for run in runs} and {row[1] for row in rows[:2]} == {label}
    assert rows[2][1:4] == ["beta", "folder:/my photos", "3"]
    assert [row[6] for row in rows] == [str(RUNS)] * 2 + ["results/reference"]
    for row in rows[:2]:
        run = runs[int(row[3])]
        assert float(row[4]) == pytest.approx(100 * metrics.acc(run.correct, run.total), abs=0.006)
        assert abs(pd.Timestamp(row[5], tz="UTC") - pd.Timestamp.now("UTC")) < pd.Timedelta(minutes=2)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--method", "alpha"], 3),
        (["--method", "alpha", "--method", "beta"], 4),
        (["--seed", "0-1"], 3),
        (["--seed", "0-1", "--method", "alpha"], 2),
        (["--benchmark", "other"], 1),
        (["--label", "alpha[rank=8]"], 1),
        (["--backbone", "nothing"], 0),
    ],
)
def test_ls_filters(cl_bench: Cli, arguments: list[str], count: int) -> None:
    runs = [factories.record("alpha", seed) for seed in range(2)]
    runs += [factories.record("alpha", 2, label="alpha[rank=8]"), factories.record("beta", 0, benchmark="other")]
    factories.write(RUNS, *runs)
    outcome = cl_bench("results", "ls", *arguments)
    assert outcome.code == 0 and len(listed(outcome.out)) == count
    assert f"{count} run" in outcome.err


def test_results_show_and_show_say_the_same(cl_bench: Cli) -> None:
    run = factories.record("alpha", 3)
    factories.write(RUNS, run)
    assert cl_bench("results", "show", run.key[:8]).out == cl_bench("show", run.key[:8]).out != ""
    assert_refused(cl_bench("results", "show", "0123456"), "no run with the key '0123456'", "results ls")
    assert_refused(cl_bench("results", "ls", "--results", "nowhere"), "'nowhere' is no folder")


def test_without_any_results_folder_a_sentence_says_how_to_make_one(
    cl_bench: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(cl_bench("results", "ls"), "there is no results folder 'results/runs' yet; make results with")
    Path("results/reference").mkdir(parents=True)
    assert cl_bench("results", "ls").err == "0 runs\n"
    monkeypatch.setenv("CL_BENCH_RESULTS", "mine")
    assert_refused(cl_bench("results", "ls"), "there is no results folder 'mine' yet", "CL_BENCH_RESULTS")


def test_a_variable_names_the_default_results_folder(cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CL_BENCH_RESULTS", "mine")
    assert cl_bench("run", "--methods", "simplecil", *TRIAL).err.endswith("results: mine\n")
    (record,) = stored(Path("mine"))
    key = record["key"]
    assert cl_bench("results", "ls").out.splitlines()[1].split()[0] == key
    assert key in cl_bench("show", key).out and key in cl_bench("results", "show", key).out
    assert cl_bench("repeat", key, "--device", "cpu").code == 0
    assert list(cl_bench_api.load()["key"].unique()) == [key]
    assert cl_bench("results", "prune").code == 0
    assert not Path("results").exists()


def test_results_import_neither_torch_nor_avalanche(tmp_path: Path) -> None:
    factories.write(tmp_path / RUNS, factories.record())
    commands = [["--help"], ["ls"], ["show", factories.record().key], ["verify"], ["export", "--out", "a.parquet"]]
    commands += [["merge", "results/runs", "--into", "b"], ["prune"]]
    code = f"""
import sys
from cl_bench import cli
for arguments in {commands}:
    sys.argv = ["cl-bench", "results", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, arguments
    heavy = {{"torch", "avalanche", "timm"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- merge -----------------------------------------------------------------------------------------------------


def test_merge_copies_to_the_byte_and_only_once(cl_bench: Cli) -> None:
    factories.write(Path("a"), *(factories.record("alpha", seed) for seed in range(3)))
    factories.write(Path("b"), factories.record("beta"))
    outcome = cl_bench("results", "merge", "a", "b", "--into", "all/of/them")
    assert outcome.code == 0 and "4 copied, 0 there already" in outcome.out
    assert content(Path("all/of/them")) == content(Path("a")) | content(Path("b"))
    before = content(Path("all/of/them"))
    outcome = cl_bench("results", "merge", "b", "a", "--into", "all/of/them")
    assert outcome.code == 0 and "0 copied, 4 there already" in outcome.out
    assert content(Path("all/of/them")) == before


def test_merge_names_conflicts_and_overwrites_nothing_unless_told(cl_bench: Cli) -> None:
    for folder, number in (("a", 1), ("b", 2)):
        Store(folder).write(*variant(number))
    (path,) = Path("b").glob("*.json")
    before = content(Path("b"))
    outcome = cl_bench("results", "merge", "a", "--into", "b")
    assert outcome.code == 1 and f"conflict: a/{path.name}: same counts, but different train_samples" in outcome.out
    assert "--prefer" in outcome.err and content(Path("b")) == before
    outcome = cl_bench("results", "merge", "a", "--into", "b", "--prefer", "dest")
    assert outcome.code == 0 and "1 kept" in outcome.out and content(Path("b")) == before
    outcome = cl_bench("results", "merge", "a", "--into", "b", "--prefer", "source")
    assert outcome.code == 0 and "1 replaced" in outcome.out
    assert content(Path("b")) == content(Path("a")), "the replaced predictions are gone, too"
    assert_refused(cl_bench("results", "merge", "a", "--into", "b", "--prefer", "newest"), "newest", "source or dest")


def test_merge_says_when_counts_differ(cl_bench: Cli) -> None:
    factories.write(Path("a"), factories.record())
    other = factories.record(first=0.5)
    factories.write(Path("b"), other)
    outcome = cl_bench("results", "merge", "a", "--into", "b")
    assert outcome.code == 1 and re.search(r"conflict: .*: different correct\b", outcome.out)


@pytest.mark.parametrize("damage", ["npz", "json"])
def test_merge_never_copies_what_is_damaged(cl_bench: Cli, damage: str) -> None:
    bad, _ = factories.write(Path("a"), factories.record("alpha"), factories.record("beta"))
    one_bit(factories.npz(bad) if damage == "npz" else bad)
    outcome = cl_bench("results", "merge", "a", "--into", "b")
    assert outcome.code == 1 and "1 copied" in outcome.out and f"not copied, damaged: a/{bad.stem}" in outcome.out
    assert len(content(Path("b"))) == 2
    # Not even if the destination has the record already.
    good = factories.write(Path("b"), factories.record("alpha"))
    before = content(Path("b"))
    assert cl_bench("results", "merge", "a", "--into", "b", "--prefer", "source").code == 1
    assert content(Path("b")) == before and Store("b").load(good[0])


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("case", ["counts", "task-aware counts", "npz of another run"])
def test_merge_never_copies_what_its_predictions_contradict(cl_bench: Cli, case: str, there: bool) -> None:
    """A forged record can have valid hashes; only counting its predictions again reveals it."""
    bad, good = factories.write(Path("a"), factories.record("alpha"), factories.record("beta", first=0.6))
    if case == "npz of another run":
        packed = factories.npz(good).read_bytes()
        factories.npz(bad).write_bytes(packed)
        digest = hashlib.sha256(packed).hexdigest()
        factories.edit(bad, lambda data: data.update(arrays_sha256=digest), sealed=True)
    else:
        DAMAGE[case][0](bad)
    if there:
        factories.write(Path("b"), factories.record("alpha"))
    before = content(Path("b")) if there else {}
    outcome = cl_bench("results", "merge", "a", "--into", "b", "--prefer", "source")
    assert outcome.code == 1 and "1 copied" in outcome.out and "1 damaged" in outcome.out
    assert re.search(f"not copied, damaged: a/{re.escape(bad.stem)}.*(hits|images per task|shape)", outcome.out)
    merged = content(Path("b"))
    assert merged == before | {file.name: file.read_bytes() for file in (good, factories.npz(good))}


def test_merge_replaces_a_damaged_record_only_with_prefer(cl_bench: Cli) -> None:
    factories.write(Path("a"), factories.record())
    (path,) = factories.write(Path("b"), factories.record())
    path.write_text("{")
    outcome = cl_bench("results", "merge", "a", "--into", "b")
    assert outcome.code == 1 and "damaged there" in outcome.out and path.read_text() == "{"
    assert cl_bench("results", "merge", "a", "--into", "b", "--prefer", "source").code == 0
    assert Store("b").load(path)


def test_merge_refuses_impossible_folders(cl_bench: Cli) -> None:
    factories.write(Path("a"), factories.record())
    assert_refused(cl_bench("results", "merge", "a", "--into", "../" + Path.cwd().name + "/a"), "destination itself")
    assert_refused(cl_bench("results", "merge", "nowhere", "--into", "a"), "'nowhere'", "no folder")
    Path("file").write_text("")
    assert_refused(cl_bench("results", "merge", "a", "--into", "file"), "'file'", "cannot be written")


MERGER = """
import sys
from pathlib import Path
from cl_bench.store.upkeep import merge
print("ready", flush=True)
sys.stdin.readline()
done = merge([Path(sys.argv[1])], Path(sys.argv[2]))
print(done.copied, done.identical, len(done.not_replaced), len(done.damaged))
"""


def test_merges_from_many_processes_lose_and_overwrite_nothing(tmp_path: Path) -> None:
    """Four processes at once, two per source; the two sources have different results of the same runs."""
    runs = [factories.record("alpha", seed) for seed in range(25)]
    factories.write(tmp_path / "a", *runs)
    others = [run.model_copy(update={"train_samples": [1] * 10}) for run in runs]
    factories.write(tmp_path / "b", *others)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MERGER, str(tmp_path / source), str(tmp_path / "all")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for source in "aabb"
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [tuple(map(int, process.communicate()[0].split())) for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert sum(copied for copied, *_ in printed) == 25, "each run was copied by one of them"
    assert all(sum(counts) == 25 and counts[3] == 0 for counts in printed)
    merged, sources = content(tmp_path / "all"), content(tmp_path / "a") | content(tmp_path / "b")
    assert all(
        merged[name] in (content(tmp_path / "a").get(name), content(tmp_path / "b").get(name)) for name in merged
    )
    assert len([name for name in merged if name.endswith(".json")]) == 25 and merged.keys() <= sources.keys()
    united = Store(tmp_path / "all")
    for name in united.names():
        united.check(united.root / name)


# --- verify ----------------------------------------------------------------------------------------------------


def test_the_reference_results_pass_verify(cl_bench: Cli) -> None:
    outcome = cl_bench("results", "verify", "--results", str(REFERENCE))
    assert outcome.code == 0 and "nothing wrong" in outcome.out, outcome
    records = list(REFERENCE.glob("*.json"))
    assert f"{len(records)} records" in outcome.out


def unlink_npz(path: Path) -> None:
    factories.npz(path).unlink()


def other_predictions(path: Path) -> None:
    """Counts that contradict the stored predictions, with valid checksums."""
    factories.edit(path, lambda data: data["correct"][9].__setitem__(0, data["correct"][9][0] - 1), sealed=True)


def other_aware_predictions(path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["correct_task_aware"][0][9] -= 1

    factories.edit(path, change, sealed=True)


def moved(path: Path) -> None:
    path.rename(path.with_name(f"other-{path.name}"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (lambda p: factories.edit(p, lambda data: data.update(recipe="x"), sealed=False), "checksum"),
    "key": (lambda p: factories.edit(p, lambda data: data.update(key="0" * 16), sealed=True), "key"),
    "predictions altered": (lambda p: one_bit(factories.npz(p)), "SHA-256"),
    "predictions missing": (unlink_npz, "No such file"),
    "counts": (other_predictions, "'predicted' has .* hits in task 1 after stage 10"),
    "task-aware counts": (other_aware_predictions, "'predicted_task_aware' has .* hits in task 10 after stage 1 "),
    "not evaluated": (
        lambda p: factories.edit(p, lambda data: data["correct"][0].__setitem__(9, 0), sealed=True),
        "'predicted' has None hits in task 10",
    ),
    "renamed": (moved, "holds the run"),
    "no file": (to_folder, "Is a directory"),
}


@pytest.mark.parametrize("case", list(DAMAGE))
def test_verify_names_each_damage(cl_bench: Cli, case: str) -> None:
    damage, pattern = DAMAGE[case]
    path, _ = factories.write(RUNS, factories.record("alpha"), factories.record("beta"))
    damage(path)
    outcome = cl_bench("results", "verify")
    assert outcome.code == 1 and "2 records, 1 fault" in outcome.out
    (line,) = (line for line in outcome.out.splitlines() if path.stem in line)
    assert re.search(pattern, line), line


def test_verify_names_files_that_belong_to_nothing(cl_bench: Cli, wait: Callable[[float], None]) -> None:
    (path,) = factories.write(RUNS, factories.record())
    stray = RUNS / f"{path.stem}-01234567.npz"
    stray.write_bytes(factories.npz(path).read_bytes())
    left = RUNS / f".{path.name}-ab12cd3_"
    left.write_text("half")
    (RUNS / "README.md").write_text("not ours")
    assert cl_bench("results", "verify").code == 0, "another process may be writing just now"
    wait(OLD)
    outcome = cl_bench("results", "verify")
    assert outcome.code == 1 and "2 faults" in outcome.out
    assert all(str(file) in outcome.out for file in (stray, left)) and "README" not in outcome.out


# --- prune -----------------------------------------------------------------------------------------------------


def test_prune_deletes_what_it_lists_and_only_with_yes(cl_bench: Cli, wait: Callable[[float], None]) -> None:
    whole, bad = factories.write(RUNS, factories.record("alpha"), factories.record("beta"))
    needed = {whole.name, factories.npz(whole).name, bad.name, factories.npz(bad).name, "README.md", "mine.npz"}
    bad_npz = factories.npz(bad)
    (newer,) = factories.write(RUNS, factories.record("gamma"))
    needed |= {newer.name, factories.npz(newer).name}
    factories.edit(newer, lambda data: data.update(schema_version=99), sealed=False)
    bad.write_text("{")
    waste = {".probe-abcdefgh", f".{whole.name}-a1b2c3d4", f"{whole.stem}-00000000.npz", "..index.parquet-x_1y2z3w"}
    waste |= {f".{whole.stem}-00000000.npz-0123abcd", f".shared-{'0123456789abcdef' * 2}"}
    for name in ("README.md", "mine.npz", *waste):
        (RUNS / name).write_text("")
    wait(OLD)
    listing = cl_bench("results", "prune")
    assert listing.code == 0 and "6 files; --yes deletes them" in listing.err
    assert {Path(line.split()[2].rstrip(":")).name for line in listing.out.splitlines()} == waste
    assert set(content(RUNS)) == needed | waste
    assert cl_bench("results", "prune", "--yes").code == 0 and set(content(RUNS)) == needed
    outcome = cl_bench("results", "prune", "--damaged", "--yes")
    assert outcome.code == 0 and set(content(RUNS)) == needed - {bad.name, bad_npz.name}, outcome
    assert "0 files" in cl_bench("results", "prune", "--damaged", "--yes").err


def test_prune_leaves_alone_what_has_no_name_of_ours(cl_bench: Cli, wait: Callable[[float], None]) -> None:
    (path,) = factories.write(RUNS, factories.record())
    theirs = {"my_features.npz", ".data.json-abcdefgh", ".weights.safetensors-abcdefgh", ".notes.npz-12345678"}
    theirs |= {f"{path.stem}.npz", f"{path.stem}-0123456.npz", f".{path.name}-ABCDEFGH", f".{path.name}.aB3xYz"}
    theirs |= {"notes.json", ".shared-notes", f".index.parquet-{'a' * 9}", f".{path.stem}-01234567.npz.Xy12Zw"}
    filled = {".probe-abcdefgh", f".shared-{'0' * 32}"}
    for name in theirs | filled:
        (RUNS / name).write_text("theirs")
    (RUNS / ".checkpoints").mkdir()
    (RUNS / ".checkpoints" / "model.safetensors").write_text("theirs")
    before = content(RUNS / ".checkpoints") | {name: (RUNS / name).read_bytes() for name in theirs | filled}
    wait(400 * 86400)
    outcome = cl_bench("results", "prune", "--damaged", "--unfinished", "--yes")
    assert outcome.code == 0 and "0 files" in outcome.err, outcome
    assert before.items() <= (content(RUNS / ".checkpoints") | content_of_files(RUNS)).items()


def content_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_prune_leaves_alone_a_copy_that_is_being_made(cl_bench: Cli, wait: Callable[[float], None]) -> None:
    """`rsync -a` keeps the times of modification, and the npz of a record arrives before its JSON."""
    (path,) = factories.write(Path("there"), factories.record())
    arriving = RUNS / factories.npz(path).name
    RUNS.mkdir(parents=True)
    arriving.write_bytes(factories.npz(path).read_bytes())
    aged(arriving)
    assert "0 files" in cl_bench("results", "prune", "--yes").err and arriving.exists()
    # A record whose npz has not been copied yet is not damaged for good.
    arriving.rename(RUNS.parent / "npz")
    (RUNS / path.name).write_bytes(path.read_bytes())
    aged(RUNS / path.name)
    assert "0 files" in cl_bench("results", "prune", "--damaged", "--yes").err and (RUNS / path.name).exists()
    wait(OLD)
    assert "1 file\n" in cl_bench("results", "prune", "--damaged", "--yes").err


def test_prune_keeps_the_predictions_of_a_record_that_was_renamed(cl_bench: Cli, wait: Callable[[float], None]) -> None:
    (path,) = factories.write(RUNS, factories.record())
    path.rename(path.with_name(f"copy-{path.name}"))
    before = content(RUNS)
    wait(OLD)
    assert "0 files" in cl_bench("results", "prune", "--yes").err and content(RUNS) == before


def test_prune_knows_checkpoints_that_nobody_goes_on_from(cl_bench: Cli, wait: Callable[[float], None]) -> None:
    stored, going = factories.record(), factories.record("beta")
    factories.write(RUNS, stored)
    done, alive = (Store(RUNS).checkpoint_path(run.experiment) for run in (stored, going))
    done.parent.mkdir()
    half = done.with_name(f".{alive.name}-ab12cd34")
    for path in (done, alive, half):
        path.write_text("checkpoint")
    assert "0 files" in cl_bench("results", "prune", "--unfinished").err, "another process may be at work"
    wait(OLD)
    assert "2 files" in cl_bench("results", "prune", "--unfinished", "--yes").err
    assert alive.exists() and not done.exists() and not half.exists()
    wait(31 * 86400)
    assert "0 files" in cl_bench("results", "prune", "--yes").err and alive.exists()
    assert "1 file; --yes deletes it" in cl_bench("results", "prune", "--unfinished").err
    assert "1 file\n" in cl_bench("results", "prune", "--unfinished", "--yes").err and not alive.exists()


def test_prune_leaves_alone_what_has_changed_since_it_was_listed(tmp_path: Path, wait: Callable[[float], None]) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    stray = tmp_path / f"{path.stem}-01234567.npz"
    stray.write_text("")
    wait(OLD)
    (leftover,) = upkeep.leftovers(Store(tmp_path))
    wait(0)
    assert not upkeep.remove(leftover) and stray.exists()
    wait(OLD)
    assert upkeep.remove(leftover) and not stray.exists()


# --- export ----------------------------------------------------------------------------------------------------


def mixed() -> list[RunRecord]:
    """Runs with numbers and hashes as revisions, and joint training."""
    runs = [factories.record("alpha", 0), factories.record("own", 1, revision="ab" * 32)]
    return [*runs, factories.record("joint", 0, joint=True), factories.record("beta", 2)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_export_has_a_row_per_run(cl_bench: Cli, suffix: str) -> None:
    runs = mixed()
    factories.write(RUNS, *runs)
    outcome = cl_bench("results", "export", "--out", f"out.{suffix}")
    assert outcome.code == 0 and "4 rows of 4 runs" in outcome.err
    table = pd.read_csv("out.csv") if suffix == "csv" else pd.read_parquet("out.parquet")
    table = table.set_index("key")
    assert set(table.index) == {run.key for run in runs}
    for run in runs:
        row = table.loc[run.key]
        assert row.acc == pytest.approx(metrics.acc(run.correct, run.total))
        assert json.loads(row.hyperparameters) == run.experiment.hyperparameters
        assert (row.label, row.seed, row.origin) == (run.label, run.experiment.seed, str(RUNS))
        assert str(row.revision) == str(run.experiment.revision)
    assert table.aaa.isna().sum() == 1 and pd.to_datetime(table.finished, utc=True).notna().all()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_long_export_holds_every_count(cl_bench: Cli, suffix: str) -> None:
    runs = mixed()
    factories.write(RUNS, *runs)
    assert cl_bench("results", "export", "--long", "--format", suffix, "--out", "out.data").code == 0
    table = pd.read_csv("out.data") if suffix == "csv" else pd.read_parquet("out.data")
    assert len(table) == sum(len(run.stages) * len(run.total) for run in runs)
    for run in runs:
        own = table[table.key == run.key]
        for name in ("correct", "correct_task_aware"):
            rows = own.pivot(index="stage", columns="task", values=name).astype("Float64")
            expected = pd.DataFrame(getattr(run, name)).astype("Float64")
            np.testing.assert_array_equal(rows.to_numpy(float, np.nan), expected.to_numpy(float, np.nan))
        assert own[own.stage == 0].total.tolist() == run.total


def test_exports_are_filtered_and_refused(cl_bench: Cli) -> None:
    assert_refused(cl_bench("results", "export", "--out", "a.csv"), "no such runs")
    factories.write(RUNS, *mixed())
    assert cl_bench("results", "export", "--method", "alpha", "--out", "a.csv").code == 0
    assert set(pd.read_csv("a.csv").method) == {"alpha"}
    before = Path("a.csv").read_bytes()
    assert_refused(cl_bench("results", "export", "--method", "gamma", "--out", "a.csv"), "no such runs")
    assert Path("a.csv").read_bytes() == before
    assert_refused(cl_bench("results", "export", "--out", "a.xlsx"), "a.xlsx", "csv", "parquet")
    assert_refused(cl_bench("results", "export", "--out", "nowhere/a.csv"), "nowhere/a.csv", "cannot be written")
    assert_refused(cl_bench("results", "export", "--seed", "x", "--out", "a.csv"), "--seed 'x'")


# --- the index -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder large enough for an index, with files that changed long enough ago."""
    folder = tmp_path_factory.mktemp("many")
    factories.write(folder, *(factories.record("alpha", seed) for seed in range(index.MIN_NEW_RECORDS + 5)))
    time.sleep(index.SETTLED_NS / 1e9 + 0.1)
    return folder


def records(folder: Path) -> list[RunRecord]:
    return list(Store(folder).records(pytest.fail))


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A growing list of the names of the JSON files that are opened from now on."""
    names: list[str] = []
    real = open_regular

    def spied(path: Path, limit: int) -> Any:
        if path.suffix == ".json":
            names.append(path.name)
        return real(path, limit)

    monkeypatch.setattr("cl_bench.store.store.open_regular", spied)
    return names


def test_the_index_saves_reading_and_changes_nothing(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (many / index.NAME).unlink(missing_ok=True)
    cold = records(many)
    assert (many / index.NAME).exists()
    names = opened(monkeypatch)
    assert records(many) == cold and names == []
    tables = [run_frame(collect([(many, "runs")], pytest.fail)) for _ in range(2)]
    (many / index.NAME).unlink()
    pd.testing.assert_frame_equal(tables[0], run_frame(collect([(many, "runs")], pytest.fail)))


def test_small_folders_and_files_that_just_changed_are_not_indexed(many: Path, tmp_path: Path) -> None:
    factories.write(tmp_path, *(factories.record("alpha", seed) for seed in range(5)))
    aged(*tmp_path.iterdir())
    records(tmp_path)
    assert not (tmp_path / index.NAME).exists()
    for path in many.iterdir():
        if path.name != index.NAME:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(records(tmp_path)) == index.MIN_NEW_RECORDS + 5
    assert not (tmp_path / index.NAME).exists()


def replaced(path: Path) -> None:
    found = Store(path.parent).load(path)
    Store(path.parent).write(found.model_copy(update={"recipe": "unified"}), factories.arrays(found))


def edited_in_place(path: Path) -> None:
    """Replace content with equal size and time of modification, so that only the time of change differs."""
    status = path.stat()
    text = path.read_text()
    with path.open("r+") as file:
        file.write(text.replace('"tuned"', '"tunes"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


STALE: dict[str, Callable[[Path], object]] = {
    "replaced": replaced,
    "edited in place": edited_in_place,
    "npz altered": lambda path: one_bit(factories.npz(path)),
    "npz missing": unlink_npz,
    "deleted": Path.unlink,
    "truncated": lambda path: path.write_text("{"),
    "renamed": moved,
}


@pytest.mark.parametrize("case", list(STALE))
def test_a_stale_entry_is_never_believed(many: Path, tmp_path: Path, case: str) -> None:
    folder = copied(many, tmp_path)
    before = records(folder)
    path = sorted(folder.glob("*.json"))[3]
    STALE[case](path)
    with_index: tuple[list[str], list[str]] = ([], [])
    warm = list(Store(folder).records(with_index[0].append))
    (folder / index.NAME).unlink()
    cold = list(Store(folder).records(with_index[1].append))
    assert warm == cold != before and with_index[0] == with_index[1]


def copied(many: Path, to: Path) -> Path:
    """A copy of the folder with its own index."""
    folder = to / "copy"
    folder.mkdir()
    for path in many.iterdir():
        if path.name != index.NAME:
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "SETTLED_NS", 0)
        records(folder)
    assert (folder / index.NAME).exists()
    return folder


def test_an_index_from_elsewhere_is_not_believed(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records(many)
    folder = tmp_path / "copy"
    done = subprocess.run(["cp", "-rp", str(many), str(folder)], check=False)
    assert done.returncode == 0 and (folder / index.NAME).exists()
    names = opened(monkeypatch)
    records(folder)
    assert len(names) == index.MIN_NEW_RECORDS + 5


def test_files_of_the_future_are_read_each_time(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have times in the future after a clock was set back."""
    folder = copied(many, tmp_path)
    path = sorted(folder.glob("*.json"))[0]
    later = time.time() + 1000
    os.utime(path, (later, later))
    (folder / index.NAME).unlink()
    monkeypatch.setattr(index, "SETTLED_NS", 0)
    records(folder)
    names = opened(monkeypatch)
    records(folder)
    assert names == [path.name]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_damaged_index_is_ignored(many: Path, data: st.DataObject) -> None:
    expected = [found.key for found in records(many)]
    path = many / index.NAME
    whole = path.read_bytes()
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    broken = broken[: data.draw(st.integers(0, len(broken)))] if data.draw(st.booleans()) else broken
    try:
        path.write_bytes(bytes(broken))
        assert [found.key for found in records(many)] == expected
    finally:
        path.write_bytes(whole)


def test_an_index_that_cannot_be_written_does_not_matter(many: Path) -> None:
    (many / index.NAME).unlink(missing_ok=True)
    (many / index.NAME).mkdir()
    try:
        assert len(records(many)) == index.MIN_NEW_RECORDS + 5
    finally:
        (many / index.NAME).rmdir()


# --- schemas ---------------------------------------------------------------------------------------------------


@pytest.fixture
def third_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate two later schemas: the first renames `recipe` to `source`, the second changes its values."""
    today = record.SCHEMA_VERSION

    def first(fields: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in fields.items() if name != "recipe"}
        return rest | {"source": fields["recipe"]}

    def second(fields: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in fields.items() if name != "source"}
        return rest | {"recipe": {"tuned": "searched"}[fields["source"]]}

    monkeypatch.setattr(record, "UPGRADES", {today: first, today + 1: second})
    monkeypatch.setattr(record, "SCHEMA_VERSION", today + 2)


def test_older_records_are_upgraded_step_by_step_and_stay_as_they_are(
    cl_bench: Cli, many: Path, request: pytest.FixtureRequest
) -> None:
    (path,) = factories.write(RUNS, factories.record())
    before, today = content(RUNS), record.SCHEMA_VERSION
    records(many)
    request.getfixturevalue("third_schema")
    found = Store(RUNS).load(path)
    assert (found.schema_version, found.recipe, found.key) == (today + 2, "searched", factories.record().key)
    assert cl_bench("results", "verify").code == 0
    assert cl_bench("results", "merge", str(RUNS), "--into", "copy").code == 0
    assert content(Path("copy")) == content(RUNS) == before
    assert {found.recipe for found in records(many)} == {"searched"}, "an index of the older schema does not count"


@pytest.mark.usefixtures("third_schema")
def test_a_record_that_cannot_be_upgraded_is_damaged(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path, factories.record())
    for recipe in ("unheard of", None):

        def change(data: dict[str, Any], recipe: str | None = recipe) -> None:
            data["schema_version"] = record.SCHEMA_VERSION - 2
            data["recipe"] = recipe

        factories.edit(path, change, sealed=True)
        with pytest.raises(DamagedRecord, match=f"cannot be upgraded from schema version {record.SCHEMA_VERSION - 1}"):
            Store(tmp_path).load(path)
