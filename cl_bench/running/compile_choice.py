"""Whether a run on a GPU is compiled, if the user leaves it open: what compiling costs against what it saves.

The choice changes no key: how a run was computed stands in its record (`environment`, `compiled`).
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from cl_bench import backbones
from cl_bench.backbones import Backbone
from cl_bench.contract.gradient import Descent
from cl_bench.experiment import Environment
from cl_bench.running.plan import PlannedRun
from cl_bench.streams.scenarios import TaskStream
from cl_bench.training.checkpoint import environment_of_writer
from cl_bench.training.strategy import EVALUATION_BATCH


@dataclass(frozen=True)
class Graph:
    """What one compiled graph costs, and what it saves each time it runs.

    Attributes:
        fresh: seconds to compile it on a machine that never did, for twelve blocks.
        cached: seconds to trace it again if torch's cache on disk has it, for twelve blocks.
        saved: milliseconds saved per batch, whatever its size: launches of kernels, and work of the host.
        saved_per_tflop: milliseconds saved per TFLOP of the batch's forward pass: kernels that become one.
    """

    fresh: float
    cached: float
    saved: float
    saved_per_tflop: float


# Measured on one H200 in bf16 with replayed steps (docs/performance.md, "A whole run", "Small networks"): compiled and
# eager steps of SD-LoRA, CODA-Prompt and fine-tuning on three networks of 0.02 to 4.5 TFLOP a step.
VIEW = Graph(fresh=9.5, cached=2.0, saved=2.0, saved_per_tflop=0.0)
"""The training view; its cost includes the start of the compiler's workers."""
TRAINING = Graph(fresh=23.5, cached=6.5, saved=0.6, saved_per_tflop=0.6)
"""Forward and backward pass of a training step."""
PREDICTION = Graph(fresh=12.0, cached=3.0, saved=2.5, saved_per_tflop=0.3)
"""A forward pass without gradients."""
_BLOCKS = 12
"""Number of blocks that the costs above are for; they grow with it, except for the view's."""


@dataclass(frozen=True)
class Work:
    """Passes of a whole run through its backbone.

    Attributes:
        blocks: number of blocks of the backbone.
        steps, step_tflop: training steps, and TFLOP of the forward pass of one.
        views: batches of training views.
        batches, batch_tflop: batches of passes without gradients, and TFLOP of one.
    """

    blocks: int
    steps: int
    step_tflop: float
    views: int
    batches: int
    batch_tflop: float

    def saved(self) -> float:
        """Seconds that compiled passes save, all costs of compiling left out."""
        parts = ((VIEW, self.views, 0.0), (TRAINING, self.steps, self.step_tflop))
        counted = (*parts, (PREDICTION, self.batches, self.batch_tflop))
        return sum(count * (graph.saved + tflop * graph.saved_per_tflop) for graph, count, tflop in counted) / 1000

    def cost(self, cached: bool) -> float:
        """Seconds that compiling takes.

        Args:
            cached: whether an earlier run has left its graphs in torch's cache on this machine.
        """
        depth = self.blocks / _BLOCKS
        counted = ((VIEW, self.views, 1.0), (TRAINING, self.steps, depth), (PREDICTION, self.batches, depth))
        return sum((graph.cached if cached else graph.fresh) * scale for graph, count, scale in counted if count)


@dataclass(frozen=True)
class Choice:
    """Whether passes are compiled, and why in words."""

    compiled: bool
    why: str


def choose(work: Work, cached: bool) -> Choice:
    """Compile if that saves more time in this run than it costs.

    Args:
        cached: see `Work.cost`.
    """
    cost, saved = work.cost(cached), work.saved()
    found = ", with the graphs of an earlier run," if cached else ""
    compared = f"compiling{found} takes about {cost:.0f} s and saves about {saved:.0f} s of this run"
    if saved > cost:
        return Choice(True, f"compiled: {compared}")
    return Choice(False, f"not compiled: {compared}; --compile compiles it")


def of_run(planned: PlannedRun, stream: TaskStream, environment: Environment, checkpoint: Path | None) -> Choice:
    """Choose for a run on a GPU; a run that resumes goes on as it began.

    Args:
        environment: environment of this process.
        checkpoint: where the run's checkpoint is, if there is one.
    """
    before = environment_of_writer(checkpoint).get("compiled") if checkpoint else None
    if isinstance(before, bool):
        return Choice(before, f"{'compiled' if before else 'not compiled'}, as before its checkpoint")
    return choose(work_of(planned, stream), graphs_cached(planned, environment))


def work_of(planned: PlannedRun, stream: TaskStream) -> Work:
    """The passes of a run, from the sizes of its data and its network.

    Phases that a method adds to those of its `epochs` are not counted, so a run may save more than is expected here.
    """
    method = planned.method
    joint = method.trains_on == "stream"
    trained = [len(experience.dataset) for experience in (stream.joint if joint else stream.train)]
    tested = sum(len(experience.dataset) for experience in stream.test)
    epochs, batch = int(getattr(method, "epochs", 0)), int(getattr(method, "batch_size", EVALUATION_BATCH))
    views = max(1, epochs) * sum(math.ceil(images / batch) for images in trained)
    passes = sum(method.passes(stage + 1) for stage in range(len(trained)))
    evaluated = passes * math.ceil(tested / EVALUATION_BATCH)
    blocks, tflop = _network(planned.backbone)
    return Work(
        blocks=blocks,
        steps=views if epochs else 0,
        step_tflop=batch * tflop,
        views=views if epochs else 0,
        batches=evaluated + (0 if epochs else views),
        batch_tflop=EVALUATION_BATCH * tflop,
    )


def _network(backbone: Backbone) -> tuple[int, float]:
    """Number of blocks of a backbone, and TFLOP of a pass of one image: two per weight and token, and attention."""
    network = backbones.skeleton(backbone)
    tokens = network.patch_embed.num_patches + network.num_prefix_tokens
    weights = sum(parameter.numel() for parameter in network.blocks.parameters())
    attention = 2 * tokens * network.embed_dim * len(network.blocks)
    return len(network.blocks), 2 * tokens * (weights + attention) / 1e12


_OF_DESCENT = {field.name for field in fields(Descent)} - {"batch_size"}
"""Hyper-parameters that no graph depends on."""


def _marker(planned: PlannedRun, environment: Environment) -> Path | None:
    """File that says that a run like this one has left its graphs in torch's cache; None: torch has no cache.

    It is in the folder of that cache, so that it goes when the cache goes.
    """
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        folder = Path(cache_dir())
    except OSError:
        return None
    if not config.fx_graph_cache:
        return None
    experiment, backbone = planned.experiment, planned.backbone
    # Graphs depend on code and shapes, not on seeds, weights or what the optimiser does with the gradients.
    shaping = {name: value for name, value in experiment.hyperparameters.items() if name not in _OF_DESCENT}
    alike = (
        *(environment.get(name) for name in ("cl-bench", "torch", "device_name")),
        *(experiment.method, experiment.revision, shaping, experiment.precision, experiment.storage),
        *(backbone.architecture, backbone.options, backbone.size, experiment.transforms.model_dump()),
    )
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()
    return folder / "cl-bench" / digest[:32]


def graphs_cached(planned: PlannedRun, environment: Environment) -> bool:
    """Whether an earlier run of this kind has left its graphs in torch's cache on this machine."""
    marker = _marker(planned, environment)
    return marker is not None and marker.is_file()


def remember_graphs(planned: PlannedRun, environment: Environment) -> None:
    """Note that a run of this kind has left its graphs in torch's cache on this machine, for `graphs_cached`."""
    marker = _marker(planned, environment)
    # Without the note, a later run only expects that it has to compile.
    if marker is not None:
        with suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
