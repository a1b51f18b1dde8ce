"""Results as files: tables as CSV, and a page in Markdown with how they were made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.errors import DataError
from crysxpp_mm.serialization import write_whole
from crysxpp_mm.version import __version__

LISTED = ("torch", "numpy", "scikit-learn", "pandas", "pymatgen", "matminer", "lightning")
"""Packages whose versions are given with every result."""


def default_folder() -> Path:
    """Folder of results: ``results`` beside this file in a checkout, else the current folder.

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
    """Name of a model in the tables.

    For a path it is the name of the file, or of its folder if the file is called
    ``model.json.gz``, as every shipped model is.

    Example:
        >>> model_name("runs/mine/model.json.gz")
        'mine'
    """
    path = Path(model)
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return path.parent.name if name == "model" and path.parent.name else name


def plus_minus(
    means: Iterable[float], spreads: Iterable[float], form: str = ".3g ± .1g"
) -> list[str]:
    """Means with their spreads as text, without one that is not known.

    Args:
        means: Numbers.
        spreads: As many; NaN where unknown.
        form: Formats of both.

    Example:
        >>> plus_minus([0.1234, -2.0], [0.0321, float("nan")])
        ['0.123 ± 0.03', '-2']
    """
    value, _, spread = form.partition(" ± ")
    return [
        f"{mean:{value}}" + ("" if std != std else f" ± {std:{spread}}")
        for mean, std in zip(means, spreads, strict=True)
    ]


def one_column_each(
    summary: pd.DataFrame,
    by: str,
    first: Callable[[pd.DataFrame], dict[str, Any]],
    *,
    index: Sequence[str],
    form: str = ".3g ± .1g",
) -> pd.DataFrame:
    """Errors as text, one column per method; the least of a row in bold.

    Args:
        summary: One row per method and ``index``, with ``mae`` and ``std``.
        by: Column that names the method.
        first: What stands in front, from the rows of an index.
        index: Columns that tell rows of the table apart.
        form: Formats of the error and its spread.
    """
    rows = []
    for _, group in summary.groupby(list(index), sort=False):
        texts = plus_minus(group["mae"], group["std"], form)
        least = group["mae"] == group["mae"].min()
        bold = [f"**{text}**" if best else text for text, best in zip(texts, least, strict=True)]
        rows.append({**first(group), **dict(zip(group[by], bold, strict=True))})
    return pd.DataFrame(rows)


def page(title: str, *blocks: str, command: str = "", where: str = "") -> str:
    """Put a page together.

    Args:
        title: Its title.
        *blocks: Paragraphs, tables and lists; empty ones are left out.
        command: Command that makes it; left out if empty.
        where: Rest of the sentence on how it was made.
    """
    made = f"Made by `{command}`{where}." if command else ""
    parts = (f"# {title}", *blocks, made, f"Versions: {versions()}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """A list in Markdown; empty without lines."""
    return "\n".join(f"- {line}" for line in lines)


def markdown_table(df: pd.DataFrame) -> str:
    """A table in Markdown, without the index; blank where a value is missing.

    Numbers get four significant digits.

    Example:
        >>> print(markdown_table(pd.DataFrame({"target": ["band gap"], "error": [0.5661]})))
        | target | error |
        | --- | --- |
        | band gap | 0.5661 |
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
