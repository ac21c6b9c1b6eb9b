"""Trees of a user's own domain folders, `DOMAIN/CLASS/FILE`, as a domain-incremental stream: through the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_bench.streams import catalogue
from tests.helpers.command import RUNS, Cli, assert_refused, stored
from tests.helpers.trees import save

DOMAINS, CLASSES = ("art", "photo", "sketch"), ("cat", "dog")
QUICK = ["--methods", "simplecil", "--backbone", "vit_tiny_patch8_32.icons"]
BY_DOMAIN = ["--scenario", "domain-incremental"]

Place = Callable[[str, str, int], str]


def plain(domain: str, label: str, number: int) -> str:
    return f"{domain}/{label}/{number}.png"


def parts_inside(domain: str, label: str, number: int) -> str:
    return f"{domain}/{'train' if number < 4 else 'test'}/{label}/{number}.png"


def parts_outside(domain: str, label: str, number: int) -> str:
    return f"{'train' if number < 4 else 'val'}/{domain}/{label}/{number}.png"


def own(folder: Path, place: Place = plain) -> Path:
    """Five images of each class in each domain; the last is for testing where folders say so."""
    for domain in DOMAINS:
        for label in CLASSES:
            for number in range(5):
                save(folder / place(domain, label, number), f"{domain} {label} {number}", (32, 32))
    return folder


@pytest.mark.parametrize("place", [plain, parts_inside, parts_outside])
def test_a_run_has_a_task_for_every_domain(cl_bench: Cli, place: Place) -> None:
    own(Path("own"), place)
    outcome = cl_bench("run", "--benchmark", "folder:own", *BY_DOMAIN, *QUICK, "--order", "natural")
    assert outcome.code == 0, outcome
    (record,) = stored()
    assert record["experiment"]["scenario"] == "domain-incremental" and record["experiment"]["tasks"] == 3
    assert record["domains"] == list(DOMAINS) and record["classes"] == list(CLASSES)
    # One test image of each class in each domain, whether folders or names say which.
    assert record["total"] == [2, 2, 2]
    assert [len(row) for row in record["correct"]] == [3, 3, 3]
    assert "3 domains of 2 classes" in " ".join(outcome.out.split())


def test_a_run_on_domains_can_be_repeated_and_is_not_one_on_classes(cl_bench: Cli) -> None:
    own(Path("own"), parts_outside)
    for options in (BY_DOMAIN, []):
        assert cl_bench("run", "--benchmark", "folder:own", *options, *QUICK).code == 0
    by_class, by_domain = sorted(stored(), key=lambda record: record["experiment"]["scenario"])
    # Without the option, the same folders are classes.
    assert sorted(by_class["classes"]) == list(DOMAINS) and by_domain["classes"] == list(CLASSES)
    assert by_domain["experiment"]["split"] != by_class["experiment"]["split"]
    (path,) = (path for path in RUNS.glob("*.json") if json.loads(path.read_text())["classes"] == list(CLASSES))
    assert cl_bench("repeat", path.stem[-16:]).code == 0


def test_the_held_out_share_is_fixed_and_leaves_something_to_learn_from(tmp_path: Path) -> None:
    folder = own(tmp_path / "own")
    for number in range(1, 5):
        (folder / "photo" / "cat" / f"{number}.png").unlink()
    dataset = catalogue.find(f"folder:{folder}", domains=True)
    listing = catalogue.load(dataset)
    assert (len(listing.train), len(listing.test)) == (21, 5)
    assert "cat/photo/0.png" in {entry.name for entry in listing.train}, "an only image is for training"
    assert catalogue.load(dataset) == listing


def test_lists_say_which_images_are_for_testing(tmp_path: Path) -> None:
    folder = own(tmp_path / "own")
    dataset = catalogue.find(f"folder:{folder}", domains=True)
    for domain in DOMAINS:
        files = [plain(domain, label, number) for number in range(5) for label in CLASSES]
        (folder / f"{domain}_train.txt").write_text("\n".join(files[2:]))
        (folder / f"{domain}_test.txt").write_text("\n".join(files[:2]))
    listing = catalogue.load(dataset)
    assert {entry.name for entry in listing.test} == {
        f"{label}/{domain}/0.png" for domain in DOMAINS for label in CLASSES
    }
    one = tmp_path / "one.json"
    parts = {"train": ["art/cat/0.png", "photo/dog/1.png"], "test": [["art/dog/0.png", 1], ["photo/cat/2.png", 0]]}
    one.write_text(json.dumps(parts))
    listing = catalogue.load(dataset, split_list=one)
    assert [entry.name for entry in listing.train] == ["cat/art/0.png", "dog/photo/1.png"]
    assert [entry.name for entry in listing.test] == ["cat/photo/2.png", "dog/art/0.png"]


@pytest.mark.parametrize(
    ("place", "gone", "code", "lines"),
    [
        (plain, [], 0, ["nothing wrong"]),
        (parts_inside, ["sketch/test"], 1, ["domain 'sketch' has no test images", "1 fault"]),
        (parts_outside, ["train/art"], 1, ["domain 'art' has no training images", "1 fault"]),
        (plain, ["photo/dog", "photo/cat/0.png"], 0, ["domain 'photo' has no training images of class 'dog'"]),
        (parts_inside, ["art/test/dog"], 0, ["domain 'art' has no test images of class 'dog'", "nothing wrong"]),
    ],
)
def test_verify_names_a_domain_without_images_and_a_class_that_one_lacks(
    cl_bench: Cli, place: Place, gone: list[str], code: int, lines: list[str]
) -> None:
    own(Path("own"), place)
    for name in gone:
        path = Path("own", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    outcome = cl_bench("data", "verify", "folder:own", *BY_DOMAIN, "--quick")
    assert outcome.code == code, outcome
    for line in lines:
        assert line in outcome.out
    if code:
        run = cl_bench("run", "--benchmark", "folder:own", *BY_DOMAIN, *QUICK)
        assert_refused(run, lines[0], "complete the data or the split list")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["a/cat/0.png", "a/dog/0.png"], ["only one domain folder, 'a'", "expected several"]),
        (["a/cat/0.png", "b/dog/0.png"], ["(a, b, ...) have no class in common", "leave out --scenario"]),
        (["a/train/cat/0.png", "a/test/cat/1.png", "b/cat/0.png"], ["'a' has train/ and test/", "'b' has none"]),
        (["a/0.png", "b/0.png"], ["none of the known layouts", "DOMAIN/CLASS/*"]),
        (["a/cafe\u0301/0.png", "a/caf\u00e9/0.png", "b/dog/0.png"], ["accents", "put their images into one"]),
    ],
)
def test_folders_that_are_no_domains_are_refused(cl_bench: Cli, files: list[str], parts: list[str]) -> None:
    for file in files:
        save(Path("own", file), file, (32, 32))
    refused = cl_bench("data", "verify", "folder:own", *BY_DOMAIN)
    assert refused.code == 2 and refused.err.startswith("error: "), refused
    for part in parts:
        assert part in refused.err


def test_without_the_option_the_sentence_names_it(cl_bench: Cli) -> None:
    own(Path("own"))
    for command in (["data", "verify", "folder:own"], ["run", "--benchmark", "folder:own", *QUICK]):
        assert_refused(cl_bench(*command), "--scenario domain-incremental")


def test_a_name_has_one_spelling_in_all_domains(tmp_path: Path) -> None:
    for domain, label in (("a", "cafe\u0301"), ("b", "caf\u00e9"), ("a", "dog"), ("b", "dog")):
        for number in range(2):
            save(tmp_path / "own" / domain / label / f"{number}.png", f"{domain}{label}{number}", (32, 32))
    listing = catalogue.load(catalogue.find(f"folder:{tmp_path / 'own'}", domains=True))
    assert len(listing.classes) == 2 and len(listing.train) + len(listing.test) == 8
