"""Data sets of a user's own package: an entry point, never a fork."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cl_bench.streams import catalogue, datasets
from tests.helpers.command import Cli, assert_refused, stored

Process = Callable[..., subprocess.CompletedProcess[str]]

SOURCE = """
from cl_bench.streams.readers import class_folders, first_of
from cl_bench.streams.types import DataSet

LEAVES = DataSet(
    name="leaves",
    title="Leaves of trees in our park",
    licence="our own",
    page="https://example.org/leaves",
    classes=4,
    train=8,
    test=4,
    layouts={"class folders": "leaves/train/CLASS/*.png, leaves/test/CLASS/*.png"},
    read=first_of(class_folders("class folders"), lists=False),
    tasks=2,
    folders=("leaves",),
)
"""


def install(site: Path, source: str, value: str = "leaves_package:LEAVES", name: str = "leaves") -> None:
    """What pip leaves behind for a package with one module and one entry point."""
    info = site / "leaves-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaves\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cl_bench.datasets]\n{name} = {value}\n")
    (site / "leaves_package.py").write_text(source)


def draw(root: Path) -> None:
    """Three images of each of four classes."""
    for number in range(4):
        for part, names in (("train", "ab"), ("test", "c")):
            folder = root / "leaves" / part / f"class{number}"
            folder.mkdir(parents=True)
            for shade, name in enumerate(names):
                Image.new("RGB", (16, 16), (number * 40, shade * 90, len(part))).save(folder / f"{name}.png")


@pytest.mark.parametrize("value", ["leaves_package:LEAVES", "leaves_package"])
def test_the_data_set_of_an_installed_package_is_listed_and_planned(
    process: Process, tmp_path: Path, value: str
) -> None:
    site = tmp_path / "site"
    install(site, SOURCE, value)
    draw(tmp_path / "data")
    assert "leaves" not in process("data", "list").stdout
    listed = process("data", "list", pythonpath=site)
    assert listed.returncode == 0, listed.stderr
    assert any("leaves" in line for line in listed.stdout.splitlines())
    command = ["run", "--benchmark", "leaves", "--backbone", "vit_tiny_patch8_32.icons", "--methods", "finetune"]
    planned = process(*command, "--dry-run", pythonpath=site)
    assert planned.returncode == 0, planned.stderr
    assert "leaves" in planned.stdout + planned.stderr
    misspelt = process("data", "verify", "leavs", pythonpath=site)
    assert misspelt.returncode == 2 and "Did you mean 'leaves'?" in misspelt.stderr


@pytest.mark.parametrize(
    ("source", "value", "name", "said"),
    [
        ("import nothing_of_that_name", "leaves_package:LEAVES", "leaves", "does not import: ModuleNotFoundError"),
        (SOURCE, "leaves_package:TREES", "leaves", "does not import: AttributeError"),
        ("LEAVES = 'a folder'", "leaves_package:LEAVES", "leaves", "holds no cl_bench.streams.types.DataSet"),
        ("", "leaves_package", "leaves", "holds no cl_bench.streams.types.DataSet"),
        (SOURCE + "MORE = LEAVES", "leaves_package", "leaves", "holds 2 cl_bench.streams.types.DataSet"),
        (SOURCE, "leaves_package:LEAVES", "trees", "holds the data set 'leaves'"),
    ],
)
def test_a_package_without_its_data_set_is_refused_in_a_sentence(
    cl_bench: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, value: str, name: str, said: str
) -> None:
    install(tmp_path / "site", source, value, name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "leaves_package", raising=False)
    refused = cl_bench("data", "verify", name)
    assert_refused(refused, f"data set '{name}' (entry point {value})", said)


def test_a_data_set_file_without_a_data_set_is_refused(
    cl_bench: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that somebody has added to the folder of the data sets."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "half_done.py").write_text("LEAVES = None\n")
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "files")])
    catalogue.shipped.cache_clear()
    try:
        assert_refused(cl_bench("data", "verify", "half-done"), "streams/datasets/half_done.py holds no")
    finally:
        catalogue.shipped.cache_clear()


@pytest.mark.parametrize("command", [("data", "list"), ("ls", "benchmarks")])
def test_a_broken_package_is_named_in_one_line_and_hides_no_other(
    process: Process, tmp_path: Path, command: tuple[str, str]
) -> None:
    (tmp_path / "data").mkdir()
    install(tmp_path / "site", "import nothing_of_that_name")
    listed = process(*command, pythonpath=tmp_path / "site")
    assert listed.returncode == 0, listed.stderr
    assert "cifar100" in listed.stdout and "tiny-imagenet" in listed.stdout and "leaves" not in listed.stdout
    (line,) = listed.stderr.splitlines()
    assert line.startswith("warning: data set 'leaves' (entry point leaves_package:LEAVES) does not import")


def test_the_data_set_of_an_installed_package_is_checked_and_run(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CL_BENCH_CACHE", str(tmp_path / "cache"))
    install(tmp_path / "site", SOURCE)
    draw(tmp_path / "data")
    verified = process("data", "verify", "leaves", pythonpath=tmp_path / "site")
    assert verified.returncode == 0 and "nothing wrong" in verified.stdout, verified.stdout + verified.stderr
    command = ["run", "--benchmark", "leaves", "--backbone", "vit_tiny_patch8_32.icons", "--methods", "simplecil"]
    done = process(*command, "--limit-train", "3", "--limit-test", "2", pythonpath=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    (record,) = stored(tmp_path / "results" / "runs")
    assert record["experiment"]["benchmark"] == "leaves"
