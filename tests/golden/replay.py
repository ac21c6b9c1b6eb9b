"""Replay a golden file of any kind: python -m tests.golden.replay FILE [--kind NAME].

Without --kind, the file's name up to its first dot is the kind: sdlora.seed7.npz holds numbers of SD-LoRA. A leading
`zoo-a-` or `zoo-b-`, the name of a collection of files, is left out.

Exit status: 0 all quantities pass, 1 some fail or an array is not used, 2 the file cannot be replayed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from cl_bench.errors import UserError
from tests.golden import (
    Fixture,
    Kind,
    Unusable,
    beamlora,
    cllora,
    coda,
    dualprompt,
    ease,
    inflora,
    l2p,
    metrics,
    mos,
    penalised,
    prolora,
    prototypes,
    raclora,
    sdlora,
    sema,
    sora,
    worst,
)

KINDS = {
    "sdlora": sdlora.KIND,
    "inflora": inflora.KIND,
    "olora": penalised.OLORA,
    "nlora": penalised.NLORA,
    "clora": penalised.CLORA,
    "prolora": prolora.KIND,
    "raclora": raclora.KIND,
    "sora": sora.KIND,
    "beamlora": beamlora.KIND,
    "coda": coda.KIND,
    "dualprompt": dualprompt.KIND,
    "l2p": l2p.KIND,
    "prototypes": prototypes.KIND,
    "ease": ease.KIND,
    "mos": mos.KIND,
    "sema": sema.KIND,
    "cllora": cllora.KIND,
    "metrics": metrics.KIND,
}


def kind_of(path: Path, fixture: Fixture, name: str | None) -> Kind:
    """The kind that is asked for, or that the file is named after.

    Raises:
        Unusable: no such kind, or the keys are not those of this kind.
    """
    wanted = name if name is not None else re.sub(r"^zoo-[ab]-", "", path.name.partition(".")[0])
    known = ", ".join(KINDS)
    if wanted not in KINDS:
        source = "--kind" if name is not None else "The name of the file"
        raise Unusable(f"{path}: {source} says '{wanted}', but known kinds are {known}; name one of them with --kind.")
    if not fixture.any(KINDS[wanted].keys):
        like = [f"'{other}'" for other, kind in KINDS.items() if fixture.any(kind.keys)]
        hint = f"they look like those of {' or '.join(like)}" if like else f"nor those of any other kind ({known})"
        raise Unusable(f"{path} does not have the keys of a file of kind '{wanted}': {hint}.")
    return KINDS[wanted]


def replay(path: Path, name: str | None = None) -> int:
    """Print one line per quantity and a summary; returns the exit status.

    Args:
        path: of the file.
        name: of its kind; by default, the file's name up to its first dot.

    Raises:
        Unusable: unreadable, of an unknown or another kind, or from another random stream.
    """
    fixture = Fixture.load(path)
    kind = kind_of(path, fixture, name)
    try:
        checks = worst(kind.checks(fixture))
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        UserError,
        ValueError,
    ) as problem:
        raise Unusable(f"{path} does not have the layout of its kind: {type(problem).__name__}: {problem}") from problem
    if not checks:
        raise Unusable(f"{path} holds no quantity that could be compared.")
    for check in checks:
        verdict = "pass" if check.passed else f"FAIL at {check.key}"
        arrays = f"{check.count} array{'s' * (check.count > 1)}"
        print(f"{check.name:<50} {check.error:9.2e} <= {check.tolerance:7.0e}  {arrays:<10}  {verdict}")
    unused = kind.unused(fixture)
    for key in unused:
        print(f"FAIL: nothing uses the array {key}")
    failed = sum(not check.passed for check in checks)
    spare = f", {len(unused)} unused array{'s' * (len(unused) > 1)}" if unused else ""
    print(f"{len(checks)} quantities, {failed} failed{spare}")
    return 1 if failed or unused else 0


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.replay", description="Replay a golden file.")
    parser.add_argument("file", type=Path, help=".npz, or .json of metrics")
    parser.add_argument("--kind", help=f"one of {', '.join(KINDS)}; by default, the file's name up to its first dot")
    asked = parser.parse_args(arguments)
    try:
        return replay(asked.file, asked.kind)
    except Unusable as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
