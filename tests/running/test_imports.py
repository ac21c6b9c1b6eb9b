"""What a run imports: parts of libraries that it does not use are executed when somebody asks for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
import cl_bench

cl_bench.run("linear", limit_tasks=2, limit_train=3, limit_test=2, device="cpu")
executed = {name for name, module in sys.modules.items() if type(module).__name__ != "_Deferred"}

import avalanche.evaluation.metrics
import avalanche.logging
import GPUtil
import wandb
from avalanche import benchmarks
from avalanche.benchmarks.classic.cmnist import SplitMNIST
from avalanche.training.plugins import GEMPlugin, gem

everything = {}
exec("from avalanche.benchmarks import *", everything)
facts = {
    "executed": sorted(executed),
    "metric": avalanche.evaluation.metrics.topk_acc_metrics(top_k=1, epoch=True)[0].__class__.__module__,
    "logger": avalanche.logging.TensorboardLogger.__module__,
    "benchmark": benchmarks.SplitMNIST is SplitMNIST is everything["SplitMNIST"],
    "listed": "SplitCIFAR100" in dir(benchmarks),
    "unknown": hasattr(benchmarks, "SplitNothing"),
    "solver": callable(gem.qpsolvers.solve_qp) and GEMPlugin(1, 0.5).memory_strength,
    "versions": [wandb.__version__, GPUtil.__version__],
    "submodule": wandb.sdk.wandb_settings.Settings.__name__,
}
print(json.dumps(facts))
"""

UNUSED = {
    "avalanche.benchmarks.classic",
    "avalanche.benchmarks.datasets",
    "gdown",
    "GPUtil",
    "plotly",
    "qpsolvers",
    "scipy.signal",
    "scipy.stats",
    "seaborn",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "wandb",
}


def test_a_run_executes_no_library_that_it_does_not_use_and_avalanche_stays_whole(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    executed = set(facts.pop("executed"))
    assert {"torch", "avalanche.training.templates", "timm.models.vision_transformer"} <= executed
    assert not UNUSED & executed
    versions = facts.pop("versions")
    assert all(version[0].isdigit() for version in versions), versions
    assert facts == {
        "metric": "avalanche.evaluation.metrics.topk_acc",
        "logger": "avalanche.logging.tensorboard_logger",
        "benchmark": True,
        "listed": True,
        "unknown": False,
        "solver": 0.5,
        "submodule": "Settings",
    }
