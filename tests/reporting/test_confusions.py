"""What stored predictions show: counts that agree with the record, errors by task and class, and forgotten images."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cl_bench.experiment import Limits
from cl_bench.reporting.charts import Heat, Lines, to_csv
from cl_bench.reporting.confusions import NoPredictions, RowErrors, measure, pictures, read, rows_of, tables, views
from cl_bench.reporting.confusions.on_page import NAMES, on_page
from cl_bench.reporting.render import drawing, interactive
from cl_bench.reporting.runs import Run, collect, label_runs, sections
from cl_bench.store import Arrays, RunRecord, Store
from cl_bench.streams import icons
from tests.helpers import ROOT, factories

REFERENCE = ROOT / "results" / "reference"
ICONS = "icons-100-10x10-vit_tiny_patch8_32.icons"


def run_of(record: RunRecord) -> Run:
    (run,) = label_runs([(record, "runs")])
    return run


def with_counts(record: RunRecord, arrays: Arrays) -> RunRecord:
    """The record with the counts of its arrays."""
    tasks = range(int(arrays["task"].max()) + 1)

    def hits(predicted: np.ndarray, task: int) -> int | None:
        mine = arrays["task"] == task
        return None if (predicted[mine] < 0).any() else int((predicted == arrays["label"])[mine].sum())

    return record.model_copy(
        update={
            "total": [int((arrays["task"] == task).sum()) for task in tasks],
            "correct": [[hits(stage, task) for task in tasks] for stage in arrays["predicted"]],
            "correct_task_aware": [[hits(stage, task) for task in tasks] for stage in arrays["predicted_task_aware"]],
        }
    )


@st.composite
def predicted_runs(draw: st.DrawFn) -> tuple[Run, Arrays]:
    """Random predictions of a class-incremental run; each stage predicts classes that it has seen."""
    tasks, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    images = [draw(st.integers(1, 4)) for _ in range(tasks * size)]
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    label = np.repeat(np.arange(tasks * size), images)
    task = label // size
    seen = [np.where(task <= t, random.integers(0, (t + 1) * size, len(label)), -1) for t in range(tasks)]
    arrays = {
        "label": label, "task": task, "predicted": np.stack(seen),
        "predicted_task_aware": task * size + random.integers(0, size, (tasks, len(label))),
    }  # fmt: skip
    record = factories.record(tasks=tasks, classes_per_task=size, seed=draw(st.integers(0, 3)))
    return run_of(with_counts(record, arrays)), arrays


@given(predicted_runs())
@settings(max_examples=60)
def test_every_image_is_counted_once(made: tuple[Run, Arrays]) -> None:
    run, arrays = made
    found, record = measure(run, arrays), run.record
    assert found.flow is not None and found.by_task is not None
    np.testing.assert_array_equal(found.by_class.sum(axis=1), np.bincount(arrays["label"]))
    np.testing.assert_array_equal(found.by_task.sum(axis=1), record.total)
    for stage, row in enumerate(record.correct):
        np.testing.assert_array_equal(found.flow[stage, :, 0], [count or 0 for count in row])
        np.testing.assert_array_equal(
            found.flow[stage].sum(axis=1), [n if c is not None else 0 for n, c in zip(record.total, row, strict=True)]
        )
        assert found.class_right[stage].sum() == sum(count or 0 for count in row)
    wrong = found.by_class.sum() - np.trace(found.by_class)
    assert found.flow[-1, :, 1:].sum() == wrong
    np.testing.assert_array_equal(np.diag(found.by_task), found.flow[-1, :, :2].sum(axis=1))
    np.testing.assert_array_equal(np.tril(found.by_task, -1).sum(axis=1), found.flow[-1, :, 2])
    assert not found.flow[:, 0, 2].any() and not found.flow[-1, -1, 3].any()


@given(predicted_runs())
@settings(max_examples=30)
def test_tasks_add_up_to_the_whole_run(made: tuple[Run, Arrays]) -> None:
    run, arrays = made
    whole = measure(run, arrays)
    parts = [measure(run, arrays, task) for task in range(len(run.record.total))]
    np.testing.assert_array_equal(sum(part.by_class for part in parts), whole.by_class)
    np.testing.assert_array_equal(np.concatenate([part.forgotten for part in parts]), whole.forgotten)
    np.testing.assert_array_equal(np.concatenate([part.rank for part in parts]), whole.rank)


@given(predicted_runs())
@settings(max_examples=30)
def test_forgetting_is_the_change_since_a_task_was_learned(made: tuple[Run, Arrays]) -> None:
    run, arrays = made
    row = RowErrors("alpha", (measure(run, arrays),))
    found = {item.name: item for item in row.forgotten_classes(100)}
    then, images = Counter[str](), Counter[str]()
    for i, (label, task) in enumerate(zip(arrays["label"], arrays["task"], strict=True)):
        name = run.record.classes[label]
        images[name] += 1
        then[name] += int(arrays["predicted"][task, i] == label) - int(arrays["predicted"][-1, i] == label)
    assert set(found) == {name for name, lost in then.items() if lost > 0}
    for name, item in found.items():
        assert item.learned - item.final == pytest.approx(100 * then[name] / images[name])
        assert item.forgotten >= then[name]


# --- stored runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored() -> list[Run]:
    """Two seeds of `sdlora` on icons, with different class orders."""
    damaged: list[str] = []
    files = [path.name for path in sorted(REFERENCE.glob("sdlora-icons-100-s[01]-*.json"))]
    records = [record for name in files for record in Store(REFERENCE).records(damaged.append, name)]
    every = label_runs((record, "reference") for record in records)
    found = next(section for section in sections(every) if section.slug == ICONS).rows["sdlora"]
    assert damaged == [] and len(found) == 2
    return found


def test_reference_predictions_agree_with_a_count_by_hand(stored: list[Run]) -> None:
    pairs, kinds, shares = Counter[tuple[str, str]](), Counter[tuple[int, str]](), []
    for run in stored:
        data = json.loads((REFERENCE / f"{run.record.experiment.file_stem}.json").read_text())
        (packed,) = REFERENCE.glob(f"{run.record.experiment.file_stem}-*.npz")
        mine = Counter[str]()
        with np.load(packed) as arrays:
            for label, task, guess in zip(arrays["label"], arrays["task"], arrays["predicted"][-1], strict=True):
                pairs[data["classes"][label], data["classes"][guess]] += 1
                other = int(guess) // 10
                kind = "right" if guess == label else "inside" if other == task else "old" if other < task else "new"
                kinds[int(task), kind] += 1
                mine[kind] += 1
        assert mine["right"] == sum(data["correct"][-1])
        shares.append([100 * mine[kind] / mine.total() for kind in ("right", "inside", "old", "new")])
    row = RowErrors("sdlora", tuple(read(run, [REFERENCE]) for run in stored))
    assert not row.one_order
    cells = zip(*row.by_class.nonzero(), strict=True)
    assert {(row.classes[i], row.classes[j]): int(row.by_class[i, j]) for i, j in cells} == pairs
    np.testing.assert_allclose(row.shares()[:, -1], shares)
    for task in range(10):
        right = [kinds[task, "right"] + kinds[task, "inside"], kinds[task, "old"], kinds[task, "new"]]
        assert [row.by_task[task, task], row.by_task[task, :task].sum(), row.by_task[task, task + 1 :].sum()] == right
    (worst,) = row.pairs(1)
    wrong = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    assert worst.images == max(wrong.values()) == wrong[worst.true, worst.predicted]
    whole = sum(count for (true, _), count in pairs.items() if true == worst.true)
    assert worst.share == pytest.approx(100 * worst.images / whole) and worst.tasks is None


def test_forgotten_images_are_those_of_the_data_set(stored: list[Run]) -> None:
    """The place of an image in its class leads to the image that the stream tested."""
    from cl_bench.data.samples import samples_of
    from cl_bench.streams import find
    from cl_bench.streams.scenarios import build

    row = RowErrors("sdlora", tuple(read(run, [REFERENCE]) for run in stored))
    shown, test = pictures.shown(row, row.forgotten_images(8)), icons.load("stream")[1]
    assert [item.item.forgotten for item in shown] == sorted((item.item.forgotten for item in shown), reverse=True)
    for run, errors in zip(stored, row.runs, strict=True):
        e = run.record.experiment
        stream = build(find("icons-100").source(), e.tasks, e.class_order, e.transforms, e.limits)
        ids = np.concatenate([samples_of(one.dataset).ids for one in stream.test])
        names = [test.names[i] for i in ids]
        lost = {names[i] for i in np.flatnonzero(errors.forgotten)}
        for image in shown:
            if image.item.forgotten == len(stored):
                assert image.file in lost
    assert shown[0].item.forgotten == 2 and all(image.file.startswith(f"{image.item.name}/") for image in shown)
    for image in shown:
        assert isinstance(test.images, np.ndarray)
        np.testing.assert_array_equal(image.pixels, test.images[test.names.index(image.file)])


def test_charts_and_tables_show_the_same_numbers(stored: list[Run], tmp_path: Path) -> None:
    section = next(section for section in sections(stored) if section.slug == ICONS)
    rows, left = rows_of(section.rows, [REFERENCE])
    assert left == []
    row, made = rows["sdlora"], views.charts(section, rows)
    assert list(made) == list(views.NAMES)
    ends = [panel.lines[0].y[-1].mean for panel in made["errors"].panels if isinstance(panel, Lines)]
    np.testing.assert_allclose(ends, row.shares()[:, -1, 1:].mean(axis=0))
    flow = tables.flow(row).data
    np.testing.assert_allclose(flow[flow["stage"] == 10]["share"][1:], ends)
    (confusion,) = made["confusion"].panels
    assert isinstance(confusion, Heat)
    np.testing.assert_allclose(np.array(confusion.values, dtype=float).sum(axis=1), 100)
    (classes,) = made["confusion-classes"].panels
    assert isinstance(classes, Heat) and sorted(classes.rows) == list(row.classes) and classes.rows == classes.columns
    worst = row.pairs(1)[0]
    place = {name: number for number, name in enumerate(classes.rows)}
    assert classes.values[place[worst.true]][place[worst.predicted]] == pytest.approx(worst.share)
    # Confused classes stand near each other, as the caption says: nearer than two at random, a third of the way apart.
    apart = [abs(place[pair.true] - place[pair.predicted]) for pair in row.pairs(20)]
    assert np.mean(apart) < len(classes.rows) / 6
    for name, chart in made.items():
        assert to_csv(chart).count("\n") > 20 and interactive.figure(chart, section.ceilings)["data"]
        if name != "confusion":
            assert drawing.save(chart, tmp_path / name, ("png",))[1].stat().st_size > 5_000


def test_the_page_shows_errors_with_images_of_embedded_data_only(stored: list[Run], tmp_path: Path) -> None:
    (section,) = (section for section in sections(stored) if section.slug == ICONS)
    part = on_page(section, [REFERENCE])
    assert part is not None and tuple(part.charts) == NAMES and part.left == ""
    assert part.command == f"cl-bench errors sdlora --protocol {ICONS} --out FOLDER"
    row = RowErrors("sdlora", tuple(read(run, [REFERENCE]) for run in stored))
    shown = pictures.shown(row, row.forgotten_images(1))[0]
    with Image.open(BytesIO(base64.b64decode(part.images[0].address.removeprefix("data:image/png;base64,")))) as image:
        np.testing.assert_array_equal(np.asarray(image), shown.pixels[..., 0])
    assert part.images[0].lines == (shown.item.name, f"→ {shown.item.taken_for}", "2 of 2 runs")
    assert on_page(section, [tmp_path]) is None
    factories.write(tmp_path, *(factories.record("alpha", seed, benchmark="photos") for seed in range(2)))
    (others,) = sections(collect([(tmp_path, "runs")], pytest.fail))
    found = on_page(others, [tmp_path])
    assert found is not None and found.images == () and len(found.tables) == 2


# --- several orders, domains, faults -----------------------------------------------------------------------------


def two_classes(order: Sequence[str], predicted: Sequence[int], seed: int) -> Run:
    """A run of one task with the classes in this order, and two images of each."""
    arrays = {"label": np.array([0, 0, 1, 1]), "task": np.zeros(4, dtype=int)}
    arrays |= {"predicted": np.array([predicted]), "predicted_task_aware": np.array([predicted])}
    record = factories.record(tasks=1, classes_per_task=2, seed=seed).model_copy(update={"classes": list(order)})
    return run_of(with_counts(record, arrays))


def test_classes_are_summed_by_name() -> None:
    """Class `b` is taken for `a` once by each run, which number the classes differently."""
    made = []
    for seed, (order, predicted) in enumerate([("ab", [0, 0, 1, 0]), ("ba", [0, 1, 1, 1])]):
        run = two_classes(order, predicted, seed)
        arrays = {"label": np.array([0, 0, 1, 1]), "task": np.zeros(4, dtype=int)}
        made.append(measure(run, arrays | dict.fromkeys(("predicted", "predicted_task_aware"), np.array([predicted]))))
    row = RowErrors("alpha", tuple(made))
    assert row.classes == ("a", "b") and row.by_class.tolist() == [[4, 0], [2, 2]]
    assert [(pair.true, pair.predicted, pair.images, pair.share) for pair in row.pairs(5)] == [("b", "a", 2, 50.0)]


def domains() -> tuple[Run, Arrays]:
    """Three domains of two classes; in the first, an image of class 1 is forgotten in the last stage."""
    label, task = np.array([0, 1] * 3), np.repeat([0, 1, 2], 2)
    predicted = np.array([[0, 1, -1, -1, -1, -1], [0, 1, 0, 0, -1, -1], [0, 0, 0, 0, 0, 0]])
    aware = np.tile(label, (3, 1))
    record = factories.record(tasks=3, classes_per_task=2, scenario="domain-incremental").model_copy(
        update={"classes": ["cat", "dog"], "domains": ["photo", "sketch", "clipart"]}
    )
    arrays = {"label": label, "task": task, "predicted": predicted, "predicted_task_aware": aware}
    return run_of(with_counts(record, arrays)), arrays


def test_domains_have_errors_between_classes_only() -> None:
    run, arrays = domains()
    row = RowErrors("alpha", (measure(run, arrays),))
    assert row.by_domain and row.by_class.tolist() == [[3, 0], [3, 0]]
    with pytest.raises(NoPredictions, match="a predicted class names no task"):
        row.shares()
    (section,) = sections([run])
    made = views.charts(section, {"alpha": row})
    assert list(made) == ["confusion-classes"] and "Tasks share all classes" in made["confusion-classes"].caption
    assert [(i.name, i.domain, i.rank, i.taken_for) for i in row.forgotten_images(5)] == [("dog", "photo", 0, "cat")]
    (lost,) = row.forgotten_classes(5)
    assert (lost.name, lost.task, lost.forgotten) == ("dog", None, 1)


def test_predictions_that_contradict_the_counts_are_refused(tmp_path: Path) -> None:
    record = factories.record()
    arrays = factories.arrays(record)
    arrays["predicted"][-1, 0] = 5
    with pytest.raises(NoPredictions, match="predictions and counts disagree"):
        measure(run_of(record), arrays)
    other = with_counts(record, arrays | {"task": arrays["task"][::-1].copy()})
    with pytest.raises(NoPredictions, match="disagree|lie in other tasks"):
        measure(run_of(other), arrays | {"task": arrays["task"][::-1].copy()})


def test_absent_and_damaged_predictions_are_named(tmp_path: Path) -> None:
    (path,) = factories.write(tmp_path / "runs", factories.record())
    (run,) = collect([(tmp_path / "runs", "runs")], pytest.fail)
    with pytest.raises(NoPredictions, match=r"\(alpha, seed 0\) has no stored predictions in .*elsewhere.*, only"):
        read(run, [tmp_path / "elsewhere"])
    content = factories.npz(path).read_bytes()
    factories.npz(path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(NoPredictions, match=r"cannot be used: .*altered .*make the run again"):
        read(run, [tmp_path / "runs"])
    rows, left = rows_of({"alpha": [run]}, [tmp_path / "runs"])
    assert rows == {} and len(left) == 1


def test_images_of_another_split_are_not_shown() -> None:
    record = factories.record()
    row = RowErrors("alpha", (measure(run_of(record), factories.arrays(record)),))
    with pytest.raises(Exception, match="another split here"):
        pictures.shown(row, row.forgotten_images(1))
    limited = factories.record(limits=Limits(validation=0.2))
    row = RowErrors("alpha", (measure(run_of(limited), factories.arrays(limited)),))
    with pytest.raises(Exception, match="validated on training images"):
        pictures.shown(row, row.forgotten_images(1))
