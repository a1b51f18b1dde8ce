"""A graph store: the crystal graphs of a whole data set in one flat file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from crysxpp_mm.data.sources import (
    STRUCTURE,
    Payload,
    open_structures,
    parse_with_note,
    payload_blocks,
)
from crysxpp_mm.errors import DataError, GraphError, GraphStoreError, SettingsError
from crysxpp_mm.graph.arrays import DTYPES, CrystalGraphs, offsets_from_counts
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.parallel import run_blocks
from crysxpp_mm.serialization import naming, remove_leftovers, scratch_prefix
from crysxpp_mm.settings import whole_number

FORMAT = "crysxpp_mm graph store"
FORMAT_VERSION = 1
"""Version of the file; a later one is refused."""
HEADER = "header.json"
SUFFIX = ".graphs"
"""What the names of stores end in."""

_COPY_BYTES = 1 << 20
ROUNDING = 1e-4
"""Rounding of lengths, Angstrom."""
MAX_RATIO, LARGE = 100, 100_000_000
"""A file that unpacks to so many times its size is refused if it is then large."""
_SEAL_BYTES = 64  # a sha256 in hexadecimal, which ends the file as the comment of the zip

# Offsets are kept as counts, in 32 bits, and made again on loading.
_COLUMNS: dict[str, np.dtype] = {
    name.replace("_offsets", "_counts"): (
        np.dtype(np.int32) if name.endswith("_offsets") else dtype
    )
    for name, dtype in DTYPES.items()
} | {"names": np.dtype(np.uint8)}


@dataclass(frozen=True)
class GraphStore:
    """The graphs of many crystals, their names, and the rule that made them.

    Attributes:
        names: Name of each crystal, such as its file's.
        graphs: The graphs, in the same order.
        converter: The rule that they were built by.
        data_hash: sha256 over names, graphs and rule; equal data have equal hashes.
        errors: Why crystals were left out, by name.
        notes: What was made of files, where it is worth saying, by name.
    """

    names: list[str]
    graphs: CrystalGraphs
    converter: CrystalGraphConverter
    data_hash: str
    errors: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> GraphStore:
        """A store of the crystal at ``index``, so that scikit-learn can split stores like lists.

        Raises:
            IndexError: there is no such crystal.
        """
        graphs, names = self.graphs[index], [self.names[index]]
        digests = {
            name: hashlib.sha256(array.tobytes()).hexdigest()
            for name, array in _arrays_of(names, graphs).items()
        }
        return GraphStore(names, graphs, self.converter, _combine(digests, self.converter))

    def select(self, names: list[str]) -> CrystalGraphs:
        """The graphs of the crystals of these names, in that order.

        Raises:
            DataError: a name is not in the store.
        """
        rows = {name: row for row, name in enumerate(self.names)}
        if missing := [name for name in names if name not in rows]:
            raise DataError(f"the graph store has no crystal {missing[0]!r}.")
        return self.graphs.select([rows[name] for name in names])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GraphStore:
        """Read a store; nothing is unpickled and every byte is checked.

        Raises:
            GraphStoreError: the file is absent, foreign, damaged or of a later format.
        """
        source = Path(path)
        if not source.is_file():
            raise GraphStoreError(f"{source}: there is no such file.")
        if not zipfile.is_zipfile(source):
            raise GraphStoreError(f"{source} is no graph store, or it is damaged.")
        try:
            return _load(source)
        except GraphStoreError:
            raise
        except GraphError as error:
            raise GraphStoreError(f"{source} holds no crystal graphs: {error}") from error
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            MemoryError,
            RuntimeError,
            OverflowError,
            struct.error,
            zlib.error,
            zipfile.BadZipFile,
        ) as error:
            raise GraphStoreError(f"{source} is damaged: {error}") from error


def _load(source: Path) -> GraphStore:
    """Read a store.

    Raises:
        GraphStoreError: it is foreign or of a later format, its hashes do not fit, or it holds
            what makes no sense.
        GraphError: its columns are no crystal graphs.
    """
    with zipfile.ZipFile(source) as archive:
        header = _read_header(archive, source)
        if header.get("sealed") and not _seal_holds(source):
            raise GraphStoreError(f"{source} does not match its seal; it is damaged.")
        arrays = {name: _read_array(archive, name) for name in _COLUMNS}
    names = arrays.pop("names").tobytes().decode().split("\n")[:-1]
    converter = _read_rule(header, source)
    if _hash_of(names, arrays, converter) != header["sha256"]:
        raise GraphStoreError(f"{source} does not match its sha256; the file is damaged.")
    graphs = _graphs_of(arrays)
    if len(graphs) != len(names):
        raise GraphStoreError(f"{source} has {len(graphs)} graphs and {len(names)} names.")
    if len(set(names)) < len(names):
        raise GraphStoreError(f"{source}: names has one name twice.")
    longest = converter.cutoff + converter.shell_tolerance + ROUNDING
    if graphs.distances.max(initial=0) > longest:
        raise GraphStoreError(f"{source}: distances has one beyond the cutoff of its rule.")
    return GraphStore(names, graphs, converter, header["sha256"], header["errors"], header["notes"])


def _read_rule(header: Mapping[str, Any], source: Path) -> CrystalGraphConverter:
    try:
        return CrystalGraphConverter(**header["converter"])
    except (TypeError, SettingsError) as error:
        raise GraphStoreError(f"{source}: the rule makes no sense: {error}") from error


def _hash_of(
    names: list[str], arrays: Mapping[str, NDArray[Any]], converter: CrystalGraphConverter
) -> str:
    """The hash of what was read."""
    found = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    return _combine({**found, "names": hashlib.sha256(_join(names)).hexdigest()}, converter)


def _graphs_of(arrays: Mapping[str, NDArray[Any]]) -> CrystalGraphs:
    """Graphs of the columns of a file.

    Raises:
        GraphError: they are none; the column is named.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name in DTYPES:
        if not name.endswith("_offsets"):
            columns[name] = arrays[name]
            continue
        counts = arrays[name.replace("_offsets", "_counts")]
        if len(counts) and counts.min() < 0:
            raise GraphError(f"{name.replace('_offsets', '_counts')} has a negative number.")
        columns[name] = offsets_from_counts(counts)
    return CrystalGraphs(**columns)


def build_store(
    source: str | os.PathLike[str] | pd.DataFrame | pd.Series | list[Any],
    out: str | os.PathLike[str],
    *,
    converter: CrystalGraphConverter | None = None,
    column: str = STRUCTURE,
    ignore_errors: bool = False,
    keep_doubts: bool = False,
    num_workers: int = 0,
    pbar: bool = True,
) -> GraphStore:
    """Convert a data set once and write its graphs to one file.

    Structures are parsed, converted and written 256 at a time, so that memory does not grow with
    the data set. The file appears under its name only when it is complete.

    Args:
        source: A zip or folder of CIF, POSCAR or JSON files, a table, or structures in memory
            (see ``crysxpp_mm.data.sources.open_structures``).
        out: The file to write, usually ``<name>.graphs``.
        converter: The rule; the published cutoff and neighbours if None.
        column: In a table, the column of structures.
        ignore_errors: Leave out what has no graph, and keep the reason in the store.
        keep_doubts: Keep structures that their files leave open, and a note in the store.
        num_workers: Processes that parse and convert; 0 for this one.
        pbar: Show a progress bar.

    Returns:
        The store, read back from the file.

    Raises:
        DataError: the source cannot be read, two crystals have one name, or a structure has no
            graph (its name begins the message).
        SettingsError: ``num_workers`` is not a whole number of at least 0.
    """
    whole_number("num_workers", num_workers, at_least=0)
    rule = converter or CrystalGraphConverter()
    entries = open_structures(source, column=column)
    _check_names(entries.names, entries.label)
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    with (
        naming(target),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=scratch_prefix(target)) as scratch,
    ):
        writer = _Writer(Path(scratch))
        work = partial(_convert, converter=rule, keep_doubts=keep_doubts)
        errors: dict[str, str] = {}
        notes: dict[str, str] = {}
        blocks = run_blocks(work, payload_blocks(entries), num_workers=num_workers)
        with (
            closing(blocks),
            tqdm(total=len(entries), desc="graphs", unit="crystal", disable=not pbar) as bar,
        ):
            for block in blocks:
                for name, error in block.errors.items():
                    if not ignore_errors:
                        raise DataError(
                            f"{name}: {error} (ignore_errors leaves such crystals out.)"
                        )
                    errors[name] = error
                notes |= block.notes
                writer.add(block.names, block.graphs)
                bar.update(len(block.names) + len(block.errors))
        if not writer.n_graphs:
            name, error = next(iter(errors.items()))
            raise DataError(f"{entries.label}: no structure has a graph; {name}: {error}")
        complete = Path(scratch, "complete")
        writer.finish(complete, rule, errors, notes)
        complete.replace(target)
    return GraphStore.load(target)


class _Block(NamedTuple):
    """Some crystals, converted."""

    names: list[str]
    graphs: CrystalGraphs
    errors: dict[str, str]  # by name
    notes: dict[str, str]


def _convert(
    payloads: list[Payload], *, converter: CrystalGraphConverter, keep_doubts: bool
) -> _Block:
    names, structures, errors, notes = [], [], {}, {}
    for payload in payloads:
        try:
            structure, note = parse_with_note(payload, keep_doubts=keep_doubts)
        except DataError as error:
            errors[payload.name] = str(error).removeprefix(f"{payload.name}: ")
            continue
        structures.append(structure)
        names.append(payload.name)
        if note:
            notes[payload.name] = note
    graphs, failed = converter.convert_each(structures)
    errors |= {names[row]: str(error) for row, error in failed.items()}
    kept = [name for row, name in enumerate(names) if row not in failed]
    return _Block(kept, graphs, errors, {name: notes[name] for name in kept if name in notes})


class _Writer:
    """Appends blocks to one raw file a column, then packs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests = {name: hashlib.sha256() for name in _COLUMNS}
        self.n_graphs = 0

    def add(self, names: list[str], graphs: CrystalGraphs) -> None:
        """Append a block."""
        self.n_graphs += len(names)
        for name, array in _arrays_of(names, graphs).items():
            data = array.tobytes()
            self.digests[name].update(data)
            with (self.folder / name).open("ab") as file:
                file.write(data)

    def finish(
        self,
        target: Path,
        converter: CrystalGraphConverter,
        errors: dict[str, str],
        notes: dict[str, str],
    ) -> None:
        """Pack the columns into one file."""
        rule = _plain_rule(converter)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "n_graphs": self.n_graphs,
            "converter": rule,
            "sha256": _combine(
                {name: digest.hexdigest() for name, digest in self.digests.items()}, converter
            ),
            "errors": errors,
            "sealed": True,
        } | ({"notes": notes} if notes else {})
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            archive.writestr(_member(HEADER), json.dumps(header, indent=1))
            for name, dtype in _COLUMNS.items():
                raw = self.folder / name
                size = raw.stat().st_size if raw.exists() else 0
                with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as packed:
                    _write_npy_header(packed, dtype, size // dtype.itemsize)
                    if size:
                        with raw.open("rb") as file:
                            while data := file.read(_COPY_BYTES):
                                packed.write(data)
            archive.comment = bytes(_SEAL_BYTES)
        seal = _seal(target)
        with target.open("r+b") as file:
            file.seek(-_SEAL_BYTES, os.SEEK_END)
            file.write(seal)


def _check_names(names: list[str], label: str) -> None:
    """Names must tell crystals apart, and fit into the file."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"{label}: two crystals are named {name!r}; give them different names "
                "(for a table, reset_index(drop=True))."
            )
        seen.add(name)
        if "\n" in name:
            raise DataError(f"{label}: the name {name!r} has a line break.")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{label}: the name {name!r} is no UTF-8 text; rename it.") from None


def _seal(path: Path) -> bytes:
    """sha256 over all bytes of a file but the last 64, where the store keeps it."""
    digest, left = hashlib.sha256(), path.stat().st_size - _SEAL_BYTES
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(_COPY_BYTES, left))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest().encode()


def _seal_holds(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-_SEAL_BYTES, os.SEEK_END)
        return file.read() == _seal(path)


def _member(name: str) -> zipfile.ZipInfo:
    """An entry without a time, so that equal data make equal files."""
    item = zipfile.ZipInfo(name)
    item.compress_type = zipfile.ZIP_DEFLATED
    return item


def _write_npy_header(file: IO[bytes], dtype: np.dtype, length: int) -> None:
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)},
    )


def _read_header(archive: zipfile.ZipFile, source: Path) -> dict[str, Any]:
    _refuse_bomb(archive, source)
    try:
        header = json.loads(archive.read(HEADER))
    except KeyError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise GraphStoreError(f"{source} is no graph store of this package.")
    version = header.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise GraphStoreError(
            f"{source} is of format version {version}, this package reads up to {FORMAT_VERSION}; "
            "update crysxpp_mm."
        )
    if missing := {"converter", "sha256"} - set(header):
        raise GraphStoreError(f"{source} lacks {', '.join(sorted(missing))} in its header.")
    _check_header(header, source)
    return header


def _check_header(header: dict[str, Any], source: Path) -> None:
    """Check the kinds of what a header holds, and fill in what may be absent.

    Raises:
        GraphStoreError: one is of another kind.
    """
    if not isinstance(header["converter"], dict) or not isinstance(header["sha256"], str):
        raise GraphStoreError(f"{source}: its header makes no sense.")
    for key in ("errors", "notes"):
        texts = header.setdefault(key, {})
        if not isinstance(texts, dict) or not all(isinstance(t, str) for t in texts.values()):
            raise GraphStoreError(f"{source}: {key} of its header are no texts.")


def _refuse_bomb(archive: zipfile.ZipFile, source: Path) -> None:
    """Refuse a file that unpacks to far more than real graphs do, before it is unpacked.

    Raises:
        GraphStoreError: it does.
    """
    unpacked = sum(item.file_size for item in archive.infolist())
    if unpacked > max(LARGE, MAX_RATIO * source.stat().st_size):
        raise GraphStoreError(f"{source} is refused: it unpacks to {unpacked:,} bytes.")


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    data = archive.read(f"{name}.npy")
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{name} is an array of format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != _COLUMNS[name] or len(shape) != 1:
        raise ValueError(f"{name} is {dtype} of {len(shape)} dimensions")
    if shape[0] * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name} has not as many entries as it says")
    return np.frombuffer(data, dtype=dtype, offset=file.tell()).copy()


def _arrays_of(names: list[str], graphs: CrystalGraphs) -> dict[str, NDArray[Any]]:
    """Arrays of these crystals, as a file holds them."""
    columns: dict[str, NDArray[Any]] = {"names": np.frombuffer(_join(names), dtype=np.uint8)}
    for name, dtype in _COLUMNS.items():
        if name.endswith("_counts"):
            offsets = getattr(graphs, name.replace("_counts", "_offsets"))
            columns[name] = np.diff(offsets).astype(dtype)
        elif name != "names":
            columns[name] = getattr(graphs, name).astype(dtype, copy=False)
    return columns


def _join(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _plain_rule(converter: CrystalGraphConverter) -> dict[str, Any]:
    return {key: value for key, value in converter.as_dict().items() if not key.startswith("@")}


def _combine(digests: dict[str, str], converter: CrystalGraphConverter) -> str:
    """One hash of those of all columns and of the rule."""
    parts = [json.dumps(_plain_rule(converter), sort_keys=True)]
    parts += [f"{name} {digests[name]}" for name in sorted(digests)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
