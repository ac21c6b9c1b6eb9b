"""Decoded images on disk: what is stored, when it is made anew, and what happens where it cannot be written."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from cl_bench import streams
from cl_bench.data import cache, loading, views
from cl_bench.data.images import RaggedImages
from cl_bench.data.loading import gather
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms
from cl_bench.streams import Source, benchmarks, catalogue
from tests.helpers import trees

CPU = torch.device("cpu")
COUNT = {"train": 12, "test": 4}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of images of many sizes: higher than wide and wider than high, large and small."""
    random = np.random.default_rng(0)
    for part, count in COUNT.items():
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(count // 2):
                small = Image.fromarray(random.integers(0, 256, (7, 6, 3), dtype=np.uint8))
                height, width = random.integers(20, 150, size=2)
                small.resize((int(width), int(height))).save(folder / f"{i}.png")
    return tmp_path / "pets"


def read(folder: Path, storage: str) -> tuple[Source, int]:
    """The data as a new process would have it, and how many images were decoded for that."""
    for once in (benchmarks._source, benchmarks._listing, benchmarks._small_and_alike):
        once.cache_clear()
    benchmarks._decoded_sources.clear()
    decoded = 0

    def told(done: int, total: int) -> None:
        nonlocal decoded
        decoded += 1
        assert 1 <= done <= total == sum(COUNT.values())

    return streams.find(f"folder:{folder}").source(storage, told), decoded


def pixels(source: Source) -> list[np.ndarray]:
    return [image for part in (source.train, source.test) for image in part.images[np.arange(len(part))]]


def same(one: Source, other: Source) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(other), strict=True))


# --- what is stored --------------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_kept_with_their_shorter_side_at_most_as_long_as_asked(pets: Path) -> None:
    files, _ = read(pets, "files")
    stored, decoded = read(pets, "resized:60")
    assert decoded == sum(COUNT.values())
    for image, original in zip(pixels(stored), pixels(files), strict=True):
        short = min(original.shape[:2])
        if short <= 60:
            assert np.array_equal(image, original)
        else:
            assert image.dtype == np.uint8 and min(image.shape[:2]) == 60
            assert max(image.shape[:2]) == int(max(original.shape[:2]) * (60 / short))
    again, decoded = read(pets, "resized:60")
    assert decoded == 0 and same(again, stored)
    # Another size is another file.
    other, decoded = read(pets, "resized:30")
    assert decoded and not same(other, stored)


def test_the_test_view_of_resized_images_is_that_of_their_files_up_to_rounding(pets: Path) -> None:
    transforms = ImageTransforms(
        size=48, crop="pixels", crop_scale=(0.05, 1), resize=60 / 48, mean=(0,) * 3, std=(1,) * 3
    )
    assert transforms.short == 60
    found, exact = (
        views.test_view(gather(read(pets, storage)[0].train, np.arange(12)), transforms)
        for storage in ("resized:60", "files")
    )
    large = torch.tensor([min(image.shape[:2]) >= 60 for image in pixels(read(pets, "files")[0])[:12]])
    assert large.any() and not large.all()
    assert float((found - exact)[large].abs().max()) < 0.51 / 255
    # A smaller image is kept as it is, and enlarged in either case.
    assert float((found - exact)[~large].abs().max()) < 0.01 / 255


def test_how_images_are_kept_depends_on_them_and_on_what_is_asked_for(tmp_path: Path, pets: Path) -> None:
    def storages(folder: Path) -> list[str]:
        benchmark = streams.find(f"folder:{folder}")
        return [benchmark.storage(images, 60) for images in ("auto", "resized", "files")]

    assert storages(pets) == ["resized:60", "resized:60", "files"]
    for size, kept in ((60, "memory"), (61, "resized:60")):
        for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            folder = tmp_path / f"alike{size}" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (80, size)).save(folder / "1.png")
        assert storages(tmp_path / f"alike{size}") == [kept, "resized:60", "files"]
    assert streams.find("icons-100").storage("files", 32) == "memory"


def test_images_in_memory_must_have_one_size(pets: Path) -> None:
    with pytest.raises(UserError, match="differ in size"):
        read(pets, "memory")


def test_cifar_as_images_is_cifar_as_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.shipped(), "cifar100", trees.CIFAR100)
    found = []
    for name, build in (("a", trees.cifar_png), ("b", trees.cifar_pickles)):
        build(tmp_path / name)
        monkeypatch.setenv(catalogue.ROOT_VARIABLE, str(tmp_path / name))
        benchmark = streams.find("cifar100")
        assert benchmark.storage("auto", 256) == "memory"
        found.append(benchmark.source("memory"))
    for one, other in ((found[0].train, found[1].train), (found[0].test, found[1].test)):
        assert one.names == other.names
        assert np.array_equal(np.asarray(one.images), np.asarray(other.images))
        assert one.one_size and torch.equal(gather(one, np.array([3, 0])), gather(other, np.array([3, 0])))


# --- when it is made anew --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 1000, "sizes", "end"])
def test_a_damaged_cache_is_made_anew(where: int | str, pets: Path, own_cache: Path) -> None:
    stored, _ = read(pets, "resized:60")
    expected = [image.copy() for image in pixels(stored)]
    (file,) = own_cache.glob("*-train-*.images")
    content = bytearray(file.read_bytes())
    place = where if isinstance(where, int) else len(content) - {"sizes": 120, "end": 1}[where]
    content[place] ^= 1
    file.write_bytes(content)
    mended, decoded = read(pets, "resized:60")
    assert decoded == COUNT["train"]
    assert all(np.array_equal(image, one) for image, one in zip(pixels(mended), expected, strict=True))


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_a_cache_that_was_cut_off_is_made_anew(length: int, pets: Path, own_cache: Path) -> None:
    read(pets, "resized:60")
    (file,) = own_cache.glob("*-test-*.images")
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    _, decoded = read(pets, "resized:60")
    assert decoded == COUNT["test"] and file.read_bytes() == whole


def test_other_images_under_the_same_names_are_decoded_again(pets: Path) -> None:
    before, _ = read(pets, "resized:60")
    Image.new("RGB", (33, 22), "red").save(pets / "test" / "cat" / "0.png")
    after, decoded = read(pets, "resized:60")
    assert decoded == COUNT["test"]
    assert after.test.images[np.array([0])][0].shape == (22, 33, 3) and not same(after, before)


def test_the_same_images_in_another_folder_are_not(pets: Path) -> None:
    before, _ = read(pets, "resized:60")
    moved = pets.parent / "elsewhere" / "pets"
    moved.parent.mkdir()
    pets.rename(moved)
    after, decoded = read(moved, "resized:60")
    assert decoded == 0 and same(after, before)


# --- other processes, and faults -------------------------------------------------------------------------------

READ = """
import sys
from cl_bench import streams

def told(done, total):
    print(done, flush=True)
    if sys.argv[2] == "asked":
        sys.stdin.readline()

streams.find(sys.argv[1]).source("resized:60", told)
"""


def process(folder: Path, goes_on: Literal["at once", "asked"]) -> subprocess.Popen[str]:
    """A process that reads the data, prints a line after each image that it decodes, and goes on at once or when it is
    given one."""
    return subprocess.Popen(
        [sys.executable, "-c", READ, f"folder:{folder}", goes_on],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_of_two_processes_one_decodes(pets: Path) -> None:
    first = process(pets, "asked")
    assert first.stdout is not None and first.stdin is not None and first.stdout.readline() == "1\n"
    # It holds the lock now, and the second one comes to it before it is given up: its import alone takes longer.
    second = process(pets, "at once")
    lines = [one.communicate("\n" * sum(COUNT.values()))[0].split() for one in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert 1 + sum(map(len, lines)) == sum(COUNT.values())


def test_a_process_that_is_killed_leaves_nothing_that_counts(pets: Path, own_cache: Path) -> None:
    writer = process(pets, "asked")
    assert writer.stdout is not None and writer.stdout.readline() == "1\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert list(own_cache.glob(".*.images-*")) and not list(own_cache.glob("*.images"))
    source, decoded = read(pets, "resized:60")
    assert decoded == sum(COUNT.values()) and len(pixels(source)) == decoded
    assert not list(own_cache.glob(".*.images-*"))


def test_an_image_that_is_damaged_is_named_and_nothing_is_kept(pets: Path, own_cache: Path) -> None:
    broken = pets / "train" / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(UserError, match="2.png"):
        read(pets, "resized:60")
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file/cache'.*CL_BENCH_CACHE.*--images files"):
        read(pets, "resized:60")


def test_a_full_disk_is_named_and_nothing_is_left(pets: Path, own_cache: Path) -> None:
    """A process that may write no more than a few blocks meets the same error as one on a full disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    call = f"{limit}\nfrom cl_bench import streams\nstreams.find('folder:{pets}').source('resized:60')"
    ended = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert "UserError: decoded images cannot be kept in" in ended.stderr and "CL_BENCH_CACHE" in ended.stderr
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]


# --- batches that are sent -------------------------------------------------------------------------------------


def test_images_that_are_sent_batch_by_batch_are_the_images(pets: Path) -> None:
    """What a device without room for all images is given: as many bytes of each as the largest one has."""
    store = read(pets, "resized:60")[0].train
    images = store.images
    assert isinstance(images, RaggedImages)
    transforms = ImageTransforms(size=48, crop_scale=(0.05, 1), resize=60 / 48, mean=(0,) * 3, std=(1,) * 3)
    ids = np.array([11, 0, 3, 3, 7, 5, 11])
    chunks = [ids[:3], ids[3:6], ids[6:]]
    for batch, chunk in zip(loading._sent(images, ids, chunks, CPU), chunks, strict=True):
        whole = gather(store, chunk)
        assert torch.equal(views.test_view(batch, transforms), views.test_view(whole, transforms))


def test_caches_of_before_deep_images_were_scaled_are_used_for_jpeg_files_alone(tmp_path: Path) -> None:
    """Files of JPEG hold 8 bits, those of PNG and TIFF may hold more, which were cut off."""
    found = {}
    for name in ("a.jpg", "b.JPEG", "c.png", "d.tif"):
        (tmp_path / name).write_bytes(b"x" * 10)
        os.utime(tmp_path / name, ns=(0, 0))
        found[name] = cache.cache_path("pets", "train", "resized:60", [f"x/{name}"], [tmp_path / name]).name
    for name, path in found.items():
        of_before = hashlib.sha256(f"1 resized:60\nx/{name}\0{10}\0{0}".encode()).hexdigest()[:16]
        assert (of_before in path) == name.endswith((".jpg", ".JPEG"))
