"""Numbers from the authors' released implementations (see README.md here), and what all replays of them share."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.phase import Phase, take_step

FOLDER = Path(__file__).parent


def normal(name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """shift + scale * standard normals, seeded by the CRC-32 of the name; all in fp32."""
    return torch.from_numpy(np.float32(shift) + np.float32(scale) * _standard_normal(name, shape))


@lru_cache(maxsize=1024)
def _standard_normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kept, as replays of one file ask for the same again and again; not to be changed."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = rng.standard_normal(shape, dtype=np.float32)
    values.flags.writeable = False
    return values


def tiny_vit(
    dim: int, depth: int, heads: int, weight: Callable[[str, tuple[int, ...]], Tensor], **options: Any
) -> VisionTransformer:
    """A 32-pixel ViT with 4 patches whose parameters come from `weight(name, shape)`; options are timm's."""
    vit = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0, **options
    ).eval()
    vit.load_state_dict({name: weight(name, tuple(value.shape)) for name, value in vit.state_dict().items()})
    return vit


def error(value: Tensor | np.ndarray, reference: np.ndarray, floor: float = 0.0) -> float:
    """Scaled maximum error: max|x - ref| / max|ref|; where the reference is all zero, the absolute one.

    Args:
        floor: of max|ref|, for differences that may happen to cancel.
    """
    difference = float(np.abs(np.asarray(value, dtype=np.float64) - reference).max(initial=0.0))
    return difference / (float(np.abs(reference).max(initial=floor)) or 1.0)


def train(
    phase: Phase, forward: Callable[[Tensor], Any], batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
) -> Tensor:
    """Run a phase on the batches of each epoch, equally many in all; returns the loss of each, before its step."""
    optimizer, losses = phase.optimizer(phase.parameters), []
    base = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(phase.epochs):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * phase.schedule(epoch, phase.epochs)
        listed = list(batches(epoch))
        for inputs, labels in listed:
            optimizer.zero_grad()
            if phase.before_step is not None:
                with torch.no_grad():
                    phase.before_step(inputs, len(losses) + 1, len(listed) * phase.epochs)
            loss = phase.loss(forward(inputs), labels).mean()
            losses.append(loss.detach())
            loss.backward()
            take_step(phase, optimizer)
            if phase.after_step is not None:
                with torch.no_grad():
                    phase.after_step(len(losses), len(listed) * phase.epochs)
    return torch.stack(losses)


# --- files that `python -m tests.golden.replay` understands -------------------------------------------------------


class Unusable(Exception):
    """A file that cannot be replayed; the message is one sentence."""


@dataclass(frozen=True)
class Check:
    """A quantity's error (the worst of `count` arrays, at `key`) and its tolerance."""

    name: str
    error: float
    tolerance: float
    key: str
    count: int = 1

    @property
    def passed(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.error <= self.tolerance


def worst(checks: Iterable[Check]) -> list[Check]:
    """One check per quantity, the worst of its arrays, in the order of their first appearance."""
    found: dict[str, Check] = {}
    for check in checks:
        old = found.get(check.name)
        if old is None:
            found[check.name] = check
            continue
        key = check if math.isnan(check.error) or check.error > old.error else old
        found[check.name] = replace(key, count=old.count + 1)
    return list(found.values())


def quantity(key: str) -> str:
    """A key without block, projection, layer and fingerprint; of a metric, its name."""
    key = re.sub(r"^cases/[^/]+/expected/", "", key)
    return re.sub(r"/(blocks\.|layer)\d+(\.[a-z]+)?|\.\d+$", "", key.partition("#")[0])


class Fixture:
    """The arrays of a file, and which of them have been used."""

    def __init__(self, data: Mapping[str, np.ndarray]) -> None:
        self.data = data
        self.used: set[str] = set()

    @classmethod
    def load(cls, path: Path) -> Fixture:
        """All arrays of an .npz file, or of a .json file, where `a/b` is the value of `b` in the object `a`.

        Raises:
            Unusable: not such a file.
        """
        if path.suffix == ".json":
            try:
                return cls(dict(_leaves(json.loads(path.read_text(encoding="utf-8")))))
            except (OSError, ValueError, RecursionError) as problem:
                raise Unusable(f"{path} is not a readable .json file of arrays ({problem}).") from problem
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls({key: file[key] for key in file.files})
        except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as problem:
            raise Unusable(f"{path} is not a readable .npz file of plain arrays ({problem}).") from problem

    def __contains__(self, key: str) -> bool:
        """Whether an array is stored, whole or as a fingerprint."""
        return key in self.data or any(f"{key}#{part}" in self.data for part in ("fro", "corner", "probe"))

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.data:
            raise Unusable(f"The file has no key '{key}', which is needed to rebuild its inputs.")
        self.used.add(key)
        return self.data[key]

    def any(self, pattern: str) -> bool:
        """Whether the start of a key matches."""
        return any(re.match(pattern, key) for key in self.data)

    def numbers(self, pattern: str) -> list[int]:
        """The different numbers, ascending, that the pattern's one group finds at the start of keys."""
        return sorted({int(match[1]) for match in (re.match(pattern, key) for key in self.data) if match})

    def size(self, pattern: str, axis: int, default: int) -> int:
        """Length of an axis of the first array whose key begins like the pattern."""
        return next((int(value.shape[axis]) for key, value in self.data.items() if re.match(pattern, key)), default)

    @cached_property
    def prefix(self) -> str:
        """What all names of random streams start with."""
        return str(self["cfg/prefix" if self.any("cfg/") else "meta.prefix"])

    def checksum(self, key: str, value: Tensor, rtol: float) -> None:
        """Verify [sum, sum of |.|, first four values], if stored.

        Raises:
            Unusable: the random stream is not the one of the file.
        """
        flat = value.double().flatten()
        ours = torch.stack([flat.sum(), flat.abs().sum(), *flat[:4]])
        # Sums may cancel: their rounding is relative to the sum of absolute values.
        self.verify(key, ours, rtol, 1e-14 * float(ours[1]))

    def verify(self, key: str, value: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Verify numbers about the inputs, if stored.

        Raises:
            Unusable: the random stream is not the one of the file.
        """
        if key not in self.data:
            return
        ours, stored = np.asarray(value), self[key]
        if ours.shape != stored.shape or not np.allclose(ours, stored, rtol=rtol, atol=atol):
            raise Unusable(f"Checksum {key} does not match: the random stream differs, so nothing can be compared.")

    def compare(
        self,
        key: str,
        value: Any,
        tolerance: float,
        variant: str = "",
        start: Any = None,
        absolute: bool = False,
        floor: float = 0.0,
    ) -> Iterator[Check]:
        """Compare with a stored array or its fingerprint, if either is there.

        Args:
            key: of the array.
            value: ours; of a parameter without a gradient, None counts as zeros.
            tolerance: of the scaled (or `absolute`) maximum error.
            variant: added to the quantity's name.
            start: compare the change from this array instead.
            floor: see `error`.
        """
        if key not in self:
            return
        ours = {"": np.zeros(self.data[key].shape) if value is None else _array(value)}
        base = {"": np.zeros(()) if start is None else _array(start)}
        if key not in self.data:
            ours, base = self._fingerprint(ours[""]), self._fingerprint(base[""])
        for part, array in ours.items():
            if key + part not in self.data:
                continue
            stored = np.asarray(self[key + part], dtype=np.float64)
            if part == "#fro" and start is not None:
                continue
            zero = base[part] if start is not None else 0.0
            if array.shape != stored.shape:
                found = math.inf
            elif absolute:
                found = float(np.abs(array - stored).max(initial=0.0))
            else:
                found = error(array - zero, stored - zero, floor)
            yield Check(quantity(key) + variant, found, tolerance, key + part)

    def equal(self, key: str, value: Any, variant: str = "") -> Iterator[Check]:
        """Compare exactly: counts, indices or a word."""
        if key in self.data:
            same = np.array_equal(self[key], np.asarray(value))
            yield Check(quantity(key) + variant, 0.0 if same else math.inf, 1e-9, key)

    def _fingerprint(self, matrix: np.ndarray) -> dict[str, np.ndarray]:
        if matrix.ndim != 2:
            return {}
        rows, columns = matrix.shape
        length = max(rows, columns)
        probe = normal(f"{self.prefix}/probe/{length}", (length,)).double().numpy()
        product = matrix @ probe if rows <= columns else matrix.T @ probe
        return {"#fro": np.asarray(np.linalg.norm(matrix)), "#corner": matrix[:8, :8], "#probe": product}


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        keys: pattern that only its keys begin with.
        inputs: pattern found in keys of what is given and not compared.
        checks: all comparisons; checksums of inputs come first.
        informative: pattern of whole keys that nothing needs to use -> why, in the words of the numbers' description.
    """

    keys: str
    inputs: str
    checks: Callable[[Fixture], Iterator[Check]]
    informative: Mapping[str, str] = field(default_factory=dict)

    def quantities(self, fixture: Fixture) -> list[str]:
        """All quantities that a file can be compared in."""
        compared = (key for key in fixture.data if not re.search(self.inputs, key) and not self._informs(key))
        return list(dict.fromkeys(map(quantity, compared)))

    def unused(self, fixture: Fixture) -> list[str]:
        """Keys of arrays that should have been used, and were not."""
        return [key for key in fixture.data if key not in fixture.used and not self._informs(key)]

    def _informs(self, key: str) -> bool:
        return any(re.fullmatch(pattern, key) for pattern in self.informative)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}/{name}" if key else name)
    else:
        yield key, np.asarray(value)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=np.float64)
