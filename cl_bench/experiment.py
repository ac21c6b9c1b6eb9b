"""What a run IS: a frozen, validated description and its content key.

Nothing here imports torch: records are read, compared and reported without it.
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
"""Characters of a name or value: a path may take 4,096."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]


def bounded(value: PlainScalar) -> PlainScalar:
    """A number of at most 64 bits, a text of at most `MAX_TEXT` characters, a truth value or None.

    Raises:
        ValueError: it is larger.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("expected a whole number of at most 64 bits")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"expected a text of at most {MAX_TEXT:,} characters")
    return value


PlainScalar = bool | int | float | str | None
# Checked after pydantic has chosen the type: a number too large for one would be taken for the next.
Scalar = Annotated[PlainScalar, AfterValidator(bounded)]
Value = Scalar | Annotated[list[Scalar], Field(fail_fast=True)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=10**9)]
"""Up to thirty years, so that sums stay finite."""
Item = TypeVar("Item")
# One fault is enough; a hostile file could hold millions.
Items = Annotated[list[Item], Field(fail_fast=True, max_length=10**6)]
Scenario = Literal["class-incremental", "domain-incremental"]
Precision = Literal["fp32", "bf16"]
ProbeName = Literal["none", "interpolation"]
ImagesName = Literal["auto", "resized", "files"]
Storage = Annotated[str, Field(pattern=r"^(memory|files|resized:[1-9][0-9]{0,4})$")]
_Tasks = Annotated[int, Field(ge=1, le=10**6)]
Tasks = _Tasks | Annotated[tuple[_Tasks, ...], Field(fail_fast=True)]
"""How many tasks of the same size, or how many classes each task has."""
NAMED_ORDER = "natural|permutation:[0-9]+"
"""Pattern of the class orders that are named rather than listed."""
MAX_SEED = 2**32 - 1
"""The largest seed that numpy's `RandomState`, which makes the class orders, takes."""

LEAKY_OPTION = "as_published_leaky"
"""The hyper-parameter under which a method shows a leak of its released code: samples of a batch see each other."""


Environment = dict[Text, Scalar]
"""On what and with which versions a run was computed, by name; empty where that was not recorded."""


class Session(BaseModel):
    """Processes that worked on a run in turn, all in the same environment, and left it to another process.

    Attributes:
        processes: how many.
        stages: finished at the last checkpoint that they left.
        phase, epoch: of the next stage, in which that checkpoint lies; None: before its first step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Environment
    processes: Count = Field(default=1, ge=1)
    stages: Count
    phase: Count | None = None
    epoch: Count | None = None


def differences(environments: Iterable[Mapping[str, PlainScalar]]) -> dict[str, list[PlainScalar]]:
    """The values in which environments differ, by name, in the order in which they appear.

    What only some of them record does not count.
    """
    found: dict[str, list[PlainScalar]] = {}
    for environment in environments:
        for name, value in environment.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: values for name, values in found.items() if len(values) > 1}


def first_fault(error: ValidationError) -> str:
    """The first field that pydantic refuses and why, without its value, which may be of any size."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Parts with brackets are pydantic's own names of types.
    where = ".".join(str(part)[:60] for part in first["loc"] if "[" not in str(part))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def number_of(tasks: Tasks) -> int:
    """How many tasks these are."""
    return tasks if isinstance(tasks, int) else len(tasks)


def value_text(value: object, digits: int | None = None) -> str:
    """A value as the command line spells it: `true`, `none`, `0.1`, `(q, v)`.

    Args:
        digits: significant digits of floats; None: as many as tell them apart.
    """
    if isinstance(value, list | tuple):
        return f"({', '.join(value_text(item, digits) for item in value)})"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) and digits else str(value)


class ImageTransforms(BaseModel):
    """Image transforms of a run, resolved to numbers.

    Attributes:
        kind: of the inputs that they are for.
        size: side of the square network input, in pixels.
        crop: of the training crop. `continuous`: a box of any size and place, cut short where it would leave the image,
            sampled bilinearly out of the whole image. `pixels`: torchvision's `RandomResizedCrop`, a box of whole
            pixels, drawn again where it would leave the image, whose pixels alone are resized (bilinear, antialiased).
        crop_scale: area range of the training crop, as a fraction of the image.
        crop_ratio: aspect-ratio range of the training crop.
        flip: probability of a horizontal flip in training.
        resize: in the test view the shorter side becomes `size * resize` pixels, of which the centre is taken (224 out
            of 256: 8 / 7).
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
        """The shorter side of an image in the test view, in pixels, before its centre is taken."""
        return round(self.size * self.resize)


class Limits(BaseModel):
    """Other data than the whole: cuts for quick trials, validation. Any of them set makes a different experiment.

    Attributes:
        tasks: run only the first tasks of the stream.
        train_per_class, test_per_class: keep only the first images of each class.
        validation: leave the test images alone; evaluate on this share of the training images, which is held out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int | None = Field(default=None, ge=1, le=10**9)
    train_per_class: int | None = Field(default=None, ge=1, le=2**53)
    test_per_class: int | None = Field(default=None, ge=1, le=2**53)
    validation: float | None = Field(default=None, gt=0, lt=1)


class Experiment(BaseModel):
    """One run, with every choice that changes its numbers and none that does not (no host, position or time).

    Attributes:
        method, revision: the method's name and the integer raised whenever its results change, a changed default
            included (for a method file: the hash of the file).
        hyperparameters: all of them, resolved to numbers; `defaults` holds the method's own defaults, so that only
            what differs from them enters the key.
        scenario: every task brings new classes, or all classes from another domain.
        tasks: how many; class-incremental ones of different sizes: the classes of each.
        class_order: `natural`, `permutation:K` (numpy's legacy `RandomState(K).permutation`, as in PILOT), or the class
            indices themselves, `order:2,0,1`; in a domain-incremental stream, the same of the domains.
        split, weights: SHA-256 of the split and of the backbone's weights.
        precision: of the backbone (see `models.vit`), as resolved, not as requested.
        storage: how the images are kept: all of one size in `memory`; `resized:S`, decoded once, the shorter side no
            longer than S pixels; or as `files`, decoded whenever they are read.
        probe: what is measured besides (see `training.probes`); the counts are the same.
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
        """Length of the whole stream."""
        return number_of(self.tasks)

    @property
    def leaky(self) -> bool:
        """Whether samples of a batch see each other, as in released code that is known to be wrong."""
        return self.hyperparameters.get(LEAKY_OPTION) is True

    def identity(self) -> dict[str, Any]:
        """The fields that differ from their defaults: what the key is made of.

        A field or hyper-parameter added later with a default that keeps the old behaviour leaves old keys as they are.
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
        """Readable name of a file in whatever folder it is put; the key alone decides identity."""
        readable = re.sub(r"[:/\\\x00-\x1f\x7f]", "_", f"{self.method}-{self.benchmark}").lstrip(".")
        # A benchmark may be the path of a folder, and file systems take 255 bytes, of which suffixes need some.
        short = readable.encode(errors="replace")[:160].decode(errors="ignore")
        return f"{short}-s{self.seed}-{self.key}"


__getattr__ = _aliases.renamed(__name__, {"Transforms": ImageTransforms})
