"""Tables of files: CSV and JSON, read without running anything that they hold."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.errors import DataError

STRUCTURE = "structure"
"""The column of structures that is looked for in a table."""
MAX_TABLE_BYTES = 2_000_000_000
"""A table that is larger, unpacked, is refused, and so is ..."""
MAX_RATIO, LARGE = 60, 100_000_000
"""... one that unpacks to so many times its size and is then large."""

_GZIP = b"\x1f\x8b"
_TABLE_SUFFIXES = (".csv", ".csv.gz", ".json", ".json.gz")


def decode(data: bytes) -> str:
    r"""Text of bytes: UTF-8, UTF-16 with its mark, or else the usual one byte a character.

    Line ends become those of Unix.

    Example:
        >>> decode(b"\xc5ngstr\xf6m")
        'Ångström'
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _unpacked(source: Path) -> bytes:
    """The bytes of a table, unpacked if need be.

    Raises:
        DataError: there are too many.
    """
    size = source.stat().st_size
    limit = MAX_TABLE_BYTES
    with source.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            limit = min(limit, max(LARGE, MAX_RATIO * size))
            with gzip.GzipFile(fileobj=file) as content:
                data = content.read(limit + 1)
        else:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{source} is refused: unpacked, it has more than {limit:,} bytes.")
    return data


def is_table(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name is that of a table: ``.csv`` or ``.json``, ``.gz`` behind or not."""
    return Path(path).name.lower().endswith(_TABLE_SUFFIXES)


def read_table(
    path: str | os.PathLike[str], *, text: Collection[str] = ()
) -> pd.DataFrame | Mapping[str, Any]:
    """A CSV or JSON table; the dictionary itself where the JSON file holds one structure.

    JSON tables are what pandas writes with ``orient="split"`` or ``"records"``, and matminer's own
    files. Nothing in them is run: structures stay dictionaries. A column of a CSV table with a
    whole number that begins with a zero, such as ``007``, holds names: it is read as text.

    Args:
        path: The file.
        text: More columns of a CSV table that are to be read as text.

    Raises:
        DataError: the file cannot be read as one.
    """
    source = Path(path)
    try:
        if source.name.lower().endswith((".csv", ".csv.gz")):
            return _read_csv(source, text)
        return _of_json(json.loads(decode(_unpacked(source))), source)
    except DataError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        RecursionError,
        MemoryError,
        zlib.error,
    ) as error:
        raise DataError(f"{source} cannot be read as a table: {error}") from error


def _of_json(content: Any, source: Path) -> pd.DataFrame | Mapping[str, Any]:
    """The table, or the structure, of a JSON file.

    Raises:
        DataError: it holds neither.
    """
    if isinstance(content, dict) and {"columns", "data"} <= set(content):
        return pd.DataFrame(content["data"], columns=content["columns"], index=content.get("index"))
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        structures = all(map(_is_structure, content))
        return pd.DataFrame({STRUCTURE: content} if structures else content)
    if isinstance(content, dict) and _is_structure(content):
        return content
    raise DataError(
        f"{source} holds neither a table (pandas' 'split' or 'records' form, or matminer's) nor a "
        "structure."
    )


def _is_structure(content: Mapping[str, Any]) -> bool:
    """Tell whether a dictionary is that of a structure, or of an entry that has one."""
    inner = content.get("structure")
    return {"lattice", "sites"} <= set(content) or (
        "@class" in content and isinstance(inner, dict) and {"lattice", "sites"} <= set(inner)
    )


def _read_csv(source: Path, text: Collection[str]) -> pd.DataFrame:
    # "NaN" may be a formula; only an empty cell is a missing value.
    content = decode(_unpacked(source))
    head = pd.read_csv(io.StringIO(content), header=None, nrows=1, dtype=str).iloc[0]
    if (twice := head[head.notna() & head.duplicated()]).size:
        raise DataError(f"{source} has two columns {twice.iloc[0]!r}; rename one.")
    cells = pd.read_csv(io.StringIO(content), keep_default_na=False, na_values=[""], dtype=str)
    kept = {
        name: str
        for name, column in cells.items()
        if name in text or column.str.fullmatch(r"0\d+").any()
    }
    return pd.read_csv(
        io.StringIO(content),
        keep_default_na=False,
        na_values=[""],
        dtype=kept,
        float_precision="round_trip",
    )
