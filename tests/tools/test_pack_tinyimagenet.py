"""tools/pack_tinyimagenet.py on trees with all classes of the real data sets and a few images of one colour each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cl_bench.streams.overlaps import OVERLAPS, read_overlaps
from tests.helpers.scripts import TOOLS, load_tool

tool = load_tool("pack_tinyimagenet")
pretrain = load_tool("pretrain_backbone")
ROWS = [line.split("\t") for line in OVERLAPS.read_text().splitlines() if not line.startswith("#")]
WNIDS = sorted([row[0] for row in ROWS] + [f"n2{number:07}" for number in range(124)])
CIFAR = [f"thing_{number:03}" for number in range(100)]


def colour(kind: int, number: int, copy: int) -> NDArray[np.uint8]:
    """A colour that no other image has."""
    return np.array([number, 10 * copy, 100 * kind], np.uint8)


def save(path: Path, value: NDArray[np.uint8], side: int) -> None:
    """An image of one colour, without loss whatever the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(value, (side, side, 3)).copy()).save(path, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with both data sets: two training images and one other image of every class."""
    tiny, annotations = tmp_path / "data" / "tiny-imagenet" / "tiny-imagenet-200", []
    for number, wnid in enumerate(WNIDS):
        for copy in range(2):
            save(tiny / "train" / wnid / "images" / f"{wnid}_{copy}.JPEG", colour(1, number, copy), 64)
        save(tiny / "val" / "images" / f"val_{number}.JPEG", colour(1, number, 2), 64)
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    (tiny / "val" / "val_annotations.txt").write_text("".join(annotations))
    (tiny / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}, other name\n" for wnid in WNIDS))
    for number, name in enumerate(CIFAR):
        for copy, part in enumerate(("train", "train", "test")):
            save(tmp_path / "data" / "cifar100" / part / name / f"{copy}.png", colour(2, number, copy), 32)
    return tmp_path / "data"


def run(*arguments: str | Path) -> int:
    """Run the command line."""
    status: int = tool.main([str(argument) for argument in arguments])
    return status


def arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of a data file."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def test_parts_hold_their_classes(root: Path, tmp_path: Path) -> None:
    """CIFAR-100, the strict classes and the others are three parts, every image with its class and split."""
    out = tmp_path / "all.npz"
    assert run("pack", "--root", root, "--out", out) == 0
    strict = [row[0] for row in sorted(ROWS) if row[2] == "strict"]
    others = [wnid for wnid in WNIDS if wnid not in strict]
    assert (len(strict), len(others)) == (44, 156)
    expected = {0: CIFAR, 1: [f"name of {wnid}" for wnid in strict], 2: [f"name of {wnid}" for wnid in others]}
    numbers = {0: range(100), 1: [WNIDS.index(wnid) for wnid in strict], 2: [WNIDS.index(wnid) for wnid in others]}
    data = pretrain.DataFile(out)
    for index, names in expected.items():
        part = data.part(index, torch.device("cpu"))
        assert part.classes == names
        for split, (images, copies) in enumerate(((part.train, (0, 1)), (part.heldout, (2,)))):
            wanted = {
                (label, tuple(colour(1 if index else 2, number, copy).tolist()))
                for label, number in enumerate(numbers[index])
                for copy in copies
            }
            pixels = images.pixels.permute(0, 2, 3, 1)
            assert (pixels == pixels[:, :1, :1]).all(), split
            found = zip(images.labels.tolist(), map(tuple, pixels[:, 0, 0].tolist()), strict=True)
            assert set(found) == wanted
            assert len(images) == len(wanted)


def test_reduction_is_antialiased(root: Path, tmp_path: Path) -> None:
    """A pattern of single pixels becomes its mean, and does not survive as another pattern."""
    path = root / "tiny-imagenet" / "tiny-imagenet-200" / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_0.JPEG"
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    Image.fromarray(np.stack([board] * 3, 2)).save(path, "PNG")
    assert run("pack", "--root", root, "--out", tmp_path / "all.npz") == 0
    images = arrays(tmp_path / "all.npz")["images"].astype(int)
    assert (np.abs(images[:, 4:-4, 4:-4] - 100).max((1, 2, 3)) <= 2).sum() == 1


def test_copies_in_another_part_are_left_out(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that lies in a strict class and in another one is not pre-trained on."""
    strict = next(row[0] for row in ROWS if row[2] == "strict")
    save(
        root / "tiny-imagenet" / "tiny-imagenet-200" / "train" / WNIDS[-1] / "images" / f"{WNIDS[-1]}_0.JPEG",
        colour(1, WNIDS.index(strict), 2),
        64,
    )
    assert run("pack", "--root", root, "--out", tmp_path / "all.npz") == 0
    assert "left out of part 2: 1 images" in capsys.readouterr().out
    found = arrays(tmp_path / "all.npz")
    assert [int((found["part"] == part).sum()) for part in range(3)] == [300, 132, 467]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A data file with noise, which does not compress: 600 images in part 2 and 40 in part 0."""
    rng = np.random.default_rng(0)
    part = np.repeat([0, 2], [40, 600]).astype(np.uint8)
    content = {
        "images": rng.integers(0, 256, (640, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, 640).astype(np.int16),
        "part": part,
        "split": (np.arange(640) % 3 == 0).astype(np.uint8),
        "classes": np.array(["apple", "bear", "crab", "anchor", "bell", "door"]),
        "class_part": np.repeat([0, 2], 3).astype(np.uint8),
    }
    np.savez(tmp_path / "packed.npz", **content)
    return tmp_path / "packed.npz"


def test_shards_join_to_the_same_part(packed: Path, tmp_path: Path) -> None:
    """Shards keep to their size, come back without loss in any order, and pre-training sees no difference."""
    assert run("split", packed, "--max-mib", "1", "--out", tmp_path / "shards") == 0
    shards = sorted((tmp_path / "shards").iterdir())
    assert len(shards) == 3
    assert max(path.stat().st_size for path in shards) <= 2**20
    assert run("join", *shards[::-1], "--out", tmp_path / "joined.npz") == 0
    joined, whole = arrays(tmp_path / "joined.npz"), arrays(packed)
    assert joined.keys() == whole.keys()
    for name, array in joined.items():
        kept = whole["class_part" if name in ("classes", "class_part") else "part"] == 2
        np.testing.assert_array_equal(array, whole[name][kept])
        assert array.dtype == whole[name].dtype
    parts = [pretrain.DataFile(path).part(2, torch.device("cpu")) for path in (packed, tmp_path / "joined.npz")]
    assert parts[0].sha256 == parts[1].sha256
    assert run("join", *shards, "--out", tmp_path / "again.npz") == 0
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "joined.npz").read_bytes()


def test_join_needs_numpy_and_pillow_only(packed: Path, tmp_path: Path) -> None:
    """On the machine that trains, nothing that reads data sets need be installed."""
    assert run("split", packed, "--out", tmp_path / "shards") == 0
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'pydantic', 'yaml', 'avalanche'])); "
    script = f"{blocked}import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    shards = map(str, (tmp_path / "shards").iterdir())
    command = [sys.executable, "-c", script, str(TOOLS / "pack_tinyimagenet.py"), "join", *shards]
    assert subprocess.run([*command, "--out", str(tmp_path / "joined.npz")], cwd=TOOLS.parent).returncode == 0
    assert len(arrays(tmp_path / "joined.npz")["images"]) == 600


def spoil_image(root: Path) -> Path:
    path = root / "tiny-imagenet" / "tiny-imagenet-200" / "train" / WNIDS[5] / "images" / f"{WNIDS[5]}_1.JPEG"
    path.write_bytes(path.read_bytes()[:60])
    return path


def flatten_image(root: Path) -> Path:
    path = root / "cifar100" / "test" / CIFAR[3] / "2.png"
    Image.new("RGB", (32, 48)).save(path)
    return path


def remove_words(root: Path) -> Path:
    (root / "tiny-imagenet" / "tiny-imagenet-200" / "words.txt").unlink()
    return Path("words.txt")


def remove_cifar(root: Path) -> Path:
    (root / "cifar100").rename(root / "elsewhere")
    return Path("cifar100 is not there")


@pytest.mark.parametrize("damage", [spoil_image, flatten_image, remove_words, remove_cifar])
def test_damaged_data_sets(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object) -> None:
    """One sentence says what is wrong, and nothing is written."""
    assert callable(damage)
    what = str(damage(root))
    assert run("pack", "--root", root, "--out", tmp_path / "all.npz") == 2
    told = capsys.readouterr().err
    assert what in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "all.npz").exists()


def wrong_shards(packed: Path, folder: Path) -> Iterator[tuple[list[str | Path], str]]:
    """Command lines that are refused, and what is said of them."""
    run("split", packed, "--max-mib", "1", "--out", folder)
    first, second, third = sorted(folder.iterdir())
    yield ["join", first, third], "[0, 2] of [3]"
    yield ["join", first, second, second, third], "[0, 1, 1, 2] of [3]"
    yield ["join", first, folder / "other.npz"], "other.npz"
    second.write_bytes(second.read_bytes()[:-4000])
    yield ["join", first, second, third], str(second)
    yield ["split", packed, "--part", "1"], "no part 1"
    yield ["split", packed, "--max-mib", "0.5"], "--max-mib"


def test_damaged_shards(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence says what is wrong."""
    for arguments, what in wrong_shards(packed, tmp_path / "shards"):
        capsys.readouterr()
        assert run(*arguments, "--out", tmp_path / "out") == 2
        told = capsys.readouterr().err
        assert what in told
        assert len(told.splitlines()) == 1


def test_damaged_list_of_overlaps(tmp_path: Path) -> None:
    """A line without a mark is named."""
    path = tmp_path / "overlaps.tsv"
    path.write_text("# a remark\nn01443537\tgoldfish\tstrict\nn01698640\tAmerican alligator\n")
    with pytest.raises(tool.UserError, match="American alligator"):
        read_overlaps(path)
