"""How data becomes tasks: equal, unequal, by domain; and a run on every data set of the field, small but laid out as
the real one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cl_bench import streams
from cl_bench.data.samples import StoreSamples, samples_of
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms, Limits, Tasks
from cl_bench.grammar import parse_tasks
from cl_bench.streams import catalogue
from cl_bench.streams.scenarios import TaskStream, build, order_classes
from tests.helpers import trees
from tests.helpers.command import RUNS, Cli, assert_refused

TRANSFORMS = ImageTransforms(size=32, crop_scale=(0.6, 1.0), mean=(0.5,), std=(0.5,))
DESIGNERS = streams.find("icons-designers")
FEW = ["--limit-tasks", "2", "--limit-train", "1", "--limit-test", "1"]


# --- class-incremental, unequal ---------------------------------------------------------------------------------


@cache
def unequal(*sizes: int) -> TaskStream:
    return build(streams.find("icons-tune").source(), sizes, "permutation:3", TRANSFORMS, Limits())


@pytest.mark.parametrize("sizes", [(20, 5, 5, 5, 5), (1, 2, 3, 34), (39, 1)])
def test_unequal_tasks_own_runs_of_labels_of_their_sizes(sizes: tuple[int, ...]) -> None:
    stream = unequal(*sizes)
    assert tuple(len(own) for own in stream.tasks) == sizes
    assert [label for own in stream.tasks for label in own] == list(range(40))
    for part in (stream.train, stream.test):
        assert [tuple(sorted(set(experience.dataset.targets))) for experience in part] == list(stream.tasks)
    # Only the cuts move: the order of the classes is that of equal tasks.
    equal = build(streams.find("icons-tune").source(), 10, "permutation:3", TRANSFORMS, Limits())
    assert equal.classes == stream.classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 10),
        ("50,5x10", (50, 10, 10, 10, 10, 10)),
        (" 40, 30 ,30", (40, 30, 30)),
        ("5x20", 5),
        ("20,20,20", 3),
        ("100,", None),
        ("0", None),
        ("10,0", None),
        ("0x5", None),
        ("ten", None),
        ("-3", None),
        ("1.5", None),
        ("", None),
        ("99999x1", None),
    ],
)
def test_ways_to_say_what_the_tasks_are(text: str, expected: Tasks | None) -> None:
    if expected is None:
        with pytest.raises(UserError, match="--tasks"):
            parse_tasks(text)
    else:
        assert parse_tasks(text) == expected


@given(st.lists(st.integers(1, 500), min_size=2, max_size=30))
def test_sizes_of_tasks_are_read_as_they_are_written(sizes: list[int]) -> None:
    parsed = parse_tasks(",".join(map(str, sizes)))
    assert parsed == (len(sizes) if len(set(sizes)) == 1 else tuple(sizes))


def test_a_large_first_task(cl_bench: Cli) -> None:
    """Half of the classes first, as much work on class-incremental learning has it."""
    outcome = cl_bench("run", "--methods", "simplecil", "--benchmark", "icons-tune", "--tasks", "20,4x5", *FEW[2:])
    assert outcome.code == 0, outcome
    record = _only_record()
    assert record["experiment"]["tasks"] == [20, 5, 5, 5, 5]
    assert record["stages"] == [[0], [1], [2], [3], [4]] and len(record["classes"]) == 40
    assert [[hits is None for hits in row] for row in record["correct"]] == [
        [j > t for j in range(5)] for t in range(5)
    ]
    assert "5 tasks of 20 + 4 \N{MULTIPLICATION SIGN} 5 classes" in " ".join(outcome.out.split())
    assert cl_bench("report", "--results", str(RUNS), "--out", "reports").code == 0


def test_equal_sizes_are_the_same_run_as_their_number(cl_bench: Cli) -> None:
    command = ["run", "--methods", "simplecil", "--benchmark", "icons-tune", *FEW, "--tasks"]
    for tasks in ("4", "4x10", "10,10,10,10"):
        assert cl_bench(*command, tasks).code == 0
    assert _only_record()["experiment"]["tasks"] == 4


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--tasks", "7"], ["--tasks 7 does not divide the 40 classes of icons-tune"]),
        (["--tasks", "20,10"], ["20, 10 classes have 30 in all, not 40"]),
        (["--tasks", "x"], ["--tasks 'x' cannot be read", "50,5x10"]),
        (["--tasks", "20,4x5", "--limit-tasks", "6"], ["--limit-tasks 6 is more than the 5 tasks"]),
        (["--scenario", "task-incremental"], ["unknown scenario 'task-incremental'", "class-incremental"]),
        (["--scenario", "domain-incremental"], ["icons-tune has no domains", "domainnet", "pacs"]),
    ],
)
def test_tasks_that_cannot_be(cl_bench: Cli, arguments: list[str], parts: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", "simplecil", "--benchmark", "icons-tune", *arguments), *parts)


# --- domain-incremental -----------------------------------------------------------------------------------------


@cache
def by_designer(order: str = "permutation:5", **limits: int) -> TaskStream:
    return build(DESIGNERS.source(), 10, order, TRANSFORMS, Limits(**limits), "domain-incremental")


def test_every_task_of_a_domain_incremental_stream_is_one_domain() -> None:
    source, stream = DESIGNERS.source(), by_designer()
    assert stream.classes == source.classes and sorted(stream.domains) == sorted(source.domains)
    for part, store in ((stream.train, source.train), (stream.test, source.test)):
        assert store.domains is not None
        seen: list[int] = []
        for experience, domain in zip(part, stream.domains, strict=True):
            found = samples_of(experience.dataset)
            assert isinstance(found, StoreSamples)
            assert set(store.domains[found.ids]) == {domain}
            assert found.labels.tolist() == store.targets[found.ids].tolist()
            seen += found.ids.tolist()
        assert sorted(seen) == list(range(len(store)))


def test_no_image_of_a_designer_is_in_both_parts() -> None:
    source = DESIGNERS.source()
    assert not set(source.train.names) & set(source.test.names)
    # What is tested in a domain has been trained on in it, if anything of the class is there.
    train, test = (set(zip(part.domains, part.targets.tolist(), strict=True)) for part in (source.train, source.test))  # type: ignore[arg-type]
    assert test <= train


def test_domains_are_ordered_as_classes_are() -> None:
    domains = DESIGNERS.source().domains
    order = np.random.RandomState(5).permutation(10)
    assert by_designer().domains == tuple(domains[i] for i in order)
    assert by_designer("natural").domains == domains
    assert by_designer("order:9,8,7,6,5,4,3,2,1,0").domains == domains[::-1]


def test_limits_are_for_each_class_of_each_domain() -> None:
    stream = by_designer(train_per_class=1, test_per_class=1, tasks=3)
    assert len(stream.train) == len(stream.test) == len(stream.domains) == 3
    for experience in (*stream.train, *stream.test):
        assert set(Counter(experience.dataset.targets).values()) == {1}


def test_methods_of_every_kind_learn_from_domain_to_domain(cl_bench: Cli) -> None:
    methods = (
        "simplecil,sdlora[epochs=1],inflora[epochs=1],dualprompt[epochs=1],"
        "ranpac[projection=64,epochs=1],joint[epochs=1,train=lora],"
        "linear[align=true,align_epochs=1,align_samples=16,epochs=1]"
    )
    outcome = cl_bench("run", "--methods", methods, "--benchmark", "icons-designers", *FEW)
    assert outcome.code == 0, outcome
    records = _records()
    assert len(records) == 7
    for record in records:
        assert record["experiment"]["scenario"] == "domain-incremental" and len(record["domains"]) == 2
        if len(record["stages"]) == 2:
            # A domain that is not learned yet counts for task-aware accuracy only.
            assert record["correct"][0][1] is None and record["correct"][1][0] is not None
            assert all(isinstance(hits, int) for row in record["correct_task_aware"] for hits in row)
    assert "10 domains of 100 classes" in " ".join(outcome.out.split())
    assert cl_bench("report", "--results", str(RUNS), "--out", "reports").code == 0


def test_a_class_mean_is_over_all_domains(cl_bench: Cli) -> None:
    """After two domains nearest means cannot depend on which came first, up to rounding."""
    command = ["run", "--methods", "simplecil", "--benchmark", "icons-designers", *FEW, "--order"]
    first, second, *others = DESIGNERS.source().domains
    for number, order in enumerate(((first, second), (second, first))):
        Path(f"{number}.txt").write_text("\n".join([*order, *others]))
        assert cl_bench(*command, f"{number}.txt").code == 0
    one, other = (sum(record["correct"][-1]) for record in _records())
    assert abs(one - other) <= 1 and one > 30


def test_a_method_that_infers_the_task_from_the_class_needs_new_classes(cl_bench: Cli) -> None:
    assert_refused(
        cl_bench("run", "--methods", "hide", "--benchmark", "icons-designers"), "'hide'", "class-incremental"
    )


def test_an_order_of_domains_from_a_file(cl_bench: Cli) -> None:
    domains = DESIGNERS.source().domains
    Path("order.txt").write_text("\n".join(domains[::-1]))
    command = ["run", "--methods", "simplecil", "--benchmark", "icons-designers", *FEW, "--order"]
    assert cl_bench(*command, "order.txt").code == 0
    assert _only_record()["domains"] == list(domains[:-3:-1])
    Path("order.txt").write_text("\n".join([*domains[:-1], domains[0]]))
    assert_refused(cl_bench(*command, "order.txt"), "line 10", f"domain '{domains[0]}' comes twice")
    Path("order.txt").write_text("\n".join(domains[:-1]))
    assert_refused(cl_bench(*command, "order.txt"), f"lacks 1 of 10 domains, e.g. '{domains[-1]}'")


def test_a_number_of_tasks_other_than_that_of_the_domains(cl_bench: Cli) -> None:
    command = ["run", "--methods", "simplecil", "--benchmark", "icons-designers"]
    assert_refused(cl_bench(*command, "--tasks", "5"), "icons-designers has 10 domains", "leave it out")
    outcome = cl_bench(*command, "--scenario", "class-incremental", "--tasks", "20", *FEW)
    assert outcome.code == 0 and _only_record()["experiment"]["tasks"] == 20


# --- the data sets of the field ---------------------------------------------------------------------------------


def test_published_first_classes() -> None:
    """Seeds of the released codes, against the first ids that their programs print."""
    published = {
        (1993, 200): [168, 136, 51, 9, 183, 101, 171, 99, 42, 159],
        (1995, 200): [146, 198, 169, 126, 142, 183, 108, 86, 79, 35],
        (1994, 100): [72, 6, 33, 96, 60, 94],
    }
    for (seed, classes), first in published.items():
        assert order_classes(f"permutation:{seed}", classes)[: len(first)].tolist() == first


def scatter(root: Path, files: Sequence[str]) -> None:
    """Images of three kinds at these places."""
    encoded = {}
    for suffix, form in (("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG")):
        buffer = BytesIO()
        Image.fromarray(trees.picture(suffix, (24, 20))).save(buffer, form)
        encoded[suffix] = buffer.getvalue()
    for folder in {(root / file).parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (root / file).write_bytes(encoded[file.rpartition(".")[2]])


def _parts(classes: int, suffix: str, name: str = "class_{:03d}") -> list[str]:
    return [
        f"{part}/{name.format(number)}/{i}.{suffix}"
        for number in range(classes)
        for part, each in (("train", 2), ("test", 1))
        for i in range(each)
    ]


def cifar100(root: Path) -> None:
    scatter(root / "cifar100", _parts(100, "png"))


def imagenet_r(root: Path) -> None:
    scatter(root / "imagenet-r", _parts(200, "jpg", "n{:08d}"))


def imagenet_a(root: Path) -> None:
    """The original tree, with a list."""
    files = [f"n{number:08d}/{i}.jpg" for number in range(200) for i in range(3)]
    scatter(root / "imagenet-a" / "imagenet-a", files)
    for part, chosen in (("train", "01"), ("test", "2")):
        lines = [file for file in files if file[-5] in chosen]
        (root / "imagenet-a" / f"own_{part}.txt").write_text("\n".join(lines))


def cub200(root: Path) -> None:
    scatter(root / "cub200", _parts(200, "jpg", "{:03d}.Bird"))


def tiny_imagenet(root: Path) -> None:
    top = root / "tiny-imagenet" / "tiny-imagenet-200"
    names = [f"n{number:08d}" for number in range(200)]
    scatter(top, [f"train/{name}/images/{name}_{i}.JPEG" for name in names for i in range(2)])
    scatter(top, [f"val/images/val_{number}.JPEG" for number in range(200)])
    (top / "wnids.txt").write_text("\n".join(names))
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t9\t9\n" for number, name in enumerate(names)]
    (top / "val" / "val_annotations.txt").write_text("".join(lines))


def _domains(root: Path, domains: Sequence[str], classes: int, lists: tuple[str, str], first: int) -> None:
    for domain in domains:
        files = {part: [f"{domain}/thing_{n:03d}/{part}_{n:03d}.jpg" for n in range(classes)] for part in lists}
        scatter(root, [file for part in files.values() for file in part])
        for part, names in files.items():
            lines = [f"{file} {label}\n" for label, file in enumerate(names, first)]
            (root / f"{domain}_{part}.txt").write_text("".join(lines))


def pacs(root: Path) -> None:
    _domains(root / "pacs", catalogue.find("pacs").domains, 7, ("train_kfold", "crossval_kfold"), 1)


def domainnet(root: Path) -> None:
    _domains(root / "domainnet", catalogue.find("domainnet").domains, 345, ("train", "test"), 0)


def fashion_mnist(root: Path) -> None:
    trees.fashion(root)


TINY = ["--backbone", "vit_tiny_patch16_224", "--pretrained", "no", "--size", "32", "--device", "cpu"]
ONE_STEP = [*FEW, "--epochs", "1", "--methods", "sdlora"]


@pytest.mark.parametrize(
    ("make", "arguments", "tasks", "total"),
    [
        (cifar100, [], 10, [10, 10]),
        (imagenet_r, ["--tasks", "20"], 20, [10, 10]),
        (imagenet_a, ["--order", "permutation:1993"], 10, [20, 20]),
        (cub200, ["--tasks", "100,5x20"], [100, 20, 20, 20, 20, 20], [100, 20]),
        (tiny_imagenet, [], 10, [20, 20]),
        (pacs, [], 4, [7, 7]),
        (domainnet, [], 5, [69, 69]),
        (domainnet, ["--scenario", "domain-incremental"], 6, [345, 345]),
        (fashion_mnist, [], 5, [2, 2]),
    ],
)
def test_one_step_on_every_data_set_and_scenario(
    cl_bench: Cli, tmp_path: Path, make: object, arguments: list[str], tasks: Tasks | list[int], total: list[int]
) -> None:
    name = make.__name__.replace("_", "-")  # type: ignore[attr-defined]
    make(tmp_path / "mine")  # type: ignore[operator]
    outcome = cl_bench("run", "--benchmark", name, "--root", "mine", *TINY, *ONE_STEP, *arguments)
    assert outcome.code == 0, outcome
    record = _only_record()
    assert record["experiment"]["tasks"] == tasks and record["total"] == total
    assert record["experiment"]["transforms"]["size"] == 32
    # The training crop and the test view are the field's for photographs, whatever the data set.
    assert record["experiment"]["transforms"]["crop_scale"] == [0.05, 1.0]


def test_a_random_vit_b_16_on_a_data_set_of_the_field(cl_bench: Cli, tmp_path: Path) -> None:
    cifar100(tmp_path / "mine")
    vit = ["--backbone", "vit_base_patch16_224", "--pretrained", "no", "--root", "mine", "--limit-tasks", "1"]
    limits = ["--limit-train", "1", "--limit-test", "1", "--set", "batch_size=10", "--epochs", "1"]
    outcome = cl_bench("run", "--benchmark", "cifar100", *vit, *limits, "--methods", "sdlora")
    assert outcome.code == 0, outcome
    experiment = _only_record()["experiment"]
    assert experiment["backbone"].startswith("vit_base_patch16_224") and experiment["transforms"]["size"] == 224


def test_a_domain_that_a_split_list_leaves_out(cl_bench: Cli, tmp_path: Path) -> None:
    pacs(tmp_path / "mine")
    for domain in ("sketch",):
        (tmp_path / "mine" / "pacs" / f"{domain}_crossval_kfold.txt").write_text("")
    command = ["run", "--benchmark", "pacs", "--root", "mine", *TINY, "--methods", "simplecil"]
    assert_refused(cl_bench(*command), "domain 'sketch' has no test images")


def test_validation_is_held_out_of_a_folders_training_images(tmp_path: Path) -> None:
    """A fixed share of every class, the same in every stream; test images are left alone."""
    scatter(tmp_path / "own", [f"train/c{n}/{i}.jpg" for n in range(4) for i in range(10)])
    scatter(tmp_path / "own", [f"test/c{n}/{i}.jpg" for n in range(4) for i in range(3)])
    source = streams.find(f"folder:{tmp_path / 'own'}").source()
    parts = []
    for order in ("natural", "permutation:1"):
        stream = build(source, 2, order, TRANSFORMS, Limits(validation=0.2))
        train, test = (
            {source.train.names[i] for experience in part for i in _ids(experience)}
            for part in (stream.train, stream.test)
        )
        assert not train & test and train | test == set(source.train.names)
        assert Counter(name.split("/")[0] for name in test) == {f"c{n}": 2 for n in range(4)}
        parts.append(test)
    assert parts[0] == parts[1]


def _ids(experience: object) -> list[int]:
    found = samples_of(experience.dataset)  # type: ignore[attr-defined]
    assert isinstance(found, StoreSamples)
    return found.ids.tolist()


def _records() -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(path.read_text()) for path in RUNS.glob("*.json")]


def _only_record() -> dict:  # type: ignore[type-arg]
    (record,) = _records()
    return record
