"""Sources of structures: files, folders, zips and tables, read one at a time."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from crysxpp_mm.data import texts
from crysxpp_mm.data.cif import split_blocks
from crysxpp_mm.data.tables import STRUCTURE, is_table, read_table
from crysxpp_mm.data.texts import (
    StructureLike,
    format_of,
    limited_text,
    plain,
    read_text,
    text_of_file,
)
from crysxpp_mm.errors import CrysXPPError, DataError
from crysxpp_mm.parallel import run_blocks

__all__ = [
    "STRUCTURE",
    "StructureLike",
    "is_table",
    "open_structures",
    "parse",
    "parse_blocks",
    "read_table",
]

BLOCK = 256
"""Structures that are parsed at a time, and ..."""
BLOCK_BYTES = 30_000_000
"""... characters of text that they have, unless one alone has more."""

_STRUCTURE_SUFFIXES = (".gz", ".cif", ".mcif", ".json", ".vasp", ".poscar")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Payload(NamedTuple):
    """A structure that is not parsed yet.

    ``content`` is a structure or its dictionary where ``fmt`` is empty, the path of a file where
    it is ``"file"``, the reason why there is none where it is ``"damaged"``, else text in that
    format: ``"cif"``, ``"poscar"`` or ``"json"``.
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
    return _single(path)


class Parsed(NamedTuple):
    """Some structures in the order of their source."""

    names: list[str]
    structures: list[StructureLike]  # of those that could be parsed
    errors: dict[int, str]  # why the others could not, by position in ``names``
    notes: dict[int, str] = {}  # noqa: RUF012 - what was made of a file, by position


def parse_blocks(
    payloads: Iterable[Payload], *, num_workers: int = 0, keep_doubts: bool = False
) -> Generator[Parsed, None, None]:
    """Parse structures, ``BLOCK`` at a time.

    Args:
        payloads: What to parse.
        num_workers: Processes that parse; 0 for this one. It is this one as well for a block that
            holds structures already.
        keep_doubts: Keep a structure that its file leaves open, and say so in its note, instead
            of failing.

    Raises:
        SettingsError: ``num_workers`` is not a whole number of at least 0.
    """
    return run_blocks(
        partial(_parse_block, keep_doubts=keep_doubts),
        payload_blocks(payloads),
        num_workers=num_workers,
        here=lambda block: not any(payload.fmt for payload in block),
    )


def payload_blocks(payloads: Iterable[Payload]) -> Iterator[list[Payload]]:
    """Cut payloads into blocks of ``BLOCK``, or of ``BLOCK_BYTES`` characters of text."""
    block: list[Payload] = []
    size = 0
    for payload in payloads:
        length = len(payload.content) if payload.fmt in ("cif", "poscar", "json") else 0
        if block and (len(block) == BLOCK or size + length > BLOCK_BYTES):
            yield block
            block, size = [], 0
        block.append(payload)
        size += length
    if block:
        yield block


def _parse_block(payloads: list[Payload], *, keep_doubts: bool = False) -> Parsed:
    structures: list[StructureLike] = []
    errors: dict[int, str] = {}
    notes: dict[int, str] = {}
    for position, payload in enumerate(payloads):
        try:
            structure, note = parse_with_note(payload, keep_doubts=keep_doubts)
            structures.append(structure)
            if note:
                notes[position] = note
        except DataError as error:
            errors[position] = str(error).removeprefix(f"{payload.name}: ")
    return Parsed([payload.name for payload in payloads], structures, errors, notes)


def bare_name(name: str) -> str:
    """The id of a structure: its file's name without folders and suffix, as in ``mp-1.cif.gz``.

    The block of a file of several stays: ``a/b.cif#second`` is ``b#second``.

    Example:
        >>> bare_name("set/mp-1.cif.gz")
        'mp-1'
    """
    file, mark, block = name.partition("#") if ".cif#" in name.lower() else (name, "", "")
    bare = PurePosixPath(file).name
    for suffix in _STRUCTURE_SUFFIXES:
        if bare.lower().endswith(suffix):
            bare = bare[: -len(suffix)]
    return bare + mark + block


def row_ids(names: Iterable[str]) -> list[str]:
    """The id of each structure of a source: its bare name, or its name where two would be equal.

    Example:
        >>> row_ids(["a/x.cif", "a/y.cif", "b/y.cif"])
        ['x', 'a/y.cif', 'b/y.cif']
    """
    names = list(names)
    bare = [bare_name(name) for name in names]
    counts = Counter(bare)
    return [short if counts[short] == 1 else name for short, name in zip(bare, names, strict=True)]


def parse(payload: Payload) -> StructureLike:
    """The structure of a payload.

    Raises:
        DataError: the text or file is no structure, or leaves open what it holds; the message
            begins with its name.
    """
    return parse_with_note(payload)[0]


def parse_with_note(payload: Payload, *, keep_doubts: bool = False) -> tuple[StructureLike, str]:
    """The structure of a payload, and what was made of its file where that is worth saying.

    Args:
        payload: What to parse.
        keep_doubts: As ``parse_blocks`` has it.

    Raises:
        DataError: as ``parse``.
    """
    if not payload.fmt:
        structure: StructureLike = payload.content
        return structure, ""
    if payload.fmt == "damaged":
        raise DataError(f"{payload.name}: {payload.content}")
    try:
        if payload.fmt == "file":
            path = Path(payload.content)
            found = read_text(text_of_file(path), format_of(path.name))
        else:
            found = read_text(payload.content, payload.fmt)
    except (CrysXPPError, OSError, MemoryError, RecursionError, zlib.error, EOFError) as error:
        text = str(error) if isinstance(error, CrysXPPError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{payload.name}: {text}") from error
    if found.doubts and not keep_doubts:
        raise DataError(
            f"{payload.name}: {'; '.join(found.doubts)}. (Correct the file, or keep what is "
            "doubtful: keep_doubts, --keep-doubts.)"
        )
    return found.structure, "; ".join((*found.doubts, *found.notes))


# Collections.


class _File(NamedTuple):
    """A file of a collection: its name, and the names of its blocks where it has several."""

    name: str
    place: Any  # its path, or its entry in a zip
    blocks: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of its structures."""
        return [f"{self.name}#{printable(block)}" for block in self.blocks] or [self.name]


def printable(name: str) -> str:
    """A name with its control characters escaped."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def _block_names(text: str) -> tuple[str, ...]:
    return tuple(name for name, _ in split_blocks(text))


def _payloads_of_blocks(file: _File, text: str) -> Iterator[Payload]:
    """The blocks of a file of several."""
    parts = dict(split_blocks(text))
    for name, block in zip(file.names, file.blocks, strict=True):
        if block in parts:
            yield Payload(name, parts[block], "cif")
        else:
            yield Payload(name, "the file was changed while it was read.", "damaged")


def _of_files(
    files: list[_File], payloads: Callable[[], Iterator[Payload]], label: str
) -> StructureSource:
    """A source of files, whose names are checked.

    Raises:
        DataError: a name is no UTF-8 text.
    """
    names = [name for file in files for name in file.names]
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{label}: the name {name!r} is no UTF-8 text; rename it.") from None
    return StructureSource(names, payloads, label=label)


def _single(path: Path) -> StructureSource:
    return _of_paths([(path.name, path)], label=str(path))


def _folder(path: Path) -> StructureSource:
    found = []
    for file in sorted(path.rglob("*")):
        if not format_of(file.name):
            continue
        if file.is_symlink() and not file.exists():
            raise DataError(f"{file} is a link to nothing; remove it.")
        if file.is_file():
            found.append((file.relative_to(path).as_posix(), file))
    if not found:
        raise DataError(f"{path} holds no CIF, POSCAR or JSON file.")
    return _of_paths(found, label=str(path))


def _of_paths(paths: list[tuple[str, Path]], *, label: str) -> StructureSource:
    """The structures of files."""
    files = []
    for name, path in paths:
        blocks: tuple[str, ...] = ()
        if format_of(path.name) == "cif":
            try:
                blocks = _block_names(text_of_file(path))
            except (DataError, OSError, EOFError, zlib.error):
                blocks = ()  # its row will say why
        files.append(_File(printable(name), path, blocks))

    def payloads() -> Iterator[Payload]:
        for file in files:
            if file.blocks:
                yield from _payloads_of_blocks(file, text_of_file(file.place))
            else:
                yield Payload(file.name, str(file.place), "file")

    return _of_files(files, payloads, label)


def _zip(path: Path) -> StructureSource:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(
                (m for m in archive.infolist() if not m.is_dir() and format_of(m.filename)),
                key=lambda item: item.filename,
            )
            files = []
            for item in members:
                text = _member(archive, item, path)
                blocks = _block_names(text) if isinstance(text, str) else ()
                files.append(_File(printable(item.filename), item, blocks))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    if not members:
        raise DataError(f"{path} holds no CIF, POSCAR or JSON file.")

    def payloads() -> Iterator[Payload]:
        with zipfile.ZipFile(path) as archive:
            for file in files:
                text = _member(archive, file.place, path)
                if isinstance(text, DataError):
                    yield Payload(file.name, str(text), "damaged")
                elif file.blocks:
                    yield from _payloads_of_blocks(file, text)
                else:
                    yield Payload(file.name, text, format_of(file.place.filename))

    return _of_files(files, payloads, str(path))


def _member(archive: zipfile.ZipFile, item: zipfile.ZipInfo, path: Path) -> str | DataError:
    """The text of a file in a zip, or why there is none."""
    try:
        with archive.open(item) as file:
            return limited_text(file)
    except DataError as error:
        return error
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        return DataError(f"damaged in {path}: {error}")


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
        return plain(value)
    if isinstance(value, str) and len(value) > texts.MAX_FILE_BYTES:
        reason = f"one structure with more than {texts.MAX_FILE_BYTES:,} bytes is refused."
        return Payload("", reason, "damaged")
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
