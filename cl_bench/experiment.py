"""What a run IS: a frozen, validated description and its content key.

Nothing here imports torch: records are read, compared and reported without it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from cl_bench.errors import UserError, unknown_name

Scalar = bool | int | float | str | None
Value = Scalar | Annotated[list[Scalar], Field(fail_fast=True)]
Scenario = Literal["class-incremental", "domain-incremental"]
Precision = Literal["fp32", "bf16"]
ProbeName = Literal["none", "interpolation"]
ImagesName = Literal["auto", "resized", "files"]
Storage = Annotated[str, Field(pattern=r"^(memory|files|resized:[1-9][0-9]{0,4})$")]
_Tasks = Annotated[int, Field(ge=1, le=10**6)]
Tasks = _Tasks | Annotated[tuple[_Tasks, ...], Field(fail_fast=True)]
"""How many tasks of the same size, or how many classes each task has."""
MAX_SEED = 2**32 - 1
"""The largest seed that numpy's `RandomState`, which makes the class orders, takes."""

LEAKY_OPTION = "as_published_leaky"
"""The hyper-parameter under which a method shows a leak of its released code: samples of a batch see each other."""


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


class Transforms(BaseModel):
    """Image transforms of a run, resolved to numbers.

    Attributes:
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    crop: Literal["continuous", "pixels"] = "continuous"
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    resize: float = Field(default=1.0, ge=1)
    mean: tuple[float, ...]
    std: tuple[float, ...]

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

    tasks: int | None = Field(default=None, ge=1)
    train_per_class: int | None = Field(default=None, ge=1)
    test_per_class: int | None = Field(default=None, ge=1)
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

    method: str
    revision: int | str
    hyperparameters: dict[str, Value]
    defaults: dict[str, Value]
    benchmark: str
    scenario: Scenario = "class-incremental"
    tasks: Tasks
    class_order: str = Field(pattern=r"^(natural|permutation:\d+|order:\d+(,\d+)*)$")
    split: str
    transforms: Transforms
    backbone: str
    weights: str
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


# --- the grammar of --methods ----------------------------------------------------------------------------------

_SPEC = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\[([^\[\]]*)\])?\s*(?:,|$)")


@dataclass(frozen=True)
class MethodSpec:
    """One method as the user asked for it, e.g. `sdlora[rank=8]`; values are still strings."""

    name: str
    options: dict[str, str]


def parse_methods(text: str, what: str = "--methods") -> list[MethodSpec]:
    """Parse `sdlora[rank=4|8,lr=0.1],coda`: alternatives separated by `|` multiply into a grid.

    Args:
        what: the name of this input, for messages.

    Raises:
        UserError: the text does not follow the grammar, or names no method.
    """
    specs: list[MethodSpec] = []
    position = 0
    while position < len(text):
        match = _SPEC.match(text, position)
        if match is None:
            raise UserError(
                f"{what} '{text}' cannot be read from '{text[position:]}' on; "
                "expected NAME or NAME[key=value,key=a|b], separated by commas, e.g. 'sdlora[rank=4|8],coda'"
            )
        position = match.end()
        pairs = [_parse_pair(pair, f"{what} '{text}'") for pair in (match[2] or "").split(",") if pair.strip()]
        alternatives = [[(name, value.strip()) for value in values.split("|")] for name, values in pairs]
        if len({name for name, _ in pairs}) < len(pairs) or not all(v for values in alternatives for _, v in values):
            raise UserError(f"{what} '{text}': '{match[2]}' sets an option twice or to nothing; write key=a|b,other=c")
        specs += [MethodSpec(match[1], dict(choice)) for choice in itertools.product(*alternatives)]
    if not specs:
        raise UserError(f"{what} is empty; expected e.g. 'sdlora,coda'")
    return specs


def parse_settings(settings: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse `--set` values into options per method.

    `sdlora.rank=8` is for one method, `lr=0.1` for all of them; the first kind wins, wherever it stands.

    Raises:
        UserError: not `key=value`, or a qualified key of a method that is not listed.
    """
    options: dict[str, dict[str, str]] = {name: {} for name in methods}
    pairs = [_parse_pair(setting, f"--set '{setting}'") for setting in settings]
    for key, value in sorted(pairs, key=lambda pair: "." in pair[0]):
        method, dot, field = key.rpartition(".")
        if dot and method not in options:
            raise unknown_name("method in --set", method, methods, "It must be one of --methods.")
        for name in [method] if dot else methods:
            options[name][field] = value
    return options


def parse_seeds(text: str, what: str = "--seeds") -> list[int]:
    """Parse `0-4` or `0,2,5` into seeds.

    Args:
        what: the name of this input, for messages.

    Raises:
        UserError: anything else, or an empty range.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"{what} '{text}' cannot be read; expected numbers and rising ranges, e.g. 0-4 or 0,2,5")
        if int(match[2] or match[1]) > MAX_SEED:
            raise UserError(f"{what} '{text}' is out of range; seeds are at most {MAX_SEED}")
        if len(seeds) + int(match[2] or match[1]) - int(match[1]) >= 10_000:
            raise UserError(f"{what} '{text}' asks for more than 10,000 seeds; name fewer")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def parse_tasks(text: str) -> Tasks:
    """Parse `10` (tasks of the same size) or the classes of each task: `40,30,30`, `50,5x10` (50, then 5 times 10).

    Raises:
        UserError: anything else.
    """
    parts = [re.fullmatch(r"\s*(?:([0-9]{1,6})\s*x\s*)?([0-9]{1,6})\s*", part) for part in text.split(",")]
    pairs = [(int(part[1] or 1), int(part[2])) for part in parts if part is not None]
    if len(pairs) < len(parts) or not all(count and size for count, size in pairs):
        raise UserError(
            f"--tasks '{text}' cannot be read; expected a number of tasks, e.g. 10, or the number of classes of each, "
            "e.g. 40,30,30 or 50,5x10 (50, then 5 tasks of 10)"
        )
    if "," not in text and "x" not in text:
        return pairs[0][1]
    if sum(count for count, _ in pairs) > 10_000:
        raise UserError(f"--tasks '{text}' asks for more than 10,000 tasks; name fewer")
    return equalled([size for count, size in pairs for _ in range(count)])


def parse_scenario(text: str) -> Scenario:
    """Check the name of a scenario.

    Raises:
        UserError: there is none of this name.
    """
    return _one_of(text, "scenario", get_args(Scenario))


def parse_precision(text: str) -> Precision:
    """Check the name of a precision.

    Raises:
        UserError: there is none of this name.
    """
    return _one_of(text, "precision", get_args(Precision))


def parse_probe(text: str) -> ProbeName:
    """Check the name of a probe.

    Raises:
        UserError: there is none of this name.
    """
    return _one_of(text, "probe", get_args(ProbeName))


def parse_images(text: str) -> ImagesName:
    """Check how the images of files are to be kept.

    Raises:
        UserError: there is no such way.
    """
    return _one_of(text, "way to keep images (--images)", get_args(ImagesName))


def _one_of(text: str, what: str, names: tuple[Any, ...]) -> Any:
    if text not in names:
        raise unknown_name(what, text, names)
    return text


def equalled(sizes: Sequence[int]) -> Tasks:
    """Sizes of tasks, or their number where all have the same: two ways to say one thing would be two keys."""
    return len(sizes) if len(set(sizes)) == 1 else tuple(sizes)


def parse_order(text: str) -> str:
    """Check a class order: `natural` or `permutation:K`.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"natural|permutation:([0-9]+)", text)
    if match is None or int(match[1] or 0) > MAX_SEED:
        raise UserError(
            f"--order '{text}' is no class order; expected natural, permutation:K with K at most {MAX_SEED}, or a file "
            "with one class per line"
        )
    return text


def read_order(path: Path, classes: Sequence[str], what: Literal["class", "domain"] = "class") -> str:
    """The class order in a file: one class per line, by name or by index in the data set's own order.

    Args:
        what: a class or a domain, for messages.

    Raises:
        UserError: unreadable, or not every class once.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--order file '{path}' cannot be read ({error})") from error
    plural = {"class": "classes", "domain": "domains"}[what]
    index = {name: number for number, name in enumerate(classes)}
    if not set(lines) & index.keys():
        index = {str(number): number for number in range(len(classes))}
    for number, line in enumerate(lines, start=1):
        if line not in index:
            raise UserError(f"--order file '{path}', line {number}: there is no {what} '{line}'; expected one per line")
        if line in lines[: number - 1]:
            raise UserError(f"--order file '{path}', line {number}: {what} '{line}' comes twice; name each one once")
    if missing := [name for name in index if name not in lines]:
        raise UserError(f"--order file '{path}' lacks {len(missing)} of {len(classes)} {plural}, e.g. '{missing[0]}'")
    return "order:" + ",".join(str(index[line]) for line in lines)


def _parse_pair(text: str, where: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise UserError(f"{where}: '{text}' is not of the form key=value")
    return key, value
