"""`cl-bench tune` and the recipes it writes, through the real command line and real processes."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cl_bench import backbones, streams
from cl_bench.contract import registry
from cl_bench.contract.search import Depending, LogUniform
from cl_bench.data.images import ImageStore
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.running import plan, recipes
from cl_bench.streams.scenarios import build, held_out
from cl_bench.studies.tune import TuningTarget
from tests.helpers import trees
from tests.helpers.command import TRIAL, Outcome

CLI = Callable[..., Outcome]
SMALL_BACKBONE = "vit_tiny_patch8_32.icons"
QUICK = "linear[epochs=1,batch_size=128]"
TUNE = ["tune", "--methods", QUICK, "--budget", "2", "--seeds", "100", "--validation", "0.05", "--out", "found.toml"]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def entries(path: Path) -> list[dict[str, Any]]:
    return list(tomllib.loads(path.read_text())["tuned"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is a benchmark of ten tasks of two classes of four images each."""
    folder = tmp_path_factory.mktemp("small")
    for part, count in (("train", 4), ("test", 1)):
        for number in range(20):
            for i in range(count):
                trees.save(folder / part / f"class{number}" / f"{i}.jpg", f"{part} {number} {i}")
    return folder


# --- the search ------------------------------------------------------------------------------------------------


def test_a_search_is_stored_repeated_for_free_and_the_same_with_more_processes(
    cl_bench: CLI, tmp_path: Path, small: Path
) -> None:
    search = [*TUNE, "--stream", f"folder:{small}", "--validation", "0.25", "--backbone", SMALL_BACKBONE]
    first = cl_bench(*search)
    assert first.code == 0, first.err
    trials = records(tmp_path / "results/tuning")
    (entry,) = entries(tmp_path / "found.toml")
    assert len(trials) == entry["trials"] == 2
    assert entry["when"] == {"epochs": 1, "batch_size": 128} and entry["method"] == "linear"
    assert set(entry["values"]) == {"lr", "schedule"}

    def aaa(run: dict[str, Any]) -> float:
        curve = [sum(row[: t + 1]) / sum(run["total"][: t + 1]) for t, row in enumerate(run["correct"])]
        return sum(curve) / len(curve)

    most = max(map(aaa, trials))
    assert entry["score"] == pytest.approx(most, abs=1e-5)
    settings = [trial["experiment"]["hyperparameters"] for trial in trials if aaa(trial) == most]
    assert entry["values"] in [{name: values[name] for name in entry["values"]} for values in settings]
    seconds = sum(sum(run["train_seconds"]) + sum(run["eval_seconds"]) for run in trials)
    assert entry["minutes"] == pytest.approx(seconds / 60, abs=0.01)

    written = (tmp_path / "found.toml").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "results/tuning").iterdir()}
    assert cl_bench(*search).code == 0
    assert (tmp_path / "found.toml").read_text() == written
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results/tuning").iterdir()} == stamps

    other = cl_bench(*search, "--out", "other.toml", "--jobs", "2", "--results", "elsewhere")
    assert other.code == 0, other.err
    (parallel,) = entries(tmp_path / "other.toml")
    assert parallel | {"minutes": 0, "score": 0} == entry | {"minutes": 0, "score": 0}


def test_trials_never_see_the_test_images(cl_bench: CLI, tmp_path: Path) -> None:
    backbone = SMALL_BACKBONE
    assert cl_bench(*TUNE, "--budget", "1", "--validation", "0.1", "--backbone", backbone).code == 0
    (entry,) = entries(tmp_path / "found.toml")
    assert entry["backbone"] == backbone
    (run,) = records(tmp_path / "results/tuning")
    assert run["experiment"]["backbone"] == backbone
    source = streams.find("icons-tune").source()
    held = held_out(source.train, 0.1)
    assert run["experiment"]["limits"]["validation"] == 0.1
    assert sum(run["total"]) == int(held.sum())
    transforms = ImageTransforms(size=32, crop_scale=(0.6, 1.0), mean=(0.5,), std=(0.5,))
    stream = build(source, 10, "natural", transforms, Limits(validation=0.1))
    sizes = [sum(len(experience.dataset) for experience in part) for part in (stream.train, stream.test, stream.joint)]
    assert sizes == [int((~held).sum()), int(held.sum()), int((~held).sum())]


def test_validation_holds_out_whole_groups_or_a_share_of_each_class() -> None:
    source = streams.find("icons-tune").source()
    held = held_out(source.train, 0.2)
    assert source.train.groups is not None
    assert not set(source.train.groups[held]) & set(source.train.groups[~held])
    assert 0.15 < held.mean() <= 0.2
    assert np.array_equal(held, held_out(source.train, 0.2))
    targets = np.repeat(np.arange(3), [2, 10, 50])
    names = tuple(f"c{t}/{i}" for i, t in enumerate(targets))
    plain = held_out(ImageStore(np.zeros((62, 4, 4, 1), dtype=np.uint8), targets, names), 0.2)
    assert np.bincount(targets[plain]).tolist() == [1, 2, 10]


def test_a_failing_setting_does_not_end_the_search(cl_bench: CLI, tmp_path: Path) -> None:
    source = tmp_path / "fragile.py"
    assert cl_bench("new-method", "fragile").code == 0
    text = source.read_text().replace(
        "        loss = self.cross_entropy(",
        '        if self.schedule == "cosine":\n            raise ArithmeticError("too wavy")\n'
        "        loss = self.cross_entropy(",
    )
    source.write_text(text)
    arguments = ["--methods", "fragile[epochs=1,batch_size=128]", "--method-file", "fragile.py"]
    done = cl_bench(*TUNE[:1], *arguments, *TUNE[3:], "--budget", "3")
    assert done.code == 0, done.err
    assert "too wavy" in done.out
    assert "fragile[epochs=1,batch_size=128]: searches lr, schedule" in done.err
    (entry,) = entries(tmp_path / "found.toml")
    assert entry["values"]["schedule"] == "constant" and entry["trials"] == 3
    _, suggested = done.out.split("use them: cl-bench ")
    used = cl_bench(*shlex.split(suggested), "--dry-run", *TRIAL)
    assert "]: tuned, best of 3 settings, epochs=1, batch_size=128" in used.out
    nothing = cl_bench("tune", "--methods", "fragile[schedule=cosine]", "--method-file", "fragile.py", *TUNE[3:])
    assert nothing.code == 2 and "every trial of 'fragile[schedule=cosine]' failed" in nothing.err
    assert entries(tmp_path / "found.toml") == [entry]


def test_what_is_set_goes_into_the_recipe_and_is_no_condition_of_it(cl_bench: CLI, tmp_path: Path, small: Path) -> None:
    """The batch size in the method's own options wins over --set; hyper-parameters that are set are not searched."""
    rows = "linear[batch_size=16],finetune"
    settings = ["--set", "epochs=1", "--set", "batch_size=8", "--set", "linear.schedule=cosine"]
    cuts = ["--methods", f"simplecil,{rows}", *settings, "--precision", "fp32", "--stream", f"folder:{small}"]
    done = cl_bench("tune", *cuts, "--backbone", SMALL_BACKBONE, *TUNE[3:], "--budget", "1")
    assert done.code == 0 and "'simplecil' has nothing to tune" in done.err and "left out" in done.err
    finetune, linear = entries(tmp_path / "found.toml")
    assert "when" not in finetune and finetune["values"]["batch_size"] == 8 and finetune["values"]["epochs"] == 1
    assert linear["when"] == {"batch_size": 16} and linear["values"].keys() == {"epochs", "lr", "schedule"}
    assert linear["values"]["epochs"] == 1 and linear["values"]["schedule"] == "cosine"
    assert {run["experiment"]["precision"] for run in records(tmp_path / "results" / "tuning")} == {"fp32"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "linear", "--set", "lr=0.1", "--set", "schedule=cosine"], "has nothing to tune"),
        (["--methods", "linear", "--set", "rank=3"], "hyper-parameter of 'linear' 'rank'"),
        (["--methods", "linear", "--set", "coda.lr=3"], "method in --set 'coda'"),
        (["--methods", "linear", "--precision", "fp8"], "fp8"),
        (["--methods", "simplecil"], "'simplecil' has nothing to tune"),
        (
            ["--methods", "simplecil,linear[lr=0.1,schedule=cosine]"],
            "'simplecil', 'linear[lr=0.1,schedule=cosine]' has",
        ),
        (["--methods", "linear[lr=0.1,schedule=cosine]"], "has nothing to tune"),
        (["--methods", "linear", "--stream", "icons-tun"], "unknown benchmark 'icons-tun'"),
        (["--methods", "linear", "--backbone", "vit_tiny_patch8_32.icon"], "'vit_tiny_patch8_32.icon'"),
        (["--methods", "linear[rank=3]"], "hyper-parameter of 'linear' 'rank'"),
        (["--methods", "linear", "--budget", "0"], "budget"),
        (["--methods", "linear", "--device", "tpu"], "--device 'tpu' is unknown"),
        (["--methods", "linear", "--out", "broken.toml"], "recipes file 'broken.toml' is no TOML"),
        (["--methods", "linear", "--out", "other.toml"], "is not one that 'cl-bench tune' writes"),
    ],
)
def test_bad_input_ends_in_a_sentence(cl_bench: CLI, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "broken.toml").write_text("[[tuned")
    (tmp_path / "other.toml").write_text("[tool.other]\nx = 1\n")
    done = cl_bench("tune", *arguments)
    assert done.code == 2 and sentence in done.err.replace("\n", " ")
    assert "Traceback" not in done.err and not (tmp_path / "recipes.toml").exists()
    assert (tmp_path / "broken.toml").read_text() == "[[tuned"


# --- recipes ---------------------------------------------------------------------------------------------------


def tuned(method: str = "linear", **changes: Any) -> recipes.Tuned:
    fields: dict[str, Any] = {
        "method": method, "stream": "icons-tune", "values": {"lr": 0.25}, "score": 0.5, "trials": 16, "seeds": [1, 2],
        "minutes": 3.5, "revision": 1,
    }  # fmt: skip
    return recipes.Tuned(**fields | changes)


def test_recipes_of_the_users_own_are_used_and_their_cost_is_shown(cl_bench: CLI, tmp_path: Path) -> None:
    recipes.write(tmp_path / "mine.toml", [tuned(), tuned("seqlora")])
    done = cl_bench("run", "--methods", "linear", "--recipes", "mine.toml", "--epochs", "1", *TRIAL)
    assert done.code == 0, done.err
    (run,) = records(tmp_path / "results/runs")
    assert run["experiment"]["hyperparameters"]["lr"] == 0.25
    assert (run["recipe"], run["tuning_trials"], run["tuning_minutes"]) == ("tuned", 16, 3.5)
    assert "tuned, best of 16 settings" in " ".join(done.out.split())
    assert any(line.rstrip().endswith("3.5") for line in done.out.splitlines() if "linear" in line)


def test_published_recipes_are_those_of_the_methods_file(cl_bench: CLI, tmp_path: Path) -> None:
    run = ["run", "--methods", "sdlora[rank=2,epochs=1,batch_size=8]", *TRIAL]
    assert cl_bench(*run, "--recipe", "published:imagenet-r.paper").code == 0
    (stored,) = records(tmp_path / "results/runs")
    values = stored["experiment"]["hyperparameters"]
    assert stored["recipe"] == "published:imagenet-r.paper"
    assert (values["norm"], values["optimizer"], values["lr"], values["alpha_init"]) == ("frobenius", "adam", 0.008, 1)
    assert (values["rank"], values["epochs"]) == (2, 1)
    for recipe, sentence in (
        ("published", "unknown published recipe of 'sdlora' 'icons-100'"),
        ("published:imagenetr", "Did you mean 'imagenet-r'"),
        ("best", "--recipe 'best' is unknown; expected auto, tuned, published"),
        ("tuned:x", "--recipe 'tuned:x' is unknown"),
    ):
        done = cl_bench(*run, "--recipe", recipe)
        assert done.code == 2 and sentence in done.err.replace("\n", " "), done.err


@pytest.mark.parametrize("name", registry.names())
def test_every_published_recipe_fits_its_method(name: str) -> None:
    found = registry.find(name)
    for values in found.cls.published.values():
        stored = found.configure(values).values()
        assert all(stored[key] == value for key, value in values.items())
    assert set(found.cls.space) <= set(found.defaults)


def test_a_range_may_depend_on_another_option() -> None:
    """||B A||_1 is 118 times ||A B||_1 at the width of a ViT-Ti and rank 8."""
    rows = [TuningTarget.of(registry.find("nlora"), options) for options in ({}, {"product": "AB"}, {"product": "BA"})]
    rows += [
        TuningTarget.of(registry.find("nlora"), {}, {"product": "BA"}),
        TuningTarget.of(registry.find("nlora"), {"sparsity": 0.1}),
    ]
    of_code, of_paper = LogUniform(1e-4, 1.0), LogUniform(1e-6, 1e-2)
    assert [row.space.get("sparsity") for row in rows] == [of_code, of_code, of_paper, of_paper, None]
    assert all(set(row.space) - {"sparsity"} == {"lr", "schedule"} for row in rows)
    # The other option decides whatever its values are.
    for found in map(registry.find, registry.names()):
        for values in found.cls.space.values():
            if isinstance(values, Depending):
                assert all(found.configure({values.option: value}) for value in values.ranges)
                assert found.defaults[values.option] in values.ranges and values.option not in found.cls.space


def test_recipes_of_a_backbone_hold_for_its_other_seed() -> None:
    found, photographs = registry.find("sdlora"), streams.find("cifar100")
    names = ("vit_tiny_patch4_32.tinyimagenet156", "vit_tiny_patch4_32.tinyimagenet156.s1")
    (one, first), (other, second) = (
        plan.resolve(found, photographs, {}, backbone=backbones.find(name)) for name in names
    )
    assert first.name == second.name == "tuned" and one.values() == other.values()
    assert plan.resolve(found, photographs, {})[1].name == "published:cifar100", "on the benchmark's own backbone"


def test_which_recipe_wins() -> None:
    found, icons = registry.find("linear"), streams.find("icons-100")
    general, special = tuned(values={"lr": 0.1}), tuned(values={"lr": 0.2}, when={"epochs": 3})
    exact = tuned(values={"lr": 0.3}, stream="icons-100")
    chosen = [
        recipes.choose(found, icons, options, "auto", [general, special, exact]).values["lr"]
        for options in ({}, {"epochs": 3}, {"epochs": 4})
    ]
    assert chosen == [0.3, 0.2, 0.3]
    on_another = tuned(values={"lr": 0.4}, stream="icons-100", backbone="vit_base_patch16_224")
    for names, lr in (([], 0.3), (["vit_base_patch16_224"], 0.4), (["vit_small_patch16_224"], 0.3)):
        choice = recipes.choose(found, icons, {}, "auto", [on_another, general, exact], names)
        assert choice.values["lr"] == lr
    # A recipe for this very backbone wins over those that merely apply to it.
    its_own = tuned(values={"lr": 0.5}, stream="icons-100", backbone="vit_small_patch16_224")
    names = ["vit_small_patch16_224", "vit_base_patch16_224"]
    for entries, lr in (([on_another, its_own], 0.5), ([on_another, exact], 0.4)):
        assert recipes.choose(found, icons, {}, "auto", entries, names).values["lr"] == lr
    assert recipes.choose(found, icons, {}, "unified", [general]).name == "unified"
    unknown = registry.MethodEntry("mine", found.cls, 1)
    assert recipes.choose(unknown, icons, {}).name == "unified"
    with pytest.raises(UserError, match="no tuned recipe for 'mine' on icons-100; 'cl-bench tune --methods mine"):
        recipes.choose(unknown, icons, {}, "tuned")


def test_an_existing_file_keeps_its_other_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    recipes.write(path, [tuned(), tuned("seqlora"), tuned(when={"epochs": 3})])
    recipes.write(path, [tuned(score=0.75)])
    assert {(entry.method, len(entry.when), entry.score) for entry in recipes.read(path)} == {
        ("linear", 0, 0.75), ("linear", 1, 0.5), ("seqlora", 0, 0.5),
    }  # fmt: skip
