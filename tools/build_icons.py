"""Build the `icons-100` asset: real icons by many designers, split by designer.

The input is the unpacked npm package `@iconify/json`, version 2.2.535, obtained with

    npm pack @iconify/json@2.2.535 && tar xf iconify-json-2.2.535.tgz     # creates package/

and the builder (which needs `numpy`, `pillow` and `resvg-py`) is then run with

    python tools/build_icons.py --package package --out cl_bench/assets

Every human judgement (which names form one class, which sets belong to one designer, what was dropped and why) is in
`tools/icons_curation.toml`; this file only applies it. No random numbers are used: every arbitrary choice is ordered by
SHA-256, so the same input gives byte-identical output.

Steps:

1. Collect icons of permitted sets whose name, without style words, is a class name or one of its synonyms.
2. Render each as ink (0 background, 255 ink) on 32x32: the bounding box of the drawing, its longer side scaled to 28
   pixels, is centred with a constant margin of 2, so that size and padding do not reveal the set. Palette icons become
   inverted luminance over white, at full contrast. There are 16 grey levels, multiples of 17.
3. Split by designer group: test designers are never seen in any training image of any part.
4. Drop near-duplicates in each split, then each test image close to a training candidate of its class.
5. Assign the classes to parts by hash.
6. Enlarge the pre-training part by a rule: other icon names that enough training designers use, without names that
   share a word with a stream or tune class, and without near-duplicates of images of such a class.
7. Select at most the cap of images, round-robin over designer groups.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import re
import statistics
import time
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

SIZE = 32
"""Side of the images in pixels."""
INNER = 28
"""Length in pixels of the longer side of a drawing's bounding box."""
OVERSAMPLE = 4
PROBE = 144
"""Side in pixels of the first rendering, which only serves to find the bounding box."""
PARTS = ("stream", "tune", "pretrain")
CURATION = Path(__file__).with_name("icons_curation.toml")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Source:
    """One icon to render, with its origin and the class derived from its name."""

    cls: str
    group: str
    prefix: str
    name: str
    body: str
    box: Box
    palette: bool

    @property
    def ident(self) -> str:
        """Return the full iconify name."""
        return f"{self.prefix}:{self.name}"


@dataclass(frozen=True)
class Icon:
    """A rendered icon with 16 grey levels."""

    source: Source
    pixels: np.ndarray


@dataclass(frozen=True)
class ClassImages:
    """The cleaned images of one class, in the order in which they are selected."""

    train: list[Icon]
    test: list[Icon]

    def capped(self, per_group: int) -> ClassImages:
        """Return at most `per_group` images of each designer group."""
        return ClassImages(*(interleave(icons, per_group) if icons else [] for icons in (self.train, self.test)))


def digest(text: str) -> str:
    """Return the SHA-256 of a text; all arbitrary orders follow from it."""
    return hashlib.sha256(text.encode()).hexdigest()


class Namer:
    """Maps icon names to class names by removing style words and applying the synonyms."""

    def __init__(self, curation: dict[str, Any]) -> None:
        self._suffixes = frozenset(curation["names"]["style_suffixes"])
        self._prefixes = frozenset(curation["names"]["style_prefixes"])
        self._classes: dict[str, str] = {}
        for cls, synonyms in curation["classes"].items():
            for name in (cls, *synonyms):
                if self._classes.setdefault(name, cls) != cls:
                    raise ValueError(f"{name!r} is listed for two classes")

    def base(self, name: str) -> str:
        """Return the name without style words and numbers."""
        words = [w for w in name.split("-") if w]
        while len(words) > 1 and (words[-1] in self._suffixes or words[-1].isdigit()):
            words.pop()
        while len(words) > 1 and words[0] in self._prefixes:
            words.pop(0)
        if words:
            words[-1] = re.sub(r"(?<=[a-z]{3})\d+$", "", words[-1])
        return "-".join(words)

    def __call__(self, name: str) -> str | None:
        """Return the class of an icon name, or None."""
        return self._classes.get(self.base(name))


def singular(word: str) -> str:
    """Return a word without a plural s."""
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if plural else word


class PretrainNamer:
    """Accepts icon names as classes by rule; refuses names related to one of the protected classes."""

    def __init__(self, curation: dict[str, Any], namer: Namer, protected: Iterable[str]) -> None:
        rules = curation["pretrain"]
        self._namer = namer
        self._names = frozenset(rules["names"])
        words = set(rules["brands"]) | set(rules["glyphs"]) | set(rules["mirrored"])
        for cls in protected:
            for name in (cls, *curation["classes"][cls], *rules["related"].get(cls, [])):
                words.update(singular(word) for word in name.split("-") if word not in rules["generic"])
        self._words = frozenset(words)

    def __call__(self, name: str) -> str | None:
        """Return the class of an icon name, which is its base name, or None."""
        base = self._namer.base(name)
        if self._namer(name) is not None or base in self._names:
            return None
        words = base.split("-")
        refused = any(len(w) < 2 or w.isdigit() or self._words & {w, singular(w)} for w in words)
        return None if refused else base


def permitted_sets(collections: dict[str, Any], curation: dict[str, Any]) -> list[str]:
    """Return the prefixes of the sets whose licence, category and name are permitted."""
    rules = curation["sets"]
    return sorted(
        prefix
        for prefix, info in collections.items()
        if info["license"].get("spdx") in rules["licences"]
        and info.get("category") not in rules["excluded_categories"]
        and prefix not in rules["excluded"]
    )


def collect(
    package: Path,
    curation: dict[str, Any],
    collections: dict[str, Any],
    namer: Callable[[str], str | None],
    *,
    aliases: bool,
    known: Iterable[Source] = (),
) -> list[Source]:
    """Find every icon of a permitted set that belongs to a class and is not among the known ones."""
    group_of = {p: g for g, prefixes in curation["groups"].items() for p in prefixes}
    excluded = list(curation["excluded_icons"])
    known_bodies: dict[str, set[str]] = defaultdict(set)
    for source in known:
        known_bodies[source.prefix].add(source.body)
    sources: list[Source] = []
    for prefix in permitted_sets(collections, curation):
        data = json.loads((package / "json" / f"{prefix}.json").read_text(encoding="utf-8"))
        icons: dict[str, dict[str, Any]] = data["icons"]
        found = {name: (namer(name), icon) for name, icon in icons.items()}
        for name, alias in data.get("aliases", {}).items() if aliases else ():
            # An alias only counts if its parent's own name has no class; turned copies are other drawings.
            parent = alias["parent"]
            turned = alias.keys() & {"rotate", "hFlip", "vFlip"}
            if not turned and parent in icons and found[parent][0] is None:
                found[name] = (namer(name), icons[parent])
        bodies = known_bodies[prefix]
        for name, (cls, icon) in sorted(found.items()):
            body = icon["body"]
            if cls is None or body in bodies or "<animate" in body:
                continue
            if any(fnmatchcase(f"{prefix}:{name}", pattern) for pattern in excluded):
                continue
            bodies.add(body)
            left, top, width, height = (
                float(icon.get(key, data.get(key, default)))
                for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
            )
            sources.append(
                Source(
                    cls=cls,
                    group=group_of.get(prefix, prefix),
                    prefix=prefix,
                    name=name,
                    body=body,
                    box=(left, top, width, height),
                    palette=bool(collections[prefix].get("palette")),
                )
            )
    return sources


def ink(body: str, box: Box, side: int) -> np.ndarray:
    """Render an SVG body seen through a square view box; return its ink (inverted luminance), 0..255."""
    x, y, w, h = box
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{x:.4f} {y:.4f} {w:.4f} {h:.4f}" color="#000">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.int64)
    luminance = (299 * rgba[..., 0] + 587 * rgba[..., 1] + 114 * rgba[..., 2]) // 1000
    return (255 - luminance) * rgba[..., 3] // 255


def rasterise(source: Source) -> bytes | None:
    """Render an icon to 32x32 bytes with 16 grey levels; None if it cannot be rendered legibly."""
    left, top, width, height = source.box
    span = max(width, height)
    frame = (left - (span - width) / 2, top - (span - height) / 2, span, span)
    try:
        probe = ink(source.body, frame, PROBE)
    except (ValueError, RuntimeError):
        return None
    rows, cols = (np.flatnonzero((probe > 24).any(axis=a)) for a in (1, 0))
    if len(rows) < 6 and len(cols) < 6:
        return None
    unit = span / PROBE
    x0, x1 = frame[0] + cols[0] * unit, frame[0] + (cols[-1] + 1) * unit
    y0, y1 = frame[1] + rows[0] * unit, frame[1] + (rows[-1] + 1) * unit
    side = max(x1 - x0, y1 - y0) * SIZE / INNER
    fitted = ((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side)
    fine = ink(source.body, fitted, SIZE * OVERSAMPLE)
    small = fine.reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE).sum(axis=(1, 3)) // OVERSAMPLE**2
    if source.palette and small.max() > 0:
        small = small * 255 // small.max()
    levels = (small + 8) // 17
    cover = levels.sum() / (15 * SIZE * SIZE)
    if levels.max() < 8 or not 0.02 <= cover <= 0.75:
        return None
    return (levels * 17).astype(np.uint8).tobytes()


def often_used(sources: list[Source], test_groups: frozenset[str], least: int) -> list[Source]:
    """Keep the classes that have icons of at least `least` training designers."""
    groups: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        if source.group not in test_groups:
            groups[source.cls].add(source.group)
    return [source for source in sources if len(groups[source.cls]) >= least]


def render_all(sources: list[Source], processes: int) -> list[Icon]:
    """Render all icons, in order; illegible ones are left out."""
    with Pool(processes) as pool:
        rendered = pool.map(rasterise, sources, chunksize=64)
    return [
        Icon(source, np.frombuffer(data, np.uint8).reshape(SIZE, SIZE))
        for source, data in zip(sources, rendered, strict=True)
        if data is not None
    ]


def drop_ambiguous(icons: list[Icon], known: Iterable[Icon] = ()) -> list[Icon]:
    """Leave out drawings that occur, with identical pixels, in two classes: their label is not reliable."""
    classes: dict[bytes, set[str]] = defaultdict(set)
    for icon in (*icons, *known):
        classes[icon.pixels.tobytes()].add(icon.source.cls)
    return [icon for icon in icons if len(classes[icon.pixels.tobytes()]) == 1]


def choose_test_groups(icons: list[Icon], fraction: float, cap: int) -> list[str]:
    """Choose designer groups in hash order until they hold the given fraction of the (capped) images."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for icon in icons:
        counts[icon.source.group][icon.source.cls] += 1
    sizes = {group: sum(min(n, cap) for n in classes.values()) for group, classes in counts.items()}
    wanted = fraction * sum(sizes.values())
    chosen: list[str] = []
    held = 0
    for group in sorted(sizes, key=digest):
        if held >= wanted:
            break
        # A group that would exceed the fraction by much is skipped, and the search continues.
        if held + sizes[group] <= wanted * 1.05:
            chosen.append(group)
            held += sizes[group]
    return sorted(chosen)


def interleave(icons: list[Icon], cap: int) -> list[Icon]:
    """Order icons round-robin over designer groups, at most `cap` of each group."""
    queues: dict[str, list[Icon]] = defaultdict(list)
    for icon in sorted(icons, key=lambda i: digest(i.source.ident)):
        queues[icon.source.group].append(icon)
    groups = sorted(queues, key=lambda g: digest(f"{icons[0].source.cls}/{g}"))
    return [queues[g][turn] for turn in range(cap) for g in groups if turn < len(queues[g])]


def soften(icons: list[Icon]) -> np.ndarray:
    """Return the images smoothed by a 3x3 binomial kernel, as whole numbers in float64 [N, 34, 34]."""
    levels = np.stack([icon.pixels for icon in icons]).astype(np.float64) // 17
    padded = np.pad(levels, ((0, 0), (2, 2), (2, 2)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]


def similarity(first: list[Icon], second: list[Icon]) -> np.ndarray:
    """Return the cosine similarity of every pair, the highest over shifts of up to one pixel."""
    # The dot products are of whole numbers, exact in float64, so the result does not depend on the BLAS.
    a, b = soften(first), np.pad(soften(second), ((0, 0), (1, 1), (1, 1)))
    n_first, side, _ = a.shape
    n_second = len(b)
    best = np.zeros((n_first, n_second))
    for dy in range(3):
        for dx in range(3):
            moved = b[:, dy : dy + side, dx : dx + side]
            np.maximum(best, a.reshape(n_first, -1) @ moved.reshape(n_second, -1).T, out=best)
    # The margin of the drawings is wider than the shift, so a shift does not change the norm.
    norms = [np.sqrt((x**2).sum(axis=(1, 2))) for x in (a, b)]
    return best / np.outer(*norms)


def thin_out(icons: list[Icon], threshold: float) -> list[Icon]:
    """Keep, in order, each icon that is not a near-duplicate of an icon already kept."""
    if not icons:
        return []
    alike = similarity(icons, icons) >= threshold
    distinct: list[int] = []
    for index in range(len(icons)):
        if not alike[index, distinct].any():
            distinct.append(index)
    return [icons[i] for i in distinct]


def drop_alike(icons: list[Icon], protected: list[Icon], threshold: float) -> list[Icon]:
    """Leave out the icons that are near-duplicates of a protected one."""
    distinct: list[Icon] = []
    for start in range(0, len(icons), 2048):
        block = icons[start : start + 2048]
        near = similarity(block, protected).max(axis=1) >= threshold
        distinct += [icon for icon, drop in zip(block, near, strict=True) if not drop]
    return distinct


def clean_classes(icons: list[Icon], test_groups: frozenset[str], curation: dict[str, Any]) -> dict[str, ClassImages]:
    """Split and clean the images of every class."""
    members: dict[str, list[Icon]] = defaultdict(list)
    for icon in icons:
        members[icon.source.cls].append(icon)
    return {cls: clean_class(m, test_groups, curation) for cls, m in sorted(members.items())}


def clean_class(icons: list[Icon], test_groups: frozenset[str], curation: dict[str, Any]) -> ClassImages:
    """Split one class by designer, remove near-duplicates and order the rest for selection."""
    rules = curation["duplicates"]
    train = [icon for icon in icons if icon.source.group not in test_groups]
    test = [icon for icon in icons if icon.source.group in test_groups]
    if train and test:
        near = similarity(test, train).max(axis=1) >= rules["test_to_train"]
        test = [icon for icon, drop in zip(test, near, strict=True) if not drop]
    cleaned = (thin_out(interleave(s, len(s)) if s else [], rules["within_split"]) for s in (train, test))
    return ClassImages(*cleaned)


def assign_parts(classes: dict[str, ClassImages], curation: dict[str, Any]) -> dict[str, list[str]]:
    """Assign classes with enough images to stream, tune and pretrain by the hash of their names."""
    limits, pretrain_only = curation["limits"], set(curation["pretrain_only"])
    eligible, rest = [], []
    for name, everything in sorted(classes.items()):
        images = everything.capped(limits["per_group_cap"])
        n_train, n_test = len(images.train), len(images.test)
        if name not in pretrain_only and n_train >= limits["train_min"] and n_test >= limits["test_min"]:
            eligible.append(name)
        elif n_train >= limits["pretrain_train_min"]:
            rest.append(name)
    eligible.sort(key=lambda name: digest(f"icons-100/{name}"))
    n_stream, n_tune = limits["stream_classes"], limits["tune_classes"]
    if len(eligible) < n_stream + n_tune:
        raise ValueError(f"only {len(eligible)} classes have enough images")
    return {
        "stream": sorted(eligible[:n_stream]),
        "tune": sorted(eligible[n_stream : n_stream + n_tune]),
        "pretrain": sorted(eligible[n_stream + n_tune :] + rest),
    }


def add_to_pretrain(
    parts: dict[str, list[str]], classes: dict[str, ClassImages], limits: dict[str, int]
) -> dict[str, list[str]]:
    """Add to the pre-training part every class that has enough images and is in no part yet."""
    taken = {name for names in parts.values() for name in names}
    new = [
        name
        for name, images in classes.items()
        if name not in taken and len(images.capped(limits["per_group_cap"]).train) >= limits["pretrain_train_min"]
    ]
    return parts | {"pretrain": sorted([*parts["pretrain"], *new])}


@dataclass(frozen=True)
class SelectedIcon:
    """One image of the asset."""

    part: int
    label: int
    split: int
    icon: Icon


def select(classes: dict[str, ClassImages], parts: dict[str, list[str]], limits: dict[str, int]) -> list[SelectedIcon]:
    """Select the images of every class up to the caps of its part, in the order in which they are stored."""
    rows: list[SelectedIcon] = []
    for part, part_name in enumerate(PARTS):
        prefix = "pretrain_" if part_name == "pretrain" else ""
        for label, name in enumerate(parts[part_name]):
            images = classes[name].capped(limits[f"{prefix}per_group_cap"])
            chosen = (
                images.train[: limits[f"{prefix}train_cap"]],
                images.test[: limits[f"{prefix}test_cap"]],
            )
            for split, icons in enumerate(chosen):
                ordered = sorted(icons, key=lambda i: i.source.ident)
                rows.extend(SelectedIcon(part, label, split, icon) for icon in ordered)
    return rows


def pack(rows: list[SelectedIcon], parts: dict[str, list[str]]) -> bytes:
    """Return the packed asset: an uncompressed .npz with fixed time stamps inside xz."""
    sets = sorted({row.icon.source.prefix for row in rows})
    set_index = {prefix: i for i, prefix in enumerate(sets)}
    classes = [name for part in PARTS for name in parts[part]]
    arrays: dict[str, np.ndarray] = {
        "images": np.stack([row.icon.pixels for row in rows]),
        "label": np.array([row.label for row in rows], np.int16),
        "set": np.array([set_index[row.icon.source.prefix] for row in rows], np.int16),
        "part": np.array([row.part for row in rows], np.uint8),
        "split": np.array([row.split for row in rows], np.uint8),
        "classes": np.array(classes),
        "class_part": np.array([i for i, part in enumerate(PARTS) for _ in parts[part]], np.uint8),
        "sets": np.array(sets),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    # Pixels are bytes without alignment, so position bits would only dilute the statistics of the coder.
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    options["dict_size"] = 1 << 25
    return lzma.compress(buffer.getvalue(), lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=[options])


def classes_toml(rows: list[SelectedIcon], parts: dict[str, list[str]], test_groups: list[str], sha: str) -> str:
    """Return the published class lists, with image counts, as TOML."""
    counts: dict[tuple[int, int, int], int] = defaultdict(int)
    for row in rows:
        counts[row.part, row.label, row.split] += 1
    by_group: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_group[row.icon.source.group].add(row.icon.source.prefix)
    lines = [
        "# Classes of icons-100 with their numbers of images. Written by tools/build_icons.py; do not edit.",
        "# A label is the position of the class in its part's list, counted from 0.",
        "",
        f'sha256 = "{sha}"  # of icons.npz.xz',
        "",
        "# Designer groups (and their sets) whose images are only ever test images.",
        "[test_groups]",
    ]
    lines += [f"{g} = {json.dumps(sorted(by_group[g]))}" for g in test_groups if g in by_group]
    lines += ["", "[train_groups]"]
    lines += [f"{g} = {json.dumps(sorted(p))}" for g, p in sorted(by_group.items()) if g not in test_groups]
    for part, part_name in enumerate(PARTS):
        lines += ["", f"[{part_name}]  # {len(parts[part_name])} classes"]
        for label, name in enumerate(parts[part_name]):
            lines.append(f"{name} = {{ train = {counts[part, label, 0]}, test = {counts[part, label, 1]} }}")
    return "\n".join(lines) + "\n"


def attribution(rows: list[SelectedIcon], collections: dict[str, Any], curation: dict[str, Any]) -> str:
    """Return the attribution page: every set used, its author and licence."""
    used: dict[str, int] = defaultdict(int)
    for row in rows:
        used[row.icon.source.prefix] += 1
    source = curation["source"]
    origin = (
        f"The images of `icons.npz.xz` were rendered from the npm package `{source['package']}`, version "
        f"{source['version']} (the collection of the Iconify project, "
        "<https://github.com/iconify/icon-sets>), by `tools/build_icons.py`: 32x32 pixels, grey. "
        "Each icon keeps the licence of its set."
    )
    lines = [
        "# Attribution of the icons",
        "",
        origin,
        "",
        "| set | name | author | licence | images |",
        "|---|---|---|---|---:|",
    ]
    for prefix in sorted(used):
        info = collections[prefix]
        author, licence = info["author"], info["license"]
        who = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
        terms = f"[{licence['spdx']}]({licence['url']})" if licence.get("url") else licence["spdx"]
        lines.append(f"| {prefix} | {info['name']} | {who} | {terms} | {used[prefix]} |")
    lines += ["", f"Total: {sum(used.values())} images of {len(used)} sets."]
    return "\n".join(lines) + "\n"


def report(rows: list[SelectedIcon], parts: dict[str, list[str]], packed: bytes, sha: str) -> None:
    """Print counts and the digest of the packed file."""
    for part, part_name in enumerate(PARTS):
        per = [[0, 0] for _ in parts[part_name]]
        for row in rows:
            if row.part == part:
                per[row.label][row.split] += 1
        for split, split_name in enumerate(("train", "test")):
            numbers = [n[split] for n in per]
            print(
                f"{part_name} {split_name}: {sum(numbers)} images of {len(numbers)} classes; per class min "
                f"{min(numbers)}, median {statistics.median(numbers):g}, max {max(numbers)}"
            )
    print(f"icons.npz.xz: {len(packed)} bytes, sha256 {sha}")


def main() -> None:
    """Build the asset, the class lists and the attribution page."""
    parser = argparse.ArgumentParser(description="Build the icons-100 asset.")
    parser.add_argument("--package", type=Path, required=True, help="unpacked npm package @iconify/json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files written")
    parser.add_argument("--processes", type=int, default=2, help="number of rendering processes (default: %(default)s)")
    arguments = parser.parse_args()

    started = time.perf_counter()
    curation = tomllib.loads(CURATION.read_text(encoding="utf-8"))
    version = json.loads((arguments.package / "package.json").read_text(encoding="utf-8"))["version"]
    if version != curation["source"]["version"]:
        parser.error(f"the curation is for version {curation['source']['version']}, not {version}")
    collections = json.loads((arguments.package / "collections.json").read_text(encoding="utf-8"))

    namer = Namer(curation)
    sources = collect(arguments.package, curation, collections, namer, aliases=True)
    rendered = render_all(sources, arguments.processes)
    icons = drop_ambiguous(rendered)
    limits = curation["limits"]
    test_groups = choose_test_groups(icons, limits["test_fraction"], limits["per_group_cap"])
    cleaned = clean_classes(icons, frozenset(test_groups), curation)
    parts = assign_parts(cleaned, curation)

    protected = [*parts["stream"], *parts["tune"]]
    by_rule = collect(
        arguments.package,
        curation,
        collections,
        PretrainNamer(curation, namer, protected),
        aliases=False,  # an alias would name an icon whose own name was refused
        known=sources,
    )
    by_rule = often_used(by_rule, frozenset(test_groups), curation["pretrain"]["min_train_groups"])
    more = drop_ambiguous(render_all(by_rule, arguments.processes), rendered)
    more = drop_alike(
        more,
        [icon for name in protected for split in (cleaned[name].train, cleaned[name].test) for icon in split],
        curation["duplicates"]["test_to_train"],
    )
    cleaned |= clean_classes(more, frozenset(test_groups), curation)
    parts = add_to_pretrain(parts, cleaned, limits)
    left_out = sorted(cleaned.keys() - {name for names in parts.values() for name in names})
    rows = select(cleaned, parts, limits)

    packed = pack(rows, parts)
    sha = hashlib.sha256(packed).hexdigest()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "icons.npz.xz").write_bytes(packed)
    (arguments.out / "icons_classes.toml").write_text(classes_toml(rows, parts, test_groups, sha), encoding="utf-8")
    (arguments.out / "ICONS_ATTRIBUTION.md").write_text(attribution(rows, collections, curation), encoding="utf-8")
    report(rows, parts, packed, sha)
    print(f"classes with too few images: {', '.join(left_out)}")
    print(f"test groups: {', '.join(test_groups)}")
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
