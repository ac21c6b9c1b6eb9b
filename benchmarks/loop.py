"""Overhead of the strategy's loop per training step: `python -m benchmarks.loop`.

A network so small that its step is little more than overhead is trained by `ContinualStrategy` (Avalanche's loop with
its hooks, and the loader) and by a bare loop with the same steps on one batch. Prints microseconds per iteration.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from cl_bench.data.images import ImageStore
from cl_bench.data.samples import TrainingBatches, samples_of
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.methods.linear import LinearProbe
from cl_bench.running.device import pick_device
from cl_bench.streams import Source
from cl_bench.streams.scenarios import build
from cl_bench.studies.bench import first_phase, training_step
from cl_bench.training.strategy import ContinualStrategy

BATCH, STEPS = 8, 500


def repeated(step: Callable[[], None]) -> None:
    """Repeat a step as often as in one epoch."""
    for _ in range(STEPS):
        step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="repetitions of each loop, of which the median is reported (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("loop.json"))
    chosen = parser.parse_args()
    device = pick_device("auto")
    random, count = np.random.default_rng(0), BATCH * STEPS
    images = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    store = ImageStore(images, np.arange(count) % 2, tuple(f"{i % 2}/{i:05d}" for i in range(count)))
    transforms = ImageTransforms(size=8, crop_scale=(0.5, 1.0), mean=(0.5,) * 3, std=(0.5,) * 3)
    stream = build(Source(store, store, ("0", "1")), 1, "natural", transforms, Limits())
    found: dict[str, list[float]] = {"strategy": [], "bare loop": [], "loader": []}
    for _ in range(chosen.repeats):
        vit = VisionTransformer(img_size=8, patch_size=8, embed_dim=16, depth=1, num_heads=1, num_classes=0)
        method = LinearProbe(epochs=1, batch_size=BATCH)
        strategy = ContinualStrategy(plugins=[method], backbone=vit, num_classes=2, device=device)
        (experience,) = stream.train
        samples = samples_of(experience.dataset)
        batches = TrainingBatches(samples, BATCH, ("loop",), device)
        phase = first_phase(strategy, samples)
        assert phase is not None
        first, labels, _ = next(iter(batches))
        _, step = training_step(strategy, phase, first, labels)

        runs: dict[str, Callable[[], object]] = {
            "bare loop": partial(repeated, step),
            "loader": partial(deque, batches, maxlen=0),
            "strategy": partial(strategy.train, experience),
        }
        step()
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[name].append(1e6 * (time.perf_counter() - began) / STEPS)
    medians = {name: round(median(values), 1) for name, values in found.items()}
    medians["overhead with the loader"] = round(medians["strategy"] - medians["bare loop"], 1)
    medians["overhead without"] = round(medians["overhead with the loader"] - medians["loader"], 1)
    print("\n".join(f"{name:>26}: {value:7.1f} us per iteration" for name, value in medians.items()))
    chosen.out.write_text(json.dumps({"device": device.type, "microseconds": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
