"""Frame of a training: quiet, and ended as other commands are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from crysxpp_mm.cli.messages import one_line
from crysxpp_mm.errors import SettingsError


@contextmanager
def lightning_run(advice: str) -> Iterator[None]:
    """Train in it: without Lightning's tips, and with an end as other commands have it.

    Args:
        advice: What Ctrl-C and SIGTERM are answered with.

    Raises:
        SettingsError: the loss is not finite.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips are no results
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch
    try:
        yield
    except FloatingPointError as error:
        raise SettingsError(str(error)) from error
    except (KeyboardInterrupt, SystemExit):
        typer.echo(advice, err=True)
        raise


@contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings in one line each, without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
