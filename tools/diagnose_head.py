"""Compare a method's head with nearest class means of its final features, to see which of the two loses accuracy.

    python tools/diagnose_head.py --methods sdlora,coda --benchmark icons-tune --seeds 100-102

Each method is trained as by `cl-bench run`. Then all training images of the stream are passed through the final model,
and the test images are classified by the nearest class mean (cosine) of its features: an upper reference for heads on
these features. It uses images of earlier tasks, so it is a diagnosis, not a method.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_bench.data.samples import Concatenated, samples_of
from cl_bench.models.vit import Execution
from cl_bench.options import RunOptions
from cl_bench.running import plan, runner


def head_inputs(model: nn.Module, stream: Any) -> tuple[Tensor, Tensor]:
    """Inputs of the model's `head` for all images of a stream, [n, d], and their labels [n]."""
    images = Concatenated([samples_of(experience.dataset) for experience in stream])
    seen: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        for chunk in np.array_split(np.arange(len(images.labels)), max(1, len(images.labels) // 250)):
            model(images.view(chunk, None, torch.device("cpu")))
    hook.remove()
    return torch.cat(seen), images.labels


def main() -> None:
    """Print one line per method and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="sdlora,coda", help="as for cl-bench run (default: %(default)s)")
    parser.add_argument("--benchmark", default="icons-tune", help="name of the stream (default: %(default)s)")
    parser.add_argument("--backbone", help="default: the benchmark's")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="default: %(default)s")
    parser.add_argument("--seeds", default="100-102", help="as for cl-bench run (default: %(default)s)")
    args = parser.parse_args()
    options = {name: value for name, value in vars(args).items() if value is not None}
    for run in plan.plan_options([RunOptions.of(options)], lambda precision: precision):
        e = run.experiment
        stream = runner.stream_of(run)
        strategy = runner.strategy_of(run, stream, torch.device("cpu"), Execution(e.precision))
        for experience in stream.train:
            strategy.train(experience, eval_streams=[])
        counts = strategy.count_matrix(stream.test)
        model = strategy.model.eval()
        (x, y), (x_test, y_test) = head_inputs(model, stream.train), head_inputs(model, stream.test)
        means = torch.stack([x[y == label].mean(dim=0) for label in range(len(stream.classes))])
        nearest = (nn.functional.normalize(x_test) @ nn.functional.normalize(means).T).argmax(1)
        total = sum(counts.total)
        print(
            f"{run.label} seed {e.seed}: own head {100 * sum(h or 0 for h in counts.correct) / total:.1f}, "
            f"nearest mean of its features {100 * float((nearest == y_test).float().mean()):.1f}, "
            f"own head with known task {100 * sum(counts.correct_task_aware) / total:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
