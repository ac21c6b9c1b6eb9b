"""Numbers from the authors' released implementations (see README.md here), and the recipes to rebuild their inputs."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

FOLDER = Path(__file__).parent
Recipe = Callable[[str, tuple[int, ...], float, float], Tensor]
_HINT = re.compile(r"/(gap|margin|cut_gap)$")
_INPUT = re.compile(r"^cfg/|/(images_)?checksum|/labels$|/(mid|init)/alpha_\w+$")


def normal(name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """shift + scale * standard normals, seeded by the CRC-32 of the name; all in fp32."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = rng.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.float32(shift) + np.float32(scale) * values)


def tiny_vit(dim: int, depth: int, heads: int, weight: Callable[[str, tuple[int, ...]], Tensor]) -> VisionTransformer:
    """A 32-pixel ViT with 4 patches whose parameters come from `weight(name, shape)`."""
    vit = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0
    ).eval()
    vit.load_state_dict({name: weight(name, tuple(value.shape)) for name, value in vit.state_dict().items()})
    return vit


def error(value: Tensor | np.ndarray, reference: np.ndarray) -> float:
    """Scaled maximum error: max|x - ref| / max|ref|; where the reference is all zero, the absolute one."""
    difference = float(np.abs(np.asarray(value, dtype=np.float64) - reference).max(initial=0.0))
    return difference / (float(np.abs(reference).max(initial=0.0)) or 1.0)


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
    """A key without block, projection, layer and fingerprint."""
    return re.sub(r"/(blocks\.|layer)\d+(\.[a-z]+)?", "", key.partition("#")[0])


class Fixture:
    """The arrays of a file, and which of them have been used."""

    def __init__(self, data: Mapping[str, np.ndarray]) -> None:
        self.data = data
        self.used: set[str] = set()

    @classmethod
    def load(cls, path: Path) -> Fixture:
        """All arrays of an .npz file.

        Raises:
            Unusable: not such a file.
        """
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

    def any(self, start: str) -> bool:
        """Whether a key starts like this."""
        return any(key.startswith(start) for key in self.data)

    @property
    def prefix(self) -> str:
        """What all names of random streams start with."""
        return str(self["cfg/prefix"])

    def suites(self) -> list[str]:
        """The suites with a backbone, in the order of the file."""
        return [key.split("/")[1] for key in self.data if re.fullmatch(r"cfg/[^/]+/D", key)]

    def vit(self, suite: str) -> VisionTransformer:
        """The suite's backbone, with the checksums of its weights verified."""
        path = f"{self.prefix}/{suite}/vit"

        def weight(name: str, shape: tuple[int, ...]) -> Tensor:
            full = f"{path}/{name}"
            if name.endswith(".bias"):
                return normal(full, shape, 0.02)
            if name.split(".")[-2:-1] in (["norm"], ["norm1"], ["norm2"]):
                return normal(full, shape, 0.1, 1.0)
            if name in ("cls_token", "pos_embed"):
                return normal(full, shape, 0.2)
            return normal(full, shape, 1 / math.sqrt(math.prod(shape[1:])))

        vit = tiny_vit(*(int(self[f"cfg/{suite}/{name}"]) for name in ("D", "depth", "heads")), weight)
        for name, value in vit.state_dict().items():
            self.checksum(f"{suite}/checksum/{name}", value, 1e-10)
        return vit

    def checksum(self, key: str, value: Tensor, rtol: float) -> None:
        """Verify [sum, sum of |.|, first four values], if stored.

        Raises:
            Unusable: the random stream is not the one of the file.
        """
        if key not in self.data:
            return
        flat, stored = value.double().flatten(), self[key]
        ours = torch.stack([flat.sum(), flat.abs().sum(), *flat[:4]]).numpy()
        # Sums may cancel: their rounding is relative to the sum of absolute values.
        if ours.shape != stored.shape or not np.allclose(ours, stored, rtol=rtol, atol=1e-14 * abs(float(ours[1]))):
            raise Unusable(f"Checksum {key} does not match: the random stream differs, so nothing can be compared.")

    def head(self, suite: str, tasks: int, into: torch.nn.Linear) -> None:
        """Fill a head with the recipe's rows of the first tasks."""
        path, classes, dim = f"{self.prefix}/{suite}/head", int(self[f"cfg/{suite}/C"]), int(self[f"cfg/{suite}/D"])
        names = [f"{path}/task{k}" for k in range(tasks)]
        with torch.no_grad():
            into.weight.copy_(torch.cat([normal(f"{name}/weight", (classes, dim), dim**-0.5) for name in names]))
            into.bias.copy_(torch.cat([normal(f"{name}/bias", (classes,), 0.1) for name in names]))

    def compare(
        self,
        key: str,
        value: Any,
        tolerance: float,
        variant: str = "",
        start: Any = None,
        absolute: bool = False,
    ) -> Iterator[Check]:
        """Compare with a stored array or its fingerprint, if either is there.

        Args:
            key: of the array.
            value: ours.
            tolerance: of the scaled (or `absolute`) maximum error.
            variant: added to the quantity's name.
            start: compare the change from this array instead.
        """
        ours = {"": _array(value)}
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
                found = error(array - zero, stored - zero)
            yield Check(quantity(key) + variant, found, tolerance, key + part)

    def equal(self, key: str, value: Any) -> Iterator[Check]:
        """Compare exactly: a count or a word."""
        if key in self.data:
            yield Check(quantity(key), 0.0 if self[key].item() == value else math.inf, 1e-9, key)

    def _fingerprint(self, matrix: np.ndarray) -> dict[str, np.ndarray]:
        if matrix.ndim != 2:
            return {}
        rows, columns = matrix.shape
        length = max(rows, columns)
        probe = normal(f"{self.prefix}/probe/{length}", (length,)).double().numpy()
        product = matrix @ probe if rows <= columns else matrix.T @ probe
        return {"#fro": np.asarray(np.linalg.norm(matrix)), "#corner": matrix[:8, :8], "#probe": product}

    def quantities(self) -> list[str]:
        """All quantities that a file can be compared in."""
        return list(
            dict.fromkeys(quantity(key) for key in self.data if not _INPUT.search(key) and not _HINT.search(key))
        )

    def unused(self) -> list[str]:
        """Keys that nothing has used and that are not mere hints about conditioning."""
        return [key for key in self.data if key not in self.used and not _HINT.search(key)]


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=np.float64)
