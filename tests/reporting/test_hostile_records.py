"""Hostile stored results: none hides other runs, and no text in them is executed or interpreted where it is shown."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_bench import metrics
from cl_bench.errors import UserError
from cl_bench.reporting import spreadsheets
from cl_bench.reporting.runs import Run, collect
from cl_bench.reporting.salvage import without_failing_runs
from cl_bench.store import DamagedRecord, Store
from tests.helpers import SOAK, factories, forged
from tests.helpers.command import Cli, Outcome

RUNS = Path("results/runs")
PLACES = list(forged.places(json.loads(forged.valid().sealed().model_dump_json())))
MANY: list[tuple[forged.Place, Any]] = [
    (place, value) for place, there in PLACES for value in forged.extremes(place, there)
]
REFUSED: list[tuple[forged.Place, Any]] = [
    (("traces", "loss", 0, "loss"), 10**400),
    (("traces", "loss", 0, "loss"), float("inf")),
    (("traces", "loss", 0), {"x" * 20_000: 1}),
    (("train_seconds", 0), 1e308),
    (("eval_seconds", 0), 10**400),
    (("tuning_minutes",), 1e300),
    (("experiment", "tasks"), 10**6),
    (("experiment", "tasks"), [3] * 10),
    (("experiment", "limits", "tasks"), 11),
    (("classes",), []),
    (("finished",), "0001-01-01T00:00:00+05:00"),
    (("finished",), "9999-12-31T23:59:59-05:00"),
    (("sessions",), 10**400),
    (("experiment", "revision"), 2**63),
    (("experiment", "hyperparameters", "rank"), 10**400),
    (("experiment", "transforms", "size"), 10**400),
    (("experiment", "transforms", "resize"), float("inf")),
    (("experiment", "limits", "train_per_class"), 10**400),
    (("environment", "threads"), 10**400),
    (("environment",), {"9" * 20_000: 1}),
    (("label",), "x" * 20_000),
    (("experiment", "method"), "x" * 20_000),
]
"""Values that no record may hold."""
TEXT = "=\x1b[31mred\u202e\n\x9b2J"
ACCEPTED: list[tuple[forged.Place, Any]] = [
    (("label",), TEXT),
    (("label",), "x" * 9_000),
    (("recipe",), TEXT),
    (("experiment", "method"), TEXT),
    (("experiment", "benchmark"), "folder:/" + "y" * 4_000),
    (("experiment", "benchmark"), TEXT),
    (("experiment", "backbone"), TEXT),
    (("experiment", "split"), TEXT),
    (("experiment", "hyperparameters", "lr"), TEXT),
    (("environment", "device"), TEXT),
    (("environment",), {TEXT: TEXT}),
    (("classes", 0), TEXT),
    (("traces",), {TEXT: [{TEXT: TEXT}], "loss": [{"stage": "a", "loss": {}.get(0)}], "magnitudes": [{"a": 1}]}),
    (("train_seconds",), [10**9] * 3),
    (("experiment", "limits", "test_per_class"), 2**53),
]
"""Odd values that are accepted, because reports can show them."""


@pytest.fixture
def good(cl_bench: Cli) -> list[str]:
    """Labels of the valid runs in the results folder."""
    labels = ["good", "fine"]
    runs = [factories.record(name, seed, classes_per_task=2, limits=forged.CUT) for name in labels for seed in (0, 1)]
    factories.write(RUNS, *runs)
    return labels


def named(outcome: Outcome) -> list[str]:
    """Names of the skipped files that a command reports, sorted."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("warning: skipped a damaged result: ")]
    return sorted(re.findall(rf"{RUNS}/(.*?\.(?:json|npz)): ", line)[0] for line in lines)


def unreadable(read: Callable[[Path], object], paths: Iterable[Path]) -> list[Path]:
    """The records that this way of reading reports as damaged."""
    found = []
    for path in paths:
        try:
            read(path)
        except DamagedRecord:
            found.append(path)
    return found


def check_commands(cl_bench: Cli, labels: Sequence[str], refused: Sequence[Path], accepted: int) -> list[Outcome]:
    """Assert that every command that reads results shows the valid runs and names each other file once.

    The commands write their files to `out`.
    """
    expected = sorted(path.name for path in refused)
    runs = 2 * len(labels) + accepted
    Path("out").mkdir(exist_ok=True)
    commands = {
        "ls": ["results", "ls"],
        "csv": ["results", "export", "--out", "out/runs.csv"],
        "parquet": ["results", "export", "--out", "out/runs.parquet"],
        "compare": ["compare", *labels],
        "figure": ["figure", "sdlora-fig3", "--benchmark", "icons-100", "--format", "csv", "--out", "out"],
        "table": ["table", "sdlora-table2"],
        "report": ["report", "--out", "out"],
    }
    done = {name: cl_bench(*command) for name, command in commands.items()}
    assert all(named(outcome) == expected for outcome in done.values()), done
    assert {name for name, outcome in done.items() if outcome.code} <= {"figure"}, done
    assert done["ls"].err.endswith(f"{runs} runs\n")
    assert {line.split()[1] for line in done["ls"].out.splitlines()} >= set(labels)
    for name, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert f"{runs} rows of {runs} runs" in done[name].err
        assert set(read(f"out/runs.{name}").label) >= set(labels)
    assert all(re.search(rf"^ *{label}  ", done["report"].out, re.MULTILINE) for label in labels)
    assert any(",fine," in path.read_text() for path in Path("out/figures").glob("icons-100-10x2-*-accuracy.csv"))
    assert f"Skipped: {len(expected)} damaged" in Path("out/index.html").read_text() or not expected
    # Only `verify` counts predictions again.
    verified = cl_bench("results", "verify")
    faults = unreadable(Store(RUNS).check, [RUNS / name for name in Store(RUNS).names()])
    assert verified.code == int(bool(faults)) and {*refused} <= {*faults}
    assert all(sum(path.stem in line for line in verified.out.splitlines()) == 1 for path in faults)
    return [*done.values(), verified]


def test_records_beyond_every_bound_hide_no_other(cl_bench: Cli, good: list[str]) -> None:
    refused = [forged.forge(RUNS, place, value, number) for number, (place, value) in enumerate(REFUSED)]
    for path in refused:
        with pytest.raises(DamagedRecord) as caught:
            Store(RUNS).check(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    check_commands(cl_bench, good, refused, accepted=0)


def test_texts_of_records_act_on_nothing_that_shows_them(cl_bench: Cli, good: list[str]) -> None:
    for number, (place, value) in enumerate(ACCEPTED):
        Store(RUNS).load(forged.forge(RUNS, place, value, number))
    # Folders may have hostile names too.
    (RUNS / f"{TEXT}.json").write_text("{")
    sentences: list[str] = []
    assert len(collect([(RUNS, TEXT)], sentences.append)) == 4 + len(ACCEPTED) and sentences[0].isprintable()
    (RUNS / f"{TEXT}.json").unlink()
    done = check_commands(cl_bench, good, [], accepted=len(ACCEPTED))
    for command in (
        ["compare", "--baseline", "good"],
        ["compare", "--baseline", "good", "--format", "tex"],
        ["compare", "--baseline", "good", "--format", "csv", "--out", "out/pairs.csv"],
        *(["results", "show", run.record.key] for run in collect([(RUNS, "runs")], sentences.append)),
    ):
        done.append(cl_bench(*command))
        assert done[-1].code == 0
    assert [
        text for outcome in done for text in (outcome.out + outcome.err).split("\n") if not text.isprintable()
    ] == []
    for path in [path for path in Path("out").rglob("*") if path.is_file() and path.suffix != ".parquet"]:
        text = path.read_text() if path.name != "index.html" else without_plotly(path.read_text())
        assert not [line for line in text.split("\n") if not line.isprintable()], path
        assert path.name.isprintable()
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(path.open(newline="")) for cell in row]
            assert not [cell for cell in cells if re.match(r"\s*[=+@]|-(?![\d.])|\t|\r", cell)], path
    assert "'=\\x1b[31mred\\u202e\\n\\x9b2J" in Path("out/runs.csv").read_text()


def without_plotly(page: str) -> str:
    return re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", page, flags=re.DOTALL)


def test_errors_show_escapes_for_what_the_user_typed(cl_bench: Cli) -> None:
    for command in (["compare", TEXT], ["table", TEXT], ["results", "show", TEXT], ["report", "--pictures", TEXT]):
        factories.write(RUNS, factories.record())
        done = cl_bench(*command)
        assert done.code == 2 and done.err.count("\n") == 1 and done.err.rstrip("\n").isprintable(), done
        assert "\\x1b[31mred" in done.err


@pytest.mark.skipif(not SOAK, reason="minutes")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.sampled_from(MANY), min_size=1, max_size=12, unique_by=id))
def test_any_value_in_any_place_hides_no_other_run(
    cl_bench: Cli, good: list[str], chosen: list[tuple[forged.Place, Any]]
) -> None:
    for path in RUNS.iterdir():
        # Remove the files of the previous trial, whose method may have had another name.
        if not path.name.startswith(tuple(good)):
            path.unlink()
    paths = {forged.forge(RUNS, place, value, number) for number, (place, value) in enumerate(chosen)}
    refused = unreadable(Store(RUNS).load, paths)
    check_commands(cl_bench, good, refused, accepted=len(paths) - len(refused))


# --- what no check foresees ------------------------------------------------------------------------------------


def some_runs(folder: Path, count: int) -> list[Run]:
    factories.write(folder, *(factories.record("alpha", seed) for seed in range(count)))
    return collect([(folder, "runs")], pytest.fail)


def test_a_run_that_breaks_a_report_is_named_and_left_out(tmp_path: Path) -> None:
    runs = some_runs(tmp_path, 9)
    sentences: list[str] = []
    tried: list[int] = []

    def make(some: Sequence[Run]) -> list[int]:
        seeds = [run.record.experiment.seed for run in some]
        tried.append(len(seeds))
        if {2, 7} & set(seeds):
            raise OverflowError("too\nlarge")
        return seeds

    assert without_failing_runs(make, runs, sentences.append) == [0, 1, 3, 4, 5, 6, 8]
    assert len(sentences) == 2 and all("cannot be reported (OverflowError: too\\nlarge)" in text for text in sentences)
    assert [text.split(".json")[0] for text in sentences] == [
        f"runs/{runs[n].record.experiment.file_stem}" for n in (2, 7)
    ]
    assert len(tried) < 20
    assert without_failing_runs(make, [runs[0]], pytest.fail) == [0]


def test_runs_that_only_break_a_report_together_cost_the_later_ones(tmp_path: Path) -> None:
    runs = some_runs(tmp_path, 4)
    sentences: list[str] = []

    def make(some: Sequence[Run]) -> int:
        if {1, 3} <= {run.record.experiment.seed for run in some}:
            raise ValueError("they do not fit each other")
        return len(some)

    assert without_failing_runs(make, runs, sentences.append) == 3 and len(sentences) == 1 and "-s3-" in sentences[0]


def test_a_failure_with_every_run_is_not_blamed_on_the_runs(tmp_path: Path) -> None:
    runs = some_runs(tmp_path, 3)

    def broken(some: Sequence[Run]) -> None:
        raise ZeroDivisionError("ours")

    def refused(some: Sequence[Run]) -> None:
        raise UserError("theirs")

    with pytest.raises(ZeroDivisionError, match="ours"):
        without_failing_runs(broken, runs, pytest.fail)
    with pytest.raises(UserError, match="theirs"):
        without_failing_runs(refused, runs, pytest.fail)


def test_every_command_goes_on_without_a_run_that_breaks_it(cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a fault in our code that only appears in reports, not when the record is read."""
    good, worst = (factories.record(name, classes_per_task=2, limits=forged.CUT) for name in ("good", "awful"))
    factories.write(RUNS, good, worst)
    real = metrics.accuracy_curve

    def curve(correct: Any, total: Any) -> Any:
        if list(total) == worst.total:
            raise OverflowError("int too large to convert to float")
        return real(correct, total)

    monkeypatch.setattr(metrics, "accuracy_curve", curve)
    for command in (
        ["results", "ls"],
        ["results", "export", "--out", "runs.csv"],
        ["report", "--out", "report"],
        ["figure", "accuracy", "--format", "csv", "--out", "figures"],
        ["compare", "--baseline", "good"],
    ):
        done = cl_bench(*command)
        assert done.code == (2 if command[0] == "compare" else 0), done
        reason = f"{worst.experiment.file_stem}.json: cannot be reported (OverflowError: int too large to convert"
        assert done.err.count("cannot be reported") == done.err.count(reason) == 1, done
    assert "skipped" in Path("report/index.html").read_text().lower()


# --- spreadsheets ------------------------------------------------------------------------------------------------


def test_texts_that_are_formulas_in_spreadsheets_are_neutral_and_numbers_stay_numbers() -> None:
    formulas = ["=1+1", "+1-2", "-2+3", "@SUM(A1)", " =1", "-", "\uff1d1", "+cmd|' /C calc'!A0"]
    plain = ["alpha", "-1.5", "+3", "-1e-05", "1", "", "a=b", "'=1", "1-2", "\t=1", "a\r=1"]
    frame = pd.DataFrame(
        {
            "text": [*formulas, *plain],
            "number": range(-9, 10),
            "float": [-1.5] * 19,
            "mixed": pd.Series([1, None, "=1", -2, -1.5, *[None] * 14], dtype=object),
            "count": pd.Series([-1, None] + [1] * 17, dtype="Int64"),
            "=head": "x",
        }
    )
    header, *rows = csv.reader(io.StringIO(spreadsheets.to_csv(frame), newline=""))
    assert header == ["text", "number", "float", "mixed", "count", "'=head"]
    assert [row[0] for row in rows] == [f"'{text}" for text in formulas] + [*plain[:-2], "\\t=1", "a\\r=1"]
    assert [row[1] for row in rows] == [str(number) for number in range(-9, 10)]
    assert {row[2] for row in rows} == {"-1.5"}
    assert [row[3] for row in rows[:6]] == ["1", "", "'=1", "-2", "-1.5", ""]
    assert [row[4] for row in rows[:3]] == ["-1", "", "1"]
    some = frame[["text", "=head", "number", "float", "count"]]
    lines = [
        (row[:3], [None if pd.isna(value) else value for value in row[3:]])
        for row in some.itertuples(index=False, name=None)
    ]
    lines[1][1][1] = float("nan")
    assert spreadsheets.lines_to_csv(list(some), lines, "%.10g") == spreadsheets.to_csv(some, "%.10g")
