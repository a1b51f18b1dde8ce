"""CIF files as arrays: with gemmi, and with pymatgen's reader where gemmi's is not sure.

What a file leaves open is a doubt: it fails, or is kept and said. Nothing is guessed.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import gemmi
import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Element
from pymatgen.io.cif import CifParser
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from crysxpp_mm.data.symmetry import SAME_SITE, Operations, Symmetry, read_symmetry
from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import CrysXPPError, DataError
from crysxpp_mm.graph.crystal import Crystal, make_crystal, read_crystal
from crysxpp_mm.graph.neighbors import nearest_neighbors

MAX_OCCUPANCY = 1.05
"""Occupancies of a site that sum to more are an error; those past 1 are rescaled."""
ROUNDED = 5e-4
"""Occupancies of thirds sum to 1 within this; it is not worth a note."""
SHORT = 0.1
"""Share of an element's atoms in the formula that may lack in the list of sites."""
FEW = 64
"""Sites whose places are compared each with each."""
TOO_CLOSE = 0.6
"""A choice of the origin that puts atoms closer than this (Angstrom) is wrong."""
MAX_IMAGES = 1_000_000
"""Sites times operations of a file that are worked out."""
MAX_ROWS = 3_000
"""Lines that begin with a word, of a file that pymatgen's reader takes on."""
THIRDS = (1 / 3, 2 / 3)
"""Coordinates that are meant where a file has 0.3333 or 0.6667."""

FRACTIONAL = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
LABEL, TYPE = "_atom_site_label", "_atom_site_type_symbol"
OCCUPANCY, HYDROGENS = "_atom_site_occupancy", "_atom_site_attached_hydrogens"
KIND, MULTIPLICITY = "_atom_site_calc_flag", "_atom_site_symmetry_multiplicity"
COLUMNS = (*FRACTIONAL, LABEL, TYPE, OCCUPANCY, HYDROGENS, KIND, MULTIPLICITY)
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
_WATER = re.compile(r"OH|Ow|Hw|[Ww]at|NO3")  # pymatgen gives these a meaning
_BENIGN = re.compile(
    r"fractional coordinates rounded|Spacegroup from .* used|1-line symmetry op|sum to > 1|"
    r"parsed as|Structure has implicit hydrogens|Issues encountered while parsing|"
    r"Pauling file corrections applied|Keys changed to match|Missing elements|"
    r"stoichiometry|chemical composition"
)
"""What pymatgen warns of and is right in, or what is looked at here."""

_NUMBERS: dict[str, int] = {
    Element.from_Z(number).symbol: number for number in range(1, MAX_ATOMIC_NUMBER + 1)
}
_SYMBOLS = ["", *_NUMBERS]
_NUMBERS |= {"D": 1, "T": 1}


class Reading(NamedTuple):
    """What a block of a CIF holds."""

    crystal: Crystal
    doubts: tuple[str, ...] = ()  # why it may not be what the file means
    notes: tuple[str, ...] = ()  # what was made of the file, where it is worth saying


class _UnsureError(Exception):
    """gemmi's reading stops here; pymatgen's goes on."""


class _Sites(NamedTuple):
    """Rows of the list of sites that have an element, a place and an occupancy above 0."""

    labels: list[str]
    numbers: NDArray[np.int64]
    fractional: NDArray[np.float64]
    occupancies: NDArray[np.float64]
    multiplicities: NDArray[np.float64]  # NaN where the file has none
    doubts: tuple[str, ...]


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
        starts = [match.start() for match in _BLOCK.finditer(text)]
        parts = [text[a:b].lstrip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        blocks = [
            (part.split(None, 1)[0][5:], part) for part in parts if "_atom_site_fract_x" in part
        ]
    if len(blocks) < 2:
        return []
    names: dict[str, int] = {}
    found = []
    for name, part in blocks:
        names[name] = names.get(name, 0) + 1
        found.append((name if names[name] == 1 else f"{name}-{names[name]}", part))
    return found


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
            raise _UnsureError("a magnetic CIF")
        return _with_gemmi(text)
    except _UnsureError as unsure:
        return _with_pymatgen(text, str(unsure))


def _with_gemmi(text: str) -> Reading:
    """The crystal as gemmi's parser and the rules of this module have it.

    Raises:
        _UnsureError: pymatgen may know better.
        CrysXPPError: as ``read_cif``.
    """
    try:
        document = gemmi.cif.read_string(text)
        blocks = [block for block in document if _has_sites(block)]
        if len(blocks) != 1:
            raise _UnsureError("no block with sites, or several")
        block = blocks[0]
        columns = _columns(block)
        lattice = _lattice([block.find_value(tag) for tag in CELL])
        formula = _text(block.find_value(FORMULA))
    except (RuntimeError, ValueError) as error:  # also for text that is no UTF-8
        raise _UnsureError(str(error)) from error
    sites = _sites(columns, formula)

    def values_of(tag: str) -> list[str]:
        return [_text(value) for value in block.find_values(tag)]

    symmetry = read_symmetry(values_of, lattice)
    return _build(lattice, sites, symmetry, formula)


def _columns(block: gemmi.cif.Block) -> dict[str, list[str]]:
    """The list of sites, by tag."""
    loop = block.find_loop(FRACTIONAL[0]).get_loop()
    if loop is None:  # one site without a loop, or none
        columns = {tag: [block.find_value(tag)] for tag in COLUMNS if block.find_value(tag)}
    else:
        tags, values = [tag.lower() for tag in loop.tags], loop.values
        rows = {tag: values[place :: len(tags)] for place, tag in enumerate(tags)}
        columns = {tag: rows[tag] for tag in COLUMNS if tag in rows}
    _refuse_other_coordinates(columns, block)
    if any(tag not in columns and len(block.find_values(tag)) for tag in COLUMNS[1:6]):
        raise _UnsureError("columns of the sites in several lists")
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
    raise _UnsureError("columns of coordinates lack")


def _text(value: str | None) -> str:
    """A value without its quotes; empty for none and for ``?`` and ``.``."""
    return "" if value is None or value in ("?", ".") else str(gemmi.cif.as_string(value))


def _number(value: str) -> float:
    """A number without its uncertainty, as in ``0.123(4)``; NaN for ``?`` and ``.``."""
    text = value.strip("'\"")
    if text in ("?", ".", ""):
        return float("nan")
    return float(text.partition("(")[0])


def _numbers(values: Sequence[str]) -> list[float]:
    try:
        return list(map(float, values))
    except ValueError:
        return list(map(_number, values))


def _lattice(values: Sequence[str | None]) -> NDArray[np.float64]:
    """Vectors of six cell parameters, oriented as pymatgen has it.

    Raises:
        _UnsureError: one is missing, or they make no cell.
    """
    if any(value is None for value in values):
        raise _UnsureError("a cell parameter lacks")
    lengths_angles = _numbers([value for value in values if value is not None])
    if not np.isfinite(lengths_angles).all():
        raise _UnsureError("a cell parameter is unknown")
    if min(lengths_angles) <= 0 or max(lengths_angles[3:]) >= 180:
        raise DataError(
            f"the cell parameters {', '.join(f'{value:g}' for value in lengths_angles)} make no "
            "cell."
        )
    a, b, c = lengths_angles[:3]
    (cos_a, cos_b, cos_c), (sin_a, sin_b) = (
        [math.cos(math.radians(angle)) for angle in lengths_angles[3:]],
        [math.sin(math.radians(angle)) for angle in lengths_angles[3:5]],
    )
    turn = math.acos(max(-1.0, min(1.0, (cos_a * cos_b - cos_c) / (sin_a * sin_b))))
    return np.array(
        [
            [a * sin_b, 0.0, a * cos_b],
            [-b * sin_a * math.cos(turn), b * sin_a * math.sin(turn), b * cos_a],
            [0.0, 0.0, c],
        ]
    )


# Sites.


def _sites(columns: Mapping[str, list[str]], formula: str) -> _Sites:
    """The sites of a list, and what is to doubt in it.

    Raises:
        DataError: an occupancy is negative.
    """
    symbols = columns.get(TYPE) or columns.get(LABEL)
    if symbols is None:
        raise _UnsureError("neither labels nor elements")
    labels = columns.get(LABEL) or symbols
    doubts: list[str] = []
    numbers = np.array(_elements(columns, labels, _amounts(formula), doubts))
    fractional = np.array([_numbers(columns[tag]) for tag in FRACTIONAL]).T
    known = np.isfinite(fractional).all(axis=1)
    if not known.all():
        doubts.append(_listed("has", "have", "no coordinates", labels, ~known))
    occupancies = np.ones(len(labels))
    if OCCUPANCY in columns:
        occupancies = np.array(_numbers(columns[OCCUPANCY]))
        if not (told := np.isfinite(occupancies)).all():
            doubts.append(_listed("has", "have", "no known occupancy", labels, ~told))
            occupancies[~told] = 1
        if (occupancies < 0).any():
            bad = int(occupancies.argmin())
            raise DataError(f"the occupancy of site {labels[bad]} is {occupancies[bad]:g}.")
    doubts += _doubtful_columns(columns, labels)
    multiplicities = np.full(len(labels), np.nan)
    if MULTIPLICITY in columns:
        multiplicities = np.array(_numbers(columns[MULTIPLICITY]))
    keep = known & (numbers > 0) & (occupancies > 0)
    return _Sites(
        [label for label, kept in zip(labels, keep, strict=True) if kept],
        numbers[keep],
        fractional[keep],
        occupancies[keep],
        multiplicities[keep],
        tuple(doubts),
    )


def _elements(
    columns: Mapping[str, list[str]],
    labels: list[str],
    expected: Mapping[int, float],
    doubts: list[str],
) -> list[int]:
    """Atomic numbers of the sites; 0, and a doubt, where there is none."""
    typed = TYPE in columns
    symbols = columns[TYPE] if typed else labels
    numbers = [_NUMBERS.get(symbol) or _element(symbol, typed) for symbol in symbols]
    if odd := [row for row, number in enumerate(numbers) if not number]:
        for row in odd:
            numbers[row] = _element_by_formula(_text(symbols[row]), typed, expected)
        unknown = np.array(numbers) == 0
        if unknown.any():
            texts = dict.fromkeys(_text(symbols[row]) for row in np.flatnonzero(unknown))
            if any(" + " in text for text in texts):
                raise _UnsureError("mixed sites as the Pauling File has them")
            if any(Element.is_valid_symbol(text) for text in texts):
                raise _UnsureError("an element past the table")
            doubts.append(
                _listed("has", "have", "no known element", labels, unknown)
                + f" ({', '.join(list(texts)[:5])})"
            )
    return numbers


@lru_cache(maxsize=4096)
def _element(value: str, typed: bool) -> int:
    """Atomic number by a symbol such as ``Fe3+`` or, if not typed, by a label such as ``Fe1A``."""
    symbol = _text(value)
    match = re.match(r"[A-Z][a-z]?(?![A-Za-z])" if typed else r"[A-Z][a-z]?(?![a-z])", symbol)
    if match is None or (not typed and _WATER.match(symbol)):
        return 0
    found = match[0]
    if not typed and symbol[:2] != symbol[:2].title() and symbol[:2].title() in _NUMBERS:
        return 0  # CA may be a carbon or calcium
    if found in _NUMBERS:
        return _NUMBERS[found]
    if typed or found == "Va" or Element.is_valid_symbol(found):
        return 0
    return _NUMBERS.get(found[0], 0)  # such as Oa1


def _element_by_formula(symbol: str, typed: bool, expected: Mapping[int, float]) -> int:
    """Atomic number where the case is lost, as in ``FE1``, and the formula leaves one choice."""
    letters = re.match(r"[A-Za-z]+", symbol)
    if letters is None or _WATER.match(symbol):
        return 0
    forms = {letters[0].title()} if typed else {letters[0][:2].title(), letters[0][:1].upper()}
    numbers = {_NUMBERS[form] for form in forms if form in _NUMBERS} & set(expected)
    return numbers.pop() if len(numbers) == 1 else 0


def _doubtful_columns(columns: Mapping[str, list[str]], labels: list[str]) -> list[str]:
    """What else the list says that its sites do not show."""
    doubts = []
    if HYDROGENS in columns:
        attached = np.nan_to_num(_numbers(columns[HYDROGENS])) != 0
        if attached.any():
            doubts.append(_listed("has", "have", "hydrogen without coordinates", labels, attached))
    if KIND in columns:
        dummies = np.array([value.lower() == "dum" for value in columns[KIND]])
        if dummies.any():
            doubts.append(_listed("is a dummy", "are dummies", "", labels, dummies))
    return doubts


def _listed(
    one: str, several: str, rest: str, labels: Sequence[str], chosen: NDArray[np.bool_]
) -> str:
    """A sentence on some sites, by label."""
    names = [_text(labels[row]) or f"number {row + 1}" for row in np.flatnonzero(chosen)]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if len(names) == 1:
        return f"site {shown} {one} {rest}".rstrip()
    return f"{len(names)} sites ({shown}) {several} {rest}".rstrip()


# From sites to the crystal.


def _build(
    lattice: NDArray[np.float64], sites: _Sites, symmetry: Symmetry, formula: str
) -> Reading:
    """Apply the symmetry, merge sites in one place, and look at what came of it."""
    notes = [symmetry.note] if symmetry.note else []
    doubts = [*sites.doubts]
    if symmetry.doubt:
        doubts.append(symmetry.doubt)
    operations = symmetry.choices[0]
    if len(symmetry.choices) > 1 and not symmetry.doubt:
        likely = [
            choice for choice in symmetry.choices if _is_likely(lattice, sites, choice, formula)
        ]
        if len(likely) == 1:
            operations = likely[0]
            notes.append("of two origins of the space group the one was taken that fits the file")
        else:
            doubts.append(
                "the file names a space group with two origins, but neither the origin nor the "
                "operations"
            )
    crystal, _ = _expand(lattice, sites, operations, notes)
    if mismatch := formula_mismatch(formula, crystal):
        doubts.append(mismatch)
    return Reading(crystal, tuple(doubts), tuple(notes))


def _is_likely(
    lattice: NDArray[np.float64], sites: _Sites, operations: Operations, formula: str
) -> bool:
    """Tell whether a choice of the origin fits multiplicities, formula and distances."""
    try:
        crystal, counts = _expand(lattice, sites, operations, [])
    except CrysXPPError:
        return False
    told = np.isfinite(sites.multiplicities) & (counts > 0)
    if (counts[told] != sites.multiplicities[told]).any() or formula_mismatch(formula, crystal):
        return False
    pairs = nearest_neighbors(
        crystal.lattice,
        crystal.positions,
        crystal.periodic,
        cutoff=TOO_CLOSE,
        max_neighbors=1,
        tolerance=SAME_SITE,
    )
    return not len(pairs.distances)


def _expand(
    lattice: NDArray[np.float64], sites: _Sites, operations: Operations, notes: list[str]
) -> tuple[Crystal, NDArray[np.int64]]:
    """The crystal of sites under operations, and the number of images of each.

    Raises:
        DataError: occupancies of a site sum to more than ``MAX_OCCUPANCY``, or there are too many
            sites.
        StructureError: the crystal makes no sense.
    """
    periodic, counts = np.ones(3, dtype=np.int64), np.zeros(len(sites.labels), dtype=np.int64)
    if len(counts) * len(operations.rotations) > MAX_IMAGES:
        raise DataError(f"its sites have more than {MAX_IMAGES:,} images under its symmetry.")
    if not len(counts):
        return make_crystal(lattice, np.zeros((1, 3)), *_entries([], [], []), periodic), counts
    fractional = _ideal(sites.fractional)
    owners = _owners(fractional, operations)
    counts[owners] = 1
    if counts.all() and (sites.occupancies == 1).all() and len(operations.rotations) == 1:
        order = np.argsort(_ranks()[sites.numbers], kind="stable")
        numbers, shares = sites.numbers[order].astype(np.uint8), np.ones(len(order), np.float32)
        entries = np.arange(len(order), dtype=np.int32), numbers, shares
        return make_crystal(lattice, fractional[order], *entries, periodic), counts
    mixtures = _mixtures(sites, owners, notes)
    images = {row: _distinct(operations.images(fractional[row])) for row in mixtures}
    rows = sorted(mixtures, key=lambda row: _mixture_key(mixtures[row]))
    for row in rows:
        counts[row] = len(images[row])
    species = [mixtures[row] for row in rows for _ in images[row]]
    crystal = make_crystal(
        lattice,
        np.concatenate([images[row] for row in rows]),
        *_entries(
            [site for site, mixture in enumerate(species) for _ in mixture],
            [number for mixture in species for number in mixture],
            [share for mixture in species for share in mixture.values()],
        ),
        periodic,
    )
    return crystal, counts


def _ideal(fractional: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates with thirds in place of what was rounded to four digits."""
    for third in THIRDS:
        near = np.abs(fractional / third - 1) <= SAME_SITE
        fractional = np.where(near, third, fractional)
    return fractional


def _owners(fractional: NDArray[np.float64], operations: Operations) -> NDArray[np.int64]:
    """The first row that is in the same place as each, or has an image there."""
    n = len(fractional)
    if len(operations.rotations) == 1 and n <= FEW:
        steps = fractional[:, None] - fractional[None]
        near = (np.abs(steps - np.rint(steps)) < SAME_SITE).all(axis=2)
        if np.count_nonzero(near) == n:
            return np.arange(n)
    places = fractional % 1 % 1
    images = (fractional @ np.swapaxes(operations.rotations, 1, 2)) + operations.translations[
        :, None
    ]
    _, others = cKDTree(places, boxsize=1).query(
        images.reshape(-1, 3) % 1 % 1, k=2, p=np.inf, distance_upper_bound=SAME_SITE
    )
    rows = np.tile(np.arange(n), len(operations.rotations))
    pairs = [(rows[near], others[near, k]) for k in (0, 1) if (near := others[:, k] < n).any()]
    first, second = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    if (first == second).all():
        return np.arange(n)
    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, component = connected_components(links, directed=False)
    _, starts, inverse = np.unique(component, return_index=True, return_inverse=True)
    owners: NDArray[np.int64] = starts[inverse]
    return owners


def _distinct(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Images inside the cell, each once."""
    images = images - np.floor(images)
    steps = images[:, None] - images[None]
    same = (np.abs(steps - np.rint(steps)) < SAME_SITE).all(axis=2)
    chosen: NDArray[np.float64] = images[same.argmax(axis=1) == np.arange(len(images))]
    return chosen


def _mixtures(
    sites: _Sites, owners: NDArray[np.int64], notes: list[str]
) -> dict[int, dict[int, float]]:
    """The occupancy of each element on each place.

    Raises:
        DataError: they sum to more than ``MAX_OCCUPANCY``.
    """
    mixtures: dict[int, dict[int, float]] = {}
    for row, owner in enumerate(owners.tolist()):
        mixture = mixtures.setdefault(owner, {})
        number = int(sites.numbers[row])
        mixture[number] = mixture.get(number, 0.0) + float(sites.occupancies[row])
    for owner, mixture in mixtures.items():
        total = sum(mixture.values())
        if total <= 1:
            continue
        labels = ", ".join(_text(sites.labels[row]) for row in np.flatnonzero(owners == owner)[:5])
        if total > MAX_OCCUPANCY:
            raise DataError(
                f"the occupancies of site {labels} sum to {total:.4g}, which is more than 1."
            )
        if total > 1 + ROUNDED:
            notes.append(f"the occupancies of site {labels} sum to {total:.4g} and are rescaled")
        mixtures[owner] = {number: share / total for number, share in mixture.items()}
    return mixtures


def _entries(
    sites: list[int], numbers: list[int], shares: list[float]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    return (
        np.array(sites, dtype=np.int32),
        np.array(numbers, dtype=np.uint8),
        np.array(shares, dtype=np.float32),
    )


@lru_cache(maxsize=1)
def _electronegativities() -> list[float]:
    """By atomic number; past all others where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [Element.from_Z(number).X for number in range(1, MAX_ATOMIC_NUMBER + 1)]
    return [0.0, *(10.0 if value != value else float(value) for value in values)]


@lru_cache(maxsize=1)
def _ranks() -> NDArray[np.int64]:
    """Place of each element in the order in which pymatgen sorts sites."""
    keys = [(value, _SYMBOLS[z]) for z, value in enumerate(_electronegativities())]
    return np.argsort(np.array(sorted(range(len(keys)), key=keys.__getitem__)))


def _mixture_key(mixture: Mapping[int, float]) -> tuple[float, str]:
    """The order of mixed sites: by electronegativity, then by name."""
    total = sum(mixture.values())
    mean = sum(_electronegativities()[z] * share for z, share in mixture.items()) / total
    if list(mixture.values()) == [1.0]:
        return mean, _SYMBOLS[next(iter(mixture))]
    return mean, ", ".join(sorted(f"{_SYMBOLS[z]}:{share:.3g}" for z, share in mixture.items()))


# The formula.


@lru_cache(maxsize=1024)
def _amounts(formula: str) -> dict[int, float]:
    """Atoms of each element in a formula; empty where it cannot be read."""
    amounts: dict[int, float] = {}
    for token in formula.replace(",", " ").split():
        match = re.fullmatch(r"([A-Z][a-z]?)(\d+\.?\d*|\.\d+)?", token)
        if re.fullmatch(r"\d*[+-]\d*", token):
            continue  # a charge
        if match is None or match[1] not in _NUMBERS:
            return _amounts_in_brackets(formula)
        number = _NUMBERS[match[1]]
        amounts[number] = amounts.get(number, 0.0) + float(match[2] or 1)
    return amounts


def _amounts_in_brackets(formula: str) -> dict[int, float]:
    try:
        found = Composition(formula).get_el_amt_dict()
    except (ValueError, TypeError, KeyError):
        return {}
    if not set(found) <= set(_NUMBERS):
        return {}
    amounts: dict[int, float] = {}
    for symbol, amount in found.items():
        amounts[_NUMBERS[symbol]] = amounts.get(_NUMBERS[symbol], 0.0) + amount
    return amounts


def formula_mismatch(formula: str, crystal: Crystal) -> str:
    """How the atoms of a crystal differ from the formula of its file; empty if they do not.

    Args:
        formula: ``_chemical_formula_sum``; empty if there is none.
        crystal: What was made of the list of sites.
    """
    expected = {z: amount for z, amount in _amounts(formula).items() if amount > 0}
    if not expected:
        return ""
    weights = crystal.occupancies.astype(np.float64)
    found = np.bincount(crystal.species_numbers, weights=weights, minlength=MAX_ATOMIC_NUMBER + 1)
    if lacking := [_SYMBOLS[z] for z in expected if not found[z]]:
        return (
            f"the formula of the file ({formula}) has {', '.join(lacking)}, the list of sites has "
            "not"
        )
    if more := [_SYMBOLS[z] for z in np.flatnonzero(found).tolist() if z not in expected]:
        return (
            f"the list of sites has {', '.join(more)}, the formula of the file ({formula}) has not"
        )
    ratios = {z: found[z] / amount for z, amount in expected.items()}
    units = sorted(ratios.values())[len(ratios) // 2]
    for z, ratio in ratios.items():
        if ratio < (1 - SHORT) * units:
            return (
                f"the formula of the file ({formula}) has {expected[z]:g} {_SYMBOLS[z]}, the list "
                f"of sites {found[z] / units:.4g}"
            )
    return ""


# pymatgen's reader.


def _with_pymatgen(text: str, reason: str) -> Reading:
    """The crystal as pymatgen has it; whatever it warns of and is not looked at here is a doubt.

    Raises:
        DataError: pymatgen finds no crystal either.
        StructureError, UnknownElementError: as ``read_crystal``.
    """
    if len(_ROW.findall(text)) > MAX_ROWS:
        raise DataError(f"the file is damaged ({reason}), and too long for the patient reader.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parser = CifParser.from_str(text, occupancy_tolerance=MAX_OCCUPANCY)
        try:
            structures = parser.parse_structures(primitive=False, on_error="ignore")
        except ValueError as error:
            told = "; ".join(line.replace("\n", " ") for line in parser.warnings[-2:])
            raise DataError(f"cannot be read as a structure: {told or error} ({reason})") from error
    if len(structures) > 1:
        raise DataError(f"several crystals in a file that is damaged ({reason}).")
    columns, formula = _columns_of_pymatgen(parser)
    doubts: tuple[str, ...] = ()
    if columns:
        try:
            doubts = _sites(columns, formula).doubts
        except _UnsureError:
            pass
    warned = dict.fromkeys([*parser.warnings, *(str(warning.message) for warning in caught)])
    doubts += tuple(
        f"pymatgen warns: {' '.join(line.split())}" for line in warned if not _BENIGN.search(line)
    )
    notes = tuple(line.split(" If they")[0] for line in warned if "sum to > 1" in line)
    crystal = read_crystal(structures[0])
    if mismatch := formula_mismatch(formula, crystal):
        doubts += (mismatch,)
    return Reading(crystal, doubts, notes)


def _columns_of_pymatgen(parser: CifParser) -> tuple[dict[str, list[str]], str]:
    """The list of sites and the formula of the first block that has sites."""
    for block in parser.as_dict().values():
        tags = {tag.lower(): value for tag, value in block.items()}
        if isinstance(tags.get(FRACTIONAL[0]), list):
            columns = {tag: tags[tag] for tag in COLUMNS if isinstance(tags.get(tag), list)}
            formula = tags.get(FORMULA, "")
            return columns, formula if isinstance(formula, str) else ""
    return {}, ""
