"""``crysxpp demo``."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crysxpp_mm.cli.options import Model


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("crysxpp-demo"),
    model: Model = None,
) -> None:
    """Featurize and map the crystals in pymatgen.

    They are its AFLOW prototypes; no network and no other data are needed. Takes seconds.

    \b
    Example:
      crysxpp demo --out crysxpp-demo
    """
    from crysxpp_mm.demo import run_demo

    run_demo(out, model=model, say=typer.echo)
