"""Methods, data sets and backbones in Markdown, with what `cl-bench show` knows of them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from cl_bench import backbones, streams
from cl_bench.contract import listing, registry
from cl_bench.contract.registry import MethodEntry
from cl_bench.errors import counted
from cl_bench.experiment import number_of
from cl_bench.reporting.citations import Citations
from cl_bench.running import plan
from cl_bench.streams.benchmarks import Benchmark
from tools.site.commands import value
from tools.site.docstrings import sections
from tools.site.markup import code, plain, prose, table

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = ROOT / "reports" / "reference" / "tables"
_benchmark = cache(streams.find)
"""Benchmarks by name; finding one looks through all installed packages."""
TUNED = ("icons-100", "cifar100")
"""Benchmarks with tuned recipes."""


def method_pages() -> dict[str, str]:
    """One page per method, by where mkdocs finds it."""
    return {f"reference/methods/{name}.md": _method(registry.find(name)) for name in registry.names()}


def methods() -> str:
    """The table of `cl-bench ls methods`, with links to the pages."""
    rows = [
        (
            f"[{code(facts.name)}]({facts.name}.md)",
            plain(facts.paper),
            plain(str(facts.forward_passes)),
            plain(facts.stored),
            "yes" if facts.needs_num_tasks else "no",
        )
        for facts in listing.installed()[0]
    ]
    return table(("method", "paper", "backbone passes", "stores", "needs the number of tasks"), rows)


def _method(found: MethodEntry) -> str:
    cls, module = found.cls, sys.modules[found.cls.__module__]
    source = Path(inspect.getsourcefile(cls) or "").resolve().relative_to(ROOT).as_posix()
    text, _ = sections(inspect.getdoc(cls) or "")
    facts = [
        ("paper", plain(cls.paper)),
        ("revision", str(found.revision)),
        ("streams", ", ".join(cls.scenarios)),
        ("backbone passes per prediction", plain(str(cls.forward_passes))),
        ("keeps of old tasks, beside the model", plain(cls.stores)),
        ("needs the number of tasks", "yes" if cls.needs_num_tasks else "no"),
        ("source", f"[{code(source)}](../../../{source})"),
    ]
    parts = [
        f"# {found.name}\n",
        prose(module.__doc__ or ""),
        table(("fact", "value"), facts),
        f"```\ncl-bench run --methods {found.name}\n```\n",
    ]
    if found.defaults:
        parts += ["## Hyper-parameters\n", prose(text), _hyperparameters(found)]
    if cls.published:
        rows = [
            (code(f"published:{paper}"), ", ".join(code(f"{name}={_shown(value)}") for name, value in values.items()))
            for paper, values in cls.published.items()
        ]
        parts += [
            "## Published recipes\n",
            "What the authors report for a benchmark: `--recipe published:NAME`. Where a paper's text differs from its "
            "code, the text is `NAME.paper`.\n",
            table(("recipe", "values"), rows),
        ]
    if results := _results(found.name):
        parts += ["## Reference results\n", results]
    cited = Citations()
    cited.add_names([found.name])
    parts.append(f"## Citation\n\n`cl-bench cite {found.name}` prints:\n\n```bibtex\n{cited.bibtex.strip()}\n```\n")
    return "\n".join(parts)


def _hyperparameters(found: MethodEntry) -> str:
    meanings: dict[str, str] = {}
    for base in reversed(found.cls.__mro__):
        meanings |= sections(inspect.getdoc(base) or "")[1] if "__doc__" in vars(base) else {}
    recipes = {name: _recipe(found, _benchmark(name)) for name in TUNED}
    tuned = {name: values for name, values in recipes.items() if values}
    hints = get_type_hints(found.cls, include_extras=True)
    rows = []
    for field in dataclasses.fields(found.cls):
        default = found.defaults[field.name]
        changed = [code(_shown(values[field.name])) if field.name in values else "" for values in tuned.values()]
        meaning = plain(meanings.get(field.name, ""))
        rows.append((code(field.name), value(hints[field.name]), code(_shown(default)), *changed, meaning))
    return table(("name", "type", "default", *(f"tuned, {name}" for name in tuned), "meaning"), rows)


def _recipe(found: MethodEntry, benchmark: Benchmark) -> Mapping[str, Any]:
    recipe = plan.resolve(found, benchmark, {}, backbone=backbones.find(_backbone(benchmark)))[1]
    return recipe.values if recipe.name == "tuned" else {}


def _backbone(benchmark: Benchmark) -> str:
    """The shipped backbone that the reference results of a benchmark have."""
    return benchmark.backbone if benchmark.dataset is None else "vit_tiny_patch4_32.tinyimagenet156"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return "none" if value is None else str(value)


def _results(name: str) -> str:
    """The rows of a method in the tables of the reference results."""
    parts = []
    for caption, head, aligned, rows in _reference_tables():
        own = [row for row in rows if row[0].replace("\\", "").split("[")[0].split()[0] == name]
        if own:
            parts.append(f"{caption}\n\n{table(head, own, aligned)}")
    return "\n".join(parts)


@cache
def _reference_tables() -> list[tuple[str, list[str], list[str], list[list[str]]]]:
    """Caption, heads, alignment and rows of every table of a whole stream, as `make reports` has written them."""
    found = []
    for path in sorted(TABLES.glob("*x*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        caption = next(line for line in lines if line.startswith("**"))
        rows = [line.strip("|").split(" | ") for line in lines if line.startswith("|")]
        head, aligned, *body = [[cell.strip() for cell in row] for row in rows]
        if head[0] == "method" and "-tasks" not in path.stem:
            found.append((caption, head, aligned, body))
    return found


def data_sets() -> str:
    """All benchmarks: a table, then a section each."""
    rows, parts = [], []
    for name in streams.names():
        item = _benchmark(name)
        domains = item.scenario == "domain-incremental"
        tasks = counted(number_of(item.tasks), "domain" if domains else "task")
        facts = item.dataset
        if facts is None:
            source = item.source()
            train, test, licence = len(source.train), len(source.test), "ships with the package"
        else:
            train, test, licence = facts.train, facts.test, facts.licence
        rows.append((f"[{code(name)}](#{name})", str(item.num_classes), tasks, f"{train:,} / {test:,}", plain(licence)))
        parts.append(f"## {name}\n\n{plain(item.description)}.\n".replace("..", "."))
        listed = [
            ("scenario", item.scenario),
            ("backbone by default", code(item.backbone)),
            ("hyper-parameters tuned on", code(item.tuned_on or "") or "–"),
        ]
        if facts is not None:
            splits = ", ".join(f"{count} × {each}" for count, each in facts.splits)
            listed += [("published tasks × classes", splits or "–"), ("page", f"<{facts.page}>")]
        parts.append(table(("fact", "value"), listed))
        if facts is not None:
            for layout, tree in facts.layouts.items():
                parts.append(f"Read as `{layout}`:\n\n```\n{tree.strip(chr(10))}\n```\n")
    heads = ("benchmark", "classes", "in", "training / test images", "licence")
    return "\n".join([table(heads, rows), *parts])


def all_backbones() -> str:
    """The backbones that ship, with their cards' figures; what the papers mean by ViT-B/16."""
    parts = []
    for name in backbones.names():
        vit = backbones.find(name)
        facts = [
            ("architecture", code(f"timm {vit.architecture}") + plain(f" {dict(vit.options)}")),
            ("input", f"{vit.channels} × {vit.size} × {vit.size}"),
            ("mean, std", f"{vit.mean}, {vit.std}"),
            ("weights (SHA-256)", code(vit.weights)),
        ]
        if card := backbones.card(name):
            data, probes = card["data"], card["probes"]
            facts += [
                ("trained on", f"{data['train_images']:,} images of {data['classes']} classes"),
                ("licence of the images", plain(card["recipe"]["data"]["licence"])),
                ("held-out accuracy", f"{card['accuracy']['heldout']:.1f} % of {data['heldout_images']:,} images"),
                (f"frozen, on {probes['name']}: nearest mean", f"{probes['trained']['nearest_mean']:.1f} %"),
                (f"frozen, on {probes['name']}: linear probe", f"{probes['trained']['linear']:.1f} %"),
                ("card", f"[{name}.md](../../cl_bench/assets/{name}.md)"),
            ]
        parts.append(f"## {name}\n\n{plain(vit.description)}\n\n{table(('fact', 'value'), facts)}")
    rows = [(code(name), plain(papers)) for name, papers in backbones.VIT_B16.items()]
    parts.append("## ViT-B/16 in papers\n\nPapers call four different weights ViT-B/16:\n")
    parts.append(table(("backbone", "trained on, and used by"), rows))
    return "\n".join(parts)
