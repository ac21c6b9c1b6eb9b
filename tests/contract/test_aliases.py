"""Method files and scripts that were written for version 0.1.0 run unedited, under their old keys."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import cl_bench
from cl_bench._aliases import MOVED
from tests.helpers import ROOT, processes
from tests.helpers.command import TRIAL

# What authors of methods and scripts imported from version 0.1.0.
NAMES = {
    "adapters.growing": "Growing",
    "adapters.heads": "Classifier CosineHead CosinePrototypes FeatureModel cosine linear_head task_norm",
    "adapters.lora": "LoRABank",
    "adapters.network": "Bottleneck Prefix bottleneck cls_features tokens",
    "adapters.peft": "Adapters Bottleneck ScaleShift",
    "adapters.prompts": "PromptModel attracting check_blocks majority mixed split take uniform",
    "adapters.statistics": "ClassStatistics Covariance RIDGE",
    "method": "GradientMethod Loss Method ParameterGroup Phase Schedule Task Traces masked_cross_entropy validated",
    "registry": "ENTRY_POINTS find load_file lookup names",
    "runner": "pick_device",
    "space": "Choice LogUniform Range Uniform",
    "strategy": "ContinualStrategy",
    "streams.build": "build",
}


RENAMED = {
    "cl_bench.data.samples": ("TaskImages", "TaskSamples"),
    "cl_bench.experiment": ("Transforms", "ImageTransforms"),
}


@pytest.mark.filterwarnings("ignore:cl_bench:FutureWarning")
@pytest.mark.parametrize("module", RENAMED)
def test_a_changed_name_still_imports(module: str) -> None:
    found, (old, new) = importlib.import_module(module), RENAMED[module]
    assert getattr(found, old) is getattr(found, new)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = found.no_such_name


@pytest.mark.filterwarnings("ignore:cl_bench:FutureWarning")
@pytest.mark.parametrize("old", MOVED)
def test_every_old_module_imports(old: str) -> None:
    module = importlib.import_module(f"cl_bench.{old}")
    for name in NAMES.get(old, "").split():
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_an_old_class_is_the_new_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from cl_bench.method import Method as old\nfrom cl_bench.contract.method import Method\nassert old is Method\n"
        "import cl_bench.adapters.lora, cl_bench.models.lora\n"
        "assert cl_bench.adapters.lora.LoRABank is cl_bench.models.lora.LoRABank\n"
    )
    done = processes.run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("FutureWarning") == 1
    assert "cl_bench.method is now cl_bench.contract.method" in done.stderr


def test_a_method_file_of_0_1_0_runs_unedited_under_its_old_key(tmp_path: Path) -> None:
    (tmp_path / "my_probe.py").write_bytes((ROOT / "tests" / "data" / "my_probe.py.txt").read_bytes())
    run = ("run", "--method-file", "my_probe.py", "--methods", "my_probe", "--epochs", "1", *TRIAL)
    done = processes.start(tmp_path, *run)
    done.join()
    log = (tmp_path / "log").read_text()
    assert done.exitcode == 0, log
    assert log.count("FutureWarning") == 1
    (record,) = (tmp_path / "results" / "runs").glob("my_probe-*.json")
    # Computed with version 0.1.0 (f8ec4bc).
    assert record.stem.endswith("23c5ac5bd0ae60e4")


def test_few_modules_lie_directly_in_the_package() -> None:
    found = {module.name for module in pkgutil.iter_modules(cl_bench.__path__)} | {"__init__"}
    assert len(found) <= 24, sorted(found)


def test_no_part_of_the_harness_uses_an_old_path() -> None:
    old = {f"cl_bench.{name}" for name in MOVED}
    for path in [*(ROOT / "cl_bench").rglob("*.py"), *(ROOT / "methods").glob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module in old], path
