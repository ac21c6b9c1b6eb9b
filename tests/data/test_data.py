"""Views and batches: what a network is shown depends on the sample and its key alone."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset, concat_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import RandomResizedCrop, v2

from cl_bench.data import loading, views
from cl_bench.data.images import ImageFiles, ImageStore, RaggedImages
from cl_bench.data.loading import gather
from cl_bench.data.packed import Packed
from cl_bench.data.samples import (
    Concatenated,
    DatasetSamples,
    ImageDataset,
    StoreSamples,
    TaskSamples,
    TrainingBatches,
    samples_of,
)
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms
from cl_bench.randomness import Key, permutation, uniform

if TYPE_CHECKING:
    from cl_bench.data.images import Images

CPU = torch.device("cpu")
PLAIN = ImageTransforms(size=32, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, mean=(0,), std=(1,))
CROPS = ImageTransforms(size=32, crop_scale=(0.3, 0.8), flip=0.5, mean=(0.5,), std=(0.25,))


def random_images(n: int, size: int = 32, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


@cache
def store(n: int = 40, classes: int = 4) -> ImageStore:
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 1), dtype=np.uint8)
    return ImageStore(images, np.arange(n) % classes, tuple(f"c{i % classes}/{i}" for i in range(n)))


def samples(ids: list[int], transforms: ImageTransforms = CROPS) -> StoreSamples:
    return StoreSamples(ImageDataset(store(), np.array([2, 0, 3, 1]), transforms), np.array(ids, dtype=np.int64))


def training_view(images: Images, ids: NDArray[np.int64], key: Key, transforms: ImageTransforms) -> Tensor:
    """The training view with the numbers that samples draw for it."""
    u = uniform(key, ids, views.draws(isinstance(images, Tensor), transforms))
    return views.training_view(images, u, transforms)


# --- views -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=12), st.integers(0, 5))
def test_a_training_view_does_not_depend_on_its_batch(picked: list[int], epoch: int) -> None:
    images, ids = random_images(20), np.arange(100, 120)
    whole = training_view(images, ids, (0, epoch), CROPS)
    part = training_view(images[picked], ids[picked], (0, epoch), CROPS)
    torch.testing.assert_close(part, whole[picked], atol=1e-6, rtol=0)


def test_views_differ_between_keys_and_samples() -> None:
    image = random_images(1).expand(10, -1, -1, -1)
    one, other = (training_view(image, np.arange(10), (epoch,), CROPS) for epoch in (0, 1))
    for pair in (one, other):
        assert len({tuple(view.flatten().tolist()) for view in pair}) == 10
    assert bool(((one - other).abs().amax(dim=(1, 2, 3)) > 0.1).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_without_crop_and_flip_the_training_view_is_the_test_view(channels: int) -> None:
    images = random_images(6, channels=channels)
    ids = np.arange(6)
    plain = PLAIN.model_copy(update={"mean": (0,) * channels, "std": (1,) * channels})
    found = training_view(images, ids, (0,), plain)
    torch.testing.assert_close(found, views.test_view(images, plain), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, images.float() / 255, atol=1e-5, rtol=0)


COLOUR = ImageTransforms(size=32, crop_scale=(0.05, 1), mean=(0,) * 3, std=(1,) * 3, resize=8 / 7)
SIZES = [(40, 61), (61, 40), (37, 37), (50, 200), (33, 36), (20, 90)]


def photographs(folder: Path) -> tuple[ImageFiles, list[Image.Image]]:
    """Smooth colour images of many sizes, as PNG files and as they are."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    images = []
    for i, (height, width) in enumerate(SIZES):
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        images.append(small.resize((width, height), Image.Resampling.BICUBIC))
        images[-1].save(folder / f"{i}.png")
    return ImageFiles([folder / f"{i}.png" for i in range(len(SIZES))]), images


def test_the_test_view_of_files_is_torchvisions(tmp_path: Path) -> None:
    """Resize of the shorter side (antialiased bicubic), centre crop: within the rounding of PIL's uint8."""
    files, images = photographs(tmp_path)
    reference = v2.Compose([v2.Resize(round(32 * 8 / 7), v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    found = views.test_view([torch.from_numpy(image).permute(2, 0, 1) for image in files[np.arange(6)]], COLOUR)
    assert found.shape == (6, 3, 32, 32)
    for view, image in zip(found, images, strict=True):
        expected = v2.functional.to_dtype(v2.functional.to_image(reference(image)), torch.float32, scale=True)
        assert float((view - expected).abs().max()) < 0.02


def test_training_crops_of_files_are_crops(tmp_path: Path) -> None:
    """Each is a resized box of its image within the ranges asked for, perhaps mirrored, and of its own image alone."""
    files, _ = photographs(tmp_path)
    store = ImageStore(files, np.zeros(6, dtype=np.int64), tuple(map(str, range(6))))
    images = gather(store, np.arange(6))
    assert isinstance(images, list)
    whole = training_view(images, np.arange(6), (0,), COLOUR)
    assert whole.shape == (6, 3, 32, 32) and float(whole.min()) >= 0 and float(whole.max()) <= 1.001
    alone = torch.cat([training_view([images[i]], np.array([i]), (0,), COLOUR) for i in range(6)])
    assert torch.equal(whole, alone)
    full = COLOUR.model_copy(update={"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0.0})
    square = torch.arange(37 * 37 * 3).remainder(251).to(torch.uint8).view(3, 37, 37)
    view = training_view([square], np.array([0]), (0,), full)
    reference = torch.nn.functional.interpolate(square[None].float() / 255, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(view, reference)


def scalar_box(u: list[float], height: int, width: int, transforms: ImageTransforms) -> tuple[int, int, int, int]:
    """`RandomResizedCrop.make_params`, image by image, with given uniform numbers in place of its draws."""
    for share, power in zip(u[0 : 2 * views.TRIES : 2], u[1 : 2 * views.TRIES : 2], strict=True):
        area = height * width * float(np.interp(share, (0, 1), transforms.crop_scale))
        ratio = math.exp(float(np.interp(power, (0, 1), np.log(transforms.crop_ratio))))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[-2] * (height - h + 1)), int(u[-1] * (width - w + 1)), h, w
    whole = width / height
    low, high = transforms.crop_ratio
    w, h = width, height
    if whole < low:
        h = round(width / low)
    elif whole > high:
        w = round(height * high)
    return (height - h) // 2, (width - w) // 2, h, w


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=20),
    st.sampled_from([(0.05, 1.0), (0.6, 1.0), (1.0, 1.0)]),
    st.integers(0, 9),
)
def test_crop_boxes_are_torchvisions_for_the_same_numbers(
    sizes: list[tuple[int, int]], scale: tuple[float, float], key: int
) -> None:
    transforms = COLOUR.model_copy(update={"crop_scale": scale})
    u = uniform((key,), np.arange(len(sizes)), 2 * views.TRIES + 2)
    found = views.crop_boxes(u, *torch.tensor(sizes).T, scale, transforms.crop_ratio)
    expected = [scalar_box(row, *size, transforms) for row, size in zip(u.tolist(), sizes, strict=True)]
    assert found.tolist() == [list(box) for box in expected]


@pytest.mark.parametrize(("height", "width"), [(100, 260), (260, 100), (224, 224), (300, 400), (40, 400), (32, 32)])
def test_crop_boxes_have_torchvisions_distribution(height: int, width: int) -> None:
    """Boxes of many crops against RandomResizedCrop's own, long images among them, where many tries leave them."""
    n = 3000
    u = uniform((7,), np.arange(n), 2 * views.TRIES + 2)
    sides = (torch.full((n,), side) for side in (height, width))
    ours = views.crop_boxes(u, *sides, COLOUR.crop_scale, COLOUR.crop_ratio).numpy()
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.05, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    # Area and place belong together, too: corners of the boxes.
    for combine in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 0] + b[:, 2], lambda b: b[:, 1] + b[:, 3]):
        assert ks_2samp(combine(ours), combine(theirs)).pvalue > 1e-4


RAGGED = [*SIZES, (90, 20), (37, 100), (1, 5), (3, 3), (9, 400), (300, 7), (61, 62)]
N = len(RAGGED)


def packed(sizes: list[tuple[int, int]]) -> tuple[ImageStore, list[Tensor]]:
    """Images of noise, of many sizes: as the store of the cache, and one by one, [3, H, W]."""
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    ragged = RaggedImages.of(images)
    names = tuple(map(str, range(len(sizes))))
    whole = ImageStore(ragged, np.zeros(len(sizes), dtype=np.int64), names)
    return whole, [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def test_images_of_many_sizes_come_back_as_they_are() -> None:
    whole, images = packed(RAGGED)
    for found, image in zip(whole.images[np.arange(len(RAGGED))], images, strict=True):
        assert np.array_equal(found, image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [8, 32, 50])
def test_batched_crops_are_torchvisions(size: int) -> None:
    """Of stored images of many sizes and of one: the crop of the same box, resized."""
    transforms = COLOUR.model_copy(update={"size": size, "crop": "pixels"})
    whole, images = packed(RAGGED)
    square = random_images(N, channels=3)
    for batch, each in ((gather(whole, np.arange(N)), images), (square, list(square))):
        for key in range(5):
            u = uniform((key,), np.arange(N), 2 * views.TRIES + 3)
            found = views.training_view(batch, u, transforms) * 255
            heights, widths = torch.tensor([image.shape[1:] for image in each]).T
            boxes = views.crop_boxes(u[:, 1:], heights, widths, transforms.crop_scale, transforms.crop_ratio)
            for i, image in enumerate(each):
                expected = v2.functional.resized_crop(image.float(), *boxes[i].tolist(), [size, size], antialias=True)
                expected = expected.flip(2) if u[i, 0] < transforms.flip else expected
                torch.testing.assert_close(found[i], expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [8, 32, 50])
def test_views_of_packed_images_are_those_of_single_ones(size: int) -> None:
    transforms = COLOUR.model_copy(update={"size": size})
    whole, images = packed(RAGGED)
    batch = gather(whole, np.arange(N))
    assert isinstance(batch, Packed)
    torch.testing.assert_close(
        views.test_view(batch, transforms), views.test_view(images, transforms), atol=1e-4, rtol=0
    )
    ids, key = np.arange(N), ("view",)
    found = training_view(batch, ids, key, transforms)
    torch.testing.assert_close(found, training_view(images, ids, key, transforms), atol=1e-4, rtol=0)
    # Whatever else is in the batch, and wherever in it an image is.
    some = np.array([7, 2, 2, *range(N), *range(N)])
    part = training_view(gather(whole, some), some, key, transforms)
    torch.testing.assert_close(part, found[torch.from_numpy(some)], atol=1e-5, rtol=0)


def test_crops_in_half_precision_are_exact_to_a_level() -> None:
    """What the GPU's matrix units are given: half precision, weights and pixels and what lies between the products."""
    transforms = COLOUR.model_copy(update={"size": 64, "crop": "pixels"})
    whole, _ = packed([(200, 300), (300, 200), (64, 64), (40, 30)])
    u, batch = uniform((0,), np.arange(4), 2 * views.TRIES + 3), gather(whole, np.arange(4))
    exact, half = (views.training_view(batch, u, transforms, precision) for precision in (torch.float32, torch.float16))
    assert 0 < float((exact - half).abs().max()) < 0.25 / 255


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch compiles with a C++ compiler")
def test_the_compiled_training_view_is_the_training_view() -> None:
    """One graph, without a break: nothing in it is read back from the device."""
    whole, _ = packed(RAGGED)
    batch = gather(whole, np.arange(N))
    assert isinstance(batch, Packed)
    u = uniform((3,), np.arange(N), 2 * views.TRIES + 3)
    moments = views._moments(COLOUR, CPU)
    arguments = (
        *(batch.flat, batch.offsets, batch.heights, batch.widths, (batch.short, batch.long), u, *moments),
        *(COLOUR.size, COLOUR.crop_scale, COLOUR.crop_ratio, COLOUR.flip, torch.float32),
    )
    found = torch.compile(views._pixels_view, dynamic=False, fullgraph=True)(*arguments)
    torch.testing.assert_close(found, views.training_view(batch, u, COLOUR), atol=1e-5, rtol=0)


def test_colours_and_greys_fit_any_network(tmp_path: Path) -> None:
    grey, colour = random_images(4), random_images(4, channels=3)
    shown = views.test_view(grey, COLOUR.model_copy(update={"resize": 1.0}))
    assert shown.shape == (4, 3, 32, 32) and torch.equal(shown[:, 0], shown[:, 2])
    mixed = views.test_view(colour, PLAIN)
    expected = [np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in colour]
    assert float((mixed[:, 0] * 255 - torch.from_numpy(np.stack(expected))).abs().max()) < 1.01


def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken.jpg' is unreadable \(not an image\)"):
        ImageFiles([tmp_path / "broken.jpg"])[np.array([0])]


def test_flip_mirrors_left_and_right() -> None:
    images = random_images(6)
    found = training_view(images, np.arange(6), (0,), PLAIN.model_copy(update={"flip": 1.0}))
    torch.testing.assert_close(found, images.flip(3).float() / 255, atol=1e-5, rtol=0)


def boxes(transforms: ImageTransforms, n: int) -> np.ndarray:
    """Left, right, top, bottom [4, n] of crops in pixels, read off the views of two ramps; left > right: mirrored."""
    ramp = (torch.arange(32, dtype=torch.uint8) * 8).expand(n, 1, 32, 32)
    edges = []
    for images, dim in ((ramp, 3), (ramp.transpose(2, 3), 2)):
        view = training_view(images.contiguous(), np.arange(n), ("boxes",), transforms) * 255 / 8
        line = view.mean(dim=5 - dim).squeeze(1).double()
        # The middle, away from the rim where a half pixel is repeated, is exactly linear.
        step = (line[:, 24] - line[:, 8]) / 16
        edges += [line[:, 16] - 16.5 * step, line[:, 16] + 15.5 * step]
    return torch.stack(edges).numpy() + 0.5


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.3, 0.8), (3 / 4, 4 / 3)), ((0.05, 1.0), (0.5, 2.0)), ((0.6, 1), (1, 1))]
)
def test_crops_stay_inside_and_have_the_promised_size(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    n = 600
    transforms = ImageTransforms(size=32, crop_scale=scale, crop_ratio=ratio, flip=0.3, mean=(0,), std=(1,))
    left, right, top, bottom = boxes(transforms, n)
    flipped = left > right
    left, right = np.minimum(left, right), np.maximum(left, right)
    for edge in (left, right, top, bottom):
        assert edge.min() > -0.01 and edge.max() < 32.01
    width, height = (right - left) / 32, (bottom - top) / 32
    whole = (width < 0.999) & (height < 0.999)
    area, aspect = (width * height)[whole], (width / height)[whole]
    assert width.max() < 1.001 and height.max() < 1.001
    assert area.min() > scale[0] - 0.01 and area.max() < scale[1] + 0.01
    assert aspect.min() > ratio[0] - 0.02 and aspect.max() < ratio[1] + 0.02
    assert 0.22 < flipped.mean() < 0.38
    # Random in every respect, not only legal: positions reach both sides, areas both ends.
    assert area.max() - area.min() > 0.7 * (scale[1] - scale[0]) - 0.05 * (ratio[0] < 1)
    assert left.min() < 1 and right.max() > 31 and top.min() < 1 and bottom.max() > 31
    if ratio[0] < 1:
        assert aspect.min() < 0.9 and aspect.max() > 1.1


def test_areas_are_uniform_and_ratios_log_uniform() -> None:
    left, right, top, bottom = boxes(ImageTransforms(size=32, crop_scale=(0.2, 0.6), flip=0, mean=(0,), std=(1,)), 4000)
    width, height = (right - left) / 32, (bottom - top) / 32
    area, aspect = width * height, np.log(width / height)
    assert np.quantile(area, [0.25, 0.5, 0.75]) == pytest.approx([0.3, 0.4, 0.5], abs=0.02)
    limit = np.log(4 / 3)
    assert np.quantile(aspect, [0.25, 0.5, 0.75]) == pytest.approx([-limit / 2, 0, limit / 2], abs=0.03)
    place = left / (32 - (right - left))
    assert np.quantile(place, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
    assert abs(np.corrcoef(place, area)[0, 1]) < 0.06


@pytest.mark.parametrize(("from_size", "to_size"), [(48, 32), (20, 32), (64, 16)])
def test_the_test_view_resizes_as_pillow_does(from_size: int, to_size: int) -> None:
    y, x = np.mgrid[:from_size, :from_size] / from_size
    pixels = (127 + 100 * np.sin(5 * x + 3 * y) * np.cos(4 * y)).astype(np.uint8)
    transforms = ImageTransforms(size=to_size, crop_scale=(1, 1), mean=(0,), std=(1,))
    found = views.test_view(torch.from_numpy(pixels)[None, None], transforms)
    reference = np.asarray(Image.fromarray(pixels).resize((to_size, to_size), Image.Resampling.BICUBIC)) / 255
    assert found.shape == (1, 1, to_size, to_size)
    assert np.abs(found[0, 0].numpy() - reference).max() < 1.5 / 255


def test_resizing_does_not_leave_the_range_of_pixels() -> None:
    stripes = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    stripes[..., ::5] = 255
    found = views.test_view(stripes, PLAIN)
    assert found.min() == 0 and found.max() <= 1


def test_normalisation_is_per_channel_and_repeats_grey_images_for_colour_networks() -> None:
    colour = ImageTransforms(
        size=32, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)
    )
    grey = random_images(4)
    for images in (grey, random_images(4, channels=3)):
        pixels = (images.float() / 255).expand(-1, 3, -1, -1)
        expected = torch.stack([(pixels[:, c] - colour.mean[c]) / colour.std[c] for c in range(3)], dim=1)
        torch.testing.assert_close(views.test_view(images, colour), expected)
        torch.testing.assert_close(training_view(images, np.arange(4), (0,), colour), expected, atol=1e-4, rtol=0)


# --- samples ---------------------------------------------------------------------------------------------------


def test_labels_and_items_follow_the_class_order() -> None:
    chosen = samples([5, 0, 39])
    assert chosen.labels.tolist() == [[2, 0, 3, 1][i % 4] for i in (5, 0, 39)]
    for position, index in enumerate((5, 0, 39)):
        view, label = chosen.dataset[index]
        assert label == chosen.labels[position]
        assert torch.equal(chosen.view(np.array([position]), None, CPU)[0], view)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_training_batches_cover_each_sample_once_in_fixed_shapes(n: int, batch_size: int, epoch: int) -> None:
    chosen = samples(list(range(40))[-n:], PLAIN)
    batches = TrainingBatches(chosen, batch_size, (0, epoch), CPU)
    seen: Counter[bytes] = Counter()
    total = 0
    for images, labels, valid in batches:
        assert images.shape == (batch_size, 1, 32, 32) and labels.shape == (batch_size,)
        assert 1 <= valid <= batch_size
        total += 1
        for image, label in zip(images[:valid], labels[:valid], strict=True):
            seen[(image * 255).round().to(torch.uint8).numpy().tobytes() + bytes([int(label)])] += 1
    assert total == len(batches) == -(-n // batch_size)
    expected = Counter(
        store().images[i].tobytes() + bytes([int(label)]) for i, label in zip(chosen.ids, chosen.labels, strict=True)
    )
    assert seen == expected


def test_training_batches_are_the_same_when_made_again_and_others_in_the_next_epoch() -> None:
    chosen = samples(list(range(20)))

    def epoch(key: int) -> tuple[Tensor, Tensor]:
        images, labels, _ = zip(*TrainingBatches(chosen, 8, (key,), CPU), strict=True)
        return torch.cat(images), torch.cat(labels)

    one, again, other = epoch(0), epoch(0), epoch(1)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("kind", ["one size", "pixels", "many sizes", "files"])
def test_an_epochs_views_are_what_each_sample_draws_for_itself(kind: str, tmp_path: Path) -> None:
    """All numbers of an epoch are drawn at once, and are those of each sample alone; after a resume as well."""
    transforms = COLOUR.model_copy(update={"crop": "continuous" if kind == "one size" else "pixels"})
    if kind == "many sizes":
        whole = packed(SIZES)[0]
    elif kind == "files":
        whole = ImageStore(photographs(tmp_path)[0], np.zeros(6, dtype=np.int64), tuple(map(str, range(6))))
    else:
        images = random_images(6, channels=3).permute(0, 2, 3, 1).numpy()
        whole = ImageStore(images, np.zeros(6, dtype=np.int64), tuple(map(str, range(6))))
    chosen = StoreSamples(ImageDataset(whole, np.zeros(1, dtype=np.int64), transforms), np.array([4, 1, 5, 0, 2]))
    key = (3, "epoch")
    order = chosen.ids[permutation((*key, "order"), 5)]
    batches = [images[:valid] for images, _, valid in TrainingBatches(chosen, 2, key, CPU)]
    for view, i in zip(torch.cat(batches), order, strict=True):
        alone = np.array([i])
        expected = training_view(gather(whole, alone), alone, (*key, "view"), transforms)[0]
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
    resumed = [images[:valid] for images, _, valid in TrainingBatches(chosen, 2, key, CPU, skipped=1)]
    assert all(torch.equal(a, b) for a, b in zip(resumed, batches[1:], strict=True))


def test_a_sample_has_the_same_view_in_every_batch_size() -> None:
    chosen = samples(list(range(20)))
    found = []
    for batch_size in (1, 7, 20):
        parts = [
            (images[:valid], labels[:valid]) for images, labels, valid in TrainingBatches(chosen, batch_size, (0,), CPU)
        ]
        images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        found.append((images, labels))
    for images, labels in found[1:]:
        assert torch.equal(labels, found[0][1])
        torch.testing.assert_close(images, found[0][0], atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_concatenated_equals_its_parts(ids: list[list[int]], data: st.DataObject) -> None:
    parts = [samples(chosen) for chosen in ids]
    whole = Concatenated(parts)
    flat = [(part, position) for part, chosen in enumerate(ids) for position in range(len(chosen))]
    assert whole.labels.tolist() == [int(parts[part].labels[position]) for part, position in flat]
    positions = data.draw(st.lists(st.integers(0, len(flat) - 1), min_size=1, max_size=12))
    for key in (None, (0, "view")):
        found = whole.view(np.array(positions), key, CPU)
        expected = [parts[part].view(np.array([at]), key, CPU)[0] for part, at in (flat[p] for p in positions)]
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=0)


def test_task_images_pass_over_all_in_order() -> None:
    chosen = samples([3, 1, 4, 15, 9, 2, 6])
    images = TaskSamples(chosen, (0,), CPU, batch_size=3)
    for augmented in (False, True):
        parts = list(images.batches(augmented))
        assert [len(labels) for _, labels in parts] == [3, 3, 1]
        assert torch.equal(torch.cat([labels for _, labels in parts]), chosen.labels)
        found = torch.cat([view for view, _ in parts])
        plain = chosen.view(np.arange(7), None, CPU)
        assert torch.equal(found, plain) is not augmented
    assert len(images) == 7


def test_task_images_pass_over_all_in_a_random_order() -> None:
    """The same order in every pass, whatever the size of batches and the view; another one in another task."""
    chosen = samples(list(range(20)))
    plain = chosen.view(np.arange(20), None, CPU)
    orders = []
    for key, size in ((0, 3), (0, 7), (1, 7)):
        images = TaskSamples(chosen, (key,), CPU, size)
        views, labels = (torch.cat(part) for part in zip(*images.batches(shuffled=True), strict=True))
        orders.append([next(i for i in range(20) if torch.equal(plain[i], view)) for view in views])
        assert torch.equal(labels, chosen.labels[orders[-1]])
        assert torch.equal(labels, torch.cat([label for _, label in images.batches(augmented=True, shuffled=True)]))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(20)) != orders[0]


def test_a_pass_over_one_class_sees_its_samples_in_order() -> None:
    chosen = samples([3, 1, 4, 15, 9, 2, 6])
    every = TaskSamples(chosen, (0,), CPU)
    for label in chosen.labels.unique().tolist():
        rows = chosen.labels == label
        for augmented in (False, True):
            [(all_views, _)], [(views, labels)] = every.batches(augmented), every.of_class(label).batches(augmented)
            assert torch.equal(views, all_views[rows]) and torch.equal(labels, chosen.labels[rows])
    assert len(every.of_class(-1)) == 0


# --- on a GPU --------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def jpegs(folder: Path) -> ImageFiles:
    """Photographs as JPEG files: in colour, grey, and in four channels, which GPUs do not decode."""
    _, images = photographs(folder)
    modes = ["RGB", "RGB", "L", "CMYK", "RGB", "RGB"]
    for i, (image, mode) in enumerate(zip(images, modes, strict=True)):
        # Decoders differ in how they enlarge colours that are stored at half the size.
        image.convert(mode).save(folder / f"{i}.jpg", quality=95, subsampling=0)
    return ImageFiles([folder / f"{i}.jpg" for i in range(len(images))])


def on_gpu(kind: str, folder: Path) -> StoreSamples:
    images: Any = {
        "one size": random_images(6, channels=3).permute(0, 2, 3, 1).numpy(),
        "many sizes": packed(SIZES)[0].images,
        "files": jpegs(folder),
    }[kind]
    whole = ImageStore(images, np.arange(6), tuple(map(str, range(6))))
    transforms = COLOUR.model_copy(update={"crop": "pixels"})
    return StoreSamples(ImageDataset(whole, np.arange(6), transforms), np.array([4, 1, 5, 0, 2, 3]))


@on_a_gpu
@pytest.mark.parametrize("room", [0.5, 0.0])
@pytest.mark.parametrize("kind", ["one size", "many sizes", "files"])
def test_views_on_a_gpu_are_those_of_the_cpu(
    kind: str, room: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a level of 255, resident or sent; JPEG files within what two decoders make of them, on average."""
    monkeypatch.setattr(loading, "SHARE", room)
    chosen, gpu = on_gpu(kind, tmp_path), torch.device("cuda", 0)
    for views_of in (
        lambda device: [images for images, _, _ in TrainingBatches(chosen, 4, (0,), device)],
        lambda device: [images for images, _ in TaskSamples(chosen, (0,), device, 4).batches()],
        lambda device: [images for images, _ in TaskSamples(chosen, (0,), device, 4).batches(augmented=True)],
    ):
        for ours, theirs in zip(views_of(gpu), views_of(CPU), strict=True):
            assert ours.is_cuda and ours.shape == theirs.shape
            difference = (ours.cpu() - theirs).abs() * 255
            assert float(difference.mean()) < 3 if kind == "files" else float(difference.max()) < 1
    for (_, ours, valid), (_, theirs, _) in zip(
        *(TrainingBatches(chosen, 4, (0,), device) for device in (gpu, CPU)), strict=True
    ):
        assert torch.equal(ours.cpu(), theirs) and valid in (4, 2)


@on_a_gpu
@pytest.mark.parametrize("room", [0.5, 0.0])
@pytest.mark.parametrize("kind", ["one size", "many sizes"])
def test_nothing_waits_for_the_gpu_in_an_epoch(
    kind: str, room: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHARE", room)
    chosen, gpu = on_gpu(kind, tmp_path), torch.device("cuda", 0)
    list(TrainingBatches(chosen, 4, (0,), gpu))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(TrainingBatches(chosen, 4, (1,), gpu))) == 2
        assert len(list(TaskSamples(chosen, (1,), gpu, 4).batches())) == 2
    finally:
        torch.cuda.set_sync_debug_mode(before)


# --- from Avalanche's data sets --------------------------------------------------------------------------------


def test_subsets_of_our_store_are_gathered_with_their_own_views() -> None:
    dataset = as_classification_dataset(ImageDataset(store(), np.arange(4), CROPS))
    for chosen, ids in (
        (dataset, list(range(40))),
        (dataset.subset([7, 3, 20]), [7, 3, 20]),
        (dataset.subset([7, 3, 20]).subset([2, 0]), [20, 7]),
        (concat_datasets([dataset.subset([7, 3]), dataset.subset([20])]), [7, 3, 20]),
    ):
        found = samples_of(chosen)
        assert isinstance(found, StoreSamples)
        assert found.ids.tolist() == ids
        assert found.labels.tolist() == [int(target) for target in chosen.targets]


def test_any_other_data_set_is_taken_item_by_item() -> None:
    pixels, labels = torch.rand(9, 1, 8, 8), torch.arange(9) % 3
    data = TensorDataset(pixels, labels)
    data.targets = labels.tolist()  # type: ignore[attr-defined]
    found = samples_of(as_classification_dataset(data).subset([8, 2, 5, 1]))
    assert isinstance(found, DatasetSamples)
    assert found.labels.tolist() == labels[[8, 2, 5, 1]].tolist()
    for key in (None, (0,)):
        assert torch.equal(found.view(np.array([3, 0]), key, CPU), pixels[[1, 8]])
