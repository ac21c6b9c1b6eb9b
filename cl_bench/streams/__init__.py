"""The benchmarks: data sets, their official splits and what a run needs to know of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from cl_bench.data.images import ImageFiles, ImageStore
from cl_bench.errors import unknown_name
from cl_bench.experiment import Scenario
from cl_bench.streams import datasets, icons
from cl_bench.streams.catalogue import DataSet, Listing


@dataclass(frozen=True)
class Source:
    """The data of a benchmark: both parts and the names of classes and domains, in the data set's own order."""

    train: ImageStore
    test: ImageStore
    classes: tuple[str, ...]
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the user names it.

    Attributes:
        name: as in `--benchmark`.
        description: one line for `cl-bench ls benchmarks`.
        num_classes: size of the label set.
        tasks: the default number of tasks, in the default `scenario`.
        crop_scale, resize: of the training crop and the test view (see `Transforms`): part of the protocol, the same
            for every method.
        backbone: used when the user names none.
        load: reads the data.
        tuned_on: the stream on which hyper-parameters for it are searched, so that it is not itself.
        dataset: facts about it, if it is not embedded.
        scenario: the default one.
    """

    name: str
    description: str
    num_classes: int
    tasks: int
    crop_scale: tuple[float, float]
    backbone: str
    load: Callable[[], Source]
    tuned_on: str | None = None
    resize: float = 1.0
    dataset: DataSet | None = None
    scenario: Scenario = "class-incremental"

    def source(self) -> Source:
        """The data, read and checked once per process."""
        return _source(self.name, _place())


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
            lambda: Source(*icons.load("stream")),
            tuned_on="icons-tune",
        ),
        Benchmark(
            "icons-designers",
            "the same objects, another designer's drawings with each task (domain-incremental); embedded",
            100,
            10,
            _ICON_CROP,
            _ICONS,
            lambda: Source(*icons.load_designers()),
            tuned_on="icons-tune",
            scenario="domain-incremental",
        ),
        Benchmark(
            "icons-tune",
            "40 other classes of the same kind: the only stream for choosing hyper-parameters; embedded",
            40,
            10,
            _ICON_CROP,
            _ICONS,
            lambda: Source(*icons.load("tune")),
        ),
    )
}


Place = tuple[str | None, ...]
SKIP_BAD, SPLIT_LIST = "CL_BENCH_SKIP_BAD", "CL_BENCH_SPLIT_LIST"
_PHOTOGRAPHS = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
"""The weights of SD-LoRA's logs."""


def names() -> list[str]:
    """Names of all benchmarks; besides these there is `folder:PATH`."""
    return sorted(_BENCHMARKS) + datasets.names()


def has_domains(name: str) -> bool:
    """Whether a benchmark can be domain-incremental."""
    benchmark = find(name)
    return benchmark.scenario == "domain-incremental" or bool(benchmark.dataset and benchmark.dataset.domains)


def find(name: str) -> Benchmark:
    """The benchmark with this name: an embedded one, a data set, or `folder:PATH`.

    Raises:
        UserError: there is none; the closest name is suggested. A folder is not there or has another layout.
    """
    if name in _BENCHMARKS:
        return _BENCHMARKS[name]
    if name not in datasets.names() and not name.startswith(datasets.FOLDER):
        raise unknown_name("benchmark", name, [*names(), "folder:PATH"], "'cl-bench ls benchmarks' describes them.")
    dataset = datasets.find(name)
    classes = dataset.classes or len(_listing(name, _place()).classes)
    domains = dataset.scenario == "domain-incremental"
    return Benchmark(
        name=name,
        description=dataset.title,
        num_classes=classes,
        tasks=len(dataset.domains) if domains else dataset.tasks or default_tasks(classes),
        scenario=dataset.scenario,
        # Training and test views as in PILOT and SD-LoRA's code.
        crop_scale=(0.05, 1.0),
        resize=256 / 224,
        backbone=_PHOTOGRAPHS,
        load=partial(_load, name),
        dataset=dataset,
    )


def default_tasks(num_classes: int) -> int:
    """Class-incremental tasks where no number is published: as many as divide the classes, up to ten."""
    return max(n for n in range(1, 11) if num_classes % n == 0)


@cache
def _source(name: str, place: Place) -> Source:
    return find(name).load()


def _place() -> Place:
    """Where data sets are and how they are read: environment variables, which worker processes inherit."""
    return tuple(os.environ.get(name) for name in (datasets.ROOT_VARIABLE, SKIP_BAD, SPLIT_LIST))


@cache
def _listing(name: str, place: Place) -> Listing:
    _, skip_bad, split_list = place
    return datasets.load(
        datasets.find(name), skip_bad=bool(skip_bad), split_list=Path(split_list) if split_list else None
    )


def _load(name: str) -> Source:
    """A data set below the user's data folder, as image stores."""
    listing = _listing(name, _place())
    index = {name: number for number, name in enumerate(listing.classes)}

    def store(part: int) -> ImageStore:
        entries = (listing.train, listing.test)[part]
        images = listing.pixels[part] if listing.pixels else ImageFiles([e.path for e in entries if e.path is not None])
        targets = np.array([index[entry.label] for entry in entries], dtype=np.int64)
        domains = np.array([entry.domain for entry in entries]) if known else None
        return ImageStore(images, targets, tuple(entry.name for entry in entries), domains=domains)

    known = datasets.find(name).domains
    return Source(store(0), store(1), listing.classes, known)
