"""A user's own method: from `new-method`, a file anywhere, or an installed entry point; never a fork."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import reports
from tests.helpers.command import RUNS, TRIAL, Cli, assert_refused, computed, rows, stored, tree
from tests.helpers.factories import record, write

pytestmark = pytest.mark.usefixtures("plain_and_single_threaded")

Process = Callable[..., subprocess.CompletedProcess[str]]


def install(site: Path, name: str, source: str, value: str | None = None) -> None:
    """Files that pip installs for a package with one module and one entry point."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cl_bench.methods]\n{name} = {value or f'{name}_package:Plugged'}\n")
    (site / f"{name}_package.py").write_text(source)


@pytest.fixture
def source(cl_bench: Cli) -> str:
    """A working method, as `new-method` writes it for the class `Plugged`."""
    assert cl_bench("new-method", "plugged").code == 0
    text = Path("plugged.py").read_text()
    Path("plugged.py").unlink()
    return text


def test_a_new_method_and_an_installed_one_run_outside_the_repository(
    cl_bench: Cli, process: Process, source: str, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert cl_bench("new-method", "my_probe", "--folder", str(folder)).code == 0
    assert [path.name for path in folder.iterdir()] == ["my_probe.py"]
    assert 25 <= len((folder / "my_probe.py").read_text().splitlines()) <= 50
    install(tmp_path / "site", "installed", source)
    command = ["run", "--method-file", str(folder / "my_probe.py"), "--methods", "my_probe,installed", "--epochs", "1"]
    done = process(*command, *TRIAL, pythonpath=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert set(rows(done.stdout)) == {"my_probe[epochs=1]", "installed[epochs=1]"}
    revisions = {run["experiment"]["method"]: run["experiment"]["revision"] for run in stored()}
    assert revisions["installed"] == 1 and str(revisions["my_probe"]).startswith("file:")
    # The same mathematics under two names.
    first, second = stored()
    assert first["correct"] == second["correct"] and first["key"] != second["key"]


def test_the_command_that_new_method_suggests_works(cl_bench: Cli) -> None:
    suggestion = cl_bench("new-method", "my_probe").out.split("try it: cl-bench ")[1]
    outcome = cl_bench(*shlex.split(suggestion), *TRIAL)
    assert outcome.code == 0 and set(rows(outcome.out)) == {"my_probe"}
    shown = cl_bench("show", "my_probe", "--method-file", "my_probe.py").out
    assert stored()[0]["experiment"]["revision"] in shown and "lr" in shown
    assert "cl-bench cite my_probe --method-file my_probe.py" in shown
    assert "my_probe" in cl_bench("ls", "methods", "--method-file", "my_probe.py").out


def test_the_page_names_the_command_that_repeats_a_run(cl_bench: Cli) -> None:
    cl_bench("new-method", "my_probe", "--folder", ".")
    command = ["run", "--method-file", "./my_probe.py", "--methods", "my_probe[epochs=1]", *TRIAL]
    assert "--method-file my_probe.py" in cl_bench(*command, "--dry-run").out.splitlines()[0]
    assert cl_bench(*command).code == 0
    assert cl_bench("report").code == 0
    (runs,) = reports.parts(Path("reports/index.html").read_text(), "runs").values()
    (found,) = set(re.findall(r"cl-bench (repeat [^\"<]*)", json.dumps(runs)))
    assert found == f"repeat {stored()[0]['key']} --results results/runs --method-file my_probe.py"
    repeated = cl_bench(*shlex.split(found))
    assert repeated.code == 0 and "the same in every count" in repeated.out
    without, _ = found.split(" --method-file")
    assert_refused(cl_bench(*shlex.split(without)), "'my_probe'", "--method-file my_probe.py")
    with Path("my_probe.py").open("a") as file:
        file.write("# another thought\n")
    assert_refused(cl_bench(*shlex.split(found)), "'my_probe.py'", "restore")


def test_a_changed_file_is_another_run(cl_bench: Cli) -> None:
    cl_bench("new-method", "my_probe")
    command = ["run", "--method-file", "my_probe.py", "--methods", "my_probe[epochs=1]", *TRIAL]
    assert computed(cl_bench(*command)) == (1, 0)
    assert computed(cl_bench(*command)) == (0, 1)
    Path("copy").mkdir()
    Path("my_probe.py").rename("copy/my_probe.py")
    command[2] = "copy/my_probe.py"
    assert computed(cl_bench(*command)) == (0, 1)
    with Path("copy/my_probe.py").open("a") as file:
        file.write("# another thought\n")
    assert computed(cl_bench(*command)) == (1, 0)
    one, two = stored()
    assert one["key"] != two["key"] and one["experiment"]["revision"] != two["experiment"]["revision"]
    assert one["correct"] == two["correct"]


def test_options_of_a_method_file_are_validated(cl_bench: Cli) -> None:
    cl_bench("new-method", "my_probe")
    command = ["run", "--method-file", "my_probe.py", *TRIAL]
    assert_refused(cl_bench(*command, "--methods", "my_probe[lr=high]"), "my_probe.lr = 'high'", "number")
    outcome = cl_bench(*command, "--methods", "my_probe", "--set", "my_probe.lr=0.1", "--epochs", "1")
    assert set(rows(outcome.out)) == {"my_probe[epochs=1,lr=0.1]"}
    assert stored()[0]["experiment"]["hyperparameters"]["lr"] == 0.1


def test_an_entry_point_is_listed_shown_and_run(
    cl_bench: Cli, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "pointed", source.replace("what it is, where it was published", "A paper of ours"))
    assert "pointed" not in cl_bench("ls", "methods").out
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (line,) = [line for line in cl_bench("ls", "methods").out.splitlines() if line.split()[:1] == ["pointed"]]
    assert "A paper of ours" in line
    assert "A paper of ours" in cl_bench("show", "pointed").out
    outcome = cl_bench("run", "--methods", "pointed[epochs=1]", *TRIAL)
    assert outcome.code == 0 and set(rows(outcome.out)) == {"pointed[epochs=1]"}
    assert_refused(cl_bench("run", "--methods", "ponted"), "Did you mean 'pointed'?")


def bad_files(source: str) -> dict[str, tuple[str, str, list[str]]]:
    """By case: file name, content, and parts that the error message must contain."""
    head, tail = source.split("@dataclass", 1)
    return {
        "syntax error": ("mine.py", "x = 1\ndef broken(:\n", ["'mine.py'", "syntax error in line 2"]),
        "import error": ("mine.py", "import no_such_module\n", ["'mine.py'", "does not import", "no_such_module"]),
        "raises": ("mine.py", "1 / 0\n", ["'mine.py'", "does not import", "ZeroDivisionError"]),
        "not text": ("mine.py", "\0", ["'mine.py'"]),
        "no method": ("mine.py", head, ["'mine.py'", "exactly one", "found none", "new-method"]),
        "two methods": (
            "mine.py",
            f"{source}\n\n@dataclass{tail.replace('class Plugged', 'class Second')}",
            ["'mine.py'", "exactly one", "Plugged, Second"],
        ),
        "bad name": ("my-method.py", source, ["'my-method.py'", "my_method.py"]),
        "bad default": ("mine.py", source.replace("= 0.005", "= -1.0"), ["lr = -1.0", "greater than 0"]),
    }


CASES = ["syntax error", "import error", "raises", "not text", "no method", "two methods", "bad name", "bad default"]


@pytest.mark.parametrize("case", CASES)
def test_a_method_file_that_cannot_be_used_ends_in_one_sentence(cl_bench: Cli, source: str, case: str) -> None:
    assert list(bad_files(source)) == CASES
    name, text, fragments = bad_files(source)[case]
    Path(name).write_text(text)
    RUNS.mkdir(parents=True)
    before = tree()
    outcome = cl_bench("run", "--method-file", name, "--methods", f"{Path(name).stem},simplecil", *TRIAL)
    assert_refused(outcome, *fragments)
    assert tree() == before


@pytest.mark.parametrize("path", ["nowhere.py", "folder.py"])
def test_a_method_file_that_is_none_ends_in_one_sentence(cl_bench: Cli, path: str) -> None:
    Path("folder.py").mkdir()
    assert_refused(cl_bench("run", "--method-file", path, "--methods", Path(path).stem), f"'{path}'", "cannot be read")
    assert_refused(cl_bench("ls", "methods", "--method-file", path), f"'{path}'", "cannot be read")


@pytest.mark.parametrize("command", ["new-method", "run", "audit", "tune", "bench", "show", "ls", "cite", "repeat"])
def test_a_file_does_not_take_the_name_of_a_shipped_method(cl_bench: Cli, source: str, command: str) -> None:
    Path("sdlora_rr.py").write_text(source)
    write(RUNS, record("sdlora_rr", revision="file:0123456789abcdef"))
    arguments = {
        "new-method": ["sdlora_rr"],
        "audit": ["simplecil"],
        "show": ["simplecil"],
        "ls": ["methods"],
        "cite": ["simplecil"],
        "repeat": [stored()[0]["key"]],
    }.get(command, ["--methods", "sdlora-rr"])
    file = [] if command == "new-method" else ["--method-file", "sdlora_rr.py"]
    assert_refused(cl_bench(command, *arguments, *file), "'sdlora-rr', which comes with cl-bench", "my_sdlora_rr")
    assert len(stored()) == 1


def test_an_installed_method_does_not_take_the_name_of_a_shipped_one(
    cl_bench: Cli, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "finetune", source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert_refused(cl_bench("run", "--methods", "finetune", *TRIAL), "'finetune', which comes with", "finetune_package")
    listed = cl_bench("ls", "methods")
    assert "sdlora" in listed.out and "finetune_package" in listed.err


def test_a_hyperparameter_without_default_ends_in_one_sentence(cl_bench: Cli, source: str) -> None:
    Path("mine.py").write_text(source.replace("lr: PositiveFloat = 0.005", "margin: PositiveFloat"))
    assert_refused(cl_bench("run", "--method-file", "mine.py", "--methods", "mine", *TRIAL), "margin")


@pytest.mark.parametrize("text", ["import no_such_module\n", "Plugged = int\n", "other = 1\n"])
@pytest.mark.parametrize("command", [["run", "--methods", "crooked"], ["show", "crooked"]])
def test_a_broken_entry_point_ends_in_one_sentence(
    cl_bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, command: list[str]
) -> None:
    name = f"crooked{len(text)}{command[0]}"
    install(tmp_path / "site", name, text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert_refused(cl_bench(*command[:-1], name), name)


def test_a_broken_entry_point_does_not_hide_the_other_methods(
    cl_bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "twisted", "import no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "sdlora" in cl_bench("ls", "methods").out


def test_an_error_in_a_method_file_comes_with_its_line(cl_bench: Cli, source: str) -> None:
    lines = [*source.splitlines(), "", "    def after_task(self, task, samples):", "        return self.no_such_name"]
    Path("broken.py").write_text("\n".join(lines) + "\n")
    outcome = cl_bench("run", "--method-file", "broken.py", "--methods", "broken[epochs=1]", *TRIAL)
    assert outcome.code == 1 and not list(RUNS.glob("*.json"))
    place = f"(broken.py, line {len(lines)}, in after_task)"
    assert f"AttributeError: 'Plugged' object has no attribute 'no_such_name' {place}" in " ".join(outcome.err.split())
