"""`cl-bench data list` and `verify`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cl_bench import streams
from cl_bench.streams import catalogue
from cl_bench.streams.config import DataConfig
from cl_bench.streams.verify import verify
from tests.helpers import trees
from tests.helpers.command import Cli, Outcome
from tests.helpers.layouts import names_of

pytestmark = pytest.mark.usefixtures("nowhere")


def test_the_list_says_what_is_there(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    for dataset in (trees.CIFAR100, trees.IMAGENET_R, trees.TINY_IMAGENET):
        use(dataset)
    trees.cifar_png(tmp_path)
    trees.original(tmp_path, lists=False)
    trees.empty(next(trees.tiny_folders(tmp_path).rglob("*.JPEG")))
    result = data("list", "--root", tmp_path)
    assert result.code == 0
    rows = {line.split()[0]: line for line in result.out.splitlines() if line}
    assert re.search(r"yes: cifar100 +files", rows["cifar100"]) and "20/8" in rows["cifar100"]
    assert "partly: imagenet-r" in rows["imagenet-r"] and "partly: tiny-imagenet" in rows["tiny-imagenet"]
    assert re.search(r"no +layout", rows["cub200"])
    assert "partly there, imagenet-r: '" in result.out and "neither train/ and test/ nor a split list" in result.out
    assert "partly there, tiny-imagenet: zero-byte: " in result.out
    assert data("list", "--root", tmp_path / "none").code == 2
    assert data("list").code == 0


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_loses_nothing_on_a_narrow_terminal(
    columns: int, data: Callable[..., Outcome], tmp_path: Path
) -> None:
    wide = data("list", columns=400).out.splitlines()
    lines = data("list", columns=columns).out.splitlines()
    assert all(len(line) <= columns for line in lines) and "…" not in "".join(lines)
    words = {word for line in wide for word in line.split()}
    assert words <= {word for line in lines for word in line.split()}


def test_verify_says_what_it_found(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    trees.cifar_png(tmp_path)
    known = replace(
        trees.CIFAR100,
        content_hash=verify(trees.CIFAR100, tmp_path).content,
        split_hashes={"official": trees.hashes(*names_of(catalogue.load(trees.CIFAR100, tmp_path)))},
    )
    use(known)
    result = data("verify", "cifar100", "--root", tmp_path)
    assert result.code == 0
    assert result.out.splitlines() == [
        f"cifar100 in {tmp_path / 'cifar100'} (class folders)",
        "4 classes, 20 training and 8 test images",
        "split: official (as published)",
        f"content: {str(known.content_hash)[:12]} (as published)",
        "nothing wrong",
    ]
    path = trees.truncate(next((tmp_path / "cifar100" / "train" / "apple").iterdir()))
    result = data("verify", "cifar100", "--root", tmp_path)
    assert result.code == 1 and "content" not in result.out
    assert f"Truncated images: 1\n  {path} (" in result.out and result.out.endswith("1 fault\n")
    assert data("verify", "cifar100", "--root", tmp_path, "--quick").code == 0
    result = data("verify", "cifar100", "--root", tmp_path, "--skip-bad")
    assert result.code == 0 and str(path) in result.out


def test_many_findings_are_cut_unless_all_are_wanted(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    use(trees.IMAGENET_R)
    folder = trees.original(tmp_path)
    shutil.rmtree(folder / "imagenet-r")
    trees.save(folder / "imagenet-r" / trees.WNIDS[0] / "art_0.jpg")
    for file in (folder / f"imagenet-r_{part}.yaml" for part in ("train", "test")):
        content = yaml.safe_load(file.read_text())
        del content["targets"]
        content["data"] += [f"{name}/more_{file.stem}_{i}.jpg" for name in trees.WNIDS for i in range(2)]
        file.write_text(yaml.dump(content))
    short, full = (data("verify", "imagenet-r", "--root", tmp_path, *more) for more in ((), ("--all",)))
    assert short.code == full.code == 1
    assert "Missing images: 29" in short.out and "... and 9 more (--all names them)" in short.out
    assert full.out.count("\n  ") == 30 and "more (" not in full.out and full.out.endswith("\n30 faults\n")


def test_duplicates_that_are_published_are_only_counted(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    folder = trees.cifar_png(tmp_path)
    one, other = sorted((folder / "train" / "apple").iterdir())[:2]
    shutil.copyfile(one, other)
    use(replace(trees.CIFAR100, content_hash=verify(trees.CIFAR100, tmp_path).content))
    result = data("verify", "cifar100", "--root", tmp_path)
    assert result.code == 0 and "Images with the same pixels: 1 groups, as published" in result.out
    assert f"apple/{one.name} = train/apple/{other.name}" in data("verify", "cifar100", "--root", tmp_path, "--all").out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("verify", "cifar10"), "unknown data set 'cifar10'"),
        (("verify", "cifar100"), "cifar100 is not there"),
        (("verify", "cifar100", "--root", "none"), "data folder 'none' .--root. does not exist"),
        (("verify", "folder:none"), "there is no folder"),
        (("verify", "imagenet-a"), "neither train/ and test/ nor a split list"),
        (("verify", "imagenet-r", "--split-list", "none.txt"), "there is no split list 'none.txt'"),
        (("prepare", "imagenet-q"), "unknown data set"),
        (("prepare", "folder:x"), "data of your own"),
    ],
)
def test_bad_input_ends_in_a_sentence(
    arguments: tuple[str, ...], message: str, data: Callable[..., Outcome], tmp_path: Path
) -> None:
    trees.original(tmp_path / "data")
    trees.original(tmp_path / "data", "imagenet-a", lists=False)
    result = data(*arguments)
    assert result.code == 2 and re.search(message, result.err)


def test_a_folder_is_verified_by_name(data: Callable[..., Outcome], tmp_path: Path) -> None:
    trees.pre_split(tmp_path, "mine")
    result = data("verify", "folder:mine")
    assert result.code == 0 and "3 classes, 12 training and 6 test images" in result.out
    assert re.search("split: own split [0-9a-f]{8} .nothing published to compare with.", result.out)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cl_bench.cli import data; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(data.app, ['--help']).exit_code == 0; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_list_and_verify_need_no_torch(tmp_path: Path) -> None:
    trees.pre_split(tmp_path, "mine")
    code = (
        "import sys; from cl_bench.cli import data; from typer.testing import CliRunner; "
        "[CliRunner().invoke(data.app, args) for args in (['list'], ['verify', 'folder:mine'])]; "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout == "False\n"


def test_the_command_counts_in_its_heading_and_names_below(data: Callable[..., Outcome], tmp_path: Path) -> None:
    mine = trees.pre_split(tmp_path, "mine")
    for i in range(30):
        (mine / f"train/{trees.WNIDS[0]}/{i:02d}\x1b[2J.heic").write_bytes(b"x")
    result = data("verify", "folder:mine")
    assert result.code == 0 and "\x1b" not in result.out
    assert f"Files that are not read: 30 (30 .heic in train/{trees.WNIDS[0]}/)\n  " in result.out
    assert r"00\x1b[2J.heic" in result.out and "... and 10 more (--all names them)" in result.out
    assert r"29\x1b[2J.heic" in data("verify", "folder:mine", "--all").out


def test_a_name_that_is_no_text_is_shown_with_escapes(data: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = trees.pre_split(tmp_path, "mine") / "train"
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.h\xe9ic")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes no such names")
    result = data("verify", "folder:mine")
    assert result.code == 0 and r"Files that are not read: 1 (1 .h\xe9ic in train/)" in result.out


# --- what a run says of its data -------------------------------------------------------------------------------

RUN = (
    "run", "--benchmark", "folder:mine", "--methods", "simplecil,linear", "--tasks", "3",
    "--backbone", "vit_tiny_patch4_32.tinyimagenet156",
)  # fmt: skip


def test_a_run_says_it_once(cl_bench: Cli, tmp_path: Path) -> None:
    mine = trees.pre_split(tmp_path, "mine")
    trees.save(mine / "val/ant/1.png")
    result = cl_bench(*RUN, "--seeds", "0-2", "--dry-run")
    sentence = "folder:mine: 1 file is not read: 1 .png in val/ant/; 'cl-bench data verify folder:mine' names them"
    assert result.code == 0 and result.err.count("not read") == result.err.count(f"warning: {sentence}\n") == 1
    assert streams.find("folder:mine").remarks() == [sentence]
    assert streams.find("icons-100").remarks() == []
    # Those that are left out on demand, too.
    trees.truncate(mine / f"train/{trees.WNIDS[0]}/art_0.jpg")
    trees.empty(mine / f"train/{trees.WNIDS[0]}/art_1.jpg")
    _, left_out = streams.find("folder:mine", DataConfig.of(skip_bad=True)).remarks()
    assert left_out.startswith(
        f"folder:mine: 2 images are left out (--skip-bad): '{mine}/train/{trees.WNIDS[0]}/art_0.jpg', "
    )


def test_a_run_refuses_an_image_of_unknown_range(cl_bench: Cli, tmp_path: Path) -> None:
    mine = trees.pre_split(tmp_path, "mine")
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(
        mine / f"train/{trees.WNIDS[0]}/float.tif"
    )
    result = cl_bench(*RUN)
    assert result.code == 2 and result.err.count("error:") == 1
    assert f"image '{mine}/train/{trees.WNIDS[0]}/float.tif' is of unknown range" in result.err
    assert not list(Path("results/runs").glob("*.json"))
