"""Pre-train a Vision Transformer backbone from a recipe file and write its weights and model card.

    python tools/pretrain_backbone.py tools/recipes/icons.toml --out DIR [--set optim.lr=1e-3 ...] [--resume]

The recipe (TOML) names a data file, a timm model and the training settings; nothing in this file depends on the
data set. The data file is an uncompressed `.npz`, optionally inside xz, with the arrays

- `images`: uint8 [N, H, W] (one channel) or [N, H, W, C];
- `label`: integer [N], the position of the image's class in the class list of its part;
- `part`: uint8 [N], the part (one of several disjoint sets of classes) that the image belongs to;
- `split`: uint8 [N], 0 for training, 1 for held-out images;
- `classes` and `class_part`: the names of all classes and the part of each; the classes of a part are contiguous.

All images are on the device as uint8 and are augmented there in batches. During training, only the held-out images of
the training part are evaluated. The probe part (the benchmark's own stream) is used once, after the last epoch, for the
model card; `--skip-probe` omits that, and `--set data.probe_part=1` probes the tuning stream instead, which is the one
to use when comparing recipes. A finished run can be probed later with `--resume`, or with `--probe`, which only needs
the weights and the card, and accepts a data file with more parts than that of the training. `--fit SECONDS` trains
briefly, prints the speed and the number of epochs that fit into that time, and writes nothing.

Files written to the output folder:

- `<name>.safetensors`: fp16 weights without classification head, loadable by timm with `num_classes=0`;
- `<name>.json` and `<name>.md`: the model card, for machines and for people;
- `checkpoint.safetensors` and `checkpoint.json`: what `--resume` continues from; `log.jsonl`: evaluations.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import lzma
import math
import os
import time
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.backbones import weights_hash
from cl_bench.files import write_atomically

EVAL_BATCH = 1024
"""Images per forward pass outside training."""
FIT_SECONDS = 10.0
"""Shortest training time of --fit in seconds, after a first epoch."""
ARRAYS = ("images", "label", "part", "split", "classes", "class_part")
# Penalties tried by the probes, the linear ones from the strongest to the weakest.
RIDGE_GRID = tuple(10.0**k for k in range(-3, 6))
LINEAR_GRID = tuple(10.0**-k for k in range(7))

T = TypeVar("T")


# --- Recipe -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataRecipe:
    """The images to train on, and the normalisation of their pixels."""

    file: str
    """Path of the data file, relative to the working folder."""
    title: str = ""
    """Description of the data for the model card."""
    licence: str = ""
    """Licence note of the data for the model card."""
    notes: tuple[str, ...] = ()
    """Further sentences on the data for the model card."""
    train_part: int = 2
    probe_part: int = 0
    """Part probed once after training; negative for none."""
    probe_name: str = "probe part"
    heldout_name: str = "held-out images"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    """Per channel, on the scale where pixels lie in 0..1."""


@dataclass(frozen=True)
class ModelRecipe:
    """A timm Vision Transformer."""

    arch: str = "vit_tiny_patch16_224"
    """timm architecture; the other fields modify it."""
    img_size: int = 32
    patch_size: int = 8
    in_chans: int = 1
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; it grows linearly from 0 at the first."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model, for example `depth`."""


@dataclass(frozen=True)
class OptimRecipe:
    """AdamW with warm-up and cosine decay, and an average of the weights."""

    epochs: int = 400
    batch_size: int = 1024
    lr: float = 2e-3
    min_lr: float = 0.0
    weight_decay: float = 0.1
    """Applies to weight matrices only, not to biases, norms, embeddings of position or the class token."""
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 10.0
    label_smoothing: float = 0.1
    clip_grad: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    ema_decay: float = 0.999
    """Decay per step of the averaged weights, which are published; 0 publishes the last weights."""
    class_balance: float = 0.0
    """Images are drawn with weight (class size) ** -class_balance; 0 for plain passes over the data."""


@dataclass(frozen=True)
class AugmentRecipe:
    """Strength of the augmentations, in the order in which they are applied. Pixels lie in 0..1."""

    stroke_prob: float = 0.0
    """Share of images whose bright strokes are thickened or thinned by up to a pixel on each side."""
    stroke_strength: float = 1.0
    """Largest blend with the dilated or eroded image."""
    outline_prob: float = 0.0
    """Share of images replaced by their inner or outer outline."""
    affine_prob: float = 1.0
    """Share of images to which the affine map and the elastic deformation are applied."""
    rotate: float = 0.0
    """Largest angle in degrees."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the magnification."""
    aspect: float = 1.0
    """Largest ratio between the magnifications of width and height."""
    shear: float = 0.0
    """Largest horizontal shift per unit of height."""
    crop: tuple[float, float] = (1.0, 1.0)
    """Range of the share of an image's area that is cropped at a random place and resized to the whole; `aspect` is the
    aspect ratio of the crop, and `scale` is applied after it."""
    translate: float = 0.0
    """Largest shift as a fraction of the side."""
    flip_prob: float = 0.0
    """Share of images that are mirrored horizontally."""
    elastic: float = 0.0
    """Largest displacement of the smooth random deformation, as a fraction of the side."""
    padding: str = "zeros"
    """Values outside an image: `zeros`, `border` or `reflection`."""
    blur_prob: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the pixel values."""
    brightness: float = 0.0
    """Largest offset, of either sign."""
    saturation: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the distance from grey; colour images only."""
    hue: float = 0.0
    """Largest rotation of the colours around the grey axis, in degrees; colour images only."""
    grey_prob: float = 0.0
    """Share of images that are turned grey; colour images only."""
    solarise_prob: float = 0.0
    """Share of images whose pixels above the middle are inverted."""
    invert_prob: float = 0.0
    noise: float = 0.0
    """Largest standard deviation of pixel noise."""
    erase_prob: float = 0.0
    """Share of images in which a rectangle is replaced by `erase_fill`."""
    erase_area: tuple[float, float] = (0.02, 0.2)
    """Range of the erased share of the image."""
    erase_fill: float = 0.0
    mixup_prob: float = 0.0
    mixup_alpha: float = 0.4
    cutmix_prob: float = 0.0
    """Share of images; mixup and cutmix exclude each other, so the two shares add up to 1 at most."""
    cutmix_alpha: float = 1.0


@dataclass(frozen=True)
class RunRecipe:
    """Execution of the training; only `amp` and `deterministic` can influence the result."""

    eval_every: int = 20
    """Epochs between evaluations on the held-out images; 0 for one evaluation at the end."""
    checkpoint_every: int = 50
    """Epochs between checkpoints; 0 for one checkpoint at the end."""
    compile: str = "default"
    """Mode of torch.compile, or `off`; on the CPU, only used with `--compile`."""
    amp: bool = True
    """bfloat16 autocast, on CUDA only."""
    deterministic: bool = True
    """Ask torch for deterministic kernels where they exist."""
    max_mib: float = 11.0
    """Largest permitted size of the weights file, in MiB."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the backbone."""

    name: str
    data: DataRecipe
    model: ModelRecipe
    optim: OptimRecipe
    augment: AugmentRecipe
    run: RunRecipe
    seed: int = 0


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build a recipe dataclass from a TOML table, checking names and types."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(table.keys() - hints.keys())
    if unknown:
        raise ValueError(f"unknown recipe field: {where}{unknown[0]}")
    values: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        hint, label = hints[item.name], where + item.name
        if is_dataclass(hint):
            values[item.name] = build(typing.cast(Any, hint), table.get(item.name, {}), f"{label}.")
        elif item.name in table:
            values[item.name] = convert(hint, table[item.name], label)
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"recipe: {error}") from error


def convert(hint: Any, value: Any, label: str) -> Any:
    """Convert one TOML value to the type of its recipe field."""
    if typing.get_origin(hint) is tuple:
        parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
        fixed = Ellipsis not in typing.get_args(hint)
        if not isinstance(value, list) or (fixed and len(value) != len(parts)):
            raise ValueError(f"recipe field {label} must be a list of {len(parts) if fixed else 'some'} values")
        return tuple(convert(parts[0], entry, label) for entry in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = typing.get_origin(hint) or hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"recipe field {label} must be of type {wanted.__name__}")
    return value


def load_recipe(path: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read a recipe and apply overrides `table.key=value`, the value being TOML or a bare word."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ValueError(f"--set needs key=value, not {override!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, last = key.strip().split(".")
        target = table
        for name in tables:
            target = target.setdefault(name, {})
        target[last] = value
    if seed is not None:
        table["seed"] = seed
    recipe = build(Recipe, table)
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError for settings that contradict each other."""
    augment, channels = recipe.augment, recipe.model.in_chans
    if augment.mixup_prob + augment.cutmix_prob > 1:
        raise ValueError("mixup_prob and cutmix_prob add up to more than 1")
    if not len(recipe.data.mean) == len(recipe.data.std) == channels:
        raise ValueError(f"data.mean and data.std need {channels} values, one per channel")
    if recipe.optim.epochs < 1 or recipe.optim.batch_size < 1:
        raise ValueError("epochs and batch_size must be positive")
    if recipe.data.probe_part == recipe.data.train_part:
        raise ValueError("the probe part must not be the training part")


# --- Data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Images of one part and split on a device."""

    pixels: Tensor
    """uint8 [N, C, H, W]."""
    labels: Tensor
    """int64 [N], from 0 to the number of classes minus 1."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Part:
    """A set of classes with training and held-out images."""

    classes: list[str]
    train: Images
    heldout: Images
    sha256: str
    """Digest of these images and classes, independent of the rest of the data file."""


class DataFile:
    """A data file, read into host memory."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        self.name = path.name
        self.sha256 = hashlib.sha256(raw).hexdigest()
        content = lzma.decompress(raw) if path.suffix == ".xz" else raw
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            self._arrays = {name: arrays[name] for name in ARRAYS}

    def part(self, index: int, device: torch.device) -> Part:
        """Move one part to the device."""
        arrays = self._arrays
        classes = [str(name) for name in arrays["classes"][arrays["class_part"] == index]]
        splits = []
        digest = hashlib.sha256("\n".join(classes).encode())
        for split in (0, 1):
            rows = np.flatnonzero((arrays["part"] == index) & (arrays["split"] == split))
            labels = arrays["label"][rows].astype(np.int64)
            if not len(rows) or labels.min() < 0 or labels.max() >= len(classes):
                raise ValueError(f"{self.name}: part {index}, split {split} is empty or has labels out of range")
            chosen = arrays["images"][rows]
            digest.update(repr(chosen.shape).encode() + labels.astype("<i8").tobytes())
            digest.update(chosen)
            pixels = torch.from_numpy(chosen)
            pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
            splits.append(Images(pixels.to(device), torch.from_numpy(labels).to(device)))
        return Part(classes, splits[0], splits[1], digest.hexdigest())


class Normaliser:
    """The evaluation transform: uint8 [B, C, H, W] to normalised float32 of the same shape."""

    def __init__(self, data: DataRecipe, device: torch.device) -> None:
        self._mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(data.std, device=device).view(1, -1, 1, 1)

    def unit(self, pixels: Tensor) -> Tensor:
        """Normalise pixels that already lie in 0..1."""
        return (pixels - self._mean) / self._std

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.unit(pixels.float() / 255)


# --- Augmentation -----------------------------------------------------------------------------------------


class Augmenter:
    """Random augmentation of a batch on its device, with an independent draw for every image.

    Every step is computed for the whole batch and then selected per image: at these sizes, that costs less than the
    host synchronisation needed to find out which images it applies to.
    """

    def __init__(self, recipe: AugmentRecipe, device: torch.device, generator: torch.Generator) -> None:
        self._recipe = recipe
        self._device = device
        self._generator = generator
        kernel = torch.tensor([1.0, 2.0, 1.0], device=device) / 4
        self._kernel = (kernel[:, None] * kernel[None, :])[None, None]

    def _uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(*shape, generator=self._generator, device=self._device)
        return drawn * (high - low) + low

    def _per_image(self, x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw one number per image, shaped [B, 1, 1, 1]."""
        return self._uniform((len(x), 1, 1, 1), low, high)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Turn uint8 [B, C, H, W] into augmented float32 in 0..1 of the same shape."""
        r = self._recipe
        x = pixels.float() / 255
        if r.stroke_prob or r.outline_prob:
            x = self._stroke(x)
        if r.affine_prob:
            x = self._warp(x)
        if r.blur_prob:
            x = self._blur(x)
        x = self._colour(x)
        if r.erase_prob:
            # Before inversion, so that erase_fill means the background in either polarity.
            x = torch.where(self._rectangle(x, self._erased_area(x)), r.erase_fill, x)
        if r.invert_prob:
            x = torch.where(self._per_image(x) < r.invert_prob, 1 - x, x)
        if r.noise:
            drawn = torch.randn(x.shape, generator=self._generator, device=self._device)
            x = x + drawn * self._per_image(x, 0, r.noise)
        return x.clamp(0, 1)

    def _stroke(self, x: Tensor) -> Tensor:
        """Change the thickness of bright strokes, or keep only the outline of bright regions."""
        r = self._recipe
        wide = F.max_pool2d(x, 3, stride=1, padding=1)
        thin = -F.max_pool2d(-x, 3, stride=1, padding=1)
        outline = torch.where(self._per_image(x) < 0.5, wide - x, x - thin)
        target = torch.where(self._per_image(x) < 0.5, wide, thin)
        changed = torch.lerp(x, target, self._per_image(x, 0, r.stroke_strength))
        # Thinning strokes of a pixel or two makes them faint; stretching keeps the drawings visible.
        changed, outline = (y / y.amax((1, 2, 3), keepdim=True).clamp_min(0.25) for y in (changed, outline))
        x = torch.where(self._per_image(x) < r.stroke_prob, changed, x)
        return torch.where(self._per_image(x) < r.outline_prob, outline, x)

    def _warp(self, x: Tensor) -> Tensor:
        """Apply a random affine map and a smooth random displacement.

        The matrices map output to input coordinates, both in -1..1, as grid_sample expects.
        """
        r, count = self._recipe, len(x)

        def draw(low: float, high: float) -> Tensor:
            return self._uniform((count,), low, high)

        angle = draw(-r.rotate, r.rotate) * (math.pi / 180)
        size = draw(math.log(r.scale[0]), math.log(r.scale[1])).exp()
        stretch = (draw(-0.5, 0.5) * math.log(r.aspect)).exp()
        shear = draw(-r.shear, r.shear)
        mirror = torch.where(draw(0, 1) < r.flip_prob, -1.0, 1.0)
        cos, sin = angle.cos(), angle.sin()
        shift_x, shift_y = draw(-2, 2) * r.translate, draw(-2, 2) * r.translate
        width, height = 1 / stretch, stretch
        if r.crop != (1.0, 1.0):
            side = draw(*r.crop).sqrt()
            width, height = (side * width).clamp_max(1), (side * height).clamp_max(1)
            shift_x, shift_y = shift_x + draw(-1, 1) * (1 - width), shift_y + draw(-1, 1) * (1 - height)
        inverse_x, inverse_y = mirror * width / size, height / size
        rows = [
            torch.stack([cos * inverse_x, (cos * shear - sin) * inverse_y, shift_x], 1),
            torch.stack([sin * inverse_x, (sin * shear + cos) * inverse_y, shift_y], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        if r.elastic:
            coarse = self._uniform((count, 2, 4, 4), -2 * r.elastic, 2 * r.elastic)
            smooth = F.interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=True)
            grid = grid + smooth.permute(0, 2, 3, 1)
        moved = F.grid_sample(x, grid, mode="bilinear", padding_mode=r.padding, align_corners=False)
        return torch.where(self._per_image(x) < r.affine_prob, moved, x)

    def _blur(self, x: Tensor) -> Tensor:
        """Blend with a binomial blur, of 3x3 pixels applied twice, by a random amount."""
        channels = x.shape[1]
        kernel, padded = self._kernel.expand(channels, 1, 3, 3), x
        for _ in range(2):
            padded = F.conv2d(F.pad(padded, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
        amount = self._per_image(x) * (self._per_image(x) < self._recipe.blur_prob)
        return torch.lerp(x, padded, amount)

    def _colour(self, x: Tensor) -> Tensor:
        r, coloured = self._recipe, x.shape[1] == 3
        if coloured and r.hue:
            x = self._rotate_hue(x)
        if coloured and r.saturation != (1.0, 1.0):
            grey = x.mean(1, keepdim=True)
            x = grey + (x - grey) * self._per_image(x, *r.saturation)
        if coloured and r.grey_prob:
            x = torch.where(self._per_image(x) < r.grey_prob, x.mean(1, keepdim=True), x)
        if r.contrast != (1.0, 1.0):
            x = x * self._per_image(x, *r.contrast)
        if r.brightness:
            x = x + self._per_image(x, -r.brightness, r.brightness)
        if r.solarise_prob:
            chosen = (self._per_image(x) < r.solarise_prob) & (x > 0.5)
            x = torch.where(chosen, 1 - x, x)
        return x

    def _rotate_hue(self, x: Tensor) -> Tensor:
        """Rotate every image's colours around the grey axis by a random angle (Rodrigues' formula)."""
        limit = self._recipe.hue * (math.pi / 180)
        angle = self._per_image(x, -limit, limit)
        grey = x.mean(1, keepdim=True)
        across = (x.roll(-1, 1) - x.roll(1, 1)) / math.sqrt(3.0)
        return grey + (x - grey) * angle.cos() + across * angle.sin()

    def _erased_area(self, x: Tensor) -> Tensor:
        r = self._recipe
        return self._per_image(x, *r.erase_area) * (self._per_image(x) < r.erase_prob)

    def _rectangle(self, x: Tensor, area: Tensor) -> Tensor:
        """Return a mask [B, 1, H, W] of a random rectangle that covers the given share [B, 1, 1, 1] of each image.

        Rectangles lie inside the image, except where a side would be longer than the image.
        """
        height, width = x.shape[-2:]
        stretch = (self._per_image(x, -0.5, 0.5) * math.log(3.0)).exp()
        h, w = area.sqrt() * stretch * height, area.sqrt() / stretch * width
        top = self._per_image(x) * (height - h).clamp_min(0)
        left = self._per_image(x) * (width - w).clamp_min(0)
        ys = torch.arange(height, device=self._device).view(1, 1, -1, 1) + 0.5
        xs = torch.arange(width, device=self._device).view(1, 1, 1, -1) + 0.5
        return (ys >= top) & (ys < top + h) & (xs >= left) & (xs < left + w)

    @torch.no_grad()
    def mix(self, x: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Mix every image with another one of the batch.

        `x` is [B, C, H, W], `targets` [B, K] class probabilities, `shares` [B, 2] the share of the other
        image under mixup and under cutmix, both zero for images that stay as they are.
        """
        other = torch.randperm(len(x), generator=self._generator, device=self._device)
        x_other, mixup = x[other], shares[:, 0].view(-1, 1, 1, 1)
        mask = self._rectangle(x, shares[:, 1].view(-1, 1, 1, 1))
        mixed = torch.where(mask, x_other, torch.lerp(x, x_other, mixup))
        weight = shares[:, :1] + mask.float().mean((1, 2, 3))[:, None]
        return mixed, torch.lerp(targets, targets[other], weight)


def mixing_shares(recipe: AugmentRecipe, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the shares of mixup and cutmix for `count` images, float32 [count, 2]; see Augmenter.mix."""
    choice = rng.random(count)
    # The other image never has the larger share; the two images are exchangeable, so this loses nothing.
    mixup = rng.beta(recipe.mixup_alpha, recipe.mixup_alpha, count)
    mixup = np.minimum(mixup, 1 - mixup) * (choice < recipe.mixup_prob)
    cutmix = rng.beta(recipe.cutmix_alpha, recipe.cutmix_alpha, count)
    chosen = (choice >= recipe.mixup_prob) & (choice < recipe.mixup_prob + recipe.cutmix_prob)
    return np.stack([mixup, np.minimum(cutmix, 1 - cutmix) * chosen], 1).astype(np.float32)


# --- Model ------------------------------------------------------------------------------------------------


def create_model(recipe: ModelRecipe, num_classes: int, seed: int, train: bool = False) -> nn.Module:
    """Create the model on the CPU with seeded initial weights, the same for every device."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(
        recipe.arch,
        pretrained=False,
        num_classes=num_classes,
        img_size=recipe.img_size,
        patch_size=recipe.patch_size,
        in_chans=recipe.in_chans,
        drop_path_rate=recipe.drop_path if train else 0.0,
        **recipe.kwargs,
    )
    return model


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the head, on the CPU, sorted by name."""
    return {name: state[name].detach().cpu() for name in sorted(state) if not name.startswith("head.")}


@torch.no_grad()
def forward(model: nn.Module, pixels: Tensor, normalise: Normaliser) -> Tensor:
    """Return the model's float32 output for uint8 images [N, C, H, W], in evaluation mode.

    This is [N, K] class scores for a model with a head and [N, D] features (class token after the final norm)
    for one without.
    """
    model.eval()
    return torch.cat([model(normalise(batch)).float() for batch in torch.split(pixels, EVAL_BATCH)])


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of correct predictions in percent; both are int64 [N]."""
    return round(100 * (predicted == labels).double().mean().item(), 4)


# --- Training ---------------------------------------------------------------------------------------------


def stream_seed(*parts: int) -> int:
    """Return a 32-bit seed that depends on all the given numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Trainer:
    """Training state: model, averaged model, optimiser and the number of finished epochs.

    All random numbers of an epoch follow from the seed and the number of the epoch, so a resumed run needs no
    stored generator states.
    """

    def __init__(self, recipe: Recipe, part: Part, device: torch.device, compile_mode: str) -> None:
        self.recipe, self.part, self.device = recipe, part, device
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        optim = recipe.optim
        self.steps = len(part.train) // optim.batch_size
        if not self.steps:
            raise ValueError(f"batch_size {optim.batch_size} exceeds the {len(part.train)} training images")

        self.model = create_model(recipe.model, len(part.classes), recipe.seed, train=True).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self._forward: Callable[[Tensor], Tensor] = self.model
        if compile_mode != "off":
            self._forward = torch.compile(self.model, mode=compile_mode)
        self.generator = torch.Generator(device)
        self.augment = Augmenter(recipe.augment, device, self.generator)
        self.normalise = Normaliser(recipe.data, device)

        named = list(self.model.named_parameters())
        decayed = [(n, p) for n, p in named if p.ndim > 1 and not n.endswith(("_token", "_embed"))]
        plain = [(n, p) for n, p in named if p.ndim <= 1 or n.endswith(("_token", "_embed"))]
        self.parameter_names = [name for name, _ in decayed + plain]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for _, p in decayed], "weight_decay": optim.weight_decay},
                {"params": [p for _, p in plain], "weight_decay": 0.0},
            ],
            lr=optim.lr,
            betas=optim.betas,
            fused=device.type == "cuda",
        )
        counts = torch.bincount(part.train.labels, minlength=len(part.classes)).double()
        self._sampling = counts.clamp_min(1).pow(-optim.class_balance)[part.train.labels].float()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        optim = self.recipe.optim
        warmup, total = optim.warmup_epochs * self.steps, optim.epochs * self.steps
        if step < warmup:
            return optim.lr * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1.0, total - warmup)
        return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def _order(self) -> Tensor:
        """Return the images of this epoch's batches, int64 [steps, batch], without an incomplete batch."""
        wanted = self.steps * self.recipe.optim.batch_size
        if self.recipe.optim.class_balance:
            order = torch.multinomial(self._sampling, wanted, replacement=True, generator=self.generator)
        else:
            order = torch.randperm(len(self.part.train), generator=self.generator, device=self.device)
        return order[:wanted].view(self.steps, -1)

    def run_epoch(self) -> Tensor:
        """Train for one epoch; return the mean loss as a tensor, without waiting for the device."""
        recipe, optim, classes = self.recipe, self.recipe.optim, len(self.part.classes)
        seed = stream_seed(recipe.seed, self.epoch)
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)  # stochastic depth draws from the global generator
        order = self._order()
        shares = torch.from_numpy(mixing_shares(recipe.augment, order.numel(), np.random.default_rng(seed)))
        shares = shares.to(self.device).view(*order.shape, 2)
        mixing = recipe.augment.mixup_prob + recipe.augment.cutmix_prob > 0
        off = optim.label_smoothing / classes
        on = 1 - optim.label_smoothing + off
        total = torch.zeros((), device=self.device)

        self.model.train()
        for index in range(self.steps):
            step = self.epoch * self.steps + index
            chosen = order[index]
            x = self.augment(self.part.train.pixels[chosen])
            labels = self.part.train.labels[chosen]
            targets = torch.full((len(chosen), classes), off, device=self.device)
            targets.scatter_(1, labels[:, None], on)
            if mixing:
                x, targets = self.augment.mix(x, targets, shares[index])
            amp = recipe.run.amp and self.device.type == "cuda"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
                scores = self._forward(self.normalise.unit(x))
            loss = -(targets * scores.float().log_softmax(1)).sum(1).mean()
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if optim.clip_grad:
                nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
            self.optimizer.step()
            self._update_average(step)
            total += loss.detach()
        self.epoch += 1
        return total / self.steps

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        # A short memory at first, so that the initial weights do not remain in the average. With ema_decay 0, the
        # average is the model itself.
        decay = min(self.recipe.optim.ema_decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def heldout_accuracy(self) -> float:
        """Return the averaged model's top-1 accuracy (percent) on held-out images of the training classes."""
        heldout = self.part.heldout
        return accuracy(forward(self.average, heldout.pixels, self.normalise).argmax(1), heldout.labels)

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with: the settings that influence the weights, and the data."""
        recipe = as_json(self.recipe)
        settings = {key: recipe[key] for key in ("seed", "model", "optim", "augment")}
        settings |= {f"data.{key}": recipe["data"][key] for key in ("train_part", "mean", "std")}
        return {**settings, "training images": self.part.sha256}

    def save(self, folder: Path) -> None:
        """Write the checkpoint; an interrupted write leaves the previous one intact."""
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{self.parameter_names[index]}.{key}": t for key, t in state.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        meta = {
            "trained_by": self._identity(),
            "recipe": as_json(self.recipe),
            "seconds": self.seconds,
            "history": self.history,
        }
        write_atomically(folder / "checkpoint.json", (json.dumps(meta, indent=1) + "\n").encode())
        # Written last and with the epoch inside, because this file decides what is resumed.
        content = safetensors.torch.save(tensors, {"epoch": str(self.epoch)})
        write_atomically(folder / "checkpoint.safetensors", content)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in a folder, which must come from the same recipe."""
        meta = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        stored, current = meta["trained_by"], self._identity()
        changed = [key for key in current if stored.get(key) != current[key]]
        if changed:
            raise ValueError(f"the checkpoint belongs to another recipe; different: {', '.join(changed)}")
        with safetensors.safe_open(folder / "checkpoint.safetensors", "pt") as file:
            self.epoch = int(file.metadata()["epoch"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        self.seconds = meta["seconds"]
        self.history = [entry for entry in meta["history"] if entry["epoch"] <= self.epoch]

        def under(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.average.load_state_dict(under("average."))
        state = self.optimizer.state_dict()
        state["state"] = {
            index: {key: tensors[f"optimizer.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(self.parameter_names)
        }
        self.optimizer.load_state_dict(state)

    def result(self) -> dict[str, Tensor]:
        """Return the weights to publish: without head, rounded to fp16, on the CPU."""
        state = backbone_state(self.average.state_dict())
        return {name: tensor.half().contiguous() for name, tensor in state.items()}


def as_json(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain JSON values, with only the name of the data file."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    table["data"]["file"] = Path(recipe.data.file).name
    return table


def train(trainer: Trainer, folder: Path, stop_after: int | None) -> bool:
    """Train up to the last epoch, or `stop_after`; return whether the run is complete."""
    run, epochs = trainer.recipe.run, trainer.recipe.optim.epochs
    last = epochs if stop_after is None else min(epochs, stop_after)
    mark = time.perf_counter()
    while trainer.epoch < last:
        loss = trainer.run_epoch()
        epoch, final = trainer.epoch, trainer.epoch == last
        if final or (run.eval_every and epoch % run.eval_every == 0):
            entry = {"epoch": epoch, "loss": loss.item(), "heldout": trainer.heldout_accuracy()}
            if not math.isfinite(entry["loss"]):
                raise RuntimeError(f"the loss of epoch {epoch} is not finite")
            trainer.history.append(entry)
            seconds = trainer.seconds + time.perf_counter() - mark
            print(f"epoch {epoch}: loss {entry['loss']:.4f}, held out {entry['heldout']:.2f} %, {seconds:.0f} s")
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({**entry, "seconds": round(seconds, 1)}) + "\n")
        if final or (run.checkpoint_every and epoch % run.checkpoint_every == 0):
            now = time.perf_counter()
            trainer.seconds, mark = trainer.seconds + now - mark, now
            trainer.save(folder)
    return trainer.epoch == epochs


def fit_lines(trainer: Trainer, budget: float, start: float) -> Iterator[str]:
    """Train briefly; yield lines with the speed and, last, the number of epochs that fit, as an override of a recipe.

    Args:
        budget: available seconds, including reading the data and compiling.
        start: value of `time.perf_counter` when the tool began to read the data.
    """
    recipe = trainer.recipe

    def timed(work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        work()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        return time.perf_counter() - begin

    timed(trainer.run_epoch)
    timed(trainer.heldout_accuracy)
    startup = time.perf_counter() - start
    epochs = [timed(trainer.run_epoch)]
    while sum(epochs) < FIT_SECONDS:
        epochs.append(timed(trainer.run_epoch))
    evaluation = timed(trainer.heldout_accuracy)
    each = sum(epochs) / len(epochs) + (evaluation / recipe.run.eval_every if recipe.run.eval_every else 0.0)
    # At the end, all images are evaluated once more for the cards.
    ending = evaluation * (2 + len(trainer.part.train) / len(trainer.part.heldout))
    count = max(1, int((budget - startup - ending) / each))
    speed = trainer.steps * recipe.optim.batch_size * len(epochs) / sum(epochs)
    yield f"{speed:.0f} images/s, {each:.2f} s per epoch; {startup:.0f} s to start, {ending:.0f} s to end"
    if trainer.device.type == "cuda":
        yield f"{torch.cuda.max_memory_allocated(trainer.device) / 2**30:.1f} GiB of GPU memory"
    yield f"optim.epochs={count}"


# --- Probes -----------------------------------------------------------------------------------------------


def nearest_mean(x: Tensor, y: Tensor, x_test: Tensor, classes: int) -> Tensor:
    """Predict the class whose plain mean feature has the largest cosine with the feature; int64 [M]."""
    one_hot = F.one_hot(y, classes).float()
    means = (one_hot.T @ x) / one_hot.sum(0)[:, None].clamp_min(1)
    return (F.normalize(x_test, dim=1) @ F.normalize(means, dim=1).T).argmax(1)


def fit_linear(x: Tensor, y: Tensor, classes: int, l2: float, start: Tensor | None = None) -> Tensor:
    """Fit multinomial logistic regression by L-BFGS; return the weights [D + 1, K], the bias last."""
    weights = torch.zeros(x.shape[1] + 1, classes, device=x.device) if start is None else start.clone()
    weights.requires_grad_()
    solver: torch.optim.Optimizer = torch.optim.LBFGS(
        [weights], max_iter=100, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weights[:-1] + weights[-1], y) + 0.5 * l2 * weights[:-1].square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    solver.step(closure)
    return weights.detach()


def fit_ridge(x: Tensor, y: Tensor, classes: int, l2: float) -> Tensor:
    """Fit ridge regression to one-hot targets in float64; return the weights [D + 1, K], the bias last."""
    x, targets = x.double(), F.one_hot(y, classes).double()
    mean, offset = x.mean(0), targets.mean(0)
    centred = x - mean
    gram = centred.T @ centred + l2 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    slope = torch.linalg.solve(gram, centred.T @ (targets - offset))
    return torch.cat([slope, (offset - mean @ slope)[None]]).float()


def predict_linear(weights: Tensor, x: Tensor) -> Tensor:
    """Return the class with the largest score; int64 [N]."""
    return (x @ weights[:-1] + weights[-1]).argmax(1)


def validation_mask(labels: Tensor, seed: int, share: float = 0.2) -> Tensor:
    """Choose a share of the images of every class, but never all images of a class; bool [N]."""
    rng, mask = np.random.default_rng(seed), np.zeros(len(labels), bool)
    host = labels.cpu().numpy()
    for label in np.unique(host):
        rows = rng.permutation(np.flatnonzero(host == label))
        mask[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    return torch.from_numpy(mask).to(labels.device)


def probe_features(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, classes: int, seed: int) -> dict[str, Any]:
    """Return the accuracies (percent) of simple classifiers on frozen features.

    `x` is [N, D] and `x_test` [M, D]. The strength of the L2 penalty is chosen on a fifth of the training
    images, after which the classifier is fitted to all of them.
    """
    report: dict[str, Any] = {"nearest_mean": accuracy(nearest_mean(x, y, x_test, classes), y_test)}
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    held = validation_mask(y, seed)

    scores, start = {}, None
    for l2 in LINEAR_GRID:
        # From the strongest penalty to the weakest, each fit starting at the one before.
        start = fit_linear(x[~held], y[~held], classes, l2, start)
        scores[l2] = accuracy(predict_linear(start, x[held]), y[held])
    best = max(scores, key=lambda key: (scores[key], key))
    report["linear"] = accuracy(predict_linear(fit_linear(x, y, classes, best), x_test), y_test)
    report["linear_l2"] = best

    scores = {}
    for l2 in RIDGE_GRID:
        weights = fit_ridge(x[~held], y[~held], classes, l2)
        scores[l2] = accuracy(predict_linear(weights, x[held]), y[held])
    best = max(scores, key=lambda key: (scores[key], key))
    report["ridge"] = accuracy(predict_linear(fit_ridge(x, y, classes, best), x_test), y_test)
    report["ridge_l2"] = best
    return report


def probe(state: Mapping[str, Tensor], recipe: Recipe, part: Part, device: torch.device) -> dict[str, Any]:
    """Probe the published weights on a part, and for comparison the random initialisation of the training."""
    normalise = Normaliser(recipe.data, device)
    report: dict[str, Any] = {}
    for kind in ("trained", "random_init"):
        model = create_model(recipe.model, 0, recipe.seed)
        if kind == "trained":
            model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
        model.to(device)
        x, x_test = (forward(model, images.pixels, normalise) for images in (part.train, part.heldout))
        report[kind] = probe_features(x, part.train.labels, x_test, part.heldout.labels, len(part.classes), recipe.seed)
    return report


# --- Output -----------------------------------------------------------------------------------------------


def write_outputs(trainer: Trainer, data: DataFile, folder: Path, skip_probe: bool) -> dict[str, Any]:
    """Write weights and model cards; return the machine-readable card.

    Raises:
        ValueError: the weights file would be larger than the recipe permits.
    """
    recipe, part, device = trainer.recipe, trainer.part, trainer.device
    state = trainer.result()
    # One metadata entry only: safetensors does not keep several in a stable order.
    content = safetensors.torch.save(state, {"format": "pt"})
    if len(content) > recipe.run.max_mib * 2**20:
        raise ValueError(f"the weights take {len(content)} bytes, more than run.max_mib = {recipe.run.max_mib} permits")
    weights = folder / f"{recipe.name}.safetensors"
    write_atomically(weights, content)

    card: dict[str, Any] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "weights": {
            "file": weights.name,
            "bytes": len(content),
            "dtype": "float16",
            "parameters": sum(tensor.numel() for tensor in state.values()),
            "file_sha256": hashlib.sha256(content).hexdigest(),
            "weights_hash": weights_hash(state),
        },
        "data": {
            "file": data.name,
            "sha256": data.sha256,
            "classes": len(part.classes),
            "train_images": len(part.train),
            "heldout_images": len(part.heldout),
        },
        "accuracy": {
            "heldout": trainer.heldout_accuracy(),
            "train": accuracy(
                forward(trainer.average, part.train.pixels, trainer.normalise).argmax(1), part.train.labels
            ),
        },
        "probes": None,
        "recipe": as_json(recipe),
        "environment": {
            "torch": torch.__version__,
            "timm": timm.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "training_seconds": round(trainer.seconds, 1),
        },
        "history": trainer.history,
        "class_names": part.classes,
    }
    if recipe.data.probe_part >= 0 and not skip_probe:
        card["probes"] = probe_report(state, recipe, data, device)
    write_cards(card, recipe, folder)
    return card


def probe_report(state: Mapping[str, Tensor], recipe: Recipe, data: DataFile, device: torch.device) -> dict[str, Any]:
    """Probe the weights on the probe part of the data file; return the results for the card."""
    probed = data.part(recipe.data.probe_part, device)
    return {
        "part": recipe.data.probe_part,
        "name": recipe.data.probe_name,
        "file": data.name,
        "sha256": data.sha256,
        "classes": len(probed.classes),
        "train_images": len(probed.train),
        "test_images": len(probed.heldout),
        **probe(state, recipe, probed, device),
    }


def probe_outputs(recipe: Recipe, data: DataFile, folder: Path, device: torch.device) -> dict[str, Any]:
    """Probe the weights in the output folder and rewrite the cards; return the machine-readable card.

    Raises:
        ValueError: the card belongs to another recipe, or the weights are not those of the card.
    """
    card = json.loads((folder / f"{recipe.name}.json").read_text(encoding="utf-8"))
    current = as_json(recipe)
    if changed := [key for key in ("seed", "model", "optim", "augment") if card["recipe"][key] != current[key]]:
        raise ValueError(f"the card belongs to another recipe; different: {', '.join(changed)}")
    state = safetensors.torch.load_file(folder / card["weights"]["file"])
    if weights_hash(state) != card["weights"]["weights_hash"]:
        raise ValueError(f"{card['weights']['file']} does not hold the weights of its card")
    card["probes"] = probe_report(state, recipe, data, device)
    write_cards(card, recipe, folder)
    return card


def write_cards(card: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """Write both model cards."""
    write_atomically(folder / f"{recipe.name}.json", (json.dumps(card, indent=2) + "\n").encode())
    write_atomically(folder / f"{recipe.name}.md", "\n".join(card_lines(card, recipe)).encode())


def card_lines(card: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """Yield the lines of the model card for people."""
    weights, data, probes = card["weights"], card["data"], card["probes"]
    model = recipe.model
    settings = {
        "architecture": f"timm `{model.arch}`",
        "input": f"{model.img_size}x{model.img_size} pixels, channels: {model.in_chans}",
        "normalisation": f"(pixel / 255 - {list(recipe.data.mean)}) / {list(recipe.data.std)}",
        "patch size": f"{model.patch_size} pixels",
        "other model arguments": f"`{json.dumps(model.kwargs)}`" if model.kwargs else "none",
        "feature": "class token after the final norm",
        "parameters": f"{weights['parameters']:,} (without head)",
        "file": f"`{weights['file']}`, {weights['bytes']:,} bytes, fp16, SHA-256 `{weights['file_sha256']}`",
        "weights hash": f"`{weights['weights_hash']}`",
    }
    yield f"# {card['name']}"
    yield ""
    yield (
        f"A Vision Transformer backbone, trained from random initialisation (seed {card['seed']}) by "
        "`tools/pretrain_backbone.py` to classify the images described below. The classification head is not "
        "part of the file."
    )
    yield ""
    yield from table(("property", "value"), settings.items())
    yield "The weights hash is SHA-256 over the sorted names, shapes and little-endian float32 values."
    yield ""
    yield "## Data"
    yield ""
    yield f"- {recipe.data.title or data['file']}: `{data['file']}`, SHA-256 `{data['sha256']}`"
    yield f"- {data['train_images']:,} training images of {data['classes']} classes"
    yield f"- {data['heldout_images']:,} held-out images of the same classes: {recipe.data.heldout_name}"
    if recipe.data.licence:
        yield f"- licence: {recipe.data.licence}"
    yield from (f"- {note}" for note in recipe.data.notes)
    yield ""
    yield "## Accuracy"
    yield ""
    yield "Top-1 in percent, with the classification head used in training."
    yield ""
    rows = [
        (recipe.data.heldout_name, card["accuracy"]["heldout"]),
        ("training images", card["accuracy"]["train"]),
    ]
    yield from table(("images", "accuracy"), [(name, f"{value:.2f}") for name, value in rows])
    yield (
        "During training, only the held-out images of the training classes were looked at; the weights are "
        "those after the last epoch, whatever their accuracy."
    )
    yield ""
    if probes:
        yield f"### Frozen features on {probes['name']}"
        yield ""
        yield (
            f"{probes['classes']} classes, none of them a training class; {probes['train_images']:,} "
            f"training and {probes['test_images']:,} test images (`{probes['file']}`, SHA-256 `{probes['sha256']}`); "
            "evaluated once, after training. The random "
            "initialisation has the same seed as training. The penalties of the linear and ridge probes were "
            "chosen on a fifth of the training images."
        )
        yield ""
        names = {
            "nearest_mean": "nearest class mean (cosine)",
            "linear": "linear probe (logistic regression)",
            "ridge": "ridge regression on one-hot targets",
        }
        columns = ("trained", "random_init")
        lines = [(label, *(f"{probes[kind][key]:.2f}" for kind in columns)) for key, label in names.items()]
        yield from table(("classifier on frozen features", "this backbone", "random initialisation"), lines)
    yield "## Training"
    yield ""
    used = card["environment"]
    yield (
        f"{recipe.optim.epochs} epochs in {used['training_seconds']:.0f} s on {used['device']}, torch "
        f"{used['torch']}, timm {used['timm']}. The complete recipe:"
    )
    yield ""
    yield "```json"
    yield json.dumps(card["recipe"], indent=2)
    yield "```"
    yield ""
    yield "## Limits"
    yield ""
    yield (
        f"- The backbone has seen {data['train_images']:,} images of one kind only; it is meant for "
        "benchmark runs on images of that kind, not for other images."
    )
    yield "- Accuracies are of one training run; another seed or device gives other weights and accuracies."
    yield "- Training on a GPU repeats only as far as its kernels are deterministic."
    yield "- Values are rounded to fp16; the hash and the probes refer to the rounded values."
    yield ""
    yield "## Training classes"
    yield ""
    yield ", ".join(card["class_names"])
    yield ""


def table(header: Sequence[str], rows: typing.Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table and an empty line."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


# --- Command line -----------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Pre-train a ViT backbone from a recipe.")
    parser.add_argument("recipe", type=Path, help="recipe file (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, cards and checkpoint")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="override recipe fields"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, help="override the seed of the recipe")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the model (default: on CUDA only)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    parser.add_argument("--stop-after", type=int, metavar="EPOCH", help="stop after this epoch and leave a checkpoint")
    parser.add_argument("--skip-probe", action="store_true", help="do not use the probe part")
    parser.add_argument("--probe", action="store_true", help="only probe the finished weights in the output folder")
    parser.add_argument(
        "--fit",
        type=float,
        metavar="SECONDS",
        help="only measure how many epochs fit into this time; the last line printed can be passed to --set",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = parse_arguments(argv)
    recipe = load_recipe(arguments.recipe, arguments.set, arguments.seed)
    device = torch.device(arguments.device)
    use_compile = device.type == "cuda" if arguments.compile is None else arguments.compile
    compile_mode = recipe.run.compile if use_compile else "off"
    if recipe.run.deterministic:
        # cuBLAS reads this when it is first used, which is after this point.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    start = time.perf_counter()
    data = DataFile(Path(recipe.data.file))
    if arguments.probe:
        card = probe_outputs(recipe, data, arguments.out, device)
        print(json.dumps(card["probes"], indent=2))
        return 0
    part = data.part(recipe.data.train_part, device)
    wanted = (recipe.model.in_chans, recipe.model.img_size, recipe.model.img_size)
    if tuple(part.train.pixels.shape[1:]) != wanted:
        raise ValueError(f"images are {tuple(part.train.pixels.shape[1:])}, but the model takes {wanted}")
    trainer = Trainer(recipe, part, device, compile_mode)
    if arguments.fit is not None:
        print(*fit_lines(trainer, arguments.fit, start), sep="\n")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.resume and (arguments.out / "checkpoint.safetensors").exists():
        trainer.load(arguments.out)
        print(f"resuming after epoch {trainer.epoch}")
    print(
        f"{recipe.name}: {len(part.train)} training and {len(part.heldout)} held-out images of "
        f"{len(part.classes)} classes, {trainer.steps} steps per epoch, {device}, compile {compile_mode}"
    )
    if not train(trainer, arguments.out, arguments.stop_after):
        print(f"stopped after epoch {trainer.epoch}; continue with --resume")
        return 0
    card = write_outputs(trainer, data, arguments.out, arguments.skip_probe)
    print(json.dumps({key: card[key] for key in ("name", "accuracy", "probes", "weights")}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
