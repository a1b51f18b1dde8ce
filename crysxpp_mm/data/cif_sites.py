"""The list of sites of a CIF: labels, elements, places, occupancies, and what is doubtful in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

import gemmi
import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Element

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.crystal import Crystal

SHORT = 0.1
"""Share of an element's atoms in the formula that may lack in the list of sites."""

FRACTIONAL = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
LABEL, TYPE = "_atom_site_label", "_atom_site_type_symbol"
OCCUPANCY, HYDROGENS = "_atom_site_occupancy", "_atom_site_attached_hydrogens"
KIND, MULTIPLICITY = "_atom_site_calc_flag", "_atom_site_symmetry_multiplicity"
COLUMNS = (*FRACTIONAL, LABEL, TYPE, OCCUPANCY, HYDROGENS, KIND, MULTIPLICITY)

_WATER = re.compile(r"OH|Ow|Hw|[Ww]at|NO3")  # pymatgen gives these a meaning

NUMBERS: dict[str, int] = {
    Element.from_Z(number).symbol: number for number in range(1, MAX_ATOMIC_NUMBER + 1)
}
"""Atomic number by symbol; D and T are hydrogen."""
SYMBOLS = ["", *NUMBERS]
"""Symbol by atomic number."""
NUMBERS |= {"D": 1, "T": 1}


class UnsureError(DataError):
    """The rules of these modules stop here; pymatgen's reader goes on."""


class Sites(NamedTuple):
    """Rows of the list of sites that have an element, a place and an occupancy above 0."""

    labels: list[str]
    numbers: NDArray[np.int64]
    fractional: NDArray[np.float64]
    occupancies: NDArray[np.float64]
    multiplicities: NDArray[np.float64]  # NaN where the file has none
    doubts: tuple[str, ...]


def text_of(value: str | None) -> str:
    """A value without its quotes; empty for none and for ``?`` and ``.``."""
    return "" if value is None or value in ("?", ".") else str(gemmi.cif.as_string(value))


def _number(value: str) -> float:
    """A number without its uncertainty, as in ``0.123(4)``; NaN for ``?`` and what is none."""
    try:
        return float(value.strip("'\"").partition("(")[0])
    except ValueError:
        return float("nan")


def numbers_of(values: Sequence[str]) -> list[float]:
    """Numbers without their uncertainties; NaN for ``?``, ``.`` and what is none."""
    try:
        return list(map(float, values))
    except ValueError:
        return list(map(_number, values))


# Sites.


def read_sites(columns: Mapping[str, list[str]], formula: str) -> Sites:
    """The sites of a list, and what is to doubt in it.

    Raises:
        DataError: an occupancy is negative.
    """
    if any(" + " in symbol for symbol in columns.get(TYPE, ())):
        columns = _unmixed(columns)
    symbols = columns.get(TYPE) or columns.get(LABEL)
    if symbols is None:
        raise UnsureError("neither labels nor elements")
    labels = columns.get(LABEL) or symbols
    doubts: list[str] = []
    numbers = np.array(_elements(columns, labels, amounts_of(formula), doubts))
    fractional = np.array([numbers_of(columns[tag]) for tag in FRACTIONAL]).T
    known = np.isfinite(fractional).all(axis=1)
    if not known.all():
        doubts.append(_listed("has", "have", "no coordinates", labels, ~known))
    occupancies = _occupancies(columns, labels, doubts)
    doubts += _doubtful_columns(columns, labels)
    multiplicities = np.array(numbers_of(columns.get(MULTIPLICITY, ["?"] * len(labels))))
    keep = known & (numbers > 0) & (occupancies > 0)
    return Sites(
        list(compress(labels, keep)),
        numbers[keep],
        fractional[keep],
        occupancies[keep],
        multiplicities[keep],
        tuple(doubts),
    )


def _occupancies(
    columns: Mapping[str, list[str]], labels: list[str], doubts: list[str]
) -> NDArray[np.float64]:
    """Occupancies of the rows; 1, and a doubt, where one is unknown.

    Raises:
        DataError: one is negative.
    """
    if OCCUPANCY not in columns:
        return np.ones(len(labels))
    occupancies = np.array(numbers_of(columns[OCCUPANCY]))
    told = np.isfinite(occupancies)
    if not told.all():
        doubts.append(_listed("has", "have", "no known occupancy", labels, ~told))
        occupancies[~told] = 1
    if (occupancies < 0).any():
        bad = int(occupancies.argmin())
        raise DataError(f"the occupancy of site {labels[bad]} is {occupancies[bad]:g}.")
    return occupancies


def _unmixed(columns: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Rows of one element each, where the Pauling File has ``0.8Nb + 0.2Zr`` in one."""
    rows: dict[str, list[str]] = {tag: [] for tag in {*columns, OCCUPANCY}}
    for row, value in enumerate(columns[TYPE]):
        parts = [
            re.fullmatch(r"(\d*\.?\d+)\s*([A-Z][a-z]?)", part)
            for part in text_of(value).split(" + ")
        ]
        shares = [(part[2], part[1]) for part in parts if part]
        if len(shares) < len(parts):
            shares = [(value, columns.get(OCCUPANCY, ["1"] * (row + 1))[row])]
        for symbol, share in shares:
            for tag, values in columns.items():
                rows[tag].append(values[row])
            if OCCUPANCY not in columns:
                rows[OCCUPANCY].append("")
            rows[TYPE][-1], rows[OCCUPANCY][-1] = symbol, share
    return rows


def _elements(
    columns: Mapping[str, list[str]],
    labels: list[str],
    expected: Mapping[int, float],
    doubts: list[str],
) -> list[int]:
    """Atomic numbers of the sites; 0, and a doubt, where there is none."""
    typed = TYPE in columns
    symbols = columns[TYPE] if typed else labels
    numbers = [NUMBERS.get(symbol) or _element(symbol, typed) for symbol in symbols]
    if odd := [row for row, number in enumerate(numbers) if not number]:
        for row in odd:
            numbers[row] = _element_by_formula(text_of(symbols[row]), typed, expected)
        _doubt_unknown(symbols, labels, np.array(numbers) == 0, doubts)
    return numbers


def _doubt_unknown(
    symbols: Sequence[str], labels: list[str], unknown: NDArray[np.bool_], doubts: list[str]
) -> None:
    """Add a doubt on sites without a known element.

    Raises:
        UnsureError: it is an element past those that a graph may hold.
    """
    if not unknown.any():
        return
    texts = dict.fromkeys(text_of(symbols[row]) for row in np.flatnonzero(unknown).tolist())
    if any(Element.is_valid_symbol(text) for text in texts):
        raise UnsureError("an element past the table")
    told = _listed("has", "have", "no known element", labels, unknown)
    doubts.append(f"{told} ({', '.join(list(texts)[:5])})")


@lru_cache(maxsize=4096)
def _element(value: str, typed: bool) -> int:
    """Atomic number by a symbol such as ``Fe3+`` or, if not typed, by a label such as ``Fe1A``."""
    symbol = text_of(value)
    if typed:
        match = re.match(r"[A-Z][a-z]?(?![A-Za-z])", symbol)
        return NUMBERS.get(match[0], 0) if match else 0
    match = re.match(r"[A-Z][a-z]?(?![a-z])", symbol)
    if match is None or _WATER.match(symbol) or match[0] == "Va":
        return 0
    two = symbol[:2].title()
    if two != symbol[:2] and two in NUMBERS:
        return 0  # CA may be a carbon or calcium
    if match[0] in NUMBERS or Element.is_valid_symbol(match[0]):
        return NUMBERS.get(match[0], 0)
    return NUMBERS.get(match[0][0], 0)  # such as Oa1


def _element_by_formula(symbol: str, typed: bool, expected: Mapping[int, float]) -> int:
    """Atomic number where the case is lost, as in ``FE1``, and the formula leaves one choice."""
    letters = re.match(r"[A-Za-z]+", symbol)
    if letters is None or _WATER.match(symbol):
        return 0
    forms = {letters[0].title()} if typed else {letters[0][:2].title(), letters[0][:1].upper()}
    numbers = {NUMBERS[form] for form in forms if form in NUMBERS} & set(expected)
    return numbers.pop() if len(numbers) == 1 else 0


def _doubtful_columns(columns: Mapping[str, list[str]], labels: list[str]) -> list[str]:
    """Columns of the list that its sites do not show."""
    doubts = []
    if HYDROGENS in columns:
        attached = np.nan_to_num(numbers_of(columns[HYDROGENS])) != 0
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
    names = [text_of(labels[row]) or f"number {row + 1}" for row in np.flatnonzero(chosen).tolist()]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if len(names) == 1:
        return f"site {shown} {one} {rest}".rstrip()
    return f"{len(names)} sites ({shown}) {several} {rest}".rstrip()


# The formula.


@lru_cache(maxsize=1024)
def amounts_of(formula: str) -> dict[int, float]:
    """Atoms of each element in a formula; empty where it cannot be read."""
    amounts: dict[int, float] = {}
    for token in formula.replace(",", " ").split():
        match = re.fullmatch(r"([A-Z][a-z]?)(\d+\.?\d*|\.\d+)?", token)
        if re.fullmatch(r"\d*[+-]\d*", token):
            continue  # a charge
        if match is None or match[1] not in NUMBERS:
            return _amounts_in_brackets(formula)
        number = NUMBERS[match[1]]
        amounts[number] = amounts.get(number, 0.0) + float(match[2] or 1)
    return amounts


def _amounts_in_brackets(formula: str) -> dict[int, float]:
    try:
        found = Composition(formula).get_el_amt_dict()
    except (ValueError, TypeError, KeyError):
        return {}
    if not set(found) <= set(NUMBERS):
        return {}
    amounts: dict[int, float] = {}
    for symbol, amount in found.items():
        amounts[NUMBERS[symbol]] = amounts.get(NUMBERS[symbol], 0.0) + amount
    return amounts


def formula_mismatch(formula: str, crystal: Crystal) -> str:
    """Say how a crystal differs from the formula of its file; empty if it does not.

    Args:
        formula: ``_chemical_formula_sum``; empty if there is none.
        crystal: What was made of the list of sites.
    """
    expected = {z: amount for z, amount in amounts_of(formula).items() if amount > 0}
    if not expected:
        return ""
    weights = crystal.occupancies.astype(np.float64)
    found = np.bincount(crystal.species_numbers, weights=weights, minlength=MAX_ATOMIC_NUMBER + 1)
    if lacking := [SYMBOLS[z] for z in expected if not found[z]]:
        return (
            f"the formula of the file ({formula}) has {', '.join(lacking)}, the list of sites has "
            "not"
        )
    if more := [SYMBOLS[z] for z in np.flatnonzero(found).tolist() if z not in expected]:
        return (
            f"the list of sites has {', '.join(more)}, the formula of the file ({formula}) has not"
        )
    return _shortage(formula, expected, found)


def _shortage(formula: str, expected: Mapping[int, float], found: NDArray[Any]) -> str:
    """The element of which a list of sites has too little; empty if there is none."""
    ratios = {z: found[z] / amount for z, amount in expected.items()}
    units = sorted(ratios.values())[len(ratios) // 2]
    for z, ratio in ratios.items():
        if ratio < (1 - SHORT) * units:
            return (
                f"the formula of the file ({formula}) has {expected[z]:g} {SYMBOLS[z]}, the list "
                f"of sites {found[z] / units:.4g}"
            )
    return ""
