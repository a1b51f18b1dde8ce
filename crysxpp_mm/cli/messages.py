"""Messages of the commands, in lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import typer

SHOWN_ERRORS = 10
"""Errors that a command prints; the rest are in its file."""


def one_line(text: str) -> str:
    """The text with single blanks, without line breaks.

    Example:
        >>> one_line("no   file of that  name")
        'no file of that name'
    """
    return " ".join(text.split())


def reason(text: str) -> str:
    """The message at the end of a traceback's text, in one line."""
    starts = [match.end() for match in re.finditer(r"^[A-Za-z_][\w.]*: ", text, re.MULTILINE)]
    return one_line(text[starts[-1] :] if starts else text.strip().splitlines()[-1])


def print_errors(errors: dict[str, str], where: str) -> None:
    """Print the first errors by the name of their row, and where the others are."""
    for name, error in islice(errors.items(), SHOWN_ERRORS):
        typer.echo(f"  {name}: {error}")
    if len(errors) > SHOWN_ERRORS:
        typer.echo(f"  ... and {len(errors) - SHOWN_ERRORS} more, in {where}.")


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Numbers by name, nested ones behind the name of their group; None was not measured.

    Example:
        >>> list(lines({"test_mae": {"gap": 0.21484}, "accuracy": None}))
        ['test mae, gap: 0.2148']
    """
    for name, value in results.items():
        if isinstance(value, dict):
            yield from (f"{name.replace('_', ' ')}, {line}" for line in lines(value))
        elif value is not None:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            yield f"{name.replace('_', ' ')}: {shown}"
