"""CIF files: pymatgen's reader is the oracle, except where a file leaves something open."""

from __future__ import annotations

import os
import random
import re
import warnings
import zipfile

import numpy as np
import pytest
from conftest import make_copper, make_disordered, make_nacl, make_partial_occupancy
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from crysxpp_mm.data import cif
from crysxpp_mm.data.cif import read_cif, split_blocks
from crysxpp_mm.data.cif_sites import formula_mismatch
from crysxpp_mm.data.expansion import Reading
from crysxpp_mm.data.symmetry import is_group, keeps_metric, parse_operations
from crysxpp_mm.errors import DataError, StructureError, UnknownElementError
from crysxpp_mm.graph.crystal import Crystal, read_crystal

CUBIC = "5.64 5.64 5.64 90 90 90"


def text_of(
    sites: str,
    *,
    cell: str = CUBIC,
    symmetry: str = "",
    columns: str = "label fract_x fract_y fract_z",
    extra: str = "",
    name: str = "x",
) -> str:
    """A CIF with these lines of sites."""
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}"]
    lines += [f"_cell_{tag} {value}" for tag, value in zip(tags, cell.split(), strict=True)]
    lines += [symmetry, extra, "loop_"]
    lines += [f"_atom_site_{column}" for column in columns.split()]
    return "\n".join([*lines, *(line.strip() for line in sites.strip().splitlines())]) + "\n"


def named(name: str) -> str:
    return f"_symmetry_space_group_name_H-M '{name}'"


def listed(*operations: str) -> str:
    return "\n".join(["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{o}'" for o in operations)])


def oracle(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Structure.from_str(text, fmt="cif")


def assert_same(found: Crystal, expected: Structure) -> None:
    """The same elements and occupancies in the same places of the same cell."""
    structure = found.to_structure()
    assert len(structure) == len(expected)
    places = structure.cart_coords @ np.linalg.inv(expected.lattice.matrix)
    left = set(range(len(expected)))
    for site, place in zip(structure, places, strict=True):
        amounts = {el.Z: share for el, share in site.species.items()}
        for index in left:
            other = expected[index]
            step = place - other.frac_coords
            apart = np.abs((step - np.round(step)) @ expected.lattice.matrix).max()
            shares: dict[int, float] = {}
            for el, share in other.species.items():
                shares[el.Z] = shares.get(el.Z, 0) + share
            if apart < 1e-6 and amounts == pytest.approx(shares, abs=1e-6):
                left.remove(index)
                break
        else:
            raise AssertionError(f"{site} is not in {expected}")
    ratio = found.lattice @ np.linalg.inv(expected.lattice.matrix)
    assert ratio == pytest.approx(np.round(ratio), abs=1e-6)


def sure(text: str, monkeypatch: pytest.MonkeyPatch) -> Reading:
    """What is read without pymatgen's reader."""
    monkeypatch.setattr(cif, "_with_pymatgen", lambda *_: pytest.fail("pymatgen was needed"))
    return read_cif(text)


# Laws.


def symmetric(structure: Structure) -> str:
    return str(CifWriter(structure, symprec=0.01))


def quartz() -> Structure:
    return Structure.from_spacegroup(
        "P3_221", Lattice.hexagonal(4.913, 5.405), ["Si", "O"],
        [[0.4697, 0, 0], [0.4135, 0.2669, 0.1191]],
    )  # fmt: skip


def bismuth() -> Structure:
    return Structure.from_spacegroup(
        "R-3m", Lattice.hexagonal(4.546, 11.862), ["Bi"], [[0, 0, 0.2339]]
    )


def monoclinic() -> Structure:
    return Structure.from_spacegroup(
        "P2_1/c", Lattice.monoclinic(5.15, 5.2, 5.31, 99.2), ["Zr", "O", "O"],
        [[0.275, 0.04, 0.208], [0.07, 0.332, 0.345], [0.45, 0.757, 0.479]],
    )  # fmt: skip


def spinel() -> Structure:
    return Structure.from_spacegroup(
        "Fd-3m:2", Lattice.cubic(8.08), ["Mg", "Al", "O"],
        [[0.125] * 3, [0.5] * 3, [0.262] * 3],
    )  # fmt: skip


MAKERS = [make_nacl, make_copper, quartz, bismuth, monoclinic, make_disordered,
          make_partial_occupancy]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("write", [lambda s: s.to(fmt="cif"), symmetric], ids=["P1", "symmetric"])
def test_what_pymatgen_writes_is_read_as_pymatgen_reads_it(make, write, monkeypatch):
    text = write(make())
    reading = sure(text, monkeypatch)
    assert_same(reading.crystal, oracle(text))
    assert not reading.doubts
    assert not reading.notes


@pytest.mark.parametrize("make", [quartz, bismuth, monoclinic])
def test_order_of_sites_is_that_of_pymatgen(make):
    text = make().to(fmt="cif")
    expected = oracle(text)
    found = read_cif(text).crystal
    assert found.species_numbers.tolist() == [site.specie.Z for site in expected]
    assert found.to_structure().frac_coords == pytest.approx(expected.frac_coords % 1, abs=1e-9)


NACL = "Na 0 0 0\nCl 0.5 0.5 0.5"
RHOMBOHEDRAL = "4.746 4.746 4.746 57.23 57.23 57.23"
ODD = {
    "name only": text_of(NACL, symmetry=named("F m -3 m")),
    "name without spaces": text_of(NACL, symmetry=named("Fm-3m")),
    "alternative name": text_of(NACL, symmetry="_space_group_name_H-M_alt 'F m -3 m'"),
    "number only": text_of(NACL, symmetry="_space_group_IT_number 225"),
    "old number": text_of(NACL, symmetry="_symmetry_Int_Tables_number 225"),
    "operations beat the name": text_of(
        NACL, symmetry=named("F m -3 m") + "\n" + listed("x,y,z", "-x,-y,-z")
    ),
    "operations": text_of("Na 0.1 0.2 0.3", symmetry=listed("x,y,z", "-X, -Y, 1/2+Z")),
    "new list of operations": text_of(
        "Na 0.1 0.2 0.3", symmetry="loop_\n_space_group_symop_operation_xyz\nx,y,z\n-x,-y,-z"
    ),
    "numbered operations": text_of(
        "Na 0.1 0.2 0.3",
        symmetry="loop_\n_space_group_symop_id\n_space_group_symop_operation_xyz\n"
        "1 'x, y, z'\n2 '-x, -y, -z'",
    ),
    "decimal operations": text_of("Na 0.1 0.2 0.3", symmetry=listed("x,y,z", "x+0.5,y+0.5,z")),
    "one operation without a list": text_of(
        NACL, symmetry="_symmetry_equiv_pos_as_xyz 'x, y, z'"
    ),
    "hexagonal axes": text_of(
        "Bi 0 0 0.2339", cell="4.546 4.546 11.862 90 90 120", symmetry=named("R -3 m")
    ),
    "hexagonal axes said": text_of(
        "Bi 0 0 0.2339",
        cell="4.546 4.546 11.862 90 90 120",
        symmetry=listed("x,y,z", "-x,-y,-z", "x+2/3,y+1/3,z+1/3", "-x+2/3,-y+1/3,-z+1/3",
                        "x+1/3,y+2/3,z+2/3", "-x+1/3,-y+2/3,-z+2/3"),
    ),
    "rhombohedral operations": text_of(
        "Bi 0.2339 0.2339 0.2339", cell=RHOMBOHEDRAL,
        symmetry=listed("x,y,z", "z,x,y", "y,z,x", "-x,-y,-z", "-z,-x,-y", "-y,-z,-x"),
    ),
    "thirds of four digits": text_of(
        "Mg 0.3333 0.6667 0.2500", cell="3.2 3.2 5.2 90 90 120", symmetry=named("P 63/m m c")
    ),
    "thirds of five digits": text_of(
        "Mg 0.33333 0.66667 0.25", cell="3.2 3.2 5.2 90 90 120", symmetry=named("P 63/m m c")
    ),
    "thirds in P1": text_of("Mg 0.3333 0.6667 0.25\nO 0.3333 0.1 0.1", symmetry=listed("x,y,z")),
    "mixed site": text_of(
        "Na1 0 0 0 0.5\nK1 0 0 0 0.5\nCl1 0.5 0.5 0.5 1",
        columns="label fract_x fract_y fract_z occupancy", symmetry=named("F m -3 m"),
    ),
    "mixed site said at an image": text_of(
        "Na1 0 0 0 0.5\nK1 0.5 0.5 0 0.25\nCl1 0.5 0.5 0.5 1",
        columns="label fract_x fract_y fract_z occupancy", symmetry=named("F m -3 m"),
    ),
    "duplicates that fill a site": text_of(
        "Na1 0 0 0 0.5\nNa2 0 0 0 0.5\nCl1 0.5 0.5 0.5 1",
        columns="label fract_x fract_y fract_z occupancy", symmetry=listed("x,y,z"),
    ),
    "three on a site": text_of(
        "Na1 0 0 0 0.25\nK1 0 0 0 0.25\nLi1 0 0 0 0.25\nCl1 0.5 0.5 0.5 1",
        columns="label fract_x fract_y fract_z occupancy", symmetry=listed("x,y,z"),
    ),
    "split site": text_of(
        "Na1 0.02 0 0 0.5\nNa2 -0.02 0 0 0.5\nCl1 0.5 0.5 0.5 1",
        columns="label fract_x fract_y fract_z occupancy", symmetry=listed("x,y,z"),
    ),
    "vacant site": text_of(
        "Na1 0 0 0 0.8\nLi1 0.25 0.25 0.25 0\nCl1 0.5 0.5 0.5 1.0000",
        columns="label fract_x fract_y fract_z occupancy", symmetry=listed("x,y,z"),
    ),
    "uncertainties": text_of(
        "Na 0.1(2) 0.2000(13) -0.3\nCl .5(1) 1.25(2) 0.5",
        cell="5.64(1) 5.64(1) 5.6(4) 90 90 90(1)",
        symmetry=listed("x,y,z"),
    ),
    "deuterium": text_of("D1 0.1 0.1 0.1\nH1 0.4 0.4 0.4\nO1 0 0 0", symmetry=listed("x,y,z")),
    "tritium by type": text_of(
        "T1 T 0.1 0.1 0.1\nO1 O 0 0 0", columns="label type_symbol fract_x fract_y fract_z",
        symmetry=listed("x,y,z"),
    ),
    "charges": text_of(
        "Fe1 Fe3+ 0 0 0\nO1 O2- 0.5 0.5 0.5", columns="label type_symbol fract_x fract_y fract_z",
        symmetry=listed("x,y,z"),
    ),
    "labels of all kinds": text_of(
        "Fe1A 0 0 0\nO(2) 0.5 0.5 0.5\nCu_b 0.2 0.2 0.2\nC* 0.7 0.7 0.7", symmetry=listed("x,y,z")
    ),
    "Windows line ends": text_of(NACL, symmetry=named("F m -3 m")).replace("\n", "\r\n"),
    "comments and texts": "# a comment\n" + text_of(
        NACL + "\n#end", symmetry=listed("x,y,z"), extra="_title\n;\ntwo\nlines of loop_\n;"
    ),
    "other lists": text_of(
        NACL, symmetry=listed("x,y,z"),
        extra="loop_\n_atom_site_aniso_label\n_atom_site_aniso_U_11\nNa 0.1\nCl 0.2",
    ),
    "unknown values elsewhere": text_of(NACL, symmetry=listed("x,y,z"), extra="_cell_volume ?"),
    "triclinic": text_of("Na 0.1 0.2 0.3\nCl 0.6 0.7 0.8", cell="4.1 5.2 6.3 71 82 93.5",
                         symmetry=listed("x,y,z", "-x,-y,-z")),
    "same formula": text_of(
        NACL, symmetry=named("F m -3 m"), extra="_chemical_formula_sum 'Cl Na'"
    ),
    "charged formula": text_of(
        NACL, symmetry=named("F m -3 m"), extra="_chemical_formula_sum 'Na Cl 1+'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_as_pymatgen_reads_them(name, monkeypatch):
    reading = sure(ODD[name], monkeypatch)
    assert_same(reading.crystal, oracle(ODD[name]))
    assert not reading.doubts


def test_tags_of_any_case_are_read(monkeypatch):
    text = text_of(NACL, symmetry=listed("x,y,z"))
    shouted = re.sub(r"_\w+", lambda tag: tag[0].upper(), text).replace("data_x", "DATA_x")
    assert_same(sure(shouted, monkeypatch).crystal, oracle(text))


def test_one_site_without_a_list_is_read(monkeypatch):
    text = text_of("", symmetry=listed("x,y,z"), columns="")
    text = text.removesuffix("loop_\n") + (
        "_atom_site_label Cu1\n_atom_site_fract_x 0\n_atom_site_fract_y 0\n_atom_site_fract_z 0.5\n"
    )
    crystal = sure(text, monkeypatch).crystal
    assert crystal.formula == "Cu1"
    assert crystal.positions.tolist() == [[0, 0, pytest.approx(2.82)]]


# Symmetry that pymatgen gets wrong.


def test_rhombohedral_axes_with_a_name_only(monkeypatch):
    text = text_of("Bi 0.2339 0.2339 0.2339", cell=RHOMBOHEDRAL, symmetry=named("R -3 m"))
    reading = sure(text, monkeypatch)
    assert not reading.doubts
    assert_same(reading.crystal, oracle(ODD["rhombohedral operations"]))
    for name in ("R -3 m :R", "R -3 m R"):
        again = sure(text.replace("R -3 m", name), monkeypatch)
        assert_same(again.crystal, oracle(ODD["rhombohedral operations"]))


SPINEL = "Mg1 0.125 0.125 0.125 8\nAl1 0.5 0.5 0.5 16\nO1 0.262 0.262 0.262 32"
WITH_COUNTS = "label fract_x fract_y fract_z symmetry_multiplicity"


@pytest.mark.parametrize(
    "symmetry",
    [
        named("F d -3 m :2"),
        named("F d -3 m Z"),
        "_space_group_name_Hall '-F 4vw 2vw 3'",
        named("F d -3 m"),
        "_space_group_IT_number 227",
    ],
)
def test_second_origin_is_said_or_told_by_the_multiplicities(symmetry, monkeypatch):
    text = text_of(SPINEL, cell="8.08 8.08 8.08 90 90 90", symmetry=symmetry, columns=WITH_COUNTS)
    reading = sure(text, monkeypatch)
    assert not reading.doubts
    assert_same(reading.crystal, spinel())


def test_origin_that_nothing_tells_is_a_doubt(monkeypatch):
    text = text_of("Si 0.3 0.2 0.15", symmetry=named("F d -3 m"))
    (doubt,) = sure(text, monkeypatch).doubts
    assert "two origins" in doubt


@pytest.mark.parametrize(
    ("symmetry", "doubt"),
    [
        (named("Q 1 2 3"), "the space group 'Q 1 2 3' is unknown"),
        (named("Q 1") + "\n_space_group_IT_number 225", "'Q 1' is unknown"),
        ("_space_group_IT_number 300", "the space group '300' is unknown"),
        (named("P 63/m m c"), "does not fit the cell"),
        (listed("x,y,z", "x-y,x,z"), "does not fit|no group"),
        (listed("x,y,z", "x+1/2,y,z", "x,y+1/2,z"), "3 symmetry operations .* no group"),
        (listed("-x,-y,-z"), "no group"),
    ],
)
def test_symmetry_that_makes_no_sense_is_a_doubt(symmetry, doubt, monkeypatch):
    reading = sure(text_of("Na 0.1 0.2 0.3", symmetry=symmetry), monkeypatch)
    assert re.search(doubt, "; ".join(reading.doubts))


def test_no_symmetry_is_said(monkeypatch):
    reading = sure(text_of(NACL), monkeypatch)
    assert not reading.doubts
    assert reading.notes == ("the file names no symmetry: its sites are taken for all of the cell",)
    assert_same(reading.crystal, oracle(text_of(NACL)))


def test_operations_are_groups_that_keep_the_metric():
    group = parse_operations(("x,y,z", "-y,x,z", "-x,-y,z", "y,-x,z"))
    assert is_group(group)
    assert keeps_metric(group, np.diag([4.0, 4.0, 5.0]))
    assert not keeps_metric(group, np.diag([4.0, 4.5, 5.0]))
    for wrong in ("h,k,l", "x,y", "x,y,z+1/7"):
        with pytest.raises(DataError, match="symmetry operation"):
            parse_operations((wrong,))


# What a file leaves open.

P1 = listed("x,y,z")
TYPED = "label type_symbol fract_x fract_y fract_z"
WITH_SHARES = "label fract_x fract_y fract_z occupancy"
DOUBTFUL = {
    "no element in a label": (
        text_of("OH1 0 0 0\nNa1 .5 .5 .5", symmetry=P1),
        r"site OH1 has no known element \(OH1\)",
        "Na1",
    ),
    "water": (text_of("Wat1 0 0 0\nNa1 .5 .5 .5", symmetry=P1), "site Wat1 has no known", "Na1"),
    "no element in a type": (
        text_of("A1 OH 0 0 0\nNa1 Na .5 .5 .5", symmetry=P1, columns=TYPED),
        r"site A1 has no known element \(OH\)",
        "Na1",
    ),
    "unknown type": (
        text_of("A1 ? 0 0 0\nNa1 Na .5 .5 .5", symmetry=P1, columns=TYPED), "site A1 has no", "Na1"
    ),
    "vacancies as a type": (
        text_of("A1 Va 0 0 0\nB1 Vac .1 .1 .1\nNa1 Na .5 .5 .5", symmetry=P1, columns=TYPED),
        r"2 sites \(A1, B1\) have no known element \(Va, Vac\)",
        "Na1",
    ),
    "calcium or carbon": (text_of("CA1 0 0 0\nNa1 .5 .5 .5", symmetry=P1), "CA1", "Na1"),
    "occupancy of a point": (
        text_of("Na1 0 0 0 .\nCl1 .5 .5 .5 1", symmetry=P1, columns=WITH_SHARES),
        "site Na1 has no known occupancy",
        "Na1 Cl1",
    ),
    "occupancy of a question mark": (
        text_of("Na1 0 0 0 ?\nCl1 .5 .5 .5 ?", symmetry=P1, columns=WITH_SHARES),
        r"2 sites \(Na1, Cl1\) have no known occupancy",
        "Na1 Cl1",
    ),
    "occupancy of a word": (
        text_of("Na1 0 0 0 Fe3+\nCl1 .5 .5 .5 1", symmetry=P1, columns=WITH_SHARES),
        "site Na1 has no known occupancy",
        "Na1 Cl1",
    ),
    "no coordinates": (
        text_of("Na1 0 0 ?\nCl1 .5 .5 .5\nNa2 . . .", symmetry=P1),
        r"2 sites \(Na1, Na2\) have no coordinates",
        "Cl1",
    ),
    "hydrogen lacks": (
        text_of("C1 0 0 0\nO1 .5 .5 .5", symmetry=P1, extra="_chemical_formula_sum 'C H2 O'"),
        r"the formula of the file \(C H2 O\) has H, the list of sites has not",
        "C1 O1",
    ),
    "some hydrogen lacks": (
        text_of(
            "C1 0 0 0\nO1 .5 .5 .5\nH1 .2 .2 .2", symmetry=P1,
            extra="_chemical_formula_sum 'C H2 O'",
        ),
        r"has 2 H, the list of sites 1",
        "H1 C1 O1",
    ),
    "more than the formula": (
        text_of(NACL, symmetry=P1, extra="_chemical_formula_sum 'Na'"), "has Cl, the formula",
        "Na1 Cl1",
    ),
    "attached hydrogen": (
        text_of("C1 0 0 0 3\nO1 .5 .5 .5 0", symmetry=P1,
                columns="label fract_x fract_y fract_z attached_hydrogens"),
        "site C1 has hydrogen without coordinates",
        "C1 O1",
    ),
    "a dummy": (
        text_of("C1 0 0 0 dum\nO1 .5 .5 .5 d", symmetry=P1,
                columns="label fract_x fract_y fract_z calc_flag"),
        "site C1 is a dummy",
        "C1 O1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_a_file_leaves_open_is_a_doubt(name, monkeypatch):
    text, doubt, formula = DOUBTFUL[name]
    reading = sure(text, monkeypatch)
    assert re.search(doubt, "; ".join(reading.doubts))
    assert sorted(reading.crystal.formula.split()) == sorted(formula.split())


def test_case_that_is_lost_is_told_by_the_formula(monkeypatch):
    formula = "_chemical_formula_sum 'Fe Cl3'"
    sites = "FE1 0 0 0\nCL1 .2 .2 .2\nCL2 .5 .5 .5\nCL3 .8 .8 .8"
    reading = sure(text_of(sites, symmetry=P1, extra=formula), monkeypatch)
    assert not reading.doubts
    assert reading.crystal.formula == "Fe1 Cl3"
    typed = re.sub(r"^(\w\w)(\d)", r"\1\2 \1", sites, flags=re.M)
    reading = sure(text_of(typed, symmetry=P1, extra=formula, columns=TYPED), monkeypatch)
    assert not reading.doubts
    assert reading.crystal.formula == "Fe1 Cl3"


def shares(first: str, second: str) -> str:
    sites = f"Na1 0 0 0 {first}\nK1 0 0 0 {second}\nCl1 .5 .5 .5 1"
    return text_of(sites, symmetry=P1, columns=WITH_SHARES)


def test_occupancies_past_one_are_rescaled_and_said(monkeypatch):
    reading = sure(shares("0.62", "0.42"), monkeypatch)
    assert reading.notes == ("the occupancies of site Na1, K1 sum to 1.04 and are rescaled",)
    assert not reading.doubts
    total = reading.crystal.occupancies[reading.crystal.species_numbers != 17]
    assert sorted(total) == pytest.approx([0.42 / 1.04, 0.62 / 1.04])
    assert not sure(shares("0.66667", "0.33334"), monkeypatch).notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (shares("0.62", "0.52"), "occupancies of site Na1, K1 sum to 1.14"),
        (shares("-0.1", "1"), "the occupancy of site Na1 is -0.1"),
        (text_of("Na1 0 0 0\nNa2 0 0 0", symmetry=P1), "site Na1, Na2 sum to 2"),
        (text_of("Na 0 0 0", cell="5 5 5 90 90 200", symmetry=P1), "make no cell"),
        (text_of("Na 0 0 0", cell="5 0 5 90 90 90", symmetry=P1), "make no cell"),
        (text_of("Na 0 0 0 1", columns="label Cartn_x Cartn_y Cartn_z").replace(" 1\n", "\n"),
         "are Cartesian"),
        ("data_x\n_cell_length_a 5\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1 2.5\n", "an mmCIF"),
        (text_of("Na 0 0 0", extra="_cell_modulation_dimension 1"), "a modulated"),
        (text_of("Na 0 0 0", extra="_space_group_ssg_name 'P'"), "a modulated"),
        (text_of("Na 0 0 0", symmetry=listed("x,y,q")), "no symmetry operation"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_unsupported_is_named(text, message):
    with pytest.raises(DataError, match=message):
        read_cif(text)


def test_vacancies_only_are_an_error():
    with pytest.raises(StructureError, match="every site is vacant"):
        read_cif(text_of("Na1 0 0 0 0", symmetry=P1, columns=WITH_SHARES))


def test_element_past_the_table_is_named():
    with pytest.raises(UnknownElementError, match="site 0 holds Lr"):
        read_cif(Structure(Lattice.cubic(4), ["Lr"], [[0, 0, 0]]).to(fmt="cif"))


def test_formula_is_compared_by_its_ratios():
    crystal = read_crystal(make_nacl())
    for fine in ("Na Cl", "Na4 Cl4", "Na1.05 Cl", "", "nonsense", "(Na Cl)2", "Na1 Cl1 1+"):
        assert not formula_mismatch(fine, crystal), fine
    for wrong in ("Na Cl H", "Na2 Cl", "Na", "(Na Cl)2 Li"):
        assert formula_mismatch(wrong, crystal), wrong


# pymatgen's reader, where the rules here stop.


def test_damaged_file_is_read_by_pymatgen_and_its_doubts_are_kept():
    text = text_of(NACL, symmetry=named("F m -3 m") + " stray words")
    reading = read_cif(text)
    assert_same(reading.crystal, oracle(text))
    assert any("Possible issue in CIF file" in doubt for doubt in reading.doubts)


def test_cell_of_a_crystal_system_is_read_by_pymatgen():
    text = text_of("Cu 0 0 0", symmetry=P1, extra="_symmetry_cell_setting cubic")
    for tag in ("length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"):
        text = re.sub(rf"_cell_{tag}.*\n", "", text)
    assert_same(read_cif(text).crystal, oracle(text))


def test_sites_of_the_pauling_file_are_mixed(monkeypatch):
    symmetry = named("F m -3 m")
    mixed = text_of(
        "'Na,K' '0.8Na + 0.2K' 0 0 0 1\nCl Cl .5 .5 .5 1",
        symmetry=symmetry,
        columns=TYPED + " occupancy",
    )
    plain = text_of(
        "Na 0 0 0 0.8\nK 0 0 0 0.2\nCl .5 .5 .5 1", symmetry=symmetry, columns=WITH_SHARES
    )
    assert_same(sure(mixed, monkeypatch).crystal, oracle(plain))
    without = re.sub("_atom_site_occupancy\n|(?<=0|5) 1$", "", mixed, flags=re.M)
    assert_same(sure(without, monkeypatch).crystal, oracle(plain))
    assert sure(mixed.replace("0.2K", "0.2Q"), monkeypatch).doubts


def test_magnetic_file_is_read_by_pymatgen():
    text = text_of(
        "Fe1 Fe 0 0 0\nO1 O .5 .5 .5",
        columns=TYPED,
        symmetry="loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1",
        extra="loop_\n_atom_site_moment.label\n_atom_site_moment.crystalaxis_x\n"
        "_atom_site_moment.crystalaxis_y\n_atom_site_moment.crystalaxis_z\nFe1 0 0 2",
    )
    reading = read_cif(text)
    assert sorted(reading.crystal.formula.split()) == ["Fe1", "O1"]
    assert not reading.doubts
    with pytest.raises(DataError, match="cannot be read as a structure"):
        read_cif(text.replace("x,y,z,+1", "?"))


def test_what_nobody_can_read_is_named():
    for text in ("nonsense", "", "data_x\n", "data_x\n_cell_length_a 5\n", text_of("Na 0 0")):
        with pytest.raises(DataError, match="cannot be read as a structure"):
            read_cif(text)


def test_long_damaged_file_is_refused_at_once():
    with pytest.raises(DataError, match="too long for the patient reader"):
        read_cif(text_of("Na 0 0 0\n" * 5000) + "stray\n")


def test_too_many_images_are_refused(monkeypatch):
    monkeypatch.setattr("crysxpp_mm.data.expansion.MAX_IMAGES", 100)
    with pytest.raises(DataError, match="more than 100 images"):
        read_cif(text_of(NACL, symmetry=named("F m -3 m")))


# Several crystals in a file.


def test_blocks_with_coordinates_are_split():
    one, two = text_of("Na 0 0 0", name="one"), text_of("Cl 0 0 0", name="two")
    empty = "data_global\n_journal_name 'data_ in a text'\n"
    assert split_blocks(one) == []
    assert split_blocks(empty + one) == []
    found = split_blocks(empty + one + two)
    assert [name for name, _ in found] == ["one", "two"]
    assert [read_cif(text).crystal.formula for _, text in found] == ["Na1", "Cl1"]
    assert read_cif(empty + one).crystal.formula == "Na1"
    assert [name for name, _ in split_blocks(one + one)] == ["one", "one-2"]


def test_damaged_block_does_not_hide_the_others():
    one, two = text_of("Na 0 0 0", name="one"), text_of("Cl 0 0 0", name="two")
    found = split_blocks(one.replace("Na 0 0 0", "Na 0 0 'x") + two)
    assert [name for name, _ in found] == ["one", "two"]
    assert read_cif(found[1][1]).crystal.formula == "Cl1"


# All real files; a sample unless CRYSXPP_ALL_CIFS is set.


def test_real_files_are_read_as_pymatgen_reads_them(mp_zip, monkeypatch):
    with zipfile.ZipFile(mp_zip) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".cif"))
        if not os.environ.get("CRYSXPP_ALL_CIFS"):
            names = random.Random(0).sample(names, 30)
        for name in names:
            text = archive.read(name).decode()
            reading = sure(text, monkeypatch)
            assert_same(reading.crystal, oracle(text))
            assert not reading.doubts, name
            assert not reading.notes, name
