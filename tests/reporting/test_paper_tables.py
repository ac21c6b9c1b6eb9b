"""The paper's tables: published cells, our cells, marks for differences, and commands for missing runs."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.reporting import result_table, text_tables
from cl_bench.reporting.paper import tables as paper_tables
from cl_bench.reporting.protocol import Protocol
from cl_bench.reporting.runs import Run, collect, sections
from cl_bench.running import suites
from cl_bench.store import RunRecord
from tests.helpers import ROOT
from tests.helpers.command import Cli, Outcome
from tests.helpers.factories import record, write

REFERENCE = ROOT / "results" / "reference"
TABLES = tuple(f"sdlora-table{number}" for number in (2, 3, 4, 5, 6))
BACKBONE = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
TRANSFORMS = ImageTransforms(size=224, crop_scale=(0.05, 1.0), resize=256 / 224, mean=(0.0,) * 3, std=(1.0,) * 3)
"""The transforms of the released code: no input normalisation."""


def as_paper(method: str, seed: int, images: int = 6000, **changes: Any) -> RunRecord:
    """A run on ImageNet-R in 5 tasks in the paper's protocol, with `changes`; task sizes differ as in the split."""
    fields = {
        "benchmark": "imagenet-r",
        "backbone": BACKBONE,
        "transforms": TRANSFORMS,
        "tasks": 5,
        "classes_per_task": 40,
        "drop": 0.02,
    } | changes
    run = record(method, seed, **fields)
    tasks = len(run.total)
    total = [images * (10 + task) // sum(range(10, 10 + tasks)) for task in range(tasks)]
    total[-1] += images - sum(total)
    sizes = list(zip(total, run.total, strict=True))

    def scaled(rows: Sequence[Sequence[int | None]]) -> list[list[int | None]]:
        return [[c if c is None else c * n // old for c, (n, old) in zip(row, sizes, strict=True)] for row in rows]

    counts = {"correct": scaled(run.correct), "correct_task_aware": scaled(run.correct_task_aware)}
    return run.model_copy(update={"total": total, **counts})


def stored(folder: Path, *runs: RunRecord) -> list[Run]:
    write(folder, *runs)
    return collect([(folder, folder.name)], pytest.fail)


def lines(table: paper_tables.PaperTable, name: str) -> list[dict[str, str]]:
    """The cells of the rows with this name, by the heads of their columns."""
    heads = [f"{column.group} {column.title}".strip() for column in table.text_table.columns]
    return [dict(zip(heads, row, strict=True)) for row in table.text_table.rows if row[0] == name]


def numbers(table: paper_tables.PaperTable) -> pd.DataFrame:
    return pd.read_csv(StringIO(text_tables.csv(table.text_table)))


@pytest.fixture(scope="module")
def reference() -> list[Run]:
    return collect([(REFERENCE, "reference")], pytest.fail)


# --- published cells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "row", "head", "text"),
    [
        ("sdlora-table2", "SD-LoRA", "imagenet-r, N = 5: acc, %", "79.15 (0.20)"),
        ("sdlora-table2", "L2P", "imagenet-r, N = 20: aaa, %", "74.16 (0.32)"),
        ("sdlora-table3", "Full fine-tuning", "imagenet-a, N = 10: aaa, %", "30.04 (13.18)"),
        ("sdlora-table3", "HiDe-Prompt", "domainnet, N = 5: acc, %", "72.20 (0.08)"),
        ("sdlora-table4", "first direction only", "imagenet-r, N = 5: acc, %", "78.17 (0.27)"),
        ("sdlora-table4", "one direction for all tasks", "imagenet-r, N = 10: acc, %", "70.62 (0.78)"),
        ("sdlora-table4", "current magnitude only", "imagenet-r, N = 10: aaa, %", "79.74 (0.71)"),
        ("sdlora-table5", "SD-LoRA-RR", "imagenet-r, N = 20: trained, M", "0.23"),
        ("sdlora-table6", "SD-LoRA-KD", "cub200, N = 10: acc, %", "75.95 (0.55)"),
    ],
)
def test_published_cells_are_those_of_the_paper(table: str, row: str, head: str, text: str) -> None:
    (line,) = lines(paper_tables.build(table, []), row)
    assert line[f"{head} paper"] == text
    assert line[f"{head} ours"] == ""


@pytest.mark.parametrize("name", TABLES)
def test_every_published_number_is_in_its_table(name: str) -> None:
    published = pd.read_csv(ROOT / "results" / "published" / "sdlora.csv")
    mine = published[published["table"] == int(name[-1])]
    shown = numbers(paper_tables.build(name, []))
    key = ["benchmark", "tasks", "metric"]
    columns = [*key, "paper_mean", "paper_stderr"]
    expected = mine.rename(columns={"mean": "paper_mean", "stderr": "paper_stderr"})[columns]
    assert sorted(map(str, shown[columns].to_numpy().tolist())) == sorted(map(str, expected.to_numpy().tolist()))


def test_an_installed_package_has_the_one_copy_of_the_published_numbers() -> None:
    inside = files("cl_bench") / "assets" / "papers" / "sdlora.csv"
    assert (ROOT / "results" / "published" / "sdlora.csv").resolve() == Path(str(inside)).resolve()
    assert not Path(str(inside)).is_symlink(), "a wheel takes what is a file inside the package"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_rows_of_its_suite(name: str) -> None:
    cells = [cell for grid in suites.find(name).runs for cell in grid.cells()]
    wanted = {
        (cell.benchmark[0], cell.tasks[0] if cell.tasks else 0, spec.name, tuple(spec.options.items()))
        for cell in cells
        for spec in cell.methods
    }
    shown = numbers(paper_tables.build(name, []))
    rows = shown[["benchmark", "tasks", "row"]].drop_duplicates().itertuples(index=False)
    split = [(benchmark, tasks, *row.rstrip("]").partition("[")[::2]) for benchmark, tasks, row in rows]
    listed = {
        (b, n, m, tuple(tuple(pair.split("=")) for pair in options.split(",") if pair)) for b, n, m, options in split
    }
    assert listed == wanted
    assert set(shown["backbone"]) == {cell.backbone[0] for cell in cells if cell.backbone}


# --- our cells ----------------------------------------------------------------------------------------------


def test_ours_and_z_equal_an_independent_recomputation(tmp_path: Path) -> None:
    found = [as_paper(method, seed) for method in ("sdlora", "hide") for seed in range(5)]
    table = paper_tables.build("sdlora-table2", stored(tmp_path, *found))
    published = {
        "sdlora": {"acc": (79.15, 0.20), "aaa": (83.01, 0.42)},
        "hide": {"acc": (74.77, 0.25), "aaa": (78.15, 0.24)},
    }
    frame = numbers(table).set_index(["row", "tasks", "metric"])
    for method, by_metric in published.items():
        curves = [
            [100 * sum(c or 0 for c in run.correct[t][: t + 1]) / sum(run.total[: t + 1]) for t in range(5)]
            for run in found
            if run.label == method
        ]
        for metric, (mean, stderr) in by_metric.items():
            values = [curve[-1] if metric == "acc" else sum(curve) / 5 for curve in curves]
            error = np.std(values, ddof=1) / math.sqrt(5)
            z = (np.mean(values) - mean) / math.sqrt(error**2 + stderr**2)
            got = frame.loc[(method, 5, metric)]
            assert [got["mean"], got["stderr"], got["n"], got["z"]] == pytest.approx([np.mean(values), error, 5, z])
            name = {"sdlora": "SD-LoRA", "hide": "HiDe-Prompt"}[method]
            (line,) = lines(table, name)
            head = f"imagenet-r, N = 5: {metric}, %"
            assert line[f"{head} ours"] == f"{np.mean(values):.2f} ({error:.2f})", "unmarked: as in the paper"
            assert line[f"{head} z"] == f"{z:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert "Runs: 5 per cell." in table.text_table.notes
    assert not any(note.startswith("[") for note in table.text_table.notes)


def test_one_run_has_neither_standard_error_nor_z(tmp_path: Path) -> None:
    table = paper_tables.build("sdlora-table2", stored(tmp_path, as_paper("sdlora", 0)))
    (line,) = lines(table, "SD-LoRA")
    assert re.fullmatch(r"\d\d\.\d\d", line["imagenet-r, N = 5: acc, % ours"])
    assert line["imagenet-r, N = 5: acc, % z"] == ""
    assert any("no standard error" in note for note in table.text_table.notes)


def test_cost_is_read_from_the_records(tmp_path: Path) -> None:
    runs = [
        as_paper("sdlora", seed, tasks=20, classes_per_task=10).model_copy(
            update={"flops_per_image": 35_120_000_000, "trainable": [376_000 + t for t in range(20)]}
        )
        for seed in range(2)
    ]
    (line,) = lines(paper_tables.build("sdlora-table5", stored(tmp_path, *runs)), "SD-LoRA")
    head = "imagenet-r, N = 20:"
    assert [line[f"{head} GFLOPs {who}"] for who in ("ours", "paper")] == ["35.12", "35.12"]
    assert line[f"{head} trained, M ours"] == "0.376" and line[f"{head} trained, M paper"] == "0.37"
    assert line[f"{head} stored, M ours"] == f"{1_930 * 20 / 1e6:.3f}"


# --- differences are marked ------------------------------------------------------------------------------------

NORMALISED = TRANSFORMS.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hyperparameters": {"epochs": 50}}, "50 epochs (paper: 20 or 30)"),
        ({"transforms": NORMALISED}, "mean (0.5, 0.5, 0.5) (paper: (0, 0, 0)), std (0.5, 0.5, 0.5) (paper: (1, 1, 1))"),
        ({"images": 5000}, "another split, of 5,000 test images (paper: 6,000)"),
        ({"scenario": "domain-incremental"}, "domain-incremental (paper: class-incremental)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_differs_from_the_paper_is_marked(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    table = paper_tables.build("sdlora-table2", stored(tmp_path, *(as_paper("sdlora", s, **changes) for s in range(2))))
    (line,) = lines(table, "SD-LoRA")
    assert line["imagenet-r, N = 5: acc, % ours"].endswith(" [a]")
    assert [note for note in table.text_table.notes if note.startswith("[")] == [f"[a] {words}."]
    (other,) = lines(table, "InfLoRA")
    assert not any("[" in cell for cell in other.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "11" * 32}, "weights 11111111 instead of c4c4c4c4"),
        ({"split": "22" * 32}, "split 22222222 instead of 5b5b5b5b"),
        ({"transforms": TRANSFORMS.model_copy(update={"flip": 0.0})}, "flip 0 instead of 0.5"),
        ({"hyperparameters": {"lr": 0.5}}, "lr 0.5 instead of 0.01"),
        ({"revision": 2}, "revision 2 instead of 1"),
        ({"probe": "interpolation"}, "probe interpolation instead of none"),
        ({"storage": "files"}, "image storage files instead of memory"),
        # A hyper-parameter that an older record lacks counts as its default, as in labels.
        (
            {"defaults": {"epochs": 20, "lr": 0.01, "rank": 4, "new": 1}, "hyperparameters": {"new": 2}},
            "new 2 instead of 1",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_of_a_row_that_differ_are_rows_of_their_own(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    same = [as_paper("sdlora", seed) for seed in range(3)]
    others = [as_paper("sdlora", seed, **{"drop": 0.1} | changes) for seed in range(2)]
    table = paper_tables.build("sdlora-table2", stored(tmp_path, *same, *others))
    first, second = lines(table, "SD-LoRA")
    head = "imagenet-r, N = 5: acc, %"
    for line, group, mark in ((first, same, ""), (second, others, " [a]")):
        values = [100 * sum(c or 0 for c in run.correct[-1]) / 6000 for run in group]
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert line[f"{head} ours"] == f"{np.mean(values):.2f} ({error:.2f}){mark}"
    assert first[f"{head} paper"] == "79.15 (0.20)" and second[f"{head} paper"] == ""
    assert [note for note in table.text_table.notes if note.startswith("[")] == [f"[a] {words}."]


def test_a_row_on_other_weights_than_its_column_is_marked(tmp_path: Path) -> None:
    runs = [as_paper(method, seed) for method in ("sdlora", "hide") for seed in range(2)]
    runs += [as_paper("inflora", seed, weights="11" * 32) for seed in range(2)]
    table = paper_tables.build("sdlora-table2", stored(tmp_path, *runs))
    marked = [row[0] for row in table.text_table.rows if any("[a]" in cell for cell in row)]
    assert marked == ["InfLoRA"]
    assert "[a] weights 11111111 instead of c4c4c4c4." in table.text_table.notes


def test_tasks_of_other_sizes_are_another_protocol(tmp_path: Path) -> None:
    even = [as_paper("sdlora", 0)]
    uneven = as_paper("sdlora", 1)
    sizes = uneven.experiment.model_copy(update={"tasks": (60, 50, 40, 30, 20)})
    uneven = uneven.model_copy(update={"experiment": sizes, "key": sizes.key})
    runs = [Run(run, "mine", Protocol.of(run), "sdlora", "sdlora") for run in (*even, uneven)]
    table = paper_tables.build("sdlora-table2", runs)
    assert len(lines(table, "SD-LoRA")) == 2
    assert any("60 + 50 + 40 + 30 + 20 classes" in note for note in table.text_table.notes if note.startswith("["))


def test_the_order_of_the_runs_changes_nothing(tmp_path: Path) -> None:
    found = [
        as_paper(method, seed, weights=f"{seed % 2}1" * 32) for method in ("coda", "sdlora", "l2p") for seed in range(4)
    ]
    runs = stored(tmp_path, *found)
    one, other = (paper_tables.build("sdlora-table2", order) for order in (runs, runs[::-1]))
    assert one.text_table == other.text_table and text_tables.csv(one.text_table) == text_tables.csv(other.text_table)


def test_trials_and_other_streams_are_left_out(tmp_path: Path) -> None:
    trial = Limits(train_per_class=5)
    made = [
        as_paper("sdlora", 0),
        *(as_paper("sdlora", seed, limits=trial) for seed in range(3)),
        as_paper("hide", 0, backbone="vit_base_patch16_224.dino"),
        as_paper("coda", 0, label="coda[length=4]", hyperparameters={"rank": 8}),
        record("finetune", 0),
    ]
    runs = stored(tmp_path, *made)
    table = paper_tables.build("sdlora-table2", runs)
    assert table.filled == 1
    assert paper_tables.build("sdlora-table2", runs, backbone="vit_base_patch16_224.dino").filled == 1
    assert numbers(table)["n"].dropna().tolist() == [1, 1]
    assert "Left out: 3 trial runs of these rows, made on a part of the data." in table.text_table.notes


# --- missing runs -------------------------------------------------------------------------------------------------


def planned(commands: Sequence[str]) -> set[tuple[str, str, str, str]]:
    """The runs that a `run` command makes, as (benchmark, tasks, row, recipe), from its options."""
    found = set()
    for command in commands:
        words = shlex.split(command)
        options = dict(zip(words[2::2], words[3::2], strict=True))
        assert words[:2] == ["cl-bench", "run"] and options["--seeds"] == "0-4" and options["--backbone"] == BACKBONE
        for row in re.findall(r"[a-z][a-z0-9-]*(?:\[[^]]*\])?", options["--methods"]):
            found.add((options["--benchmark"], options["--tasks"], row, options.get("--recipe", "auto")))
    return found


def test_an_empty_table_names_its_suite() -> None:
    for name in TABLES:
        table = paper_tables.build(name, [])
        assert table.filled == 0 and table.commands == (f"cl-bench run --suite {name}",)
    table = paper_tables.build("sdlora-table2", [], "icons-100", "vit_tiny_patch8_32.icons")
    (command,) = table.commands
    assert command.endswith("--suite sdlora-table2 --benchmark icons-100 --backbone vit_tiny_patch8_32.icons")


def test_only_the_missing_runs_are_in_the_commands(tmp_path: Path) -> None:
    there = [("finetune", 5), ("sdlora", 5), ("sdlora", 10)]
    runs = [as_paper(method, 0, tasks=tasks, classes_per_task=200 // tasks) for method, tasks in there]
    table = paper_tables.build("sdlora-table2", stored(tmp_path, *runs))
    rows = (
        "finetune",
        "l2p[prompts=prefix]",
        "dualprompt",
        "coda",
        "hide",
        "inflora",
        "sdlora",
        "sdlora-rr",
        "sdlora-kd",
    )
    assert planned(table.commands) == {
        ("imagenet-r", str(tasks), row, "published:imagenet-r.prefix" if row.startswith("l2p") else "auto")
        for row in rows
        for tasks in (5, 10, 20)
        if (row, tasks) not in there
    }
    assert (table.filled, table.cells) == (3, 27)


def test_the_printed_commands_run(cl_bench: Cli) -> None:
    rows = ("finetune", "dualprompt", "coda", "inflora", "sdlora", "sdlora-kd")
    write(Path("mine"), *(record(row, seed) for row in rows for seed in range(5)))
    outcome = cl_bench("table", "sdlora-table6", "--benchmark", "icons-100", "--results", "mine", "--no-reference")
    assert outcome.code == 0
    heading, *commands = outcome.err.splitlines()
    assert heading.startswith("2 of 8 cells have no run")
    outcomes = [cl_bench(*shlex.split(command)[1:], "--dry-run", "--device", "cpu") for command in commands]
    assert all(outcome.code == 0 for outcome in outcomes), outcomes
    shown = [line.split() for outcome in outcomes for line in outcome.out.splitlines() if "icons-100" in line]
    assert sorted((line[0], line[2], line[4]) for line in shown) == [
        (row, "10", str(seed)) for row in ("l2p[prompts=prefix]", "sdlora-rr") for seed in range(5)
    ]


# --- other streams, the reference results ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_the_reference_results_fill_every_table_on_the_icons(name: str, reference: list[Run]) -> None:
    table = paper_tables.build(name, reference, "icons-100")
    assert table.filled == table.cells and table.commands == ()
    assert not any(column.title in ("paper", "z") for column in table.text_table.columns)
    assert not any(note.startswith("[") for note in table.text_table.notes), "one protocol per column"
    frame = numbers(table)
    assert set(frame["n"]) == {5} and frame["paper_mean"].isna().all()
    assert all(all(row) for row in table.text_table.rows)


@pytest.mark.parametrize(("benchmark", "count"), [("icons-100", 27), ("cifar100", 13)])
def test_cells_equal_those_of_the_protocols_table(benchmark: str, count: int, reference: list[Run]) -> None:
    frame = numbers(paper_tables.build("sdlora-table2", reference, benchmark)).set_index(["tasks", "row", "metric"])
    checked = 0
    for section in sections(reference):
        if section.protocol.benchmark != benchmark or section.protocol.limits_text():
            continue
        if section.protocol.backbone not in set(frame["backbone"]):
            continue
        for row in result_table.build(section).rows:
            if (section.protocol.num_tasks, row.label, "acc") in frame.index:
                got = frame.loc[(section.protocol.num_tasks, row.label, "acc")]
                assert (got["mean"], got["stderr"]) == pytest.approx((100 * row.acc.mean, 100 * (row.acc.stderr or 0)))
                checked += 1
    assert checked == count


def test_another_stream_is_shown_on_one_backbone(tmp_path: Path) -> None:
    vits = [("vit_a", 1), ("vit_b", 3), ("vit_c", 1)]
    made = [record("sdlora", seed, backbone=vit) for vit, count in vits for seed in range(count)]
    runs = stored(tmp_path, *made)
    table = paper_tables.build("sdlora-table2", runs, "icons-100")
    rows = numbers(table).dropna(subset="mean")
    assert set(rows["backbone"]) == {"vit_b"} and set(rows["n"]) == {3}
    left = "Backbone: vit_b. Left out: 2 runs on icons-100 with another backbone (vit_a, vit_c); --backbone shows them."
    assert table.text_table.notes[-1] == left
    assert all("--backbone vit_b" in command for command in table.commands)
    other = paper_tables.build("sdlora-table2", runs, "icons-100", "vit_c")
    assert set(numbers(other).dropna(subset="mean")["n"]) == {1}


def test_columns_of_the_same_stream_are_merged(reference: list[Run]) -> None:
    heads = [column.group for column in paper_tables.build("sdlora-table6", reference, "icons-100").text_table.columns]
    assert heads == ["", "icons-100, N = 10", "icons-100, N = 10"]


def test_another_backbone_has_no_published_cells() -> None:
    table = paper_tables.build("sdlora-table3", [], backbone="vit_base_patch16_224.dino")
    assert numbers(table)["paper_mean"].isna().all()
    assert set(numbers(table)["backbone"]) == {"vit_base_patch16_224.dino"}
    assert table.commands == ("cl-bench run --suite sdlora-table3 --backbone vit_base_patch16_224.dino",)


def test_the_name_of_a_table_is_a_plain_file_name() -> None:
    name = paper_tables.build("sdlora-table3", [], "folder:../My Birds/50 %").text_table.name
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name) and name.startswith("sdlora-table3-folder")


# --- the command line ------------------------------------------------------------------------------------------------


def icons(cl_bench: Cli, *options: str) -> Outcome:
    return cl_bench("table", "sdlora-table4", "--benchmark", "icons-100", "--results", str(REFERENCE), *options)


def test_every_format_comes_from_the_command_line(cl_bench: Cli) -> None:
    shown = icons(cl_bench)
    assert shown.code == 0 and shown.err == ""
    assert "current magnitude only" in shown.out and "icons-100, N = 10" in shown.out
    md, tex, html = (icons(cl_bench, "--format", form).out for form in ("md", "tex", "html"))
    assert "| SD-LoRA |" in md and r"\bottomrule" in tex and '<th scope="row">SD-LoRA</th>' in html
    cells = list(csv.DictReader(StringIO(icons(cl_bench, "--format", "csv").out)))
    assert len(cells) == 4 * 2 * 2 and {row["origin"] for row in cells} == {"reference"}
    for cell in (row for row in cells if row["metric"] == "acc"):
        text = f"{float(cell['mean']):.2f} ({float(cell['stderr']):.2f})"
        assert all(text in form for form in (shown.out, md, tex, html))


@pytest.mark.parametrize("form", ["md", "csv", "tex", "html"])
def test_a_file_is_written_in_the_format_of_its_ending(cl_bench: Cli, form: str) -> None:
    outcome = icons(cl_bench, "--out", f"made/table.{form}")
    assert outcome.code == 0 and f"made/table.{form}" in outcome.out
    # LaTeX names the command that made it.
    one, other = Path(f"made/table.{form}").read_text(), icons(cl_bench, "--format", form).out
    assert re.sub("% cl-bench .*", "", one) == re.sub("% cl-bench .*", "", other)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["sdlora-tabel2"], ["'sdlora-tabel2'", "Did you mean 'sdlora-table2'?", "cl-bench ls tables"]),
        (["sdlora-table2", "--benchmark", "icns-100"], ["'icns-100'", "Did you mean 'icons-100'?"]),
        (["sdlora-table2", "--results", "nowhere"], ["'nowhere'", "no folder"]),
        (["sdlora-table2", "--format", "docx"], ["'docx'", "csv, html, md, terminal, tex"]),
        (["sdlora-table2", "--out", "table.docx"], ["'docx'", "csv, html, md, terminal, tex"]),
    ],
)
def test_bad_input_is_one_sentence(cl_bench: Cli, arguments: list[str], fragments: list[str]) -> None:
    outcome = cl_bench("table", *arguments)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1 and all(fragment in outcome.err for fragment in fragments), outcome.err


def test_a_benchmark_that_only_the_store_knows_is_fine(cl_bench: Cli) -> None:
    write(Path("mine"), record("sdlora", 0, benchmark="folder:elsewhere/birds"))
    outcome = cl_bench(
        "table", "sdlora-table6", "--benchmark", "folder:elsewhere/birds", "--results", "mine", "--format", "csv"
    )
    assert outcome.code == 0 and "folder:elsewhere/birds" in outcome.out


def test_commands_fill_the_folder_that_is_read(cl_bench: Cli) -> None:
    Path("my runs").mkdir()
    outcome = cl_bench("table", "sdlora-table5", "--results", "my runs")
    assert outcome.err.splitlines()[-1] == "cl-bench run --suite sdlora-table5 --results 'my runs'"


def test_tables_are_listed(cl_bench: Cli) -> None:
    outcome = cl_bench("ls", "tables")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == ["results", *TABLES]


def test_tables_need_neither_torch_nor_avalanche(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from cl_bench.cli import app\n"
        f"app(['table', 'sdlora-table2', '--benchmark', 'imagenet-r', '--results', {str(tmp_path)!r}], "
        "standalone_mode=False)\n"
        "print(json.dumps(sorted({'torch', 'avalanche', 'timm', 'matplotlib', 'plotly'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown table 'sdlora-table7'.*Did you mean 'sdlora-table"):
        paper_tables.build("sdlora-table7", [])
