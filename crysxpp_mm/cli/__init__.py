"""The command line: ``crysxpp --help``.

A command is a function that its module is named after, and its options are annotations. What it
needs is imported when it runs, so that the help is there at once.
"""

from __future__ import annotations

import errno
import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from crysxpp_mm.cli import (
    benchmark,
    demo,
    explain,
    featurize,
    graphs,
    models,
    predict,
    pretrain,
    train,
)
from crysxpp_mm.cli.messages import one_line
from crysxpp_mm.errors import CrysXPPError
from crysxpp_mm.version import __version__

INTERRUPTED = 130


class _Commands(TyperGroup):
    """Ends errors of input in one line, and takes ``--debug`` anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (CrysXPPError, OSError) as error:
            pipe_is_closed = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.params.get("debug") or pipe_is_closed:
                raise
            typer.echo(f"error: {one_line(str(error))}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="crysxpp",
    cls=_Commands,
    help="Learned features of crystals, for matminer and pymatgen. Start with: crysxpp demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crysxpp {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from; works anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Set up the log."""
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


for module in (demo, featurize, graphs, pretrain, train, predict, explain, models):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))
app.add_typer(benchmark.app, name="benchmark")
