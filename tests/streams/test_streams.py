"""The embedded benchmarks as streams: who learns what, when, and on which images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cl_bench import backbones, streams
from cl_bench.data.loading import gather
from cl_bench.data.samples import StoreSamples, samples_of
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.streams.overlaps import shared_classes
from cl_bench.streams.scenarios import TaskStream, build, order_classes

NAMES = ("icons-100", "icons-tune")
TRANSFORMS = ImageTransforms(size=32, crop_scale=(0.6, 1.0), mean=(0.5,), std=(0.5,))


@cache
def stream(name: str, tasks: int | None = None, order: str = "permutation:1", **limits: int) -> TaskStream:
    benchmark = streams.find(name)
    return build(benchmark.source(), tasks or benchmark.tasks, order, TRANSFORMS, Limits(**limits))


def ids_of(experience: object) -> np.ndarray:
    """Indices into the image store, in the experience's order."""
    found = samples_of(experience.dataset)  # type: ignore[attr-defined]
    assert isinstance(found, StoreSamples)
    return found.ids


@pytest.mark.parametrize("name", NAMES)
def test_a_source_fits_its_description(name: str) -> None:
    benchmark = streams.find(name)
    source = benchmark.source()
    assert name in streams.names() and benchmark.backbone in backbones.names()
    assert len(source.classes) == benchmark.num_classes == len(set(source.classes))
    assert list(source.classes) == sorted(source.classes)
    for part in (source.train, source.test):
        assert len(part) == len(part.names) == len(set(part.names)) == len(part.images)
        assert set(part.targets.tolist()) == set(range(benchmark.num_classes))
        assert all(
            file.split("/")[0] == source.classes[target] for file, target in zip(part.names, part.targets, strict=True)
        )


@pytest.mark.parametrize("name", NAMES)
def test_training_and_test_never_share_a_designer(name: str) -> None:
    source = streams.find(name).source()
    train, test = ({file.split("/")[1].split(":")[0] for file in part.names} for part in (source.train, source.test))
    assert train and test and not train & test


def test_the_two_streams_share_neither_classes_nor_images() -> None:
    one, other = (streams.find(name).source() for name in NAMES)
    assert not set(one.classes) & set(other.classes)
    assert not {x.tobytes() for x in one.train.images} & {x.tobytes() for x in other.train.images}


@pytest.mark.parametrize("tasks", [1, 5, 10, 20])
@pytest.mark.parametrize("name", NAMES)
def test_tasks_partition_the_classes_into_runs_of_consecutive_labels(name: str, tasks: int) -> None:
    found = stream(name, tasks)
    benchmark = streams.find(name)
    assert len(found.train) == len(found.test) == len(found.tasks) == tasks
    assert [label for own in found.tasks for label in own] == list(range(benchmark.num_classes))
    assert {len(own) for own in found.tasks} == {benchmark.num_classes // tasks}
    for part in (found.train, found.test):
        for experience, own in zip(part, found.tasks, strict=True):
            assert set(experience.dataset.targets) == set(own)
    source = benchmark.source()
    for part, images in ((found.train, source.train), (found.test, source.test)):
        everything = np.concatenate([ids_of(experience) for experience in part])
        assert sorted(everything.tolist()) == list(range(len(images)))


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_positions_in_the_class_order(name: str) -> None:
    found = stream(name)
    source = streams.find(name).source()
    order = np.random.RandomState(1).permutation(len(source.classes))
    assert found.classes == tuple(source.classes[c] for c in order)
    for part, images in ((found.train, source.train), (found.test, source.test)):
        for experience in part:
            ids = ids_of(experience)
            assert order[np.array(list(experience.dataset.targets))].tolist() == images.targets[ids].tolist()
            view, label = experience.dataset[3][:2]
            assert label == experience.dataset.targets[3]
            pixels = torch.from_numpy(images.images[ids[3]]).permute(2, 0, 1).float() / 255
            torch.testing.assert_close(view, (pixels - 0.5) / 0.5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_permutations_are_those_of_numpys_legacy_generator(k: int, n: int) -> None:
    np.random.seed(1)
    expected = np.random.RandomState(k).permutation(n)
    np.testing.assert_array_equal(order_classes(f"permutation:{k}", n), expected)
    np.testing.assert_array_equal(order_classes("natural", n), np.arange(n))


def test_a_published_order() -> None:
    """A literal, so that numpy and we cannot move together: the well-known start of seed 1993 for 100 classes."""
    assert order_classes("permutation:1993", 100)[:10].tolist() == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]


def test_the_natural_order_is_the_alphabetical_one() -> None:
    assert stream("icons-tune", order="natural").classes == streams.find("icons-tune").source().classes


@pytest.mark.parametrize("name", NAMES)
def test_avalanche_knows_what_is_learned_when(name: str) -> None:
    found = stream(name)
    everything = {label for own in found.tasks for label in own}
    for part in (found.train, found.test):
        for task, (experience, own) in enumerate(zip(part, found.tasks, strict=True)):
            before = {label for earlier in found.tasks[:task] for label in earlier}
            assert experience.current_experience == task
            assert set(experience.classes_in_this_experience) == set(own)
            assert set(experience.previous_classes) == before
            assert set(experience.classes_seen_so_far) == before | set(own)
            assert set(experience.future_classes) == everything - before - set(own)


@pytest.mark.parametrize("limits", [{}, {"train_per_class": 4}])
def test_the_joint_experience_holds_everything(limits: dict[str, int]) -> None:
    found = stream("icons-tune", **limits)
    (joint,) = found.joint
    expected = np.concatenate([ids_of(experience) for experience in found.train])
    assert sorted(ids_of(joint).tolist()) == sorted(expected.tolist())
    assert set(joint.classes_in_this_experience) == {label for own in found.tasks for label in own}
    assert Counter(joint.dataset.targets) == Counter(t for e in found.train for t in e.dataset.targets)


@pytest.mark.parametrize("name", NAMES)
def test_limits_keep_the_first_images_of_each_class_and_the_first_tasks(name: str) -> None:
    whole, limited = stream(name), stream(name, train_per_class=3, test_per_class=2)
    for full, part, kept in ((whole.train, limited.train, 3), (whole.test, limited.test, 2)):
        for experience, small in zip(full, part, strict=True):
            labels, ids = np.array(list(experience.dataset.targets)), ids_of(experience)
            assert sorted(ids_of(small).tolist()) == sorted(
                int(i) for label in set(labels.tolist()) for i in np.sort(ids[labels == label])[:kept]
            )
            assert set(Counter(small.dataset.targets).values()) == {kept}
    benchmark = streams.find(name)
    first = build(benchmark.source(), 10, "permutation:1", TRANSFORMS, Limits(tasks=2))
    assert len(first.train) == len(first.test) == len(first.tasks) == 2
    assert first.classes == whole.classes and first.tasks == whole.tasks[:2]
    for one, other in zip(first.train, whole.train, strict=False):
        assert ids_of(one).tolist() == ids_of(other).tolist()


@pytest.mark.parametrize("tasks", [3, 7, 41, 200])
def test_tasks_must_divide_the_classes(tasks: int) -> None:
    with pytest.raises(ValueError, match=f"40 classes cannot be cut into {tasks}"):
        stream("icons-tune", tasks)


def test_an_unknown_benchmark_is_refused_with_a_guess() -> None:
    with pytest.raises(UserError, match="unknown benchmark 'icons100'.*Did you mean 'icons-100'"):
        streams.find("icons100")


def test_the_split_hash_reacts_to_files_and_not_to_their_order() -> None:
    source = streams.find("icons-tune").source()
    known = source.split

    def changed(part: str, names: tuple[str, ...]) -> str:
        store = dataclasses.replace(getattr(source, part), names=names)
        return dataclasses.replace(source, **{part: store}).split

    hashes = {known, streams.find("icons-100").source().split}
    for part in ("train", "test"):
        names = getattr(source, part).names
        assert changed(part, names[::-1]) == known
        hashes |= {
            changed(part, names[1:]),
            changed(part, (names[0] + "x", *names[1:])),
            changed(part, (*names, "a/b")),
        }
    swapped = dataclasses.replace(source, train=source.test, test=source.train)
    moved = dataclasses.replace(
        source,
        train=dataclasses.replace(source.train, names=source.train.names[:-1]),
        test=dataclasses.replace(source.test, names=(source.train.names[-1], *source.test.names)),
    )
    hashes |= {swapped.split, moved.split}
    assert len(hashes) == 10
    assert all(len(value) == 64 for value in hashes)


def test_the_stream_to_tune_cifar100_on_has_the_classes_that_tiny_imagenet_shares_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, others = sorted(shared_classes()), ["n01641577", "n04285008"]
    folder = tmp_path / "tiny-imagenet"
    for number, name in enumerate([*shared, *others]):
        for part in ("train", "val"):
            path = folder / part / name / f"{part}_{number}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((64, 64, 3), number, dtype=np.uint8)).save(path)
    monkeypatch.setenv("CL_BENCH_DATA", str(tmp_path))
    benchmark = streams.find(str(streams.find("cifar100").tuned_on))
    source = benchmark.source()
    assert list(source.classes) == shared and len(shared) == benchmark.num_classes == 44
    assert len(source.train) == len(source.test) == 44
    assert benchmark.num_classes % benchmark.tasks == 0
    assert int(gather(source.test, np.array([43]))[0].max()) == 43
