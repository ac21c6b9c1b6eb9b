"""The benchmarks: data sets, their official splits and what a run needs to know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from cl_bench.data.images import ImageStore
from cl_bench.errors import unknown_name
from cl_bench.streams import icons


@dataclass(frozen=True)
class Source:
    """The data of a benchmark: both parts and the class names, in the data set's own (alphabetical) order."""

    train: ImageStore
    test: ImageStore
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the user names it.

    Attributes:
        name: as in `--benchmark`.
        description: one line for `cl-bench ls benchmarks`.
        num_classes, tasks: size of the label set and the default number of tasks.
        crop_scale: area range of the training crop: part of the protocol, the same for every method.
        backbone: used when the user names none.
        load: reads the data.
        tuned_on: the stream on which hyper-parameters for it are searched, so that it is not itself.
    """

    name: str
    description: str
    num_classes: int
    tasks: int
    crop_scale: tuple[float, float]
    backbone: str
    load: Callable[[], tuple[ImageStore, ImageStore, tuple[str, ...]]]
    tuned_on: str | None = None

    def source(self) -> Source:
        """The data, read and checked once per process."""
        return _source(self.name)


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
            lambda: icons.load("stream"),
            tuned_on="icons-tune",
        ),
        Benchmark(
            "icons-tune",
            "40 other classes of the same kind: the only stream for choosing hyper-parameters; embedded",
            40,
            10,
            _ICON_CROP,
            _ICONS,
            lambda: icons.load("tune"),
        ),
    )
}


def names() -> list[str]:
    """Names of all benchmarks."""
    return sorted(_BENCHMARKS)


def find(name: str) -> Benchmark:
    """The benchmark with this name.

    Raises:
        UserError: there is none; the closest name is suggested.
    """
    if name not in _BENCHMARKS:
        raise unknown_name("benchmark", name, _BENCHMARKS, "'cl-bench ls benchmarks' describes them.")
    return _BENCHMARKS[name]


@cache
def _source(name: str) -> Source:
    return Source(*_BENCHMARKS[name].load())
