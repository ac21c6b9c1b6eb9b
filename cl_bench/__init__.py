"""cl-bench: continual learning on pre-trained Vision Transformers, measured so that numbers can be trusted.

    import cl_bench

    results = cl_bench.run("sdlora,coda", seeds=range(3))   # results.table(), results.frame()
    frame = cl_bench.load("results/runs")                   # one row per run and stage
    cl_bench.report("results/runs", out="reports")

All names that a method file needs are here, too: `from cl_bench import GradientMethod, Phase, Task`.

Every name is imported on first use, so reading results and rendering reports imports neither torch nor avalanche.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_bench import _aliases

if TYPE_CHECKING:
    from cl_bench.api import Results as Results
    from cl_bench.api import RunsFailed as RunsFailed
    from cl_bench.api import load as load
    from cl_bench.api import report as report
    from cl_bench.api import run as run
    from cl_bench.contract.alignment import Alignment as Alignment
    from cl_bench.contract.gradient import GradientMethod as GradientMethod
    from cl_bench.contract.losses import masked_cross_entropy as masked_cross_entropy
    from cl_bench.contract.method import Method as Method
    from cl_bench.contract.phase import Optimization as Optimization
    from cl_bench.contract.phase import Phase as Phase
    from cl_bench.contract.phase import StepBatch as StepBatch
    from cl_bench.contract.rehearsal import Rehearsing as Rehearsing
    from cl_bench.contract.search import Choice as Choice
    from cl_bench.contract.search import Depending as Depending
    from cl_bench.contract.search import LogUniform as LogUniform
    from cl_bench.contract.search import Uniform as Uniform
    from cl_bench.contract.task import Task as Task
    from cl_bench.data.samples import TaskSamples as TaskSamples
    from cl_bench.errors import UserError as UserError
    from cl_bench.models.adapters import Adapters as Adapters
    from cl_bench.models.base import FeatureModel as FeatureModel
    from cl_bench.models.growing import Growing as Growing
    from cl_bench.models.growing import GrowingModules as GrowingModules
    from cl_bench.models.heads import Classifier as Classifier
    from cl_bench.models.heads import CosineHead as CosineHead
    from cl_bench.models.heads import CosinePrototypes as CosinePrototypes
    from cl_bench.models.lora import LoRAModel as LoRAModel
    from cl_bench.models.prompts import PromptModel as PromptModel
    from cl_bench.models.statistics import ClassStatistics as ClassStatistics

__version__ = "0.1.0"

_PUBLIC = {
    "cl_bench.api": ("Results", "RunsFailed", "load", "report", "run"),
    "cl_bench.contract.alignment": ("Alignment",),
    "cl_bench.contract.gradient": ("GradientMethod",),
    "cl_bench.contract.losses": ("masked_cross_entropy",),
    "cl_bench.contract.method": ("Method",),
    "cl_bench.contract.phase": ("Optimization", "Phase", "StepBatch"),
    "cl_bench.contract.rehearsal": ("Rehearsing",),
    "cl_bench.contract.search": ("Choice", "Depending", "LogUniform", "Uniform"),
    "cl_bench.contract.task": ("Task",),
    "cl_bench.data.samples": ("TaskSamples",),
    "cl_bench.errors": ("UserError",),
    "cl_bench.models.base": ("FeatureModel",),
    "cl_bench.models.adapters": ("Adapters",),
    "cl_bench.models.growing": ("Growing", "GrowingModules"),
    "cl_bench.models.heads": ("Classifier", "CosineHead", "CosinePrototypes"),
    "cl_bench.models.lora": ("LoRAModel",),
    "cl_bench.models.prompts": ("PromptModel",),
    "cl_bench.models.statistics": ("ClassStatistics",),
}
"""Public names by the module that defines them; the imports above repeat them for type checkers."""


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            from cl_bench.running.imports import quiet_imports

            with quiet_imports():
                value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(["__version__", *(name for names in _PUBLIC.values() for name in names)])


_aliases.install()
