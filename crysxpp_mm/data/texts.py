"""One structure from the text of a file: CIF, POSCAR or JSON."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeAlias

from pymatgen.core import IStructure, Structure

from crysxpp_mm.data.cif import pymatgen_reads, read_cif
from crysxpp_mm.data.tables import decode
from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.crystal import Crystal, without_code

StructureLike: TypeAlias = IStructure | Mapping[str, Any] | Crystal
"""A Structure, the dictionary that ``Structure.as_dict`` makes, or the arrays of a Crystal."""

MAX_FILE_BYTES = 50_000_000
"""A file of one structure that is larger, or becomes so when it is unpacked, is refused."""


_GZIP = b"\x1f\x8b"


class Found(NamedTuple):
    """Content of a text."""

    structure: StructureLike
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_text(text: str, fmt: str) -> Found:
    """The structure of a text, by its format: ``"cif"``, ``"json"`` or ``"poscar"``.

    Raises:
        DataError: it is no structure, or of an unknown format.
        StructureError, UnknownElementError: it makes no sense.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> copper = Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        >>> read_text(copper.to(fmt="poscar"), "poscar").structure.formula
        'Cu1'
    """
    if fmt == "cif":
        return Found(*read_cif(text))
    if fmt == "json":
        return Found(_from_json(text))
    if fmt == "poscar":
        return Found(_from_poscar(text))
    raise DataError(
        "the format is unknown; names end in .cif, .vasp, .poscar or .json, or begin with "
        "POSCAR or CONTCAR, and those of tables end in .csv or .json."
    )


def _from_json(text: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"cannot be read as a structure: the JSON is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataError("the JSON text is no dictionary.")
    return plain(content)


def _from_poscar(text: str) -> Structure:
    """The structure of a POSCAR.

    Raises:
        DataError: it names no elements, or cannot be read.
    """
    lines = text.splitlines()
    for line in lines[5:16]:
        if (counts := line.split()) and all(count.isdecimal() for count in counts):
            if any(len(count) > 8 for count in counts) or sum(map(int, counts)) > len(lines):
                raise DataError(
                    f"cannot be read as a structure: {cut_short(line)} atoms are counted in "
                    f"{len(lines)} lines."
                )
            break
    with pymatgen_reads() as warned:
        structure = Structure.from_str(text, fmt="poscar")
    if any("Elements in POSCAR cannot be determined" in line for line in warned):
        raise DataError(
            "the elements are missing: this POSCAR (of VASP 4) counts atoms and does not name "
            "them. Write a line of their symbols, such as 'Na Cl', above the line of counts."
        )
    return structure


def cut_short(text: str, length: int = 60) -> str:
    """A long text, cut for a message."""
    return text if len(text) <= length else f"{text[:length]}..."


def text_of_file(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it is no regular file, or too large.
    """
    if not path.is_file():  # a FIFO would be waited for
        kind = "is no regular file" if path.exists() else "there is no such file"
        raise DataError(f"{cut_short(str(path), 200)}: {kind}.")
    with path.open("rb") as file:
        return limited_text(file)


def limited_text(file: IO[bytes]) -> str:
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
    return decode(data)


def plain(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keep what describes a structure in a dictionary from a file, and nothing else."""
    if "lattice" in content and isinstance(content.get("sites"), list):
        return without_code(content)
    if isinstance(inner := content.get("structure"), Mapping):
        return plain(inner)  # an entry
    return {key: value for key, value in content.items() if not str(key).startswith("@")}


def format_of(name: str) -> str:
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
