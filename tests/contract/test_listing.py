"""What `ls methods` reads from source is what the imported classes say, and no torch is imported for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cl_bench.contract import listing, registry
from tests.helpers import ROOT


def test_facts_read_from_source_are_those_of_the_classes() -> None:
    found, errors = listing.installed()
    assert errors == [] and [facts.name for facts in found] == registry.names()
    for facts in found:
        of_class = listing.of_class(registry.find(facts.name))
        for fact in listing.FACTS:
            assert getattr(facts, fact) == getattr(of_class, fact), (facts.name, fact)
        assert set(facts.defaults) == set(of_class.defaults)
        shown = {name: value for name, value in facts.defaults.items() if value is not None}
        assert len(shown) > 3 or len(facts.defaults) < 4
        for name, value in shown.items():
            assert (list(value) if isinstance(value, tuple) else value) == of_class.defaults[name], (facts.name, name)


def test_listing_imports_no_torch(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "pointed-1.0.dist-info"
    (site / "loud").mkdir(parents=True)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pointed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cl_bench.methods]\npointed = loud.mine:MyProbe\n")
    (site / "loud" / "__init__.py").write_text("raise RuntimeError('listing executes nothing')\n")
    source = (ROOT / "tests" / "data" / "my_probe.py.txt").read_text()
    (site / "loud" / "mine.py").write_text(source)
    (tmp_path / "my_probe.py").write_text(source)
    script = (
        "import sys\nfrom cl_bench.cli import main\n"
        "sys.argv = ['cl-bench', 'ls', 'methods', '--method-file', 'my_probe.py']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'timm', 'avalanche'} & set(sys.modules)))\n"
    )
    env = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    names = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert names >= {"my_probe", "pointed", *registry.names()}


def test_what_the_source_does_not_show_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "computed.py"
    source = (ROOT / "tests" / "data" / "my_probe.py.txt").read_text()
    path.write_text(source.replace('= "what it is, where it was published"', '= "-".join(["made", "here"])'))
    assert listing.of_file(path).paper == "made-here"


def test_names_that_the_package_shows_are_followed_to_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text(
        "from dataclasses import dataclass\n\n"
        "from cl_bench import Classifier\nfrom cl_bench import GradientMethod as Base\n\n\n"
        "@dataclass(frozen=True, kw_only=True, eq=False)\nclass Short(Base):\n"
        '    paper = "a short one"\n    needs_num_tasks = True\n\n'
        "    def build(self, backbone, num_classes):\n        return Classifier(backbone, num_classes)\n"
    )
    script = (
        "import sys\nfrom pathlib import Path\nfrom cl_bench.contract import listing\n"
        "facts = listing.of_file(Path('short.py'))\n"
        "print([facts.name, facts.paper, facts.forward_passes, facts.stores, facts.needs_num_tasks])\n"
        "print(facts.defaults['lr'], dict(facts.cited_with))\n"
        "print(sorted({'torch', 'timm', 'avalanche'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    facts, inherited, heavy = done.stdout.splitlines()
    assert heavy == "[]", done.stderr
    assert facts == str(["short", "a short one", 1, "nothing", True])
    assert inherited == "0.01 {'align=true': ('zhang2023slca',)}"
    cls = registry.load_file(tmp_path / "short.py").cls
    assert (cls.paper, cls.forward_passes, cls.stores, cls.needs_num_tasks) == ("a short one", 1, "nothing", True)
