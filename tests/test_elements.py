"""The table of node features: its bins against known values, its names both ways, its limits."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import numpy as np
import pytest
from pymatgen.core import Element

from crysxpp_mm.elements import (
    MAX_ATOMIC_NUMBER,
    N_FEATURES,
    PROPERTIES,
    column_index,
    column_names,
    describe_column,
    element_properties,
    feature_table,
    indistinguishable_elements,
)
from crysxpp_mm.errors import (
    CrysXPPError,
    MissingDependencyError,
    SettingsError,
    UnknownElementError,
)

SYMBOLS = [Element.from_Z(number).symbol for number in range(1, MAX_ATOMIC_NUMBER + 1)]

WIDTHS = {
    "group": 19,
    "period": 7,
    "electronegativity": 10,
    "covalent radius": 10,
    "valence electrons": 12,
    "first ionization energy": 10,
    "electron affinity": 10,
    "block": 4,
    "atomic volume": 10,
}


def edges(name: str) -> np.ndarray:
    """Edges of the bins of a continuous property, from its labels."""
    (item,) = (item for item in PROPERTIES if item.name == name)
    pairs = [label.split(" to " if " to " in label else "-") for label in item.bins]
    assert all(len(pair) == 2 for pair in pairs)
    assert all(left[1] == right[0] for left, right in pairwise(pairs))
    return np.array([float(pairs[0][0]), *(float(pair[1]) for pair in pairs)])


def bin_of(element: str, name: str) -> int | None:
    """Which bin of a property an element is in, counted from 0."""
    (item,) = (item for item in PROPERTIES if item.name == name)
    label = element_properties(element)[name]
    return None if label is None else item.bins.index(label)


# The columns.


def test_nine_properties_share_the_columns():
    assert {item.name: item.stop - item.start for item in PROPERTIES} == WIDTHS
    assert PROPERTIES[0].start == 0
    assert PROPERTIES[-1].stop == N_FEATURES == sum(WIDTHS.values())
    assert all(left.stop == right.start for left, right in pairwise(PROPERTIES))
    assert all(len(item.bins) == item.stop - item.start for item in PROPERTIES)


def test_column_names_lead_back_to_their_columns():
    names = column_names()
    assert len(set(names)) == N_FEATURES
    assert [column_index(name) for name in names] == list(range(N_FEATURES))
    for column, name in enumerate(names):
        info = describe_column(column)
        assert info.column == column
        assert f"{info.property}, {info.bin}" == name


@pytest.mark.parametrize(
    ("column", "name", "unit"),
    [
        (0, "group, f-block", ""),
        (18, "group, 18", ""),
        (25, "period, 7", ""),
        (32, "electronegativity, 2.6-2.95", "Pauling"),
        (36, "covalent radius, 25-47.5", "pm"),
        (57, "valence electrons, 12", ""),
        (58, "first ionization energy, 3.67-4.48", "eV"),
        (68, "electron affinity, -3 to -2.33", "eV"),
        (81, "block, f", ""),
        (91, "atomic volume, 55.7-73.7", "cm3/mol"),
    ],
)
def test_columns_have_names_and_units(column, name, unit):
    assert column_names()[column] == name
    assert describe_column(column).unit == unit


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [
        ("electronegativity", np.linspace(0.5, 4.0, 11), 1e-9),
        ("covalent radius", np.linspace(25, 250, 11), 1e-9),
        ("electron affinity", np.linspace(-3, 3.7, 11), 1e-9),
        (
            "first ionization energy",
            [3.67, 4.48, 5.47, 6.69, 8.17, 9.97, 12.18, 14.88, 18.17, 22.20, 27.11],
            1e-9,
        ),
        (
            "atomic volume",
            [4.48, 5.93, 7.85, 10.38, 13.74, 18.17, 24.05, 31.82, 42.10, 55.70, 73.70],
            1e-9,
        ),
    ],
)
def test_bins_have_the_edges_of_the_specification(name, expected, tolerance):
    assert edges(name) == pytest.approx(expected, abs=tolerance)


# The table.


def test_the_table_has_one_column_a_known_property():
    table = feature_table()
    assert table.shape == (MAX_ATOMIC_NUMBER + 1, N_FEATURES)
    assert table.dtype == np.float32
    assert set(np.unique(table)) == {0.0, 1.0}
    assert not table[0].any()  # a vacancy
    for item in PROPERTIES:
        on = table[1:, item.start : item.stop].sum(axis=1)
        assert on.max() == 1
        known = {"electronegativity": 85, "electron affinity": 74}.get(item.name)
        if known is not None:
            assert on.sum() == known


def test_the_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        feature_table()[1, 0] = 1


def test_two_bins_of_the_electron_affinity_are_never_on():
    assert np.flatnonzero(~feature_table().any(axis=0)).tolist() == [69, 71]


def test_element_properties_and_the_table_say_the_same():
    table = feature_table()
    for number, symbol in enumerate(SYMBOLS, start=1):
        found = element_properties(symbol)
        assert found == element_properties(number)
        assert list(found) == list(WIDTHS)
        columns = [column_index(f"{name}, {label}") for name, label in found.items() if label]
        assert columns == np.flatnonzero(table[number]).tolist()


def test_silicon():
    assert element_properties("Si") == {
        "group": "14",
        "period": "3",
        "electronegativity": "1.55-1.9",
        "covalent radius": "115-137.5",
        "valence electrons": "4",
        "first ionization energy": "6.69-8.17",
        "electron affinity": "1.02-1.69",
        "block": "p",
        "atomic volume": "10.38-13.74",
    }


# Against known values of the elements.


def test_group_and_period_are_those_of_the_periodic_table():
    for number, symbol in enumerate(SYMBOLS, start=1):
        found = element_properties(symbol)
        f_block = 57 <= number <= 70 or 89 <= number <= 100
        group = "f-block" if f_block else str(Element(symbol).group)
        assert found["group"] == group, symbol
        assert found["period"] == str(Element(symbol).row), symbol


def test_blocks_are_those_of_the_periodic_table():
    for symbol in ("H", "He", "Na", "Ca"):
        assert element_properties(symbol)["block"] == "s"
    for symbol in ("B", "Cl", "Xe", "Bi"):
        assert element_properties(symbol)["block"] == "p"
    for symbol in ("Sc", "Fe", "Zn", "Au"):
        assert element_properties(symbol)["block"] == "d"
    for symbol in ("Ce", "Gd", "Th", "Fm"):
        assert element_properties(symbol)["block"] == "f"


def test_electronegativity_is_in_its_bin():
    limits = edges("electronegativity")
    revised = {"Lu", "W", "Pt", "Hg", "Pb", "Bi", "U"}  # pymatgen has other values of these
    known = 0
    for symbol in SYMBOLS:
        found = bin_of(symbol, "electronegativity")
        if found is None:
            continue
        known += 1
        inside = limits[found] - 1e-9 <= Element(symbol).X <= limits[found + 1] + 1e-9
        assert inside or symbol in revised, symbol
    assert known == 85


@pytest.mark.parametrize(
    ("symbol", "label"),
    [
        ("Gd", "0.85-1.2"),
        ("Si", "1.55-1.9"),
        ("Cu", "1.55-1.9"),
        ("Re", "1.55-1.9"),
        ("Hg", "1.55-1.9"),
        ("Bi", "1.55-1.9"),
        ("Mn", "1.55-1.9"),
        ("Xe", "2.6-2.95"),
        ("F", "3.65-4"),
        ("Cs", "0.5-0.85"),
    ],
)
def test_electronegativity_on_an_edge(symbol, label):
    assert element_properties(symbol)["electronegativity"] == label


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("covalent radius", {"H": 32, "C": 75, "O": 63, "Na": 155, "Fe": 116, "Cs": 232}),
        ("first ionization energy", {"H": 13.60, "He": 24.59, "Na": 5.14, "Fe": 7.90, "Cs": 3.89}),
        ("electron affinity", {"H": 0.75, "O": 1.46, "F": 3.40, "Cl": 3.61, "Na": 0.55}),
        ("atomic volume", {"C": 5.3, "Na": 23.7, "Fe": 7.1, "Cs": 70.0}),
    ],
)
def test_known_values_are_in_their_bins(name, values):
    limits = edges(name)
    for symbol, value in values.items():
        assert bin_of(symbol, name) == np.searchsorted(limits, value) - 1, symbol


@pytest.mark.parametrize(
    ("symbol", "count"), [("H", "1"), ("C", "4"), ("Fe", "8"), ("Pd", "12"), ("Ce", "2")]
)
def test_valence_electrons(symbol, count):
    assert element_properties(symbol)["valence electrons"] == count


def test_six_sets_of_elements_share_all_columns():
    assert indistinguishable_elements() == [
        ("La", "Ce"),
        ("Sm", "Gd"),
        ("Ho", "Er"),
        ("Th", "Np"),
        ("Am", "Cm"),
        ("Bk", "Cf", "Es", "Fm"),
    ]
    assert element_properties("La") == element_properties("Ce")


# What is refused.


@pytest.mark.parametrize("column", [-1, N_FEATURES, 1000])
def test_a_column_that_is_not_there(column):
    with pytest.raises(SettingsError, match=f"0 to 91, got {column}"):
        describe_column(column)


@pytest.mark.parametrize("name", ["", "electronegativity", "colour, blue"])
def test_a_column_name_that_is_not_there(name):
    with pytest.raises(SettingsError, match=f"no column '{name}'"):
        column_index(name)


@pytest.mark.parametrize("element", [0, -1, 101, "Lr", "Og", "Xx", "", "NaCl"])
def test_an_element_without_features(element):
    with pytest.raises(UnknownElementError, match=f"{element!r} is no element from 1 to 100"):
        element_properties(element)


def test_the_table_without_matminer(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install matminer") as caught:
        feature_table.__wrapped__()
    assert isinstance(caught.value, CrysXPPError)
