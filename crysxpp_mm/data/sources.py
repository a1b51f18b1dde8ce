"""Where structures come from: files, folders, zips and tables, read one at a time."""

from __future__ import annotations

import gzip
import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeAlias

import pandas as pd
from pymatgen.core import IStructure, Structure

from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.converter import without_code
from crysxpp_mm.parallel import cut, run_blocks

StructureLike: TypeAlias = IStructure | Mapping[str, Any]
"""A Structure, or the dictionary that ``Structure.as_dict`` makes."""

STRUCTURE = "structure"
"""The column of structures that is looked for in a table."""
MAX_FILE_BYTES = 50_000_000
"""A file of one structure that is larger, or becomes so when it is unpacked, is refused."""

BLOCK = 256
"""Structures that are parsed at a time."""

_GZIP = b"\x1f\x8b"
_STRUCTURE_SUFFIXES = (".gz", ".cif", ".mcif", ".json", ".vasp", ".poscar")
_TABLE_SUFFIXES = (".csv", ".csv.gz", ".json", ".json.gz")


class Payload(NamedTuple):
    """A structure that is not parsed yet.

    ``content`` is a structure or its dictionary where ``fmt`` is empty, the path of a file where
    it is ``"file"``, the reason why there is none where it is ``"damaged"``, else text in that
    format.
    """

    name: str
    content: Any
    fmt: str = ""


class StructureSource:
    """Structures by name, parsed when they are needed.

    Iterating gives a :class:`Payload` at a time, in an order that does not change and as often as
    one likes; ``parse`` makes structures of them, in this process or another.

    Attributes:
        names: Name of each structure: its file's, or its place in the table.
        label: What the structures come from, for messages.
        table: The other columns, row by row, where they come from a table; else None.
    """

    def __init__(
        self,
        names: list[str],
        payloads: Callable[[], Iterator[Payload]],
        *,
        label: str,
        table: pd.DataFrame | None = None,
    ) -> None:
        if not names:
            raise DataError(f"{label} holds no structure.")
        self.names = names
        self.label = label
        self.table = table
        self._payloads = payloads

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Payload]:
        return self._payloads()


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
        return _of_table(source, column, label="the table")
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
    if path.suffix == ".graphs":
        raise DataError(f"{path} is a graph store: it holds graphs, not the structures.")
    if zipfile.is_zipfile(path):
        return _zip(path)
    if is_table(path):
        content = read_table(path)
        if isinstance(content, pd.DataFrame):
            return _of_table(content, column, label=str(path), folder=path.parent)
    name = path.name
    return StructureSource(
        [name], lambda: iter([Payload(name, str(path), "file")]), label=str(path)
    )


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name is that of a table: ``.csv``, ``.json``, or one of them and ``.gz``."""
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
        data = source.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == _GZIP else data)
        if isinstance(content, dict) and {"columns", "data"} <= set(content):
            return pd.DataFrame(
                content["data"], columns=content["columns"], index=content.get("index")
            )
        if isinstance(content, list) and all(isinstance(row, dict) for row in content):
            structures = all("lattice" in row and "sites" in row for row in content)
            return pd.DataFrame({STRUCTURE: content} if structures else content)
        if isinstance(content, dict) and "lattice" in content and "sites" in content:
            return content
    except DataError:
        raise
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
        raise DataError(f"{source} cannot be read as a table: {error}") from error
    raise DataError(
        f"{source} holds neither a table (pandas' 'split' or 'records' form, or matminer's) nor a "
        "structure."
    )


def _read_csv(source: Path, text: Collection[str]) -> pd.DataFrame:
    # "NaN" may be a formula; only an empty cell is a missing value.
    head = pd.read_csv(source, header=None, nrows=1, dtype=str).iloc[0]
    if (twice := head[head.notna() & head.duplicated()]).size:
        raise DataError(f"{source} has two columns {twice.iloc[0]!r}; rename one.")
    cells = pd.read_csv(source, keep_default_na=False, na_values=[""], dtype=str)
    kept = {
        name: str
        for name, column in cells.items()
        if name in text or column.str.fullmatch(r"0\d+").any()
    }
    return pd.read_csv(
        source,
        keep_default_na=False,
        na_values=[""],
        dtype=kept,
        float_precision="round_trip",
    )


class Parsed(NamedTuple):
    """Some structures in the order of their source."""

    names: list[str]
    structures: list[StructureLike]  # of those that could be parsed
    errors: dict[int, str]  # why the others could not, by position in ``names``


def parse_blocks(
    payloads: Iterable[Payload], *, num_workers: int = 0
) -> Generator[Parsed, None, None]:
    """Parse structures, ``BLOCK`` at a time.

    Args:
        payloads: What to parse.
        num_workers: Processes that parse; 0 for this one. It is this one as well for a block that
            holds structures already.

    Raises:
        SettingsError: ``num_workers`` is not a whole number of at least 0.
    """
    return run_blocks(
        _parse_block,
        cut(payloads, BLOCK),
        num_workers=num_workers,
        here=lambda block: not any(payload.fmt for payload in block),
    )


def _parse_block(payloads: list[Payload]) -> Parsed:
    structures: list[StructureLike] = []
    errors: dict[int, str] = {}
    for position, payload in enumerate(payloads):
        try:
            structures.append(parse(payload))
        except DataError as error:
            errors[position] = str(error).removeprefix(f"{payload.name}: ")
    return Parsed([payload.name for payload in payloads], structures, errors)


def bare_name(name: str) -> str:
    """The name of a structure's file without folders and suffix: its id, as in ``mp-1.cif.gz``."""
    bare = PurePosixPath(name).name
    for suffix in _STRUCTURE_SUFFIXES:
        if bare.lower().endswith(suffix):
            bare = bare[: -len(suffix)]
    return bare


def parse(payload: Payload) -> StructureLike:
    """The structure of a payload.

    Raises:
        DataError: the text or file is no structure; the message begins with its name.
    """
    if not payload.fmt:
        structure: StructureLike = payload.content
        return structure
    if payload.fmt == "damaged":
        raise DataError(f"{payload.name}: {payload.content}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen's notes on rounded coordinates
            if payload.fmt == "file":
                path = Path(payload.content)
                with path.open("rb") as file:
                    return _from_text(_text(file), _format(path.name))
            return _from_text(payload.content, payload.fmt)
    except DataError as error:
        raise DataError(f"{payload.name}: {error}") from error
    except Exception as error:  # pymatgen's parsers raise many kinds
        raise DataError(
            f"{payload.name}: cannot be read as a structure: {type(error).__name__}: {error}"
        ) from error


def _from_text(text: str, fmt: str) -> StructureLike:
    if fmt == "json":
        content = json.loads(text)
        if not isinstance(content, dict):
            raise DataError("the JSON text is no dictionary.")
        return _plain(content)
    if not fmt:
        raise DataError(
            "the format is unknown; names end in .cif, .vasp, .poscar or .json, or begin with "
            "POSCAR or CONTCAR, and those of tables end in .csv or .json."
        )
    return Structure.from_str(text, fmt=fmt)  # type: ignore[arg-type]


def _text(file: IO[bytes]) -> str:
    """The text of a file, unpacked if need be, with a limit on both sizes.

    Raises:
        DataError: it is larger.
    """
    data = file.read(MAX_FILE_BYTES + 1)
    if data[:2] == _GZIP and len(data) <= MAX_FILE_BYTES:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            data = packed.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"one structure with more than {MAX_FILE_BYTES:,} bytes is refused.")
    return data.decode()


def _plain(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What describes a structure in a dictionary from a file, and nothing else."""
    if "lattice" in content and isinstance(content.get("sites"), list):
        return without_code(content)
    return {key: value for key, value in content.items() if not key.startswith("@")}


def _format(name: str) -> str:
    """``cif``, ``json`` or ``poscar`` by a file's name; empty if it is none of them."""
    lower = PurePosixPath(name.lower().removesuffix(".gz")).name
    if lower.startswith("."):
        return ""  # hidden, such as the files that macOS leaves in zips
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
    names = [file.relative_to(path).as_posix() for file in files]

    def payloads() -> Iterator[Payload]:
        for name, file in zip(names, files, strict=True):
            yield Payload(name, str(file), "file")

    return StructureSource(names, payloads, label=str(path))


def _zip(path: Path) -> StructureSource:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(
                (m for m in archive.infolist() if not m.is_dir() and _format(m.filename)),
                key=lambda item: item.filename,
            )
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    if not members:
        raise DataError(f"{path} holds no CIF, POSCAR or JSON file.")

    def payloads() -> Iterator[Payload]:
        with zipfile.ZipFile(path) as archive:
            for item in members:
                try:
                    with archive.open(item) as file:
                        yield Payload(item.filename, _text(file), _format(item.filename))
                except DataError as error:
                    yield Payload(item.filename, str(error), "damaged")
                except (
                    OSError,
                    EOFError,
                    ValueError,
                    RuntimeError,
                    zlib.error,
                    zipfile.BadZipFile,
                ) as error:
                    yield Payload(item.filename, f"damaged in {path}: {error}", "damaged")

    return StructureSource([item.filename for item in members], payloads, label=str(path))


def _of_table(
    table: pd.DataFrame, column: str, *, label: str, folder: Path | None = None
) -> StructureSource:
    """The structures of a table; ``folder`` is where the paths in a file's table begin."""
    _require_column(table, column, label)
    values = table[column].tolist()
    names = [str(key) for key in table.index]
    kept = table.drop(columns=column)
    if folder is not None:
        cells, values = values, [_cell(value, folder) for value in values]
        paths = [isinstance(value, Payload) and value.fmt == "file" for value in values]
        if any(paths):  # they say which row it is
            kept = table.copy()
            kept[column] = [cell if p else None for cell, p in zip(cells, paths, strict=True)]
            named = [c if p else n for c, n, p in zip(cells, names, paths, strict=True)]
            names = named if len(set(named)) == len(named) else names
    return _of_objects(names, values, label=label, table=kept)


def _of_objects(
    names: list[str], values: list[Any], *, label: str, table: pd.DataFrame | None = None
) -> StructureSource:
    def payloads() -> Iterator[Payload]:
        for name, value in zip(names, values, strict=True):
            yield (
                value._replace(name=name) if isinstance(value, Payload) else Payload(name, value)
            )

    return StructureSource(names, payloads, label=label, table=table)


def _cell(value: Any, folder: Path) -> Any:
    """A cell of a file's table: text is CIF, POSCAR, JSON, or a path beside the table."""
    if isinstance(value, Mapping):
        return _plain(value)
    if not isinstance(value, str):
        return Payload("", "the cell is empty.", "damaged") if value != value else value
    if value.lstrip().startswith("{"):
        return Payload("", value, "json")
    if "\n" in value:
        return Payload("", value, "cif" if "_cell_" in value or "data_" in value else "poscar")
    return Payload("", str(folder / value), "file")


def _require_column(table: pd.DataFrame, column: str, label: str) -> None:
    if list(table.columns).count(column) > 1:
        raise DataError(f"{label} has several columns {column!r}; rename all but one.")
    if column not in table.columns:
        raise DataError(
            f"{label} has no column {column!r}; it has {', '.join(map(str, table.columns[:20]))}."
        )
