"""Wheel and source distribution: what they hold, what their metadata says, and that both work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cl_bench
from tests.helpers import ROOT
from tests.helpers.distributions import build, run, unpack

pytest.importorskip("hatchling", reason="needs `pip install '.[test]'`")

FILES = {path.name for path in (ROOT / "methods").glob("*.py")}
LARGEST_WHEEL = 100 * 10**6
"""Bytes; the package index takes no larger file unless asked."""
ATTRIBUTION = "cl_bench/assets/ICONS_ATTRIBUTION.md"
LICENCES = {"LICENSE", "ASSETS.md", ATTRIBUTION, *(f"LICENSES/{path.name}" for path in (ROOT / "LICENSES").iterdir())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    archive = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def checksums(wheel: Path) -> dict[str, int]:
    """CRC-32 of every file in a wheel, by path."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    unpack(wheel, site)
    assert {path.name for path in (site / "cl_bench" / "methods").glob("*.py")} == FILES
    assert not (site / "cl_bench" / "methods.py").exists() and not (site / "methods").exists()

    listed = run(site, empty, "-m", "cl_bench", "ls", "methods")
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    assert names >= {Path(name).stem.replace("_", "-") for name in FILES - {"__init__.py"}}

    where = "import cl_bench.methods.slca as slca; print(slca.__file__, slca.Finetune.__module__)"
    imported = run(site, empty, "-c", where)
    assert imported.stdout.split() == [str(site / "cl_bench/methods/slca.py"), "cl_bench.methods.finetune"]


def test_the_source_distribution_holds_the_methods_and_the_module_that_finds_them(sdist: Path) -> None:
    names = {str(path.relative_to(sdist)) for path in sdist.rglob("*")}
    assert names >= {"cl_bench/methods.py", *(f"methods/{name}" for name in FILES)}
    assert not any(name.startswith("cl_bench/methods/") for name in names)


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    assert checksums(build("wheel", sdist, tmp_path)) == checksums(wheel)


def test_both_distributions_hold_the_licences_and_the_type_marker(wheel: Path, sdist: Path) -> None:
    names = checksums(wheel).keys()
    licences = f"cl_bench-{cl_bench.__version__}.dist-info/licenses"
    assert names >= {f"{licences}/{name}" for name in LICENCES}
    assert names >= {ATTRIBUTION, "cl_bench/py.typed"}
    assert [name for name in (*LICENCES, "cl_bench/py.typed") if not (sdist / name).is_file()] == []


def test_the_wheel_is_small_enough_to_be_published(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_WHEEL


def test_the_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"cl_bench-{cl_bench.__version__}.dist-info/METADATA")
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("cl-bench", cl_bench.__version__)
    assert metadata.author == "cl-bench contributors"
    assert set(metadata.license_files or ()) == LICENCES
    assert metadata.summary and metadata.keywords and metadata.requires_python
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Typing :: Typed" in (metadata.classifiers or ())
    assert [line for line in metadata.classifiers or () if line.startswith("License ::")] == []
    assert set(metadata.provides_extra or ()) == PROJECT["optional-dependencies"].keys()


def test_the_licence_names_that_of_the_code_and_of_every_icon(wheel: Path) -> None:
    rows = re.findall(r"^\| [^|]+\| [^|]+\| [^|]+\| ([^|]+) \| *\d+ \|$", (ROOT / ATTRIBUTION).read_text(), re.M)
    of_icons = {re.sub(r"\[(.+)\]\(.*\)", r"\1", row) for row in rows}
    assert len(rows) > 100 and {"Apache-2.0", "CC0-1.0"} <= of_icons
    assert PROJECT["license"].split(" AND ")[0] == "MIT"
    assert set(PROJECT["license"].split(" AND ")) == {"MIT", *of_icons}
    assert {path.stem for path in (ROOT / "LICENSES").iterdir()} == {"MIT", *of_icons}


def test_every_embedded_file_has_a_line_about_its_licence() -> None:
    named = re.findall(r"`([^`\s]+)`", (ROOT / "ASSETS.md").read_text(encoding="utf-8"))
    cards = {"*.md", "*.json"}  # NAME.md and NAME.json of the weights
    assets = ROOT / "cl_bench" / "assets"
    files = [path.relative_to(assets) for path in assets.rglob("*") if path.is_file()]
    assert len(files) > 20
    weights = {path.with_suffix("").name for path in files if path.suffix == ".safetensors"}
    assert [
        str(path)
        for path in files
        if not any(PurePosixPath(path).match(pattern) for pattern in named)
        and not (path.with_suffix("").name in weights and f"*{path.suffix}" in cards)
    ] == []


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    releases = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert releases[0] == (citation["version"], str(citation["date-released"]))
    assert citation["version"] == cl_bench.__version__
    assert citation["authors"] == PROJECT["authors"] == [{"name": "cl-bench contributors"}]
    assert "preferred-citation" not in citation


def test_the_code_holds_no_symbolic_link() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-s", "cl_bench", "methods"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in tracked.splitlines() if line.startswith("120000")] == []


def declared(extras: set[str]) -> set[str]:
    """Distributions that pyproject.toml asks for, with these extras and those that they include in turn."""
    listed = list(PROJECT["dependencies"])
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    requirements = [Requirement(line) for line in listed]
    included = {name for each in requirements if each.name == PROJECT["name"] for name in each.extras}
    if not included <= extras:
        return declared(extras | included)
    return {canonicalize_name(each.name) for each in requirements} - {PROJECT["name"]}


def imported(*folders: str) -> dict[str, set[str]]:
    """Modules outside the standard library and the package, by the file that imports them, wherever in it."""
    found: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for module in {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "cl_bench"}:
                found.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return found


OF_THE_HOST = {"IPython"}
"""What only code that a notebook runs imports, where it is always there."""


OPTIONAL = {"mlflow": ["mlflow-skinny"]}
"""Distribution of a module that need not be installed."""


def test_every_import_is_declared() -> None:
    """A library that only comes with another one goes when that one lets it go."""
    known = declared({*PROJECT["optional-dependencies"]} - {"test", "docs"})
    distributions = {**OPTIONAL, **packages_distributions()}
    found = imported("cl_bench", "methods")
    assert {"torch", "yaml", "PIL", "ray"} <= found.keys()
    undeclared = {
        module: files
        for module, files in found.items()
        if module not in OF_THE_HOST and known.isdisjoint(map(canonicalize_name, distributions.get(module, [module])))
    }
    assert undeclared == {}


def test_every_dependency_has_a_version_that_tests_ran_with() -> None:
    pinned = {
        canonicalize_name(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert declared({"test", "ray", "tensorboard", "wandb", "mlflow"}) <= pinned
