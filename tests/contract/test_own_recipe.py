"""The defaults that an author writes in a method file are its recipe, unless the user asks for another."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_bench import streams
from cl_bench.contract import registry
from cl_bench.errors import UserError
from cl_bench.running import recipes
from cl_bench.running.recipes import Tuned
from cl_bench.studies.tune import TuningTarget
from tests.helpers.command import TRIAL, Cli, assert_refused, rows, stored

pytestmark = pytest.mark.usefixtures("plain_and_single_threaded")

HEAD = """
from dataclasses import dataclass
from cl_bench import Classifier, GradientMethod, Method
from cl_bench.methods.sdlora import SDLoRA

"""
DECORATOR = "@dataclass(frozen=True, kw_only=True, eq=False)\n"
Write = Callable[[str], registry.MethodEntry]


@pytest.fixture
def mine(tmp_path: Path) -> Write:
    """The method of a file with this class body."""

    def write(body: str, base: str = "GradientMethod", decorator: str = DECORATOR) -> registry.MethodEntry:
        path = tmp_path / "mine.py"
        path.write_text(f"{HEAD}{decorator}class Mine({base}):\n    " + body.replace("; ", "\n    "))
        return registry.load_file(path)

    return write


def chosen(entry: registry.MethodEntry, recipe: str = "auto") -> tuple[str, dict[str, object]]:
    """Name and values of the recipe of a method on the embedded stream."""
    found = recipes.choose(entry, streams.find("icons-100"), {}, recipe)
    return found.name, dict(found.values)


UNIFIED = {"epochs": 4, "batch_size": 32}


@pytest.mark.parametrize(
    ("body", "base", "name", "budget"),
    [
        ("epochs: int = 30; batch_size: int = 8", "GradientMethod", "own", {"epochs": 30, "batch_size": 8}),
        # A value that is also that of the base class is stated all the same.
        ("epochs: int = 20; batch_size: int = 128", "GradientMethod", "own", {"epochs": 20, "batch_size": 128}),
        ("epochs: int = 30", "GradientMethod", "own+unified", {"epochs": 30, "batch_size": 32}),
        ("lr: float = 0.3", "GradientMethod", "unified", UNIFIED),
        ("pass", "GradientMethod", "unified", UNIFIED),
        # What a shipped method states is not stated by the author of a method that derives from it.
        ("pass", "SDLoRA", "unified", UNIFIED),
        ("epochs: int = 1; batch_size: int = 2", "SDLoRA", "own", {"epochs": 1, "batch_size": 2}),
        ("width: int = 3", "Method", "own", {}),
        ("pass", "Method", "unified", {}),
    ],
)
def test_stated_defaults_are_the_recipe_and_the_rest_is_unified(
    mine: Write, body: str, base: str, name: str, budget: dict[str, int]
) -> None:
    entry = mine(body, base)
    assert chosen(entry) == (name, budget)
    assert TuningTarget.of(entry, {}).budget() == budget
    assert chosen(entry, "unified") == ("unified", {key: UNIFIED[key] for key in budget})


def test_own_is_for_methods_that_state_something(mine: Write) -> None:
    assert chosen(mine("epochs: int = 30"), "own")[0] == "own+unified"
    for entry in (registry.find("sdlora"), mine("pass")):
        with pytest.raises(UserError, match=f"'{entry.name}' has no recipe 'own'"):
            chosen(entry, "own")
    published = 'published = {"icons-100": {"epochs": 7}}; epochs: int = 30'
    assert chosen(mine(published)) == ("published:icons-100", {"epochs": 7})


@pytest.mark.parametrize("text", ["epochs = 30", "epochs: int = 30"])
def test_a_default_that_would_be_ignored_is_refused(mine: Write, text: str) -> None:
    """Without an annotation, or without the decorator, a dataclass keeps the base class's default."""
    entry = mine(text, decorator=DECORATOR if ":" not in text else "")
    with pytest.raises(UserError, match="'epochs = 30' in Mine does not set the default .* 'epochs: TYPE = 30'"):
        entry.configure({})


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ('{"lrr": cl_bench.Choice(1, 2)}', "hyper-parameter in the search space 'lrr'.* Did you mean 'lr'"),
        ('{"lr": (0.1, 0.2)}', r"search space of 'lr' is \(0.1, 0.2\); expected LogUniform"),
        ('{"lr": cl_bench.LogUniform(0, 1)}', "0 < low < high"),
        ('{"lr": cl_bench.Uniform(1, 1)}', "low < high"),
        ('{"lr": cl_bench.Depending("opt", sgd=cl_bench.Choice(1))}', "the search space 'opt'.* 'optimizer'"),
        ('{"lr": cl_bench.Depending("optimizer", adam=cl_bench.Choice(1))}', "'lr' has no range for optimizer=sgd"),
    ],
)
def test_a_search_space_that_is_none_ends_in_one_sentence(mine: Write, space: str, sentence: str) -> None:
    target = TuningTarget.of(mine(f"import cl_bench; space = {space}"), {})
    with pytest.raises(UserError, match=sentence):
        _ = target.space


def test_the_recipe_and_its_budget_are_shown_before_the_run_and_under_the_table(cl_bench: Cli) -> None:
    assert cl_bench("new-method", "mine").code == 0
    text = Path("mine.py").read_text().replace("epochs: PositiveInt = 4", "epochs: PositiveInt = 2")
    Path("mine.py").write_text(text.replace("batch_size: PositiveInt = 32", "batch_size: PositiveInt = 16"))
    command = ["run", "--method-file", "mine.py", "--methods", "mine,simplecil,linear[epochs=1]", *TRIAL]
    done = cl_bench(*command)
    assert done.code == 0 and set(rows(done.out)) == {"mine", "simplecil", "linear[epochs=1]"}
    lines = done.err.splitlines()
    assert lines[0] == "mine: own defaults, epochs=2, batch_size=16, lr=0.005"
    assert lines[1] == "simplecil: no hyper-parameters"
    assert lines[2].startswith("linear[epochs=1]: tuned, best of 16 settings, epochs=1, batch_size=32, lr=")
    (of_mine,) = [run for run in stored() if run["label"] == "mine"]
    values = of_mine["experiment"]["hyperparameters"]
    assert (of_mine["recipe"], values["epochs"], values["batch_size"]) == ("own", 2, 16)
    assert "own defaults, epochs=2, batch_size=16 (mine)" in " ".join(done.out.split())

    unified = cl_bench(*command, "--recipe", "unified", "--dry-run").out.splitlines()
    assert "mine: unified, epochs=4, batch_size=32, lr=0.005" in unified
    given = cl_bench(*command, "--epochs", "3", "--dry-run").out
    assert "mine[epochs=3]: own defaults, epochs=3, batch_size=16, lr=0.005" in given.splitlines()
    assert_refused(cl_bench(*command, "--recipe", "owned"), "auto, tuned, published, own, unified or published:NAME")


def test_a_tuned_recipe_of_the_user_applies_to_a_method_file(cl_bench: Cli) -> None:
    assert cl_bench("new-method", "mine").code == 0
    entry = registry.load_file(Path("mine.py"))
    found = Tuned(
        method="mine", stream="icons-tune", values={"lr": 0.02}, score=0.5, trials=3, seeds=[100], minutes=1.0,
        revision=entry.revision,
    )  # fmt: skip
    recipes.write(Path("recipes.toml"), [found])
    command = shlex.split("run --method-file mine.py --methods mine --recipes recipes.toml --dry-run")
    outcome = cl_bench(*command)
    line = "mine: tuned, best of 3 settings, epochs=4, batch_size=32, lr=0.02"
    assert line in outcome.out.splitlines() and outcome.err == ""
    with Path("mine.py").open("a") as file:
        file.write("# another thought\n")
    changed = cl_bench(*command)
    (warning,) = changed.err.splitlines()
    assert "was tuned at its revision file:" in warning and "--method-file mine.py --stream icons-tune" in warning
    assert line in changed.out.splitlines()
