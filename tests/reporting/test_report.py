from __future__ import annotations

import csv
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats as scipy_stats

from cl_bench import metrics
from cl_bench.errors import UserError
from cl_bench.experiment import Limits
from cl_bench.reporting import plots, result_table, text_tables
from cl_bench.reporting.cells import DASH, human_count
from cl_bench.reporting.confusions import on_page
from cl_bench.reporting.frames import run_frame
from cl_bench.reporting.render import drawing
from cl_bench.reporting.report import RenderedReport, load_runs, render, render_sections
from cl_bench.reporting.runs import collect, sections
from cl_bench.store import RunRecord
from tests.helpers import reports
from tests.helpers.command import Cli, assert_refused
from tests.helpers.factories import WEIGHTS, arrays, edit, npz, record, write

SLUG = "icons-100-10x10-vit_tiny_patch8_32.icons"
COMMAND = "cl-bench report --out reports"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def report(runs: Path, out: str = "out", *pictures: str) -> RenderedReport:
    return render([(runs, "runs")], runs.parent / out, COMMAND, pictures)


def built(*folders: Path) -> list[result_table.ResultTable]:
    """The result tables alone, which are built faster than a report with figures."""
    found, _ = load_runs([(folder, folder.name) for folder in folders])
    return [result_table.build(section) for section in sections(found)]


def csv_rows(text: str) -> dict[str, dict[str, str]]:
    return {row["label"]: row for row in csv.DictReader(StringIO(text))}


def three_methods(runs: Path, seeds: int = 3) -> list[RunRecord]:
    found = [
        record(method, seed, drop=drop, joint=method == "joint")
        for method, drop in (("alpha", 0.01), ("beta", 0.06), ("joint", 0))
        for seed in range(seeds)
    ]
    write(runs, *found)
    return found


# --- numbers ----------------------------------------------------------------------------------------------


def test_csv_equals_an_independent_recomputation(runs: Path) -> None:
    found = three_methods(runs)
    report(runs)
    rows = csv_rows((runs.parent / "out" / "tables" / f"{SLUG}.csv").read_text())
    for method in ("alpha", "beta"):
        acc, aaa, forgetting = [], [], []
        for run in (run for run in found if run.label == method):
            curve = [sum(run.correct[t][j] or 0 for j in range(t + 1)) / sum(run.total[: t + 1]) for t in range(10)]
            acc.append(curve[-1])
            aaa.append(sum(curve) / 10)
            drops = [max((run.correct[t][j] or 0) for t in range(j, 10)) - (run.correct[9][j] or 0) for j in range(9)]
            forgetting.append(sum(drop / run.total[j] for j, drop in enumerate(drops)) / 9)
        for name, values in (("acc", acc), ("aaa", aaa), ("forgetting", forgetting)):
            interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
            got = [float(rows[method][f"{name}_{part}"]) for part in ("mean", "low", "high", "n")]
            assert got == pytest.approx([np.mean(values), interval.low, interval.high, 3], abs=1e-12)
        assert rows[method]["trainable"] == str(36_900 + 9 * 1_930)
        assert rows[method]["seeds"] == "0 1 2"
    minutes = [(sum(r.train_seconds) + sum(r.eval_seconds)) / 60 for r in found if r.label == "alpha"]
    assert float(rows["alpha"]["minutes_mean"]) == pytest.approx(np.mean(minutes))


def test_joint_training_has_accuracy_only(runs: Path) -> None:
    three_methods(runs)
    [table] = built(runs)
    row = csv_rows(text_tables.csv(result_table.text_table(table)))["joint"]
    assert row["acc_mean"] and not any(row[f"{m}_{p}"] for m in ("aaa", "forgetting") for p in ("mean", "low", "n"))
    assert any("joint: trained on all tasks at once" in note for note in table.notes)
    cells = table.cells(next(row for row in table.rows if row.label == "joint"))
    assert cells[2:4] == (DASH, DASH)


def test_rows_are_sorted_by_final_accuracy(runs: Path) -> None:
    three_methods(runs)
    means = [row.acc.mean for row in built(runs)[0].rows]
    assert means == sorted(means, reverse=True)


def test_one_seed_has_no_interval(runs: Path) -> None:
    write(runs, record("alpha", 0), *(record("beta", s) for s in range(2)))
    [table] = built(runs)
    texts = {row.label: table.cells(row) for row in table.rows}
    assert "±" not in texts["alpha"][1]
    assert "±" in texts["beta"][1]
    assert "One run only, no interval: alpha." in table.notes
    assert csv_rows(text_tables.csv(result_table.text_table(table)))["alpha"]["acc_low"] == ""


def test_notes_list_seeds_and_class_orders(runs: Path) -> None:
    write(runs, *(record("alpha", s) for s in (0, 1, 2, 5)))
    assert f"Runs: seeds 0{DASH}2, 5, each of which also sets the class order." in built(runs)[0].notes
    write(runs, *(record("beta", s, class_order="natural") for s in (0, 1)))
    note = next(note for note in built(runs)[0].notes if note.startswith("Runs: "))
    assert f"seeds 0{DASH}1, class order natural (beta)" in note
    assert "also sets the class order (alpha)" in note


# --- what may share a table -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"benchmark": "folder:birds/small"},
        {"tasks": 5},
        {"split": "00" * 32},
        {"weights": "11" * 32},
        {"backbone": "vit_base_patch16_224.augreg_in21k"},
        {"limits": Limits(tasks=None, train_per_class=None, test_per_class=5)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_protocols_never_share_a_table(runs: Path, changes: dict[str, Any]) -> None:
    write(runs, record("alpha", 0), record("alpha", 1, **changes))
    made = built(runs)
    assert [[row.seeds for row in table.rows] for table in made] in (
        [[(0,)], [(1,)]],
        [[(1,)], [(0,)]],
    )
    assert len({table.slug for table in made}) == len({table.caption for table in made}) == 2


def test_slugs_are_hashed_only_where_they_clash(runs: Path) -> None:
    write(runs, record("alpha", 0), record("alpha", 0, tasks=5))
    assert {table.slug for table in built(runs)} == {SLUG, SLUG.replace("10x10", "5x10")}
    write(runs, record("alpha", 0, weights="11" * 32))
    hashed = [table.slug for table in built(runs) if table.slug.startswith(SLUG)]
    assert len(hashed) == 2 and all(len(slug) == len(SLUG) + 9 for slug in hashed)


def test_a_slug_is_a_plain_file_name(runs: Path) -> None:
    write(runs, record("alpha", 0, benchmark="folder:../../My Birds (v2)", backbone="a/b:c"))
    assert built(runs)[0].slug == "folder_.._.._My_Birds_v2-10x10-a_b_c"


def test_limits_are_named(runs: Path) -> None:
    write(runs, record("alpha", 0, limits=Limits(tasks=3, train_per_class=None, test_per_class=4)))
    caption = built(runs)[0].caption
    assert "cut-down trial: first 3 of 10 tasks only, at most 4 test images per class" in caption


def test_a_run_in_two_folders_counts_once(tmp_path: Path) -> None:
    mine, reference = tmp_path / "runs", tmp_path / "reference"
    write(mine, record("alpha", 0))
    write(reference, *(record("alpha", s) for s in range(3)))
    row = built(mine, reference)[0].rows[0]
    assert (row.acc.n, row.seeds, row.origins) == (3, (0, 1, 2), ("reference", "runs"))


def test_equal_labels_with_other_hyperparameters_are_told_apart(runs: Path) -> None:
    write(
        runs,
        *(record("alpha", s) for s in range(2)),
        *(record("alpha", s, hyperparameters={"epochs": 5}) for s in range(2)),
        record("alpha", 0, label="alpha[rank=8]", hyperparameters={"rank": 8}),
        record("alpha", 0, label="alpha[rank=8]", hyperparameters={"rank": 8, "lr": 0.5}),
    )
    labels = {row.label: row.acc.n for row in built(runs)[0].rows}
    assert labels == {
        "alpha[epochs=20]": 2,
        "alpha[epochs=5]": 2,
        "alpha[rank=8,lr=0.01]": 1,
        "alpha[rank=8,lr=0.5]": 1,
    }


def test_rows_of_different_revisions_have_different_labels(runs: Path) -> None:
    write(runs, record("alpha", 0), record("alpha", 1, revision=2), record("beta", 0, revision="ab" * 32))
    labels = {row.label for row in built(runs)[0].rows}
    assert labels == {"alpha[revision=1]", "alpha[revision=2]", "beta"}


def test_a_label_that_tells_apart_may_be_in_use_already(runs: Path) -> None:
    write(
        runs,
        record("alpha", 0),
        record("alpha", 0, hyperparameters={"epochs": 5}),
        record("alpha", 0, label="alpha[epochs=5]", hyperparameters={"epochs": 5, "rank": 8}),
    )
    labels = [row.label for row in built(runs)[0].rows]
    assert len(set(labels)) == 3 and all(label.count("[") == 1 for label in labels)


def test_a_changed_default_does_not_merge_runs(runs: Path) -> None:
    """Neither content key contains `epochs`, because it has its default value in each."""
    write(runs, record("alpha", 0))
    write(
        runs,
        record("alpha", 1, defaults={"epochs": 5, "lr": 0.01, "rank": 4}, hyperparameters={"epochs": 5}),
    )
    assert {row.label for row in built(runs)[0].rows} == {"alpha[epochs=20]", "alpha[epochs=5]"}


def test_frame_has_one_row_per_run(runs: Path) -> None:
    three_methods(runs)
    frame = run_frame(collect([(runs, "mine")], pytest.fail))
    assert len(frame) == 9
    assert frame[["label", "seed"]].drop_duplicates().shape[0] == 9
    assert set(frame["origin"]) == {"mine"} and set(frame["weights"]) == {WEIGHTS}
    assert frame.loc[frame.label == "joint", ["aaa", "forgetting"]].isna().all(axis=None)
    assert frame[["acc", "minutes", "trainable"]].notna().all(axis=None)


# --- damaged files, no files ------------------------------------------------------------------------------


def test_damaged_files_are_named_and_skipped(runs: Path) -> None:
    paths = write(runs, *(record("alpha", s) for s in range(4)))
    paths[1].write_text(paths[1].read_text()[:500])
    predictions = npz(paths[2])
    predictions.write_bytes(b"not an archive")
    made = report(runs)
    assert made.tables[0].rows[0].seeds == (0, 3)
    assert len(made.damaged) == 2
    page = made.paths[0].read_text()
    for path, sentence in zip((paths[1], predictions), sorted(made.damaged), strict=True):
        assert path.name in " ".join(made.damaged)
        assert sentence.split(": ")[0] in page


def test_edited_numbers_are_named_and_left_out(runs: Path) -> None:
    paths = write(runs, *(record("alpha", s) for s in range(3)))
    edit(paths[1], lambda data: data["correct"][9].__setitem__(0, 0), sealed=False)
    made = report(runs)
    assert made.tables[0].rows[0].seeds == (0, 2)
    assert [paths[1].name in sentence and "checksum" in sentence for sentence in made.damaged] == [True]


def test_no_results_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results in .*nowhere.*empty.*cl-bench run") as caught:
        render([(tmp_path / "nowhere", "runs"), (tmp_path / "empty", "reference")], tmp_path / "out", COMMAND)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_damaged_results_are_named(runs: Path) -> None:
    [path] = write(runs, record("alpha", 0))
    path.write_text("{}")
    with pytest.raises(UserError, match=path.name):
        load_runs([(runs, "runs")])


def test_an_unwritable_folder_is_named(runs: Path) -> None:
    write(runs, record("alpha", 0))
    (runs.parent / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"report folder .*taken.* cannot be written"):
        report(runs, "taken")


# --- renderers --------------------------------------------------------------------------------------------


def test_special_characters_survive_every_renderer(runs: Path) -> None:
    label = r"a_b[rate=5%,note=x|y&z#{1}~^\$2$]<b>*"
    write(runs, record("alpha", 0, label=label), record("beta", 0))
    made = report(runs)
    folder = runs.parent / "out" / "tables"
    tex = (folder / f"{SLUG}.tex").read_text()
    escaped = (
        r"a\_b{[}rate=5\%,note=x\textbar{}y\&z\#\{1\}"
        r"\textasciitilde{}\textasciicircum{}\textbackslash{}\$2\${]}\textless{}b\textgreater{}*"
    )
    assert f"{escaped} & " in tex
    assert tex.isascii() and tex.count("&") - tex.count(r"\&") == 3 * 7
    table_lines = [line for line in (folder / f"{SLUG}.md").read_text().splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in table_lines} == {9}
    assert label in csv_rows((folder / f"{SLUG}.csv").read_text())
    assert "<b>*" not in made.paths[0].read_text()
    console = Console(width=200, file=StringIO(), record=True)
    console.print(text_tables.rich(result_table.text_table(made.tables[0])))
    assert label in console.export_text()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (7_690, "7.7 k"),
        (370_000, "0.37 M"),
        (85_798_656, "85.80 M"),
        (2 * 10**9, "2.00 G"),
    ],
)
def test_counts_are_human(number: int, text: str) -> None:
    assert human_count(number) == text


def test_every_link_of_the_page_leads_to_a_file(runs: Path) -> None:
    three_methods(runs)
    made = report(runs)
    page = made.paths[0].read_text().partition('<script type="application/json"')[0]
    assert made.paths[0].name == "index.html"
    assert COMMAND in page and WEIGHTS in page
    links = [part.split('"')[0] for part in page.split('href="')[1:]]
    assert len([link for link in links if not link.startswith("#")]) > 8
    for link in links:
        assert link.startswith("#") or (runs.parent / "out" / link).is_file(), link
    for path in made.paths:
        assert path.is_file()


# --- figures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RenderedReport]:
    """The runs of three methods, and their report with all pictures."""
    runs = tmp_path_factory.mktemp("drawn") / "runs"
    three_methods(runs)
    return runs, report(runs, "one", "png", "pdf", "svg")


def test_figures_exist_and_show_something(drawn: tuple[Path, RenderedReport]) -> None:
    names = {*plots.NAMES, *on_page.NAMES} - {"loss", "updates"}
    folder = drawn[0].parent / "one" / "figures"
    assert {path.stem for path in folder.glob("*.csv")} == {f"{SLUG}-{name}" for name in names}
    for name in names:
        pixels = matplotlib.image.imread(folder / f"{SLUG}-{name}.png")
        assert min(pixels.shape[:2]) > 400
        colours = {tuple(colour) for colour in (pixels[..., :3] * 255).astype(int).reshape(-1, 3)[::7]}
        assert len(colours) > 50, name
        assert (folder / f"{SLUG}-{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (folder / f"{SLUG}-{name}.svg").read_text()[:2000]


def test_figures_draw_the_numbers(runs: Path) -> None:
    found = three_methods(runs)
    [section] = sections(load_runs([(runs, "runs")])[0])
    drawn = {name: drawing.draw(chart, ["joint"]) for name, chart in plots.standard(section).items()}
    axes = drawn["accuracy"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tasks learned", "top-1 accuracy, %")
    ends = sorted(line.get_ydata()[-1] for line in axes.lines)
    means = [
        100 * np.mean([sum(c or 0 for c in r.correct[-1]) / sum(r.total) for r in found if r.label == label])
        for label in ("alpha", "beta", "joint")
    ]
    assert ends == pytest.approx(sorted(means))
    assert len(axes.collections) == 2, "a band for each of the two methods"
    panels = [axes for axes in drawn["matrix"].axes if axes.get_title()]
    assert {panel.get_title() for panel in panels} == {"alpha", "beta"}
    assert {len(panel.texts) for panel in panels} == {10 * 11 // 2}, "the lower triangle"


def test_joint_training_alone_makes_a_report_without_figures(runs: Path) -> None:
    write(runs, *(record("joint", s, joint=True) for s in range(2)))
    made = report(runs, "out", "png")
    assert not [path for path in made.paths if "figures" in path.parts]
    assert made.tables[0].rows[0].label == "joint"


def test_a_single_task_has_nothing_to_forget_wherever_it_is_shown(cl_bench: Cli) -> None:
    folder = Path("results/runs")
    for name in ("alpha", "joint"):
        write(folder, *(record(name, s, tasks=1, classes_per_task=2, joint=name == "joint") for s in range(3)))
    done = cl_bench("report", "--out", "out")
    assert done.code == 0 and done.err == ""
    ((acc, aaa, forgetting, seeds),) = re.findall(r"^ *alpha +(\S+ ± \S+) +(\S+ ± \S+) +(\S+) +(\d)", done.out, re.M)
    assert acc == aaa and (forgetting, seeds) == (text_tables.DASH, "3")
    stem = "icons-100-1x2-vit_tiny_patch8_32.icons"
    table = pd.read_csv(f"out/tables/{stem}.csv").set_index("label")
    assert table.loc[["alpha", "joint"], "forgetting_mean"].isna().all() and table.acc_mean.notna().all()
    texts = {form: Path(f"out/tables/{stem}.{form}").read_text() for form in ("md", "tex", "html")}
    assert f"| {text_tables.DASH} | 3 |" in texts["md"] and "& -- & 3 &" in texts["tex"]
    page = Path("out/index.html").read_text()
    for text in (*texts.values(), page, done.out):
        assert "1 task " in text.replace("$", " ") and "A single task is learned, so forgetting" in text
        assert not re.search(r"\b1 tasks\b|[^\d]0\.00 ± 0\.00", text)
    (protocol,) = reports.at_once(page)["protocols"]
    undefined = {"forgetting", "forgetting_rwalk", "forgetting_coda", "bwt", "bwt_all", "fwt", "intransigence"}
    assert all({*metrics.METRICS, "fwt", "intransigence"} - {*row["metrics"]} == undefined for row in protocol["rows"])
    figures = {path.name.removeprefix(f"{stem}-") for path in Path("out/figures").iterdir()}
    assert figures == {"accuracy.csv", "matrix.csv", "tasks.csv", "cost.csv"}
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert cl_bench("results", "export", "--out", f"runs.{form}").code == 0
        assert read(f"runs.{form}")[sorted(undefined)].isna().all(axis=None)


def test_compare_says_what_is_undefined_instead_of_testing_it(cl_bench: Cli) -> None:
    folder = Path("results/runs")
    write(folder, *(record(name, s, tasks=1) for name in ("alpha", "beta") for s in range(3)))
    for metric in ("forgetting", "bwt"):
        done = cl_bench("compare", "alpha", "beta", "--metric", metric)
        assert_refused(done, f"'alpha' cannot be compared: {metric} is not defined where a single task is learned")
    assert "mean over 3 pairs of runs" in " ".join(cl_bench("compare", "alpha", "beta").out.split())
    write(folder, *(record(name, 0) for name in ("alpha", "beta")))
    done = cl_bench("compare", "alpha", "beta", "--metric", "forgetting")
    assert done.code == 0 and "mean over 1 pair of runs" in " ".join(done.out.split())
    assert re.fullmatch(r"no comparison with 'alpha' on icons-100, 1 task × .* is not defined .*\n", done.err), done.err


def test_the_same_records_give_the_same_bytes(drawn: tuple[Path, RenderedReport]) -> None:
    runs, first = drawn
    second = report(runs, "two", "png", "pdf", "svg")
    assert [path.name for path in first.paths] == [path.name for path in second.paths]
    assert {path.suffix for path in first.paths} == {".html", ".md", ".csv", ".tex", ".png", ".pdf", ".svg"}
    for one, two in zip(first.paths, second.paths, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_a_page_that_is_moved_alone_still_has_its_charts_and_the_files_beside_it(
    drawn: tuple[Path, RenderedReport],
) -> None:
    written = drawn[1].paths
    page = written[0].read_text()
    offered = {path: text for texts in reports.parts(page, "files").values() for path, text in texts.items()}
    beside = {path.relative_to(written[0].parent).as_posix(): path for path in written[1:]}
    assert offered.keys() == {name for name in beside if name.endswith((".csv", ".md", ".tex"))}
    assert all(beside[name].read_text() == text for name, text in offered.items())
    charts = {key: chart for part in reports.parts(page, "charts").values() for key, chart in part.items()}
    outlines = reports.at_once(page)["charts"]
    assert {*re.findall(r'data-chart="([^"]+)"', page)} == charts.keys() == outlines.keys()
    for key, outline in outlines.items():
        named = [trace["name"] for trace in charts[key]["data"] if trace.get("showlegend") is not False]
        assert outline["height"] == charts[key]["height"]
        assert [one["name"] for one in outline["legend"]] == (named if len(named) > 1 else [])


def test_rows_whose_samples_see_their_batch_are_marked(runs: Path) -> None:
    write(runs, record("alpha", 0), record("beta", 0, hyperparameters={"as_published_leaky": True}))
    (table,) = built(runs)
    note = next(note for note in table.notes if note.startswith("†"))
    assert "not comparable" in note
    marked = {row.label: "†" in table.cells(row)[0] for row in table.rows}
    assert marked == {"alpha": False, "beta": True}
    text = result_table.text_table(table)
    assert "beta †" in text_tables.markdown(text) and r"beta \textdagger{}" in text_tables.latex(text)
    write(runs.parent / "clean", record("alpha", 0))
    assert not any("†" in note for note in built(runs.parent / "clean")[0].notes)


def test_notes_name_the_hardware(runs: Path) -> None:
    write(runs, record("alpha", 0), record("beta", 0))
    assert "Hardware: CPU." in built(runs)[0].notes
    gpu = {"device": "cuda", "device_name": "NVIDIA H200"}
    write(runs, record("beta", 1).model_copy(update={"environment": gpu}))
    note = next(note for note in built(runs)[0].notes if note.startswith("Hardware: "))
    assert "CPU (alpha)" in note and "CPU, NVIDIA H200 (beta)" in note


def test_notes_do_not_list_most_rows(runs: Path) -> None:
    write(runs, *(record(name, 0, origin="none" if name == "e" else "tuned") for name in "abcde"))
    assert "Hyper-parameters: none, epochs=20 (e); tuned, epochs=20 (all others)." in built(runs)[0].notes


# --- the house --------------------------------------------------------------------------------------------


def test_reports_need_neither_torch_nor_avalanche() -> None:
    code = "import sys, cl_bench.reporting.report; sys.exit(bool({'torch', 'avalanche'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_factory_arrays_agree_with_the_counts() -> None:
    run = record("alpha", 3)
    data = arrays(run)
    for stage, row in enumerate(run.correct):
        for task, hits in enumerate(row):
            own = data["task"] == task
            expected = hits if hits is not None else 0
            assert int((data["predicted"][stage] == data["label"])[own].sum()) == expected


def in_processes(runs: Path, out: Path, processes: int) -> RenderedReport:
    found, _ = load_runs([(runs, "runs")])
    return render_sections(sections(found), [], {"runs": str(runs)}, out, COMMAND, processes=processes)


def test_protocols_shared_among_processes_make_the_same_report(runs: Path, tmp_path: Path) -> None:
    for tasks in (10, 5, 4):
        for method in ("alpha", "beta"):
            write(runs, record(method, tasks=tasks, classes_per_task=20 if tasks < 10 else 10))
    alone, shared = (in_processes(runs, tmp_path / str(processes), processes) for processes in (1, 2))
    assert [table.slug for table in shared.tables] == [table.slug for table in alone.tables]
    assert len(alone.tables) == 3
    for one, other in zip(alone.paths, shared.paths, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()
    # The first protocol is rendered by the other process.
    number = tmp_path / "2" / "figures" / f"{SLUG}-accuracy.csv"
    number.unlink()
    number.mkdir()
    with pytest.raises(UserError, match=f"report folder .* cannot be written .*{number.name}"):
        in_processes(runs, tmp_path / "2", 2)
