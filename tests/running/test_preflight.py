"""Refusals and remarks before any run starts: huge grids, tasks with a constant loss, classes without validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_bench.contract.method import build_model
from cl_bench.errors import UserError
from cl_bench.grammar import MAX_ROWS, parse_methods, parse_order, parse_seeds
from cl_bench.options import RunOptions
from cl_bench.running.preflight import MAX_RUNS, check_extent, constant_loss
from cl_bench.streams import default_tasks
from cl_bench.streams.scenarios import sizes_of
from tests.helpers import trees
from tests.helpers.command import Cli, assert_refused
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, tiny_vit

NINE = ",".join(f"option{number}=1|2|3|4|5|6|7|8|9" for number in range(9))
MANY = "9" * 5000


def grid(benchmarks: int, tasks: int, seeds: str = "0", methods: str = "linear[lr=0.1|0.2]") -> RunOptions:
    given: dict[str, Any] = {"methods": methods, "seeds": seeds}
    return RunOptions.of(given | {"benchmark": ["icons-100"] * benchmarks, "tasks": list(range(1, tasks + 1))})


# --- number of runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--methods", f"sdlora[{NINE}]"), "asks for 387,420,489 rows, and a command takes 1,000; name fewer"),
        (("--methods", f"sdlora[{','.join([NINE] * 50).replace('option', 'o')}]"), "sets an option twice"),
        (("--methods", ",".join(f"m{n}" for n in range(1001))), "asks for 1,001 rows"),
        (("--methods", "linear", "--seeds", f"0-{MANY}"), "is out of range; seeds are at most 4294967295"),
        (("--methods", "linear", "--seeds", MANY), "is out of range; seeds are at most 4294967295"),
        (("--methods", "linear", "--seeds", "0-999999999"), "asks for more than 10,000 seeds"),
        (("--methods", "linear", "--order", f"permutation:{MANY}"), "is no class order"),
        (("--methods", "linear", "--tasks", MANY), "cannot be read; expected a number of tasks"),
        (("--methods", "linear", "--limit-tasks", MANY), "is not valid; expected a whole number of at least 1"),
        (("--methods", "linear", "--epochs", MANY), "is not valid; expected a whole number of at least 1"),
        (("--methods", "linear", "--set", f"linear.epochs={MANY}"), "epochs"),
        (
            ("--methods", "linear[lr=0.1|0.2|0.3]", "--seeds", "0-9000"),
            "asks for 27,003 runs, but a command takes at most 20,000",
        ),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_command_without_end_is_refused_at_once(cl_bench: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    done = cl_bench("run", *arguments, "--dry-run")
    assert_refused(done, sentence)


def test_the_largest_grid_that_a_command_takes() -> None:
    options = ",".join(f"{name}=1|2|3|4|5|6|7|8|9|10" for name in "abc")
    assert len(parse_methods(f"linear[{options}]")) == MAX_ROWS
    with pytest.raises(UserError, match=r"asks for 1,001 rows"):
        parse_methods(f"coda,linear[{options}]")
    assert parse_seeds("4294967295") == [4294967295] and parse_order("permutation:4294967295")


def test_all_grids_of_a_suite_count_together() -> None:
    check_extent([grid(10, 25), grid(10, 25)])
    with pytest.raises(UserError, match="this command asks for 1,002 rows"):
        check_extent([grid(10, 25), grid(10, 25), grid(1, 1)])
    with pytest.raises(UserError, match=f"asks for {MAX_RUNS + 4:,} runs"):
        check_extent([grid(1, 1, f"0-{MAX_RUNS // 4 - 1}"), grid(1, 1, f"0-{MAX_RUNS // 4 + 1}")])


def test_a_product_is_counted_and_not_made() -> None:
    with pytest.raises(UserError, match="this command asks for 2,000,000,000 rows"):
        check_extent([RunOptions(methods=grid(1, 1).methods, benchmark=("a",) * 10**5, tasks=(1,) * 10**4)])


# --- tasks of one class ----------------------------------------------------------------------------------------


def test_default_tasks_have_two_classes_or_more() -> None:
    """The defaults for more classes are fixed, since they are part of keys."""
    for classes in range(1, 400):
        sizes = sizes_of(default_tasks(classes), classes)
        assert sum(sizes) == classes and len(sizes) <= 10 and max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2 or classes == 1
        assert len(sizes) > 1 or classes < 4
    assert [default_tasks(n) for n in (1, 2, 3, 4, 7, 10, 44, 100, 345)] == [1, 1, 1, 2, (3, 2, 2), 5, 4, 10, 5]


@pytest.mark.parametrize(
    ("row", "sizes", "tasks"),
    [
        ("sdlora", (1, 1, 1), "3 tasks"),
        ("sdlora", (2, 1), "1 task"),
        ("coda", (1, 2), "1 task"),
        ("sdlora", (2, 2), ""),
        ("sdlora[loss=all]", (1, 1), ""),
        ("finetune", (1, 1), ""),
        ("joint", (1, 1), ""),
        ("simplecil", (1, 1), ""),
        ("ranpac", (1, 1), ""),
    ],
)
def test_a_method_with_a_constant_loss_in_tasks_of_one_class_is_named(
    row: str, sizes: tuple[int, ...], tasks: str
) -> None:
    method = small(row)
    found = constant_loss(row, method, build_model(method, tiny_vit(), CLASSES), sizes)
    if not tasks:
        assert found == []
        return
    (sentence,) = found
    assert f"constant in {tasks} of one class: nothing is learned there" in sentence
    assert f"--set {row}.loss=all" in sentence


@pytest.fixture
def three(tmp_path: Path) -> str:
    """A benchmark of three classes, the last of which has one training image."""
    for number in range(3):
        for part, count in (("train", 3 if number < 2 else 1), ("test", 2)):
            for i in range(count):
                trees.save(tmp_path / "three" / part / f"class{number}" / f"{i}.png", f"{part} {number} {i}")
    return f"folder:{tmp_path / 'three'}"


BACKBONE = ("--backbone", "vit_tiny_patch8_32.icons", "--precision", "fp32", "--device", "cpu")


def test_a_run_in_tasks_of_one_class_is_warned(cl_bench: Cli, three: str) -> None:
    run = ("run", "--methods", "linear,simplecil", "--benchmark", three, *BACKBONE, "--dry-run")
    usual = cl_bench(*run)
    assert usual.code == 0 and "one class" not in usual.err
    done = cl_bench(*run, "--tasks", "3", "--seeds", "0-2")
    said = " ".join(done.err.split())
    assert done.code == 0 and said.count("constant in 3 tasks of one class: nothing is learned there") == 1
    assert "larger tasks with --tasks, or --set linear.loss=all" in said
    followed = cl_bench(*run, "--tasks", "3", "--set", "linear.loss=all")
    assert followed.code == 0 and "one class" not in followed.err


# --- classes that cannot be validated on -----------------------------------------------------------------------


def test_a_search_validates_on_the_classes_that_have_images_for_it(cl_bench: Cli, three: str) -> None:
    search = ("tune", "--methods", "linear[epochs=1]", "--budget", "1", "--seeds", "0", "--stream", three, *BACKBONE)
    done = cl_bench(*search)
    assert done.code == 0, done.err
    assert Path("recipes.toml").exists()


def test_a_search_that_has_nothing_to_validate_a_task_on_ends_before_training(cl_bench: Cli, tmp_path: Path) -> None:
    for number in range(4):
        for part in ("train", "test"):
            # One image in every class, since the seed decides which classes share a task.
            trees.save(tmp_path / "four" / part / f"class{number}" / "0.png", f"{part} {number}")
    search = (
        "tune",
        "--methods",
        "linear,seqlora",
        "--budget",
        "1",
        "--stream",
        f"folder:{tmp_path / 'four'}",
        *BACKBONE,
    )
    done = cl_bench(*search)
    assert done.code == 2 and "task 0 ('class" in done.err
    assert "no image is held out of a class with only one training image" in " ".join(done.err.split())
    assert not list((tmp_path / "results" / "tuning").glob("*.json")) and not Path("recipes.toml").exists()
