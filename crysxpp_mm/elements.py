"""The 92 node features of an element (Table 1), with names.

The table is the one that matminer ships (``cgcnn_atom_feature.json``, elements 1 to 100, equal
to CGCNN's): nine categorical properties, one column a bin. Ten equal bins cover each continuous
property; ionization energy and atomic volume are binned in their natural logarithm.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element

from crysxpp_mm.errors import MissingDependencyError, SettingsError, UnknownElementError

N_FEATURES = 92
"""Columns of a node."""
MAX_ATOMIC_NUMBER = 100
"""The last element with features."""


@dataclass(frozen=True, kw_only=True)
class ElementProperty:
    """One of the nine properties.

    Attributes:
        name: Its name.
        unit: Its unit, empty if it has none.
        start: First column.
        stop: Column after the last.
        bins: Label of each column.
    """

    name: str
    unit: str
    start: int
    stop: int
    bins: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ColumnInfo:
    """Meaning of a column of the node features."""

    column: int
    property: str
    bin: str
    unit: str


def _labels(edges: NDArray[np.float64], digits: int) -> tuple[str, ...]:
    texts = [
        f"{edge:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{edge:g}" for edge in edges
    ]
    return tuple(
        f"{low}-{high}"
        if not high.startswith("-") and not low.startswith("-")
        else f"{low} to {high}"
        for low, high in pairwise(texts)
    )


def _properties() -> tuple[ElementProperty, ...]:
    described = [
        ("group", "", ("f-block", *(str(group) for group in range(1, 19)))),
        ("period", "", tuple(str(period) for period in range(1, 8))),
        ("electronegativity", "Pauling", _labels(np.linspace(0.5, 4.0, 11), 2)),
        ("covalent radius", "pm", _labels(np.linspace(25, 250, 11), 1)),
        ("valence electrons", "", tuple(str(count) for count in range(1, 13))),
        ("first ionization energy", "eV", _labels(np.exp(np.linspace(1.3, 3.3, 11)), 2)),
        ("electron affinity", "eV", _labels(np.linspace(-3, 3.7, 11), 2)),
        ("block", "", ("s", "p", "d", "f")),
        ("atomic volume", "cm3/mol", _labels(np.exp(np.linspace(1.5, 4.3, 11)), 2)),
    ]
    properties = []
    start = 0
    for name, unit, bins in described:
        properties.append(
            ElementProperty(name=name, unit=unit, start=start, stop=start + len(bins), bins=bins)
        )
        start += len(bins)
    return tuple(properties)


PROPERTIES = _properties()
"""The nine properties, in the order of their columns."""


@lru_cache(maxsize=1)
def feature_table() -> NDArray[np.float32]:
    """Node features of every element; row 0, a vacancy, is all zero.

    Returns:
        Shape ``(101, 92)``, row = atomic number; read-only.

    Raises:
        MissingDependencyError: matminer, whose package holds the table, is not installed.

    Example:
        >>> feature_table().shape
        (101, 92)
    """
    spec = importlib.util.find_spec("matminer")  # found, not imported: that takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "the table of element features comes from matminer, which is not installed: "
            "pip install matminer."
        )
    path = Path(spec.submodule_search_locations[0], "utils/data_files/cgcnn_atom_feature.json")
    table = np.zeros((MAX_ATOMIC_NUMBER + 1, N_FEATURES), dtype=np.float32)
    for number, row in json.loads(path.read_text()).items():
        table[int(number)] = row
    table.setflags(write=False)
    return table


def column_names() -> list[str]:
    """Name of each of the 92 columns, such as ``"electronegativity, 2.6-2.95"``.

    Example:
        >>> column_names()[28]
        'electronegativity, 1.2-1.55'
    """
    return [f"{item.name}, {label}" for item in PROPERTIES for label in item.bins]


def column_index(name: str) -> int:
    """Column of a name that ``column_names`` gives.

    Raises:
        SettingsError: there is no such column.

    Example:
        >>> column_index("block, d")
        80
    """
    try:
        return column_names().index(name)
    except ValueError as error:
        raise SettingsError(
            f"there is no column {name!r}; column_names() lists all {N_FEATURES}."
        ) from error


def describe_column(column: int) -> ColumnInfo:
    """Property and bin of a column.

    Raises:
        SettingsError: ``column`` is not in 0 to 91.

    Example:
        >>> describe_column(28)
        ColumnInfo(column=28, property='electronegativity', bin='1.2-1.55', unit='Pauling')
    """
    for item in PROPERTIES:
        if item.start <= column < item.stop:
            label = item.bins[column - item.start]
            return ColumnInfo(column=column, property=item.name, bin=label, unit=item.unit)
    raise SettingsError(f"column must lie in 0 to {N_FEATURES - 1}, got {column}.")


def element_properties(element: str | int) -> dict[str, str | None]:
    """Look up the bin of each property of an element; None where the table has no value.

    Args:
        element: Symbol or atomic number.

    Raises:
        UnknownElementError: ``element`` is not one of the elements 1 to 100.

    Example:
        >>> element_properties("Fe")["group"]
        '8'
    """
    try:
        number = element if isinstance(element, int) else Element(element).Z
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_ATOMIC_NUMBER:
        raise UnknownElementError(
            f"{element!r} is no element from 1 to {MAX_ATOMIC_NUMBER} (H to Fm)."
        )
    row = feature_table()[number]
    found: dict[str, str | None] = {}
    for item in PROPERTIES:
        on = np.flatnonzero(row[item.start : item.stop])
        found[item.name] = item.bins[on[0]] if len(on) else None
    return found


def indistinguishable_elements() -> list[tuple[str, ...]]:
    """Sets of elements that share all 92 columns, such as La and Ce.

    Example:
        >>> indistinguishable_elements()[0]
        ('La', 'Ce')
    """
    groups: dict[bytes, list[str]] = defaultdict(list)
    for number in range(1, MAX_ATOMIC_NUMBER + 1):
        groups[feature_table()[number].tobytes()].append(Element.from_Z(number).symbol)
    return [tuple(symbols) for symbols in groups.values() if len(symbols) > 1]
