"""Tables of structures: matminer's data sets, without the traps of getting them."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from pymatgen.core import IStructure

from crysxpp_mm.errors import DataError

_LOOKED_AT = 20  # rows of a column that tell what it holds


def load_table(name: str, *, data_home: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Load one of matminer's data sets, its structures decoded.

    ``matminer.datasets.load_dataset`` downloads what is not there yet. Where that fails,
    nothing half-written stays behind (matminer would read it the next time), it fails at once
    instead of trying for minutes, and the message says where to put the file by hand.

    Args:
        name: Such as ``"elastic_tensor_2015"``; ``matminer.datasets.get_available_datasets()``
            has them all.
        data_home: Folder of the files; what ``MATMINER_DATA`` names if None, and matminer's own
            folder if that is not set either.

    Raises:
        DataError: there is no data set of that name, its file is neither there nor can be
            downloaded, or the file is damaged.
    """
    from matminer.datasets import load_dataset

    path, url = _file_of(name, data_home)
    if not path.is_file():
        _download(name, path, url=url)
    try:
        table = load_dataset(name, data_home=str(path.parent), download_if_missing=False)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); "
            "remove the file and get it again."
        ) from error
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"{path} holds no table; remove the file and get it again.")
    return table


def _file_of(name: str, data_home: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Find the file of a data set, which may not be there yet, and where it comes from."""
    from matminer.datasets.utils import _get_data_home, _load_dataset_dict

    known = _load_dataset_dict()
    if name not in known:
        close = [other for other in sorted(known) if name and name.lower() in other.lower()]
        close += [other for other in get_close_matches(name, known, n=5) if other not in close]
        hint = f"; close to it: {', '.join(close)}." if close else "."
        raise DataError(f"matminer has no data set {name!r}{hint}")
    folder = os.fspath(data_home) if data_home is not None else None
    path = Path(_get_data_home(folder), f"{name}.{known[name]['file_type']}")
    return path, str(known[name]["url"])


def _download(name: str, path: Path, *, url: str) -> None:
    """Let matminer download a file; all of it or nothing is there afterwards."""
    from matminer.datasets import load_dataset

    complete = False
    try:
        # What matminer prints is not a result. Its wrong-hash warning comes before a minute's wait.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*hash of downloaded file does not match.*")
            load_dataset(name, data_home=str(path.parent))
        complete = True
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, Warning) as error:
        raise DataError(
            f"the data set {name!r} is not in {path.parent} and cannot be downloaded "
            f"({type(error).__name__}). Without a network: get {url} on another machine, save it "
            f"as {path}, and load it again (data_home or MATMINER_DATA names another folder)."
        ) from error
    finally:
        if not complete:  # after Ctrl-C as well
            path.unlink(missing_ok=True)


def structure_column(df: pd.DataFrame) -> str:
    """Find the column that holds structures, or the dictionaries that ``Structure.as_dict`` makes.

    Raises:
        DataError: there is none, or there are several.
    """
    found = [
        label
        for position, label in enumerate(df.columns)
        if any(
            _is_structure(value)
            for value in df.iloc[:, position].dropna().head(_LOOKED_AT).tolist()
        )
    ]
    if not found:
        raise DataError(
            "no column holds structures; the table has "
            f"{', '.join(map(repr, df.columns[:20])) or 'no columns'}. Text becomes a structure by "
            "Structure.from_str(text, fmt='cif')."
        )
    if len(found) > 1:
        raise DataError(
            f"several columns hold structures: {', '.join(map(repr, found))}; name one of them."
        )
    return str(found[0])


def table_columns(
    name: str,
    target: str | Sequence[str],
    *,
    data_home: str | os.PathLike[str] | None = None,
) -> tuple[pd.Series, pd.Series | pd.DataFrame]:
    """Load the structures and one or several columns of one of matminer's data sets.

    Args:
        name: As ``load_table`` takes it.
        target: Name of the column, or names of several.
        data_home: As ``load_table`` takes it.

    Raises:
        DataError: as ``load_table``, or there is no such column.
    """
    table = load_table(name, data_home=data_home)
    wanted = [target] if isinstance(target, str) else list(target)
    if missing := [column for column in wanted if column not in table]:
        raise DataError(
            f"{name} has no column {missing[0]!r}; there are {', '.join(map(repr, table.columns))}."
        )
    labels = table[target] if isinstance(target, str) else table[wanted]
    return table[structure_column(table)], labels


def _is_structure(value: object) -> bool:
    if isinstance(value, Mapping):
        return "lattice" in value and "sites" in value
    return isinstance(value, IStructure)
