"""The content key of a run, and the grammar of --methods, --set and --seeds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cl_bench.contract import registry
from cl_bench.errors import UserError
from cl_bench.experiment import Experiment, ImageTransforms, Limits, value_text
from cl_bench.grammar import MethodSpec, parse_methods, parse_order, parse_seeds, parse_settings
from cl_bench.running import plan

DEFAULTS: dict[str, Any] = {"rank": 10, "lr": 0.01, "clip_norm": None, "blocks": [0, 1]}
FIELDS: dict[str, Any] = {
    "method": "alpha",
    "revision": 1,
    "hyperparameters": DEFAULTS | {"rank": 4},
    "defaults": DEFAULTS,
    "benchmark": "photos:small/v2",
    "tasks": 10,
    "class_order": "permutation:1993",
    "split": "5b" * 32,
    "transforms": ImageTransforms(size=224, crop_scale=(0.7, 1.0), mean=(0.5,) * 3, std=(0.5,) * 3),
    "backbone": "vit_base",
    "weights": "c4" * 32,
    "seed": 7,
}
KEY = "1dbe0c9a2bfb4ece"


def experiment(**changes: Any) -> Experiment:
    return Experiment(**FIELDS | changes)


# --- the key ---------------------------------------------------------------------------------------------------


def test_the_key_is_pinned() -> None:
    """If this fails, every stored result is orphaned: undo the change of the field or default, not the literal."""
    assert experiment().key == KEY
    assert experiment().file_stem == f"alpha-photos_small_v2-s7-{KEY}"


def test_the_key_is_the_same_in_another_process() -> None:
    code = "import sys; from cl_bench.experiment import Experiment as E; print(E.model_validate_json(sys.argv[1]).key)"
    for hashing in ("1", "2"):
        command = [sys.executable, "-c", code, experiment().model_dump_json()]
        done = subprocess.run(command, env={"PYTHONHASHSEED": hashing}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == KEY


@settings(deadline=None)
@given(st.permutations(list(FIELDS)), st.permutations(list(DEFAULTS)))
def test_the_key_does_not_depend_on_the_order_of_fields(names: list[str], options: list[str]) -> None:
    fields = {name: FIELDS[name] for name in names}
    fields["hyperparameters"] = {name: FIELDS["hyperparameters"][name] for name in options}
    assert Experiment(**fields).key == KEY


def test_the_key_survives_json() -> None:
    run = experiment(limits=Limits(tasks=2))
    again = Experiment.model_validate_json(json.dumps(run.model_dump(mode="json")))
    assert again == run and again.key == run.key


def test_fields_at_their_defaults_leave_the_key_as_it_is() -> None:
    class Wider(Experiment):
        """With a field and a nested field added later."""

        shuffle: str = "by-key"

    assert Wider(**FIELDS).key == KEY
    assert Wider(**FIELDS, shuffle="none").key != KEY
    assert experiment(precision="fp32", storage="memory", scenario="class-incremental", limits=Limits()).key == KEY
    spelled_out = FIELDS["transforms"].model_copy(
        update={"crop": "continuous", "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5}
    )
    assert experiment(transforms=spelled_out).key == KEY


def test_a_new_hyper_parameter_at_its_default_leaves_the_key_as_it_is() -> None:
    defaults = DEFAULTS | {"temperature": 1.0}
    assert experiment(defaults=defaults, hyperparameters=defaults | {"rank": 4}).key == KEY
    assert experiment(defaults=defaults, hyperparameters=defaults | {"rank": 4, "temperature": 2.0}).key != KEY


def transforms(**changes: Any) -> ImageTransforms:
    return FIELDS["transforms"].model_copy(update=changes)


CHANGES: list[dict[str, Any]] = [
    {"method": "beta"},
    {"revision": 2},
    {"revision": "file:0123456789abcdef"},
    {"hyperparameters": DEFAULTS},
    {"hyperparameters": DEFAULTS | {"rank": 8}},
    {"hyperparameters": DEFAULTS | {"rank": 4, "lr": 0.1}},
    {"hyperparameters": DEFAULTS | {"rank": 4, "clip_norm": 1.0}},
    {"hyperparameters": DEFAULTS | {"rank": 4, "blocks": [0]}},
    {"hyperparameters": DEFAULTS | {"rank": 4, "blocks": [1, 0]}},
    {"benchmark": "photos"},
    {"tasks": 5},
    {"class_order": "natural"},
    {"class_order": "permutation:7"},
    {"split": "5c" * 32},
    {"backbone": "vit_large"},
    {"weights": "c5" * 32},
    {"seed": 8},
    {"limits": Limits(tasks=3)},
    {"limits": Limits(train_per_class=3)},
    {"limits": Limits(test_per_class=3)},
    {"probe": "interpolation"},
    {"storage": "files"},
    {"storage": "resized:256"},
    {"storage": "resized:37"},
    {"transforms": transforms(size=32)},
    {"transforms": transforms(crop="pixels")},
    {"transforms": transforms(crop_scale=(0.05, 1.0))},
    {"transforms": transforms(crop_ratio=(1.0, 1.0))},
    {"transforms": transforms(flip=0.0)},
    {"transforms": transforms(mean=(0.0,) * 3)},
    {"transforms": transforms(std=(1.0,) * 3)},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_choice_that_matters_changes_the_key(change: dict[str, Any]) -> None:
    assert experiment(**change).key != KEY


def test_no_two_of_these_experiments_share_a_key() -> None:
    assert len({experiment(**change).key for change in CHANGES}) == len(CHANGES)


@pytest.mark.parametrize("field", [name for name in Experiment.model_fields if name != "defaults"])
def test_every_field_but_the_defaults_can_change_the_key(field: str) -> None:
    """A new field must appear in CHANGES (or have a single legal value), so that no choice is forgotten in the key."""
    single = {"scenario", "precision"}
    assert field in single or any(field in change for change in CHANGES)


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": 0},
        {"seed": -1},
        {"class_order": "reversed"},
        {"class_order": "permutation:"},
        {"class_order": "permutation:1 "},
        {"class_order": "xnatural"},
        {"scenario": "task-incremental"},
        {"precision": "fp16"},
        {"storage": "disk"},
        {"storage": "resized:0"},
        {"storage": "resized:"},
        {"limits": {"tasks": 0}},
        {"limits": {"epochs": 1}},
        {"colour": "red"},
    ],
    ids=str,
)
def test_impossible_experiments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        experiment(**change)


def test_experiments_are_frozen() -> None:
    with pytest.raises(ValidationError):
        experiment().seed = 3


# --- the grammar -----------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
FIELD_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9.+_=-]{1,8}", fullmatch=True)
SPACE = st.sampled_from(["", " ", "  "])
GRIDS = st.lists(
    st.tuples(NAMES, st.dictionaries(FIELD_NAMES, st.lists(VALUES, min_size=1, max_size=3), max_size=3)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(GRIDS, SPACE, SPACE, SPACE)
def test_methods_round_trip(grids: list[tuple[str, dict[str, list[str]]]], a: str, b: str, c: str) -> None:
    text = f"{a},{b}".join(
        f"{name}{c}[{f'{a},{b}'.join(f'{key}{b}={c}' + f'{a}|{c}'.join(values) for key, values in options.items())}]"
        if options
        else name
        for name, options in grids
    )
    expected = [
        MethodSpec(name, dict(zip(options, choice, strict=True)))
        for name, options in grids
        for choice in itertools.product(*options.values())
    ]
    assert parse_methods(f"{b}{text}{a}") == expected


def test_a_grid_is_the_product_of_its_alternatives() -> None:
    assert parse_methods("sdlora[rank=4|8,lr=0.1|0.2],coda") == [
        MethodSpec("sdlora", {"rank": "4", "lr": "0.1"}),
        MethodSpec("sdlora", {"rank": "4", "lr": "0.2"}),
        MethodSpec("sdlora", {"rank": "8", "lr": "0.1"}),
        MethodSpec("sdlora", {"rank": "8", "lr": "0.2"}),
        MethodSpec("coda", {}),
    ]


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", ",a", "a,,b", "a b", "a[rank=4", "a]", "a[rank=4]]", "a[b[c=1]]", "a[rank]", "a[=4]", "a[rank=]"]
    + ["a[rank=|]", "a[rank=4|]", "a[rank=|4]", "a[rank=4||8]", "a[rank= | 4]", "a[rank=4,lr=]"]
    + ["a[rank=4,rank=8]", "a[rank=4,rank=4]", "a[rank=4, rank =8]", "a[rank=4,lr=1,rank=4]", "b,a[rank=4,rank=8]"]
    + ["4a", "a[rank=4]b", "a;b", "a.b", "a|b", "-a"],
)
def test_methods_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match="--methods"):
        parse_methods(text)


def test_spaces_around_alternatives_do_not_count() -> None:
    assert parse_methods("a[ rank = 4 | 8 , lr = 0.1 ]") == parse_methods("a[rank=4|8,lr=0.1]")
    assert parse_methods("a[rank=4],a[rank=8]") == parse_methods("a[rank=4|8]"), "twice a method, not twice an option"


@settings(deadline=None)
@given(
    st.lists(NAMES, min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(st.none() | st.integers(0, 2), FIELD_NAMES, VALUES), max_size=6),
    SPACE,
)
def test_settings_round_trip(methods: list[str], wanted: list[tuple[int | None, str, str]], space: str) -> None:
    texts = []
    for_all, for_one = dict[str, str](), {name: dict[str, str]() for name in methods}
    for which, field, value in wanted:
        only = None if which is None else methods[which % len(methods)]
        texts.append(f"{only + '.' if only else ''}{field}{space}={space}{value}")
        (for_one[only] if only else for_all)[field] = value
    assert parse_settings(texts, methods) == {name: for_all | for_one[name] for name in methods}


@pytest.mark.parametrize("texts", [["lr=1", "a.lr=2"], ["a.lr=2", "lr=1"], ["lr=3", "a.lr=3", "a.lr=2", "lr=1"]])
def test_a_setting_for_one_method_wins_over_one_for_all_and_a_later_one_over_its_like(texts: list[str]) -> None:
    assert parse_settings(texts, ["a", "b"]) == {"a": {"lr": "2"}, "b": {"lr": "1"}}


@pytest.mark.parametrize("text", ["", "lr", "lr=", "=1", " = ", "a.lr"])
def test_settings_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match=f"^--set '{text}': .* not of the form key=value"):
        parse_settings([text], ["a"])


@pytest.mark.parametrize("text", ["sdlor.rank=4", ".rank=4", "a.b.rank=4"])
def test_settings_of_methods_that_are_not_listed(text: str) -> None:
    with pytest.raises(UserError, match="unknown method in --set .*must be one of --methods"):
        parse_settings([text], ["sdlora", "a"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.none() | st.integers(0, 6)), min_size=1, max_size=6), SPACE)
def test_seeds_round_trip(parts: list[tuple[int, int | None]], space: str) -> None:
    text = ",".join(f"{space}{low}{'' if more is None else f'{space}-{space}{low + more}'}" for low, more in parts)
    expected: list[int] = []
    for low, more in parts:
        expected += [seed for seed in range(low, low + (more or 0) + 1) if seed not in expected]
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", " ", "a", "1,", ",1", "1,,2", "4-1", "-1", "1-", "1-2-3", "1.5", "0 1", "1..3"])
def test_seeds_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_seeds_are_those_that_numpy_takes() -> None:
    assert parse_seeds(f"{2**32 - 1}") == [2**32 - 1]
    with pytest.raises(UserError, match="--seeds .* at most 4294967295"):
        parse_seeds(f"0,{2**32}")


@pytest.mark.parametrize("low", [0, 5, 2**32 - 10_000])
def test_ten_thousand_seeds_are_the_most(low: int) -> None:
    assert parse_seeds(f"{low}-{low + 9_999}") == list(range(low, low + 10_000))
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(f"{low}-{low + 10_000}")


def test_a_range_of_all_seeds_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="more than 10,000 seeds"):
        parse_seeds(f"0-{2**32 - 1}")


def test_ten_thousand_seeds_are_the_most_in_several_ranges_too() -> None:
    with pytest.raises(UserError, match="more than 10,000 seeds"):
        parse_seeds("0-9999,20000-29999")


@pytest.mark.parametrize("text", ["natural", "permutation:0", "permutation:1993", f"permutation:{2**32 - 1}"])
def test_class_orders(text: str) -> None:
    assert parse_order(text) == text
    assert experiment(class_order=text).class_order == text


@pytest.mark.parametrize(
    "text", ["", "random", "permutation", "permutation:", "permutation:-1", "permutation:4294967296"]
)
def test_class_orders_that_do_not_exist(text: str) -> None:
    with pytest.raises(UserError, match=f"--order '{text}'"):
        parse_order(text)


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("0,2,5", [0, 2, 5]), ("3,1-3,1", [3, 1, 2])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (True, None, "true"),
        (None, None, "none"),
        (7, 4, "7"),
        ("cosine", None, "cosine"),
        (0.1 + 0.2, None, "0.30000000000000004"),
        (0.1 + 0.2, 4, "0.3"),
        (1e-05, 6, "1e-05"),
        (8 / 7, 4, "1.143"),
        (["q", "v"], None, "(q, v)"),
        ((8 / 7, None, False), 4, "(1.143, none, false)"),
    ],
)
def test_a_value_is_spelled_as_on_the_command_line(value: object, digits: int | None, text: str) -> None:
    assert value_text(value, digits) == text


@pytest.mark.parametrize(
    ("option", "label"),
    [
        ({"lr": "0.0100000049"}, "sdlora[lr=0.01]"),
        ({"lr": "1e-5", "align": "yes"}, "sdlora[align=true,lr=1e-05]"),
        ({"clip_norm": "none"}, "sdlora[clip_norm=None]"),
        ({"targets": "q+v"}, "sdlora[targets=['q', 'v']]"),
    ],
)
def test_labels_are_written_as_those_that_are_stored(option: dict[str, str], label: str) -> None:
    (run,) = plan.plan([plan.RunSpec(method=registry.find("sdlora"), options=option)])
    assert run.label == label
