"""CIF files as arrays: with gemmi, and with pymatgen's reader where gemmi's is not sure.

What a file leaves open is a doubt: it fails, or is kept and said. Nothing is guessed.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import gemmi
import numpy as np
from numpy.typing import NDArray
from pymatgen.io.cif import CifParser

from crysxpp_mm.data.cif_sites import (
    COLUMNS,
    FRACTIONAL,
    UnsureError,
    formula_mismatch,
    numbers_of,
    read_sites,
    text_of,
)
from crysxpp_mm.data.expansion import MAX_OCCUPANCY, Reading, build_reading
from crysxpp_mm.data.symmetry import read_symmetry
from crysxpp_mm.errors import CrysXPPError, DataError
from crysxpp_mm.graph.crystal import read_crystal

MAX_ROWS = 3_000
"""Lines that begin with a word, of a file that pymatgen's reader takes on."""
FORMULA = "_chemical_formula_sum"
CELL = tuple(f"_cell_{part}" for part in (
    *(f"length_{axis}" for axis in "abc"), *(f"angle_{name}" for name in ("alpha", "beta", "gamma"))
))  # fmt: skip

_MODULATED = re.compile(
    r"^\s*(?:_cell_modulation_dimension\s+['\"]?[1-9]|_cell_wave_vector|_cell_subsystem|"
    r"\S*_ssg_|_atom_site_(?:displace|occ|U)_Fourier|_atom_site_Fourier)",
    re.IGNORECASE | re.MULTILINE,
)
_MAGNETIC = re.compile(
    r"^\s*(?:_space_group_magn|_atom_site_moment|_space_group_symop_magn)",
    re.IGNORECASE | re.MULTILINE,
)
_ROW = re.compile(r"^\s*[A-Za-z]\S*\s", re.MULTILINE)
_BLOCK = re.compile(r"^\s*data_", re.IGNORECASE | re.MULTILINE)
_RARE = re.compile(r"_modul|_wave_vector|_ssg_|_fourier|_magn|_moment|_subsystem", re.IGNORECASE)
_BENIGN = re.compile(
    r"fractional coordinates rounded|Spacegroup from .* used|1-line symmetry op|sum to > 1|"
    r"parsed as|Structure has implicit hydrogens|Issues encountered while parsing|"
    r"Pauling file corrections applied|Keys changed to match|Missing elements|"
    r"stoichiometry|chemical composition"
)
"""What pymatgen warns of and is right in, or what is looked at here."""


def split_blocks(text: str) -> list[tuple[str, str]]:
    """The crystals of a CIF: name and text of each block with coordinates, where several have.

    Returns:
        An empty list if there are not several.
    """
    if len(_BLOCK.findall(text)) < 2:
        return []
    try:
        document = gemmi.cif.read_string(text, check_level=0)
        blocks = [(block.name, block.as_string()) for block in document if _has_sites(block)]
    except (RuntimeError, ValueError):
        blocks = _split_damaged(text)
    if len(blocks) < 2:
        return []
    names: Counter[str] = Counter()
    found = []
    for name, part in blocks:
        names[name] += 1
        found.append((name if names[name] == 1 else f"{name}-{names[name]}", part))
    return found


def _split_damaged(text: str) -> list[tuple[str, str]]:
    """Name and text of each block with coordinates, where the file cannot be parsed as a whole."""
    starts = [match.start() for match in _BLOCK.finditer(text)]
    parts = [text[a:b].lstrip() for a, b in pairwise([*starts, len(text)])]
    return [(part.split(None, 1)[0][5:], part) for part in parts if FRACTIONAL[0] in part]


def _has_sites(block: gemmi.cif.Block) -> bool:
    tags = (FRACTIONAL[0], "_atom_site_Cartn_x", "_atom_site.Cartn_x", "_atom_site.fract_x")
    return any(len(block.find_values(tag)) for tag in tags)


def read_cif(text: str) -> Reading:
    """The crystal of a CIF of one.

    Raises:
        DataError: there is none, or the file is of an unsupported kind.
        StructureError: it makes no sense, as ``CrystalGraphConverter.convert`` has it.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> copper = Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        >>> read_cif(copper.to(fmt="cif")).crystal.formula
        'Cu1'
    """
    magnetic = False
    if _RARE.search(text):
        if _MODULATED.search(text):
            raise DataError("a modulated (incommensurate) structure, which is not supported.")
        magnetic = bool(_MAGNETIC.search(text))
    try:
        if magnetic:
            raise UnsureError("a magnetic CIF")
        return _with_gemmi(text)
    except UnsureError as unsure:
        return _with_pymatgen(text, str(unsure))


def _with_gemmi(text: str) -> Reading:
    """The crystal as gemmi's parser and the rules of this module have it.

    Raises:
        UnsureError: pymatgen may know better.
        CrysXPPError: as ``read_cif``.
    """
    try:
        document = gemmi.cif.read_string(text)
        blocks = [block for block in document if _has_sites(block)]
        if len(blocks) != 1:
            raise UnsureError("no block with sites, or several")
        block = blocks[0]
        columns = _columns(block)
        lattice = _lattice([block.find_value(tag) for tag in CELL])
        formula = text_of(block.find_value(FORMULA))
    except CrysXPPError:
        raise
    except (RuntimeError, ValueError) as error:  # also for text that is no UTF-8
        raise UnsureError(str(error)) from error
    sites = read_sites(columns, formula)

    def values_of(tag: str) -> list[str]:
        return [text_of(value) for value in block.find_values(tag)]

    symmetry = read_symmetry(values_of, lattice)
    return build_reading(lattice, sites, symmetry, formula)


def _columns(block: gemmi.cif.Block) -> dict[str, list[str]]:
    """The list of sites, by tag."""
    loop = block.find_loop(FRACTIONAL[0]).get_loop()
    if loop is None:  # one site without a loop, or none
        rows = {tag: [block.find_value(tag)] for tag in COLUMNS if block.find_value(tag)}
    else:
        tags, values = [tag.lower() for tag in loop.tags], loop.values
        rows = {tag: values[place :: len(tags)] for place, tag in enumerate(tags)}
    columns = {tag: rows[tag] for tag in COLUMNS if tag in rows}
    _refuse_other_coordinates(columns, block)
    if any(len(block.find_values(tag)) for tag in COLUMNS[1:6] if tag not in columns):
        raise UnsureError("columns of the sites in several lists")
    return columns


def _refuse_other_coordinates(columns: Mapping[str, list[str]], block: gemmi.cif.Block) -> None:
    """Name the kinds of files that have coordinates of another kind.

    Raises:
        DataError: as said.
    """
    if all(tag in columns for tag in FRACTIONAL):
        return
    if any(len(block.find_values(f"_atom_site.{tag}")) for tag in ("Cartn_x", "fract_x")):
        raise DataError(
            "an mmCIF file (or another with names such as _atom_site.fract_x), which is not "
            "supported; write a core CIF."
        )
    if len(block.find_values("_atom_site_Cartn_x")):
        raise DataError(
            "its coordinates are Cartesian (_atom_site_Cartn_x), which is not supported; write "
            "fractional ones."
        )
    raise UnsureError("columns of coordinates lack")


def _lattice(values: Sequence[str | None]) -> NDArray[np.float64]:
    """Vectors of six cell parameters, oriented as pymatgen has it.

    Raises:
        UnsureError: one is missing, or they make no cell.
    """
    if None in values:
        raise UnsureError("a cell parameter lacks")
    lengths_angles = numbers_of([str(value) for value in values])
    if not np.isfinite(lengths_angles).all():
        raise UnsureError("a cell parameter is unknown")
    if min(lengths_angles) <= 0 or max(lengths_angles[3:]) >= 180:
        raise DataError(f"the cell parameters {', '.join(map(str, lengths_angles))} make no cell.")
    a, b, c = lengths_angles[:3]
    alpha, beta, gamma = map(math.radians, lengths_angles[3:])
    cos_a, cos_b, cos_c = math.cos(alpha), math.cos(beta), math.cos(gamma)
    sin_a, sin_b = math.sin(alpha), math.sin(beta)
    turn = math.acos(max(-1.0, min(1.0, (cos_a * cos_b - cos_c) / (sin_a * sin_b))))
    return np.array(
        [
            [a * sin_b, 0.0, a * cos_b],
            [-b * sin_a * math.cos(turn), b * sin_a * math.sin(turn), b * cos_a],
            [0.0, 0.0, c],
        ]
    )


@contextmanager
def pymatgen_reads(reason: str = "") -> Iterator[list[str]]:
    """Run a reader of pymatgen; its warnings, of which it gives many, are collected.

    Args:
        reason: Why it is needed, for the message.

    Raises:
        DataError: it fails.
    """
    told: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield told
        told += [str(warning.message) for warning in caught]
    except CrysXPPError:
        raise
    except Exception as error:  # pymatgen's parsers raise many kinds
        raise DataError(
            f"cannot be read as a structure: {type(error).__name__}: {error}{reason}"
        ) from error


def _with_pymatgen(text: str, reason: str) -> Reading:
    """The crystal as pymatgen has it; whatever it warns of and is not looked at here is a doubt.

    Raises:
        DataError: pymatgen finds no crystal either.
        StructureError, UnknownElementError: as ``read_crystal``.
    """
    if len(_ROW.findall(text)) > MAX_ROWS:
        raise DataError(f"the file is damaged ({reason}), and too long for the patient reader.")
    with pymatgen_reads(f" ({reason})") as warned:
        parser = CifParser.from_str(text, occupancy_tolerance=MAX_OCCUPANCY)
        structures = parser.parse_structures(primitive=False, on_error="ignore")
    if len(structures) > 1:
        raise DataError(f"several crystals in a file that is damaged ({reason}).")
    columns, formula = _columns_of_pymatgen(parser)
    doubts: tuple[str, ...] = ()
    if columns:
        with suppress(UnsureError):
            doubts = read_sites(columns, formula).doubts
    warned = list(dict.fromkeys([*_warnings_of(parser), *warned]))
    doubts += tuple(
        f"pymatgen warns: {' '.join(line.split())}" for line in warned if not _BENIGN.search(line)
    )
    notes = tuple(line.partition(" If they")[0] for line in warned if "sum to > 1" in line)
    crystal = read_crystal(structures[0])
    if mismatch := formula_mismatch(formula, crystal):
        doubts += (mismatch,)
    return Reading(crystal, doubts, notes)


def _warnings_of(parser: CifParser) -> list[str]:
    told: list[str] = getattr(parser, "warnings", [])
    return told


def _columns_of_pymatgen(parser: CifParser) -> tuple[dict[str, list[str]], str]:
    """The list of sites and the formula of the first block that has sites."""
    for block in parser.as_dict().values():
        tags = {tag.lower(): value for tag, value in block.items()}
        if isinstance(tags.get(FRACTIONAL[0]), list):
            columns = {tag: tags[tag] for tag in COLUMNS if isinstance(tags.get(tag), list)}
            formula = tags.get(FORMULA, "")
            return columns, formula if isinstance(formula, str) else ""
    return {}, ""
