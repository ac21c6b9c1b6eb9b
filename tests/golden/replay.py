"""Replay a golden file of any kind: python -m tests.golden.replay FILE.

Exit status: 0 all quantities pass, 1 some fail, 2 the file cannot be replayed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cl_bench.errors import UserError
from tests.golden import Fixture, Unusable, coda, dualprompt, inflora, l2p, prototypes, sdlora, worst

KINDS = {
    "sdlora": sdlora.KIND,
    "inflora": inflora.KIND,
    "coda": coda.KIND,
    "dualprompt": dualprompt.KIND,
    "l2p": l2p.KIND,
    "prototypes": prototypes.KIND,
}


def replay(path: Path) -> int:
    """Print one line per quantity and a summary; returns the exit status.

    Raises:
        Unusable: unreadable, of an unknown kind, or from another random stream.
    """
    fixture = Fixture.load(path)
    kind = next((kind for kind in KINDS.values() if fixture.any(kind.keys)), None)
    if kind is None:
        raise Unusable(f"{path} has the keys of no known kind of file ({', '.join(KINDS)}).")
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
    for key in fixture.unused():
        print(f"not used: {key}")
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks)} quantities, {failed} failed")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        print("usage: python -m tests.golden.replay FILE", file=sys.stderr)
        return 2
    try:
        return replay(Path(arguments[0]))
    except Unusable as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
