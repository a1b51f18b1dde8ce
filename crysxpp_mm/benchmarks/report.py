"""Results as files: tables as CSV, and a page of text with the tables and how they were made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from crysxpp_mm.errors import DataError
from crysxpp_mm.serialization import write_whole
from crysxpp_mm.version import __version__

LISTED = ("torch", "numpy", "scikit-learn", "pandas", "pymatgen", "matminer", "lightning")
"""Packages whose versions are given with every result."""


def default_folder() -> Path:
    """Where results go: ``results`` beside this file in a checkout, else the current folder.

    An installed package is no place to write to.
    """
    here = Path(__file__).resolve().parent
    checkout = here.parent.parent
    if all((checkout / name).is_file() for name in ("setup.py", "pyproject.toml")):
        return here / "results"
    return Path()


RESULTS = default_folder()
"""The default folder of the results."""


def versions() -> str:
    """The versions of the package and of what its numbers depend on, in one line."""
    found = [f"crysxpp_mm {__version__}", f"Python {platform.python_version()}"]
    for name in LISTED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def model_name(model: str | os.PathLike[str]) -> str:
    """How a model is called in the tables.

    A path is called by the name of its file, or of its folder where the file has the name that
    every model has, ``model.json.gz``.
    """
    path = Path(model)
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return path.parent.name if name == "model" and path.parent.name else name


def markdown_table(df: pd.DataFrame) -> str:
    """A table in Markdown, without the index; blank where a value is missing.

    Numbers get four significant digits.
    """
    rows = [[str(name) for name in df.columns], ["---"] * df.shape[1]]
    rows += [[_cell(value) for value in row] for row in df.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def write_report(
    folder: str | os.PathLike[str], name: str, *, tables: Mapping[str, pd.DataFrame], text: str
) -> None:
    """Write ``<table>.csv`` for each table and ``<name>.md``, the page last.

    Each file appears under its name only when it is complete.

    Args:
        folder: Where to; made if it does not exist.
        name: Name of the page.
        tables: Tables by the names of their files; the index is not written.
        text: The page.

    Raises:
        DataError: The folder cannot be written to, or a name is no plain file name.
    """
    target = Path(folder)
    for stem in (name, *tables):
        if not stem or Path(stem).name != stem:
            raise DataError(f"{stem!r} is no name for a file of results; leave out folders.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for stem, table in tables.items():
            write_whole(
                target / f"{stem}.csv", table.to_csv(index=False, lineterminator="\n").encode()
            )
        write_whole(target / f"{name}.md", text.encode())
    except OSError as error:
        raise DataError(f"{target} cannot take the results ({error}); name another.") from error
