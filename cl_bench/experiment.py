"""The frozen, validated description of a run, and its content key.

This module does not import torch, so records can be read, compared and reported without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cl_bench import _aliases

MAX_TEXT = 10_000
"""Largest number of characters of a name or value; a path may have 4,096."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]


def bounded(value: PlainScalar) -> PlainScalar:
    """Return the value if it is a number of at most 64 bits, a text of at most `MAX_TEXT` characters, a bool or None.

    Raises:
        ValueError: the value is larger.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("expected a whole number of at most 64 bits")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"expected a text of at most {MAX_TEXT:,} characters")
    return value


PlainScalar = bool | int | float | str | None
# Validated after pydantic chose the type; otherwise a number too large for one type would be read as the next.
Scalar = Annotated[PlainScalar, AfterValidator(bounded)]
Value = Scalar | Annotated[list[Scalar], Field(fail_fast=True)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=10**9)]
"""At most thirty years, so that sums stay finite."""
Item = TypeVar("Item")
# Validation stops at the first fault; a hostile file could hold millions.
Items = Annotated[list[Item], Field(fail_fast=True, max_length=10**6)]
Scenario = Literal["class-incremental", "domain-incremental"]
Precision = Literal["fp32", "bf16"]
ProbeName = Literal["none", "interpolation"]
ImagesName = Literal["auto", "resized", "files"]
Storage = Annotated[str, Field(pattern=r"^(memory|files|resized:[1-9][0-9]{0,4})$")]
_Tasks = Annotated[int, Field(ge=1, le=10**6)]
Tasks = _Tasks | Annotated[tuple[_Tasks, ...], Field(fail_fast=True)]
"""Number of tasks of equal size, or the number of classes of each task."""
NAMED_ORDER = "natural|permutation:[0-9]+"
"""Pattern of class orders that have a name and are not listed."""
MAX_SEED = 2**32 - 1
"""Largest seed of numpy's `RandomState`, which draws the class orders."""

FILE_REVISION = "file:"
"""Start of the revision of a method in a user's file; the hash of the file follows."""
BUDGET = ("epochs", "batch_size")
"""Hyper-parameters that say how long a method trains, which tables show with their source."""
RECIPES_IN_WORDS = {"own": "own defaults", "own+unified": "own defaults with the rest of the unified budget"}
"""How the names of recipes are shown, where the name alone says too little."""
LEAKY_OPTION = "as_published_leaky"
"""Hyper-parameter that reproduces a leak of a method's released code: samples of one batch influence each other."""


Environment = dict[Text, Scalar]
"""Hardware and versions of a run, by name; empty if they were not recorded."""


class Session(BaseModel):
    """Consecutive processes that worked on a run in the same environment, before another process continued it.

    Attributes:
        environment: hardware and versions.
        processes: number of processes.
        stages: number of stages finished at the last checkpoint.
        phase, epoch: position of that checkpoint within the next stage; None if it precedes the first step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Environment
    processes: Count = Field(default=1, ge=1)
    stages: Count
    phase: Count | None = None
    epoch: Count | None = None


def differences(environments: Iterable[Mapping[str, PlainScalar]]) -> dict[str, list[PlainScalar]]:
    """Values in which environments differ, by name, in order of appearance.

    An entry that is missing in some environments does not count as a difference.
    """
    found: dict[str, list[PlainScalar]] = {}
    for environment in environments:
        for name, value in environment.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: values for name, values in found.items() if len(values) > 1}


def first_fault(error: ValidationError) -> str:
    """First field that pydantic rejects, with the reason and without its value, which may be of any size."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Parts with brackets are pydantic's own names of types.
    where = ".".join(str(part)[:60] for part in first["loc"] if "[" not in str(part))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def number_of(tasks: Tasks) -> int:
    """Number of tasks."""
    return tasks if isinstance(tasks, int) else len(tasks)


def value_text(value: object, digits: int | None = None) -> str:
    """A value in the spelling of the command line: `true`, `none`, `0.1`, `(q, v)`.

    Args:
        value: any hyper-parameter value.
        digits: significant digits of floats; None: as many as identify the number.
    """
    if isinstance(value, list | tuple):
        return f"({', '.join(value_text(item, digits) for item in value)})"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) and digits else str(value)


class ImageTransforms(BaseModel):
    """Image transforms of a run, resolved to numbers.

    Attributes:
        kind: kind of the inputs.
        size: side of the square network input, in pixels.
        crop: kind of the training crop. `continuous`: a box of any size and position, clipped to the image and sampled
            bilinearly from the whole image. `pixels`: torchvision's `RandomResizedCrop`, a box of whole pixels, drawn
            again if it would leave the image; only its own pixels are resized (bilinear, antialiased).
        crop_scale: area range of the training crop, as a fraction of the image.
        crop_ratio: aspect-ratio range of the training crop.
        flip: probability of a horizontal flip in training.
        resize: in the test view, the shorter side is resized to `size * resize` pixels before the centre is cropped
            (8 / 7 for 224 of 256 pixels).
        mean, std: input normalisation per channel, on the [0, 1] scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[Literal["image"]] = "image"
    size: int = Field(ge=1, le=10**9)
    crop: Literal["continuous", "pixels"] = "continuous"
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    resize: float = Field(default=1.0, ge=1, le=10**6)
    mean: tuple[float, ...] = Field(max_length=1000)
    std: tuple[float, ...] = Field(max_length=1000)

    @property
    def short(self) -> int:
        """Shorter side of an image in the test view before the centre crop, in pixels."""
        return round(self.size * self.resize)


class Limits(BaseModel):
    """Limits of the data, for quick trials and validation; every limit makes a different experiment.

    Attributes:
        tasks: run only the first tasks of the stream.
        train_per_class, test_per_class: keep only the first images of each class.
        validation: share of the training images that is held out and evaluated on, instead of the test images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int | None = Field(default=None, ge=1, le=10**9)
    train_per_class: int | None = Field(default=None, ge=1, le=2**53)
    test_per_class: int | None = Field(default=None, ge=1, le=2**53)
    validation: float | None = Field(default=None, gt=0, lt=1)


class Experiment(BaseModel):
    """One run: all choices that change its numbers, and no others (no host, position or time).

    Attributes:
        method, revision: name of the method, and a number that is raised whenever its results or defaults change (of a
            method file: the hash of the file).
        hyperparameters, defaults: all hyper-parameters, resolved to numbers, and the method's own defaults; only values
            that differ from the defaults enter the key.
        scenario: whether each task brings new classes, or all classes from another domain.
        tasks: number of tasks; for class-incremental tasks of different sizes, the number of classes of each.
        class_order: `natural`, `permutation:K` (numpy's legacy `RandomState(K).permutation`, as in PILOT), or the class
            indices themselves, `order:2,0,1`; in a domain-incremental stream, the order of the domains.
        split, weights: SHA-256 of the split and of the backbone's weights.
        precision: resolved precision of the backbone (see `models.vit`).
        storage: form of the images: `memory`, all of one size; `resized:S`, decoded once to a shorter side of at most S
            pixels; or `files`, decoded at every read.
        probe: extra measurement (see `training.probes`), which does not change the counts.
        seed: training seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Text
    revision: Annotated[int | str, AfterValidator(bounded)]
    hyperparameters: dict[Text, Value]
    defaults: dict[Text, Value]
    benchmark: Text
    scenario: Scenario = "class-incremental"
    tasks: Tasks
    class_order: str = Field(pattern=f"^({NAMED_ORDER}|order:[0-9]+(,[0-9]+)*)$")
    split: Text
    transforms: ImageTransforms
    backbone: Text
    weights: Text
    precision: Precision = "fp32"
    storage: Storage = "memory"
    limits: Limits = Limits()
    probe: ProbeName = "none"
    seed: int = Field(ge=0, le=MAX_SEED)

    @property
    def num_tasks(self) -> int:
        """Number of tasks of the whole stream."""
        return number_of(self.tasks)

    @property
    def method_file(self) -> str:
        """Name of the user's file that defines the method, without its folder; empty if the method was installed."""
        return f"{self.method}.py" if str(self.revision).startswith(FILE_REVISION) else ""

    @property
    def leaky(self) -> bool:
        """Whether samples of one batch influence each other, as in released code that is known to be wrong."""
        return self.hyperparameters.get(LEAKY_OPTION) is True

    def identity(self) -> dict[str, Any]:
        """Fields that differ from their defaults; the key is their hash.

        A new field or hyper-parameter whose default keeps the old behaviour does not change old keys.
        """
        fields = self.model_dump(mode="json", exclude={"defaults"}, exclude_defaults=True)
        fields["hyperparameters"] = {
            name: value
            for name, value in fields["hyperparameters"].items()
            if name not in self.defaults or self.defaults[name] != value
        }
        return fields

    @property
    def key(self) -> str:
        """Content key: the first 16 hex digits of the SHA-256 of the canonical JSON of `identity()`."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def file_stem(self) -> str:
        """Readable file name without extension; only the key in it identifies the run."""
        readable = re.sub(r"[:/\\\x00-\x1f\x7f]", "_", f"{self.method}-{self.benchmark}").lstrip(".")
        # A benchmark may be a path; file systems allow names of 255 bytes, of which suffixes need some.
        short = readable.encode(errors="replace")[:160].decode(errors="ignore")
        return f"{short}-s{self.seed}-{self.key}"


__getattr__ = _aliases.renamed(__name__, {"Transforms": ImageTransforms})
