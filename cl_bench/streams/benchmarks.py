"""Benchmarks: data sets with their official splits, default tasks and views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cl_bench.data import cache as image_cache
from cl_bench.data.cache import OnProgress
from cl_bench.data.decoding import BadImage, shrunk, size_of
from cl_bench.data.images import ImageFiles, ImageStore
from cl_bench.errors import UserError, counted, named, unknown_name
from cl_bench.experiment import ImagesName, Scenario, Storage, Tasks
from cl_bench.streams import catalogue, icons
from cl_bench.streams.class_subsets import SUBSETS
from cl_bench.streams.config import DataConfig
from cl_bench.streams.image_files import for_each_image
from cl_bench.streams.readers.folders import by_ending
from cl_bench.streams.split_hash import split_hash
from cl_bench.streams.types import DataSet, Entry, Listing


@dataclass(frozen=True)
class Source:
    """The data of a benchmark: both parts, and the class and domain names in the data set's own order."""

    train: ImageStore
    test: ImageStore
    classes: tuple[str, ...]
    domains: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """Hash of the split, stored with every run."""
        return split_hash(self.train.names, self.test.names)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the user names it.

    Attributes:
        name: as in `--benchmark`.
        description: one line for `cl-bench ls benchmarks`.
        num_classes: number of classes.
        tasks: default tasks, in the default `scenario`.
        crop, crop_scale, resize: settings of the training crop and the test view (see `ImageTransforms`): part of the
            protocol, the same for every method.
        backbone: name of the default backbone.
        offline_backbone: name of the backbone to take where the default's weights cannot be had; None: there is none.
        load: reads the data as configured.
        data: location of the data and how to read them.
        tuned_on: another benchmark, on which hyper-parameters for this one are searched.
        dataset: description of the data set; None if it is embedded.
        scenario: default scenario.
        citations: bibliography keys of an embedded benchmark, as in `DataSet.citations`.
    """

    name: str
    description: str
    num_classes: int
    tasks: Tasks
    crop_scale: tuple[float, float]
    backbone: str
    load: Callable[[DataConfig], Source]
    tuned_on: str | None = None
    resize: float = 1.0
    crop: Literal["continuous", "pixels"] = "continuous"
    dataset: DataSet | None = None
    scenario: Scenario = "class-incremental"
    data: DataConfig = field(default_factory=DataConfig.of)
    citations: tuple[str, ...] = ()
    offline_backbone: str | None = None

    def source(self, storage: Storage = "files", on_progress: OnProgress = lambda done, total: None) -> Source:
        """The data, read and checked once per process.

        Args:
            storage: how image files are stored once decoded (see `Experiment`); icons and data sets that come as arrays
                are always in memory, unchanged.
            on_progress: called while images are decoded into the cache for the first time.

        Raises:
            UserError: the data are missing or damaged; the cache cannot be written; `storage` is `memory` and the image
                files differ in size.
        """
        source = _source(self.name, self.data)
        if storage == "files" or not isinstance(source.train.images, ImageFiles):
            return source
        return _decoded_source(self.name, storage, self.data, on_progress)

    def remarks(self) -> list[str]:
        """Sentences about the data set that are no faults: files that are not read, images left out, classes that a
        domain lacks.

        Raises:
            UserError: the data are missing or damaged.
        """
        if self.dataset is None:
            return []
        listing, found = _listing(self.name, self.data), []
        gaps = catalogue.domain_faults(self.dataset, listing)[1] if self.scenario == "domain-incremental" else []
        more = f" (and {len(gaps) - 1} more: 'cl-bench data verify' names them)" if gaps[1:] else ""
        of_domains = [f"{self.name}: {gaps[0]}{more}"] if gaps else []
        if files := listing.not_read:
            count = f"{counted(len(files), 'file')} {'is' if len(files) == 1 else 'are'}"
            endings = by_ending(files, catalogue.locate(self.dataset, self.data.root))
            found.append(f"{count} not read: {endings}")
        if bad := [str(path) for path in listing.left_out]:
            count = f"{counted(len(bad), 'image')} {'is' if len(bad) == 1 else 'are'}"
            found.append(f"{count} left out (--skip-bad): {named(bad, 3)}")
        names_them = f"'cl-bench data verify {self.name}' names them"
        return [*of_domains, *(f"{self.name}: {text}; {names_them}" for text in found)]

    def storage(self, images: ImagesName, short: int) -> Storage:
        """How the images of a run are stored: the value of `Experiment.storage`.

        Args:
            images: the user's choice. `auto`: in memory if all images have one size that needs no resizing, otherwise
                as `resized`: decoded once, with a shorter side of at most `short` pixels. `files`: decoded on every
                access. Data sets that come as arrays are in memory in either case.
            short: shorter side of the test view, in pixels.

        Raises:
            UserError: an image cannot be read.
        """
        source = self.source()
        parts = (source.train, source.test)
        if not all(isinstance(part.images, ImageFiles) for part in parts):
            return "memory"
        if images == "files":
            return "files"
        if images == "auto" and _small_and_alike(self.name, self.data, image_cache.folder(), short):
            return "memory"
        return f"resized:{short}"


_ICONS = "vit_tiny_patch8_32.icons"
# Icons fill their canvas and a small part of one is rarely recognisable, so crops stay large.
_ICON_CROP = (0.6, 1.0)
_BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "icons-100",
            "100 objects drawn by many designers, 32x32 grey; tested on designers never seen; embedded",
            100,
            10,
            _ICON_CROP,
            _ICONS,
            lambda data: Source(*icons.load("stream")),
            tuned_on="icons-tune",
            citations=("iconify",),
        ),
        Benchmark(
            "icons-designers",
            "100 objects, each task drawn by another designer (domain-incremental); 32x32 grey; embedded",
            100,
            10,
            _ICON_CROP,
            _ICONS,
            lambda data: Source(*icons.load_designers()),
            tuned_on="icons-tune",
            scenario="domain-incremental",
            citations=("iconify",),
        ),
        Benchmark(
            "icons-tune",
            "40 objects that no other icon stream has, only for choosing hyper-parameters; 32x32 grey; embedded",
            40,
            10,
            _ICON_CROP,
            _ICONS,
            lambda data: Source(*icons.load("tune")),
            citations=("iconify",),
        ),
    )
}


_TUNED_ON = {"cifar100": "tiny-imagenet-44"}

_PHOTOGRAPHS = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
"""The weights used in SD-LoRA's released logs."""
_SMALL_PHOTOGRAPHS = "vit_tiny_patch4_32.tinyimagenet156"


def names() -> list[str]:
    """Names of all benchmarks, without `folder:PATH`."""
    return sorted(_BENCHMARKS) + sorted([*catalogue.names(), *SUBSETS])


def has_domains(name: str) -> bool:
    """Whether a benchmark can be domain-incremental; False if its data set cannot be used."""
    try:
        benchmark = find(name)
    except UserError:
        return False
    return benchmark.scenario == "domain-incremental" or bool(benchmark.dataset and benchmark.dataset.domains)


def find(name: str, data: DataConfig | None = None, scenario: Scenario | None = None) -> Benchmark:
    """The benchmark with this name: an embedded one, a data set, or `folder:PATH`.

    Args:
        data: location of data sets and how to read them; None: the defaults of `DataConfig.of`.
        scenario: scenario of the run, if chosen; domain-incremental makes the folders of `folder:PATH` domains.

    Raises:
        UserError: the name is unknown (the closest one is suggested), or a folder is missing or has another layout.
    """
    data = data or DataConfig.of()
    if name in _BENCHMARKS:
        return replace(_BENCHMARKS[name], data=data)
    if name not in names() and not name.startswith(catalogue.FOLDER):
        raise unknown_name("benchmark", name, [*names(), "folder:PATH"], "'cl-bench ls benchmarks' describes them.")
    if scenario and name.startswith(catalogue.FOLDER):
        data = replace(data, domains=scenario == "domain-incremental")
    dataset = _dataset(name, data)
    classes = dataset.classes or len(_listing(name, data).classes)
    if dataset.scenario == "domain-incremental":
        tasks: Tasks = len(dataset.domains or _listing(name, data).domains)
    else:
        tasks = dataset.tasks or default_tasks(classes)
    return Benchmark(
        name=name,
        description=dataset.title,
        num_classes=classes,
        tasks=tasks,
        scenario=dataset.scenario,
        # Training and test views as in PILOT and SD-LoRA's code.
        crop="pixels",
        crop_scale=(0.05, 1.0),
        resize=256 / 224,
        backbone=_PHOTOGRAPHS,
        # Published data sets are compared on published weights; a folder of one's own is not.
        offline_backbone=_SMALL_PHOTOGRAPHS if name.startswith(catalogue.FOLDER) else None,
        load=partial(_load, name),
        tuned_on=_TUNED_ON.get(name),
        dataset=dataset,
        data=data,
    )


def default_tasks(num_classes: int) -> Tasks:
    """Class-incremental tasks for a data set without a published number: up to ten, of two classes or more each.

    The largest number that divides the classes; if none does (7 classes), tasks of nearly the same size (3, 2, 2). In
    a task of one class, a loss over the task's own classes would be constant.
    """
    alike = max((n for n in range(1, 11) if num_classes % n == 0 and num_classes // n > 1), default=1)
    number = min(10, num_classes // 2)
    if alike > 1 or number < 2:
        return alike
    each, more = divmod(num_classes, number)
    return (each + 1,) * more + (each,) * (number - more)


@cache
def _source(name: str, data: DataConfig) -> Source:
    return find(name, data).load(data)


@cache
def _listing(name: str, data: DataConfig) -> Listing:
    return catalogue.load(_dataset(name, data), data.root, data.skip_bad, data.split_list)


def _dataset(name: str, data: DataConfig) -> DataSet:
    return SUBSETS[name].dataset() if name in SUBSETS else catalogue.find(name, data.domains)


def _load(name: str, data: DataConfig) -> Source:
    """A data set in the user's data folder, as image stores."""
    listing = _listing(name, data)
    index = {name: number for number, name in enumerate(listing.classes)}

    def store(part: int) -> ImageStore:
        entries = (listing.train, listing.test)[part]
        images = listing.pixels[part] if listing.pixels else ImageFiles([e.path for e in entries if e.path is not None])
        targets = np.array([index[entry.label] for entry in entries], dtype=np.int64)
        domains = np.array([entry.domain for entry in entries]) if known else None
        return ImageStore(images, targets, tuple(entry.name for entry in entries), domains=domains)

    known = _dataset(name, data).domains or listing.domains
    return Source(store(0), store(1), listing.classes, known)


_decoded_sources: dict[tuple[str, Storage, DataConfig, Path], Source] = {}


def _decoded_source(name: str, storage: Storage, data: DataConfig, on_progress: OnProgress) -> Source:
    """A data set of image files, decoded by way of the cache."""
    key = (name, storage, data, image_cache.folder())
    if key not in _decoded_sources:
        source, listing = _source(name, data), _listing(name, data)
        first, total = len(source.train), len(source.train) + len(source.test)
        train = _decoded_part(name, "train", storage, source.train, listing.train, lambda n: on_progress(n, total))
        test = _decoded_part(name, "test", storage, source.test, listing.test, lambda n: on_progress(first + n, total))
        _decoded_sources[key] = replace(source, train=train, test=test)
    return _decoded_sources[key]


def _decoded_part(
    name: str,
    part: str,
    storage: Storage,
    store: ImageStore,
    entries: Sequence[Entry],
    on_decoded: Callable[[int], None],
) -> ImageStore:
    kind, _, short = storage.partition(":")

    def use(entry: Entry, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return shrunk(pixels, int(short)) if short else pixels

    def decode() -> Iterator[NDArray[np.uint8]]:
        for found in for_each_image(entries, use):
            if isinstance(found, BadImage):
                raise found
            yield found

    file = _cached(name, part, storage, store)
    images = image_cache.images(file, len(store), decode, lambda done, total: on_decoded(done))
    if kind != "memory":
        return replace(store, images=images)
    if (images.sizes != images.sizes[0]).any():
        raise UserError(f"the images of {name} differ in size, so they cannot be stored unresized; use --images auto")
    return replace(store, images=images.of_one_size())


def _cached(name: str, part: str, storage: Storage, store: ImageStore) -> Path:
    assert isinstance(store.images, ImageFiles)
    return image_cache.cache_path(name, part, storage, store.names, store.images.paths)


@cache
def _small_and_alike(name: str, data: DataConfig, cache_folder: Path, short: int) -> bool:
    """Whether all image files have one size that needs no resizing."""
    source = _source(name, data)
    parts = {"train": source.train, "test": source.test}
    paths = [path for store in parts.values() if isinstance(store.images, ImageFiles) for path in store.images.paths]
    size = size_of(paths[0])
    if min(size) > short:
        return False
    if all(image_cache.is_there(_cached(name, part, "memory", store)) for part, store in parts.items()):
        # An earlier run has checked these files.
        return True
    return all(size_of(path) == size for path in paths)
