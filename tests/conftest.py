"""Small crystals named after their materials, built in code; every test gets fresh objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pymatgen.core import Composition, Lattice, Molecule, Structure

from crysxpp_mm.graph.backend import dgl_is_installed

needs_dgl = pytest.mark.skipif(
    not dgl_is_installed(), reason="DGL is not installed; it has wheels for Python up to 3.11"
)

if TYPE_CHECKING:
    from crysxpp_mm.models.crysae import CrysAE


def make_nacl() -> Structure:
    """Rock salt, primitive cell, 2 sites."""
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()


def make_perovskite() -> Structure:
    """Cubic SrTiO3: the twelfth neighbour of every site lies inside a shell of equal distances."""
    return Structure(
        Lattice.cubic(3.905),
        ["Sr", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )


def make_copper() -> Structure:
    """Fcc copper, primitive cell, one site."""
    return Structure(
        Lattice([[0, 1.805, 1.805], [1.805, 0, 1.805], [1.805, 1.805, 0]]), ["Cu"], [[0] * 3]
    )


def make_silicon() -> Structure:
    """Silicon in the diamond structure, primitive cell, 2 sites."""
    return Structure(
        Lattice([[0, 2.715, 2.715], [2.715, 0, 2.715], [2.715, 2.715, 0]]),
        ["Si", "Si"],
        [[0, 0, 0], [0.25, 0.25, 0.25]],
    )


def make_slab() -> Structure:
    """One layer of hexagonal boron nitride with 20 Angstrom of vacuum."""
    return Structure(
        Lattice.hexagonal(2.504, 20), ["B", "N"], [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]
    )


def make_disordered() -> Structure:
    """Ordered B2 cell in which copper and zinc share both sites."""
    return Structure(
        Lattice.cubic(2.95),
        [{"Cu": 0.5, "Zn": 0.5}, {"Cu": 0.5, "Zn": 0.5}],
        [[0, 0, 0], [0.5, 0.5, 0.5]],
    )


def make_isolated_atom() -> Structure:
    """An argon atom in a box of 30 Angstrom: a graph without bonds."""
    return Structure(Lattice.cubic(30), ["Ar"], [[0.5, 0.5, 0.5]])


def make_partial_occupancy() -> Structure:
    """Wuestite with an iron site that is vacant in one cell of ten."""
    return Structure(
        Lattice([[0, 2.15, 2.15], [2.15, 0, 2.15], [2.15, 2.15, 0]]),
        [{"Fe": 0.9}, "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5]],
    )


def make_structures() -> list[Structure]:
    """One of each, eight in all."""
    return [
        make_nacl(),
        make_perovskite(),
        make_copper(),
        make_silicon(),
        make_slab(),
        make_disordered(),
        make_isolated_atom(),
        make_partial_occupancy(),
    ]


def make_bad_inputs() -> dict[str, object]:
    """Inputs that have no crystal graph, by what is wrong with them."""
    flat = Lattice([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    return {
        "None": None,
        "NaN coordinate": Structure(Lattice.cubic(4), ["Cu"], [[float("nan"), 0, 0]]),
        "infinite coordinate": Structure(Lattice.cubic(4), ["Cu"], [[0, float("inf"), 0]]),
        "no volume": Structure(flat, ["Cu"], [[0, 0, 0]]),
        "dummy species": Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]]),
        "lawrencium": Structure(Lattice.cubic(4), ["Lr"], [[0, 0, 0]]),
        "molecule": Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]]),
        "composition": Composition("NaCl"),
        "string": "NaCl",
        "no sites": Structure(Lattice.cubic(4), [], []),
        "one place": Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0]]),
        "foreign dictionary": {"formula": "NaCl"},
    }


@pytest.fixture
def nacl() -> Structure:
    return make_nacl()


@pytest.fixture
def perovskite() -> Structure:
    return make_perovskite()


@pytest.fixture
def copper() -> Structure:
    return make_copper()


@pytest.fixture
def silicon() -> Structure:
    return make_silicon()


@pytest.fixture
def slab() -> Structure:
    return make_slab()


@pytest.fixture
def disordered() -> Structure:
    return make_disordered()


@pytest.fixture
def isolated_atom() -> Structure:
    return make_isolated_atom()


@pytest.fixture
def partial_occupancy() -> Structure:
    return make_partial_occupancy()


@pytest.fixture
def structures() -> list[Structure]:
    """One of each material, eight in all."""
    return make_structures()


@pytest.fixture
def bad_inputs() -> dict[str, object]:
    """Inputs that have no crystal graph, by what is wrong with them."""
    return make_bad_inputs()


@pytest.fixture
def mp_zip() -> Path:
    """Real crystals, where they are at hand."""
    root = os.environ.get("CRYSXPP_DATA")
    path = Path(root or "", "mp_structures.zip")
    if not root or not path.is_file():
        pytest.skip("CRYSXPP_DATA names no folder with mp_structures.zip")
    return path


@pytest.fixture
def crysae() -> CrysAE:
    """A small CrysAE with random weights."""
    from crysxpp_mm.models.crysae import CrysAE

    return CrysAE.random(seed=0)


def as_double(graph):
    """The graph with its numbers in double precision, in place."""
    for data in (graph.ndata, graph.edata):
        for name in list(data):
            data[name] = data[name].double()
    return graph
