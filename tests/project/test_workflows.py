"""Workflows of continuous integration, and the lowest versions that one of them tests with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers import ROOT
from tests.helpers.factories import edit, record, write

WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}


def load(path: Path) -> dict[Any, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in load(WORKFLOWS[workflow])["jobs"].values() for step in job["steps"]]


def commands(workflow: str) -> list[str]:
    """Lines of the shell in all steps."""
    return [line.strip() for step in steps(workflow) for line in step.get("run", "").splitlines()]


def test_the_workflows_run_the_scripts_of_this_folder() -> None:
    assert {".ci/run", ".ci/lowest"} <= set(commands("test"))
    assert '.ci/release "$GITHUB_REF_NAME"' in commands("release")
    assert "make docs" in commands("docs")
    assert ".ci/leaderboard leaderboard" in commands("leaderboard")
    assert commands("docs") == ["make docs", ".ci/leaderboard site/leaderboard"], "after the site, which it adds to"


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_what_a_workflow_runs_is_there_and_can_be_run(workflow: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in commands(workflow):
        first, *rest = line.split()
        if first == "make":
            assert set(rest) <= targets, line
        if "/" in first:
            assert os.access(ROOT / first, os.X_OK), line


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflows_may_only_read_and_use_pinned_actions(workflow: str) -> None:
    assert load(WORKFLOWS[workflow])["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40)), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_the_jobs_that_publish_may_prove_who_they_are() -> None:
    may = {
        (workflow, name): job["permissions"]
        for workflow, path in WORKFLOWS.items()
        for name, job in load(path)["jobs"].items()
        if "permissions" in job
    }
    assert may == {
        ("release", "publish"): {"id-token": "write"},
        ("docs", "deploy"): {"pages": "write", "id-token": "write"},
    }
    publish = load(WORKFLOWS["release"])["jobs"]["publish"]
    assert publish["environment"] == "pypi" and publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"])


def test_releases_start_from_tags_alone() -> None:
    # YAML 1.1 reads the key `on` as true.
    assert load(WORKFLOWS["release"])[True] == {"push": {"tags": ["v*"]}}


def test_results_of_a_pull_request_are_verified_before_they_make_a_leaderboard(tmp_path: Path) -> None:
    def leaderboard() -> subprocess.CompletedProcess[str]:
        command, env = (
            [tmp_path / ".ci" / "leaderboard", "public"],
            os.environ | {"BIN": str(Path(sys.executable).parent)},
        )
        return subprocess.run(command, env=env, capture_output=True, text=True)

    assert load(WORKFLOWS["leaderboard"])[True]["pull_request"]["paths"][0] == "results/**"
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "leaderboard", tmp_path / ".ci")
    write(tmp_path / "results" / "reference", record("alpha"))
    (path,) = write(tmp_path / "results" / "ann b", record("alpha"), record("beta"))[1:]
    (tmp_path / "results" / "notes").mkdir()
    (tmp_path / "results" / "notes" / "readme.json").write_text("{}")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    write(tmp_path / "results" / "untracked", record("gamma"))
    done = leaderboard()
    assert done.returncode == 0, done.stderr
    assert "results/reference: 1 record, nothing wrong\nresults/ann b: 2 records, nothing wrong" in done.stdout
    methods = tmp_path / "public" / "methods"
    assert "reference" in (methods / "alpha.html").read_text() and (methods / "beta.html").is_file()
    assert not (methods / "gamma.html").exists()
    edit(path, lambda data: data["correct"][9].__setitem__(0, 0), sealed=True)
    before = (methods / "beta.html").read_text()
    done = leaderboard()
    assert done.returncode == 1 and path.stem in done.stdout and "1 fault" in done.stdout
    assert (methods / "beta.html").read_text() == before, "not written"


def requirements() -> list[Requirement]:
    """Direct dependencies, with those of tests and of the documentation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [Requirement(line) for line in (*project["dependencies"], *extras["test"], *extras["docs"])]
    return [requirement for requirement in listed if requirement.name != project["name"]]


def test_the_lowest_versions_are_those_that_the_project_declares() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    lowest = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    floors = {
        canonicalize_name(requirement.name): [
            Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")
        ]
        for requirement in requirements()
    }
    assert len(floors) > 40
    assert {name: [lowest.get(name)] for name in floors} == floors


def test_the_lowest_versions_are_exact_and_name_no_place() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+|# .*", line)] == []
