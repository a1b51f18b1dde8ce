"""``crysxpp models``: the models that come with the package."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import typer


def models() -> None:
    """List the models that come with the package.

    \b
    Example:
      crysxpp models
    """
    from crysxpp_mm import list_models

    typer.echo(list_models().drop(columns="path").to_string(index=False))
