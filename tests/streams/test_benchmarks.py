"""A user's own folder of photographs as a benchmark, and class orders from a file: through the command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command import RUNS, Cli, assert_refused

CLASSES = ["bird", "cat", "dog", "fish", "fly", "fox"]
QUICK = ["--backbone", "vit_tiny_patch8_32.icons"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six classes of colour photographs in many sizes, each class of a colour of its own."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for number, name in enumerate(CLASSES):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(30, 80, size=2)
                noise = random.integers(0, 60, (height, width, 3))
                pixels = np.clip(noise + np.array([40 * number, 250 - 40 * number, 90]), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "pets"


def test_a_folder_is_a_benchmark(cl_bench: Cli, tree: Path) -> None:
    """Every kind of method on images of any size; the order of classes is that of ImageFolder."""
    methods = "simplecil,sdlora[epochs=1],l2p[epochs=1],ranpac[projection=64,epochs=1],"
    methods += "linear[align=true,align_epochs=1,align_samples=16,epochs=1]"
    arguments = ["run", "--benchmark", f"folder:{tree}", "--methods", methods, "--tasks", "3", "--order", "natural"]
    outcome = cl_bench(*arguments, *QUICK)
    assert outcome.code == 0, outcome
    records = [json.loads(path.read_text()) for path in RUNS.glob("*.json")]
    assert len(records) == 5
    for record in records:
        assert record["classes"] == CLASSES and record["total"] == [6, 6, 6]
        assert record["experiment"]["storage"] == "resized:37"
        assert record["experiment"]["transforms"]["crop"] == "pixels"
        assert record["experiment"]["transforms"]["resize"] == pytest.approx(256 / 224)


def test_how_images_are_kept_is_part_of_a_run(cl_bench: Cli, tree: Path) -> None:
    command = ["run", "--benchmark", f"folder:{tree}", "--methods", "simplecil", *QUICK]
    for images in ("auto", "resized", "files"):
        outcome = cl_bench(*command, "--images", images)
        assert outcome.code == 0, outcome
        # Decoded once: both parts.
        assert len(list(tree.parent.glob("cache/*.images"))) == 2
    kept = [json.loads(path.read_text())["experiment"]["storage"] for path in RUNS.glob("*.json")]
    assert sorted(kept) == ["files", "resized:37"]
    assert_refused(cl_bench(*command, "--images", "file"), "'file'", "Did you mean 'files'?")


def test_a_run_reads_what_was_decoded_before(cl_bench: Cli, tree: Path) -> None:
    """Files that are spoilt afterwards, unnoticed by size and time of change, are not read by a later run."""
    command = ["run", "--benchmark", f"folder:{tree}", *QUICK, "--methods"]
    assert cl_bench(*command, "simplecil").code == 0
    for path in tree.rglob("*.jpg"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    from cl_bench.streams import benchmarks

    benchmarks._source.cache_clear()
    benchmarks._decoded_sources.clear()
    outcome = cl_bench(*command, "simplecil", "--force")
    assert outcome.code == 0, outcome
    assert cl_bench(*command, "simplecil", "--images", "files").code == 2


def test_the_same_images_in_another_folder_are_the_same_split(cl_bench: Cli, tree: Path) -> None:
    moved = tree.with_name("moved")
    for place in (tree, moved):
        arguments = ["run", "--benchmark", f"folder:{place}", "--methods", "simplecil", "--backbone", QUICK[-1]]
        assert cl_bench(*arguments).code == 0
        if place == tree:
            tree.rename(moved)
    assert len({json.loads(path.read_text())["experiment"]["split"] for path in RUNS.glob("*.json")}) == 1


def test_a_broken_image_ends_in_a_sentence(cl_bench: Cli, tree: Path) -> None:
    broken = tree / "train" / "dog" / "3.jpg"
    command = ["run", "--benchmark", f"folder:{tree}", "--methods", "simplecil", "--backbone", QUICK[-1]]
    broken.write_bytes(b"")
    assert_refused(cl_bench(*command), "3.jpg' is zero-byte")
    broken.write_bytes(broken.with_name("2.jpg").read_bytes()[:300])
    outcome = cl_bench(*command)
    assert outcome.code == 2 and "3.jpg" in outcome.err and "Traceback" not in outcome.err


def test_broken_images_are_left_out_if_asked_for(cl_bench: Cli, tree: Path) -> None:
    """That is another split, and known by another hash."""
    command = ["run", "--benchmark", f"folder:{tree}", "--methods", "simplecil", "--backbone", QUICK[-1]]
    assert cl_bench(*command).code == 0
    (tree / "test" / "dog" / "1.jpg").write_text("no image")
    assert cl_bench(*command, "--skip-bad").code == 0
    records = sorted((json.loads(path.read_text()) for path in RUNS.glob("*.json")), key=lambda one: sum(one["total"]))
    assert [sum(record["total"]) for record in records] == [17, 18]
    assert len({record["experiment"]["split"] for record in records}) == 2


def test_a_split_list_of_the_users_own(cl_bench: Cli, tree: Path) -> None:
    whole = tree.with_name("whole")
    (tree / "train").rename(whole)
    for part, chosen in (("train", range(2, 6)), ("test", range(2))):
        (whole.parent / f"my_{part}.txt").write_text("\n".join(f"{name}/{i}.jpg" for name in CLASSES for i in chosen))
    command = ["run", "--benchmark", f"folder:{whole}", "--methods", "simplecil", "--backbone", QUICK[-1]]
    outcome = cl_bench(*command, "--split-list", str(whole.parent / "my_train.txt"))
    assert outcome.code == 0, outcome
    (record,) = (json.loads(path.read_text()) for path in RUNS.glob("*.json"))
    assert sum(record["total"]) == 12


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--benchmark", "cifar100"], ["cifar100 is not there", "cl-bench data prepare cifar100"]),
        (["--benchmark", "folder:nowhere"], ["there is no folder", "nowhere"]),
        (["--benchmark", "cifar10"], ["unknown benchmark 'cifar10'", "Did you mean 'cifar100'"]),
        (["--root", "nowhere"], ["--root 'nowhere' is no folder"]),
    ],
)
def test_data_that_are_not_there(cl_bench: Cli, arguments: list[str], parts: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", "simplecil", *arguments), *parts)


def test_a_class_order_from_a_file(cl_bench: Cli, tree: Path) -> None:
    """By name or by index; in the record it is spelled out."""
    order = ["fly", "bird", "fox", "dog", "cat", "fish"]
    command = ["run", "--benchmark", f"folder:{tree}", "--methods", "simplecil", "--backbone", QUICK[-1], "--order"]
    Path("names.txt").write_text("\n".join(order) + "\n")
    Path("numbers.txt").write_text("\n".join(str(CLASSES.index(name)) for name in order))
    for file in ("names.txt", "numbers.txt"):
        outcome = cl_bench(*command, file)
        assert outcome.code == 0, outcome
    (record,) = (json.loads(path.read_text()) for path in RUNS.glob("*.json"))
    assert record["classes"] == order and record["experiment"]["class_order"] == "order:4,0,5,2,1,3"
    assert "class order list " in " ".join(outcome.out.split())


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["4", "0", "5", "2", "1", "3", "0"], ["line 7", "'0' comes twice"]),
        (["4", "0", "5", "2", "1"], ["lacks 1 of 6 classes", "'3'"]),
        (["fly", "bird", "bee"], ["line 3", "no class 'bee'"]),
        ([], ["lacks 6 of 6"]),
    ],
)
def test_class_orders_that_are_none(cl_bench: Cli, tree: Path, lines: list[str], parts: list[str]) -> None:
    Path("order.txt").write_text("\n".join(lines))
    command = ["run", "--benchmark", f"folder:{tree}", "--methods", "simplecil", "--backbone", QUICK[-1]]
    assert_refused(cl_bench(*command, "--order", "order.txt"), "order.txt", *parts)
