"""Images per second of training views, from cl-bench and from torchvision's loader: `python -m benchmarks.data`.

Views of 224 pixels in batches of 128, made from a store of small images in memory, from decoded and resized images in
the cache, and from files. The images are synthetic photographs (JPEG files of 500x375 and 375x500 pixels in a temporary
folder). The reference is a `DataLoader` whose workers decode with Pillow and apply RandomResizedCrop, flip, ToTensor.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from cl_bench import streams
from cl_bench.data import cache
from cl_bench.data.images import ImageStore
from cl_bench.data.samples import ImageDataset, StoreSamples, TrainingBatches
from cl_bench.experiment import ImageTransforms
from cl_bench.studies import bench

TRANSFORMS = ImageTransforms(
    size=224, crop="pixels", crop_scale=(0.05, 1.0), resize=256 / 224, mean=(0.5,) * 3, std=(0.5,) * 3
)
CPU = torch.device("cpu")


def photographs(folder: Path, images: int) -> None:
    """Write class folders of JPEG files about as large as photographs; one in ten is a test image."""

    def write(i: int) -> None:
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse) + random.integers(-18, 18, (375, 500, 3))
        pixels = noisy.clip(0, 255).astype(np.uint8)
        path = folder / ("test" if i % 10 == 0 else "train") / f"class{i % 7}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if i % 2 else pixels.transpose(1, 0, 2)).save(path, quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(images)))


def ours(store: ImageStore, device: torch.device, batch: int) -> Iterator[torch.Tensor]:
    """Training batches of cl-bench, epoch after epoch."""
    dataset = ImageDataset(store, np.arange(int(store.targets.max()) + 1), TRANSFORMS)
    samples = StoreSamples(dataset, np.arange(len(store)))
    for epoch in count():
        for images, _, _ in TrainingBatches(samples, batch, ("benchmark", epoch), device):
            yield images


def torchvisions(folder: Path, device: torch.device, batch: int, workers: int) -> Iterator[torch.Tensor]:
    """Training batches of torchvision's loader, moved to the device, epoch after epoch."""
    steps = [RandomResizedCrop(224, TRANSFORMS.crop_scale), RandomHorizontalFlip(), ToTensor()]
    loader = DataLoader(
        ImageFolder(str(folder), Compose(steps)),
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    while True:
        for images, _ in loader:
            yield images.to(device, non_blocking=True)


def rate(batches: Iterator[torch.Tensor], seconds: float) -> float:
    """Images per second, measured after three warm-up batches."""

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(3):
        next(batches)
    wait()
    began, seen = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        # The device works asynchronously: wait for it after every eight batches, so that only finished work counts.
        for _ in range(8):
            seen += len(next(batches))
        wait()
    return seen / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000, help="number of images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="batch size (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="workers of torchvision's loader (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="shortest time measured per row (default: %(default)s)"
    )
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("data.json"))
    chosen = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device()) if chosen.device.type == "cuda" else chosen.device
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        photographs(folder, chosen.images)
        bytes_ = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / chosen.images
        os.environ[cache.VARIABLE] = str(Path(temporary) / "cache")
        benchmark = streams.find(f"folder:{folder}")
        files = benchmark.source().train
        began = time.perf_counter()
        resized = benchmark.source(f"resized:{TRANSFORMS.short}").train
        rates["decoding once, resizing, writing"] = chosen.images / (time.perf_counter() - began)
        small = np.random.default_rng(0).integers(0, 256, (len(files), 32, 32, 3), dtype=np.uint8)
        memory = ImageStore(small, files.targets, files.names)
        rates["torchvision's loader"] = rate(
            torchvisions(folder / "train", device, chosen.batch, chosen.workers), chosen.seconds
        )
        rows = [("memory, 32x32", memory, device), (f"resized:{TRANSFORMS.short}", resized, device)]
        rows.append(("files, Pillow", files, CPU))
        if device.type == "cuda":
            rows.append(("files, decoded by the GPU", files, device))
        for name, store, where in rows:
            rates[name] = rate(ours(store, where, chosen.batch), chosen.seconds)
    on = bench.device_name(device)
    title = (
        f"training views at 224, batches of {chosen.batch}, on {on}; {chosen.workers} workers of {os.cpu_count()} cores"
    )
    table = Table("from", "images/s", f"of torchvision's, {chosen.workers} workers", title=title)
    reference = rates["torchvision's loader"]
    for name, found in rates.items():
        table.add_row(name, f"{found:,.0f}", f"{found / reference:.2f}")
    Console(width=120).print(table)
    facts = {"device": on, "batch": chosen.batch, "workers": chosen.workers, "bytes per file": bytes_}
    chosen.out.write_text(json.dumps({**facts, "images per second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
