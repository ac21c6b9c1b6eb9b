"""The command `cl-bench new-method`."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer
from rich.markup import escape

from cl_bench.cli.shared import out
from cl_bench.contract.sources import check_not_shipped
from cl_bench.errors import UserError


def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method, a Python identifier.")],
    folder: Annotated[Path, typer.Option(help="Folder for NAME.py.")] = Path(),
) -> None:
    """Write a small working method as a starting point."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"'{name}' cannot name a method; expected a letter, then letters, digits and _, all lower-case ASCII, "
            "such as my_method"
        )
    check_not_shipped(name, "the new method", "choose another name, e.g.")
    path = folder / f"{name}.py"
    template = Template((files("cl_bench") / "assets" / "new_method.py.txt").read_text())
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        with path.open("x") as file:
            file.write(template.substitute(name=name, class_name=class_name))
    except FileExistsError as error:
        raise UserError(f"'{path}' exists already; remove it or choose another name") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror})") from error
    command = f"cl-bench run --method-file {shlex.quote(str(path))} --methods {name}"
    out.print(escape(f"wrote {path}\ntry it: {command}"), highlight=False, soft_wrap=True)
