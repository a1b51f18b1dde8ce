"""Where structures come from: files, folders, zips and tables, read one at a time."""

from __future__ import annotations

import gzip
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import pandas as pd
from pymatgen.core import IStructure, Structure

from crysxpp_mm.errors import DataError

StructureLike: TypeAlias = IStructure | Mapping[str, Any]
"""A Structure, or the dictionary that ``Structure.as_dict`` makes."""

STRUCTURE = "structure"
"""The column of structures that is looked for in a table."""
MAX_FILE_BYTES = 50_000_000
"""A file of one structure that is larger is refused."""

_TABLE_SUFFIXES = (".csv", ".csv.gz", ".json", ".json.gz")


class Payload(NamedTuple):
    """A structure that is not parsed yet.

    ``content`` is a structure or its dictionary where ``fmt`` is empty, the path of a file where
    it is ``"file"``, else text in that format.
    """

    name: str
    content: Any
    fmt: str = ""


class StructureSource:
    """Structures by name, parsed when they are needed.

    Iterating gives a :class:`Payload` at a time, in an order that does not change; ``parse`` makes
    structures of them, in this process or another.
    """

    def __init__(self, names: list[str], payloads: Iterator[Payload], *, label: str) -> None:
        self.names = names
        self.label = label
        self._payloads = payloads

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Payload]:
        return self._payloads


def open_structures(
    source: str | os.PathLike[str] | pd.DataFrame | pd.Series | list[Any],
    *,
    column: str = STRUCTURE,
) -> StructureSource:
    """Open a collection of structures without reading it into memory.

    Args:
        source: A zip or a folder of CIF, POSCAR or pymatgen JSON files; one such file; a CSV or
            JSON table; a DataFrame; or a Series or list of structures.
        column: In a table, the column that holds structures, their dictionaries, CIF text, or
            paths of files (relative to the table).

    Raises:
        DataError: there is nothing of that name, it holds no structure, or the table has no such
            column.
    """
    if isinstance(source, pd.DataFrame):
        _require_column(source, column, "the table")
        source = source[column]
    if isinstance(source, pd.Series):
        names = [str(key) for key in source.index]
        return _of_objects(names, source.tolist(), label="the column")
    if isinstance(source, list | tuple):
        return _of_objects([str(i) for i in range(len(source))], list(source), label="the list")
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder.")
    if zipfile.is_zipfile(path):
        return _zip(path)
    if path.name.lower().endswith(_TABLE_SUFFIXES):
        content = read_table(path)
        if isinstance(content, pd.DataFrame):
            _require_column(content, column, str(path))
            names = [str(key) for key in content.index]
            values = [_cell(value, path.parent) for value in content[column]]
            return _of_objects(names, values, label=str(path))
    return StructureSource(
        [path.name], iter([Payload(path.name, str(path), "file")]), label=str(path)
    )


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame | Mapping[str, Any]:
    """A CSV or JSON table; the dictionary itself where the JSON file holds one structure.

    JSON tables are what pandas writes with ``orient="split"`` or ``"records"``, and matminer's own
    files. Nothing in them is run: structures stay dictionaries.

    Raises:
        DataError: the file cannot be read as one.
    """
    source = Path(path)
    try:
        if source.name.lower().endswith((".csv", ".csv.gz")):
            return pd.read_csv(source)
        data = source.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if isinstance(content, dict) and {"columns", "data"} <= set(content):
            return pd.DataFrame(
                content["data"], columns=content["columns"], index=content.get("index")
            )
        if isinstance(content, list) and all(isinstance(row, dict) for row in content):
            structures = all("lattice" in row and "sites" in row for row in content)
            return pd.DataFrame({STRUCTURE: content} if structures else content)
        if isinstance(content, dict) and "lattice" in content and "sites" in content:
            return content
    except (OSError, EOFError, ValueError, TypeError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise DataError(f"{source} cannot be read as a table: {error}") from error
    raise DataError(
        f"{source} holds neither a table (pandas' 'split' or 'records' form, or matminer's) nor a "
        "structure."
    )


def parse(payload: Payload) -> StructureLike:
    """The structure of a payload.

    Raises:
        DataError: the text or file is no structure; the message begins with its name.
    """
    if not payload.fmt:
        structure: StructureLike = payload.content
        return structure
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen's notes on rounded coordinates
            if payload.fmt == "file":
                path = Path(payload.content)
                if path.stat().st_size > MAX_FILE_BYTES:
                    raise DataError(f"has more than {MAX_FILE_BYTES:,} bytes")
                data = path.read_bytes()
                data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                return _from_text(data.decode(), _format(path.name))
            return _from_text(payload.content, payload.fmt)
    except Exception as error:  # pymatgen's parsers raise many kinds
        raise DataError(
            f"{payload.name} cannot be read as a structure: {type(error).__name__}: {error}"
        ) from error


def _from_text(text: str, fmt: str) -> StructureLike:
    if fmt == "json":
        content = json.loads(text)
        if not isinstance(content, dict):
            raise DataError("the JSON text is no dictionary")
        return content
    return Structure.from_str(text, fmt=fmt)  # type: ignore[arg-type]


def _format(name: str) -> str:
    """``cif``, ``json`` or ``poscar`` by a file's name; empty if it is none of them."""
    stem = PurePosixPath(name.removesuffix(".gz")).name
    lower = stem.lower()
    if lower.endswith((".cif", ".mcif")):
        return "cif"
    if lower.endswith(".json"):
        return "json"
    known = lower.startswith(("poscar", "contcar")) or lower.endswith((".vasp", ".poscar"))
    return "poscar" if known else ""


def _folder(path: Path) -> StructureSource:
    files = sorted(file for file in path.rglob("*") if file.is_file() and _format(file.name))
    if not files:
        raise DataError(f"{path} holds no CIF, POSCAR or JSON file.")
    names = [str(file.relative_to(path)) for file in files]
    payloads = (Payload(name, str(file), "file") for name, file in zip(names, files, strict=True))
    return StructureSource(names, payloads, label=str(path))


def _zip(path: Path) -> StructureSource:
    with zipfile.ZipFile(path) as archive:
        members = sorted(
            (item for item in archive.infolist() if not item.is_dir() and _format(item.filename)),
            key=lambda item: item.filename,
        )
    if not members:
        raise DataError(f"{path} holds no CIF, POSCAR or JSON file.")

    def payloads() -> Iterator[Payload]:
        with zipfile.ZipFile(path) as archive:
            for item in members:
                if item.file_size > MAX_FILE_BYTES:
                    raise DataError(
                        f"{path}: {item.filename} has more than {MAX_FILE_BYTES:,} bytes."
                    )
                try:
                    data = archive.read(item)
                    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                    yield Payload(item.filename, data.decode(), _format(item.filename))
                except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
                    raise DataError(f"{path}: {item.filename} is damaged: {error}") from error

    return StructureSource([item.filename for item in members], payloads(), label=str(path))


def _of_objects(names: list[str], values: list[Any], *, label: str) -> StructureSource:
    payloads = (
        value._replace(name=name) if isinstance(value, Payload) else Payload(name, value)
        for name, value in zip(names, values, strict=True)
    )
    return StructureSource(names, payloads, label=label)


def _cell(value: Any, folder: Path) -> Any:
    """A cell of a file's table: text is CIF, JSON, or the path of a file beside the table."""
    if not isinstance(value, str):
        return value
    if "\n" in value:
        return Payload("", value, "json" if value.lstrip().startswith("{") else "cif")
    if value.lstrip().startswith("{"):
        return Payload("", value, "json")
    return Payload("", str(folder / value), "file")


def _require_column(table: pd.DataFrame, column: str, label: str) -> None:
    if column not in table.columns:
        raise DataError(
            f"{label} has no column {column!r}; it has {', '.join(map(str, table.columns[:20]))}."
        )
