"""Laws of the graph rule, then what it refuses."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import make_copper, make_nacl, make_perovskite, make_silicon, make_slab, needs_dgl
from pymatgen.core import Element, IStructure, Lattice, Molecule, Species, Structure
from pymatgen.core.operations import SymmOp
from pymatgen.core.surface import SlabGenerator
from pymatgen.entries.computed_entries import ComputedStructureEntry

from crysxpp_mm.errors import (
    GraphError,
    SettingsError,
    StructureError,
    StructureTypeError,
    UnknownElementError,
)
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import (
    TorchGraph,
    build_graph,
    choose_backend,
    dgl_is_usable,
    import_dgl,
    move_graph,
)
from crysxpp_mm.graph.batch import (
    ATOM_FEATURES,
    DISTANCE,
    ELEMENT_FRACTIONS,
    WEIGHT,
    atom_batches,
    check_graph,
    make_batch,
)
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.graph.crystal import count_sites
from crysxpp_mm.graph.neighbors import neighbors_within

converter = CrystalGraphConverter()


def shells(graphs: CrystalGraphs) -> list[list[tuple[float, int]]]:
    """Of every site, sorted: its bonds' lengths and weights, summed over equal lengths."""
    starts = np.r_[0, np.cumsum(graphs.degrees)]
    sites = []
    for first, last in pairwise(starts):
        lengths = np.round(graphs.distances[first:last], 3)
        weights = graphs.weights[first:last]
        sites.append(
            [
                (round(float(d), 3), round(float(weights[lengths == d].sum()), 4))
                for d in np.unique(lengths)
            ]
        )
    return sorted(sites)


def rotated(structure: Structure) -> Structure:
    """Turned by 50 degrees about a general axis."""
    turned = structure.copy()
    turned.apply_operation(SymmOp.from_axis_angle_and_translation([1, 2, 3], 50))
    return turned


def supercell(structure: Structure) -> Structure:
    """2 x 2 x 2 times the cell."""
    return structure * (2, 2, 2)


def skewed(structure: Structure) -> Structure:
    """The same crystal in a far less convenient cell."""
    copy = structure.copy()
    copy.make_supercell([[1, 0, 0], [7, 1, 0], [-5, 9, 1]], to_unit_cell=False)
    return copy


def translated(structure: Structure) -> Structure:
    """Moved by a general vector, sites left outside the cell."""
    copy = structure.copy()
    copy.translate_sites(range(len(copy)), [0.37, -1.21, 5.03], to_unit_cell=False)
    return copy


def permuted(structure: Structure) -> Structure:
    """Sites in reverse order."""
    return Structure.from_sites(list(structure)[::-1])


@pytest.mark.parametrize("transform", [rotated, supercell, skewed, translated, permuted])
@pytest.mark.parametrize("make", [make_nacl, make_perovskite, make_copper, make_silicon, make_slab])
def test_graph_is_the_same_for_every_description_of_a_crystal(make, transform):
    before = converter.convert(make())
    after = converter.convert(transform(make()))
    copies = int(after.n_atoms[0] / before.n_atoms[0])
    assert sorted(shells(before) * copies) == shells(after)


@pytest.mark.parametrize("max_neighbors", [1, 5, 12, 30])
def test_weights_of_a_site_sum_to_the_wanted_neighbors(perovskite, max_neighbors):
    graphs = CrystalGraphConverter(max_neighbors=max_neighbors).convert(perovskite)
    sums = np.add.reduceat(graphs.weights, np.r_[0, np.cumsum(graphs.degrees)[:-1]])
    assert sums == pytest.approx(np.full(5, max_neighbors), abs=1e-5)
    assert graphs.weights.max() <= 1


def test_adaptive_search_equals_the_full_search(structures):
    for structure in structures:
        full = neighbors_within(
            np.array(structure.lattice.matrix),
            np.array(structure.cart_coords),
            np.ones(3, dtype=np.int64),
            8.0001,
        )
        graphs = converter.convert(structure)
        starts = np.r_[0, np.cumsum(graphs.degrees)]
        for site in range(len(structure)):
            distances = np.sort(full.distances[full.centers == site])
            wanted = distances
            if len(distances) > 12:
                wanted = distances[distances <= distances[11] + 1e-4]
            assert graphs.distances[starts[site] : starts[site + 1]] == pytest.approx(wanted)


def test_perovskite_keeps_the_shell_of_the_twelfth_neighbor_whole(perovskite):
    titanium, strontium = shells(converter.convert(perovskite))[-2:]
    assert strontium == [(2.761, 12.0)]  # twelve oxygen neighbours, none left over
    # Six oxygen, then six of the eight strontium neighbours' worth.
    assert titanium == [(1.952, 6.0), (3.382, 6.0)]


def test_single_equals_batch(structures):
    together = converter.convert_many(structures)
    for index, structure in enumerate(structures):
        alone, part = converter.convert(structure), together.select([index])
        for name in ("neighbors", "species_numbers", "degrees"):
            assert np.array_equal(getattr(alone, name), getattr(part, name))
        assert alone.distances == pytest.approx(part.distances)


def test_select_and_concatenate_are_inverse(structures):
    graphs = converter.convert_many(structures)
    parts = [graphs.select([index]) for index in range(len(graphs))]
    again = CrystalGraphs.concatenate(parts)
    assert np.array_equal(again.bond_offsets, graphs.bond_offsets)
    assert np.array_equal(again.neighbors, graphs.neighbors)
    assert np.array_equal(graphs.select([-1]).distances, parts[-1].distances)
    assert np.array_equal(graphs.select(slice(2, 4)).n_atoms, graphs.n_atoms[2:4])
    assert len(CrystalGraphs.empty()) == 0


def test_select_past_the_end_is_refused(nacl):
    with pytest.raises(GraphError, match="graph index 1 is out of range for 1 graphs"):
        converter.convert(nacl).select([1])


def test_isolated_atom_is_a_node_without_bonds(isolated_atom):
    graphs = converter.convert(isolated_atom)
    assert graphs.n_atoms.tolist() == [1]
    assert graphs.n_bonds.tolist() == [0]


def test_few_neighbors_have_weight_one():
    pair = Structure(Lattice.cubic(30), ["H", "H"], [[0.5, 0.5, 0.5], [0.52467, 0.5, 0.5]])
    graphs = converter.convert(pair)
    assert graphs.degrees.tolist() == [1, 1]
    assert graphs.weights.tolist() == [1, 1]


def test_deuterium_and_oxidation_states_and_spins_are_read_as_elements():
    for species in ("D", "H+", Species("H", -1, spin=0.5)):
        graphs = converter.convert(Structure(Lattice.cubic(3), [species], [[0, 0, 0]]))
        assert graphs.species_numbers.tolist() == [1]


def test_a_slab_without_periodicity_along_z_has_no_neighbors_there():
    lattice = Lattice.tetragonal(3.0, 4.0)
    flat = Lattice(lattice.matrix, pbc=(True, True, False))
    graphs = converter.convert(Structure(flat, ["Cu"], [[0, 0, 0.5]]))
    assert not np.isclose(graphs.distances, 4.0).any()


def test_dictionaries_are_structures(perovskite):
    graphs = converter.convert(perovskite.as_dict())
    assert shells(graphs) == shells(converter.convert(perovskite))


def test_a_dictionary_runs_nothing(nacl):
    document = nacl.as_dict()
    document["sites"][0]["properties"] = {"x": {"@module": "antigravity", "@class": "Nothing"}}
    graphs = converter.convert(document)
    assert graphs.n_atoms.tolist() == [2]
    assert "antigravity" not in sys.modules


def test_converter_round_trips_and_cannot_be_changed():
    rule = CrystalGraphConverter(cutoff=6.0, max_neighbors=8)
    assert CrystalGraphConverter.from_dict(rule.as_dict()) == rule
    with pytest.raises(AttributeError):
        rule.cutoff = 8.0


@pytest.mark.parametrize(
    "settings", [{"cutoff": 0}, {"cutoff": 21}, {"max_neighbors": 0}, {"shell_tolerance": 0}]
)
def test_senseless_rule_is_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        CrystalGraphConverter(**settings)


ELEMENT = Element("Cu")
BAD = [
    (None, StructureTypeError, "got None"),
    (Molecule(["H"], [[0, 0, 0]]), StructureTypeError, "got a Molecule"),
    ({"formula": "NaCl"}, StructureTypeError, "'formula'"),
    (
        {"lattice": {}, "sites": []},
        StructureError,
        "the dictionary does not describe a Structure",
    ),
    (Structure(Lattice.cubic(4), [], []), StructureError, "has no sites"),
    (
        Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, np.nan, 0]]),
        StructureError,
        "coordinates of site 1 are NaN",
    ),
    (
        Structure(Lattice([[np.nan, 0, 0], [0, 4, 0], [0, 0, 4]]), ["Cu"], [[0, 0, 0]]),
        StructureError,
        "a lattice vector is NaN",
    ),
    (
        Structure(Lattice([[4, 0, 0], [0, 4, 0], [4, 4, 0]]), ["Cu"], [[0, 0, 0]]),
        StructureError,
        "volume of 0",
    ),
    (
        Structure(Lattice.orthorhombic(1e-6, 1e4, 1e4), ["Cu"], [[0, 0, 0]]),
        StructureError,
        "thinner than",
    ),
    (
        Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [1, 0, 0]]),
        StructureError,
        "sites [01] and [01] are in one place",
    ),
    (Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]]), UnknownElementError, "site 0 holds X"),
    (Structure(Lattice.cubic(4), ["Lr"], [[0, 0, 0]]), UnknownElementError, "site 0 holds Lr"),
]


@pytest.mark.parametrize(("structure", "kind", "message"), BAD)
def test_bad_structure_is_named(structure, kind, message):
    with pytest.raises(kind, match=message):
        converter.convert(structure)


def test_infinite_occupancy_is_named():
    site = Structure(Lattice.cubic(4), [{"Cu": 0.5}], [[0, 0, 0]])
    site[0].species._data[ELEMENT] = float("nan")
    with pytest.raises(StructureError, match="occupancy of Cu on site 0 is nan"):
        converter.convert(site)


def test_many_names_the_position_and_each_goes_on(nacl, copper):
    with pytest.raises(StructureTypeError, match="structure 1: expected"):
        converter.convert_many([nacl, None, copper])
    graphs, errors = converter.convert_each([nacl, None, copper])
    assert graphs.n_atoms.tolist() == [2, 1]
    assert list(errors) == [1]


@needs_dgl
def test_dgl_and_plain_graphs_are_alike(structures):
    graphs = converter.convert_many(structures)
    ours = make_batch(graphs, backend="torch", element_fractions=True)
    theirs = make_batch(graphs, backend="dgl", element_fractions=True)
    assert ours.num_nodes() == theirs.num_nodes()
    assert ours.num_edges() == theirs.num_edges()
    assert ours.batch_size == theirs.batch_size
    assert (ours.batch_num_nodes() == theirs.batch_num_nodes()).all()
    assert (ours.batch_num_edges() == theirs.batch_num_edges()).all()
    for mine, other in zip(ours.edges(), theirs.edges(), strict=True):
        assert (mine == other).all()
    for name in (ATOM_FEATURES, ELEMENT_FRACTIONS):
        assert (ours.ndata[name] == theirs.ndata[name]).all()
    for name in (DISTANCE, WEIGHT):
        assert (ours.edata[name] == theirs.edata[name]).all()
    moved = ours.to("cpu")
    assert moved.device.type == "cpu"
    assert (moved.ndata[ATOM_FEATURES] == ours.ndata[ATOM_FEATURES]).all()


@needs_dgl
def test_converter_makes_dgl_graphs(nacl, structures):
    import dgl

    single = converter.to_dgl(nacl)
    assert isinstance(single, dgl.DGLGraph)
    assert single.batch_size == 1
    assert converter.to_dgl(structures).batch_size == len(structures)
    assert converter.to_dgl(nacl.as_dict()).num_nodes() == 2


def test_disordered_features_are_weighted_by_occupancy(disordered, partial_occupancy):
    graph = make_batch(converter.convert(disordered), backend="torch", element_fractions=True)
    copper, zinc = (
        make_batch(
            converter.convert(Structure(Lattice.cubic(3), [symbol], [[0, 0, 0]])), backend="torch"
        ).ndata[ATOM_FEATURES][0]
        for symbol in ("Cu", "Zn")
    )
    assert graph.ndata[ATOM_FEATURES][0].tolist() == pytest.approx(((copper + zinc) / 2).tolist())
    assert graph.ndata[ELEMENT_FRACTIONS].sum(1).tolist() == [1, 1]
    vacant = make_batch(converter.convert(partial_occupancy), backend="torch")
    assert float(vacant.ndata[ATOM_FEATURES][0].max()) == pytest.approx(0.9)


def test_unknown_backend_is_refused(nacl):
    with pytest.raises(SettingsError, match="backend must be"):
        make_batch(converter.convert(nacl), backend="jax")


def test_absent_dgl_is_named(monkeypatch, nacl):
    from crysxpp_mm.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "dgl", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        import_dgl()


def test_without_dgl_graphs_are_plain_tensors(monkeypatch, nacl):
    monkeypatch.delenv("CRYSXPP_BACKEND", raising=False)
    monkeypatch.setattr("crysxpp_mm.graph.backend.dgl_is_usable", lambda: False)
    assert isinstance(make_batch(converter.convert(nacl)), TorchGraph)


def test_a_variable_forces_the_backend(monkeypatch, nacl):
    monkeypatch.setenv("CRYSXPP_BACKEND", "torch")
    assert isinstance(make_batch(converter.convert(nacl)), TorchGraph)
    monkeypatch.setenv("CRYSXPP_BACKEND", "jax")
    with pytest.raises(SettingsError, match="CRYSXPP_BACKEND must be 'auto', 'dgl' or 'torch'"):
        make_batch(converter.convert(nacl))
    monkeypatch.setenv("CRYSXPP_BACKEND", "")  # as if it were not set
    assert choose_backend() == ("dgl" if dgl_is_usable() else "torch")


def test_a_broken_dgl_is_logged_and_left_alone(monkeypatch, caplog):
    monkeypatch.setattr("crysxpp_mm.graph.backend.dgl_is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "dgl", None)
    dgl_is_usable.cache_clear()
    try:
        assert choose_backend() == "torch"
        assert "Graphs are made of plain tensors" in caplog.text
    finally:
        dgl_is_usable.cache_clear()


@needs_dgl
def test_a_graph_of_dgl_becomes_plain_where_dgl_does_not_know_the_device(nacl):
    graph = make_batch(converter.convert(nacl), backend="dgl")
    moved = move_graph(graph, "meta")  # a device that no build of DGL knows
    assert isinstance(moved, TorchGraph)
    assert moved.device.type == "meta"
    assert moved.ndata.keys() == graph.ndata.keys()
    assert move_graph(graph, "cpu").num_edges() == graph.num_edges()


def test_graph_from_elsewhere_must_have_the_fields(nacl):
    graph = make_batch(converter.convert(nacl), backend="torch")
    check_graph(graph)
    with pytest.raises(GraphError, match="no field 'element_fractions'"):
        check_graph(graph, element_fractions=True)
    graph.ndata[ATOM_FEATURES] = graph.ndata[ATOM_FEATURES][:, :5]
    with pytest.raises(GraphError, match="shape"):
        check_graph(graph)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (DISTANCE, float("nan"), "'distance' of the graph holds NaN"),
        (DISTANCE, -1.0, "'distance' of the graph must hold numbers from 0"),
        (DISTANCE, 1e6, "'distance' of the graph must hold numbers from 0"),
        (WEIGHT, float("inf"), "'weight' of the graph holds NaN"),
        (WEIGHT, 2.0, "'weight' of the graph must hold numbers from 0 to 1"),
        (ATOM_FEATURES, float("nan"), "'atom_features' of the graph holds NaN"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", pytest.param("dgl", marks=needs_dgl)])
def test_numbers_of_a_graph_from_elsewhere_are_checked(nacl, backend, field, value, message):
    graph = make_batch(converter.convert(nacl), backend=backend)
    data = graph.ndata if field == ATOM_FEATURES else graph.edata
    data[field][0] = value
    with pytest.raises(GraphError, match=message):
        check_graph(graph)


def test_edges_of_a_graph_from_elsewhere_stay_in_their_crystal(nacl, copper):
    graph = make_batch(converter.convert_many([nacl, copper]), backend="torch")
    check_graph(graph)
    for edge, node in ((0, 2), (0, -1), (0, 10**9), (-1, 0)):
        bad = make_batch(converter.convert_many([nacl, copper]), backend="torch")
        bad.edges()[0][edge] = node
        with pytest.raises(GraphError, match="names a node that its crystal has not"):
            check_graph(bad)
    wrong = TorchGraph(
        *graph.edges(),
        batch_num_nodes=graph.batch_num_nodes() + 1,
        batch_num_edges=graph.batch_num_edges(),
        num_nodes=3,
    )
    wrong.ndata, wrong.edata = graph.ndata, graph.edata
    with pytest.raises(GraphError, match="do not sum up"):
        check_graph(wrong)


def test_atoms_of_ase_and_entries_and_kinds_of_structures_are_structures(nacl):
    ase = pytest.importorskip("ase")
    expected = shells(converter.convert(nacl))
    atoms = ase.Atoms(
        [site.specie.symbol for site in nacl],
        cell=nacl.lattice.matrix,
        scaled_positions=nacl.frac_coords,
        pbc=True,
    )
    entry = ComputedStructureEntry(nacl, -1.0)
    for item in (atoms, entry, entry.as_dict(), IStructure.from_sites(nacl.sites)):
        assert shells(converter.convert(item)) == expected
        assert count_sites(item) == 2
    slab = SlabGenerator(nacl, (1, 0, 0), 5, 10).get_slab()
    assert converter.convert(slab).n_atoms[0] == count_sites(slab) == len(slab)
    flat = ase.Atoms("Cu", cell=[3, 3, 4], pbc=[True, True, False])
    assert not np.isclose(converter.convert(flat).distances, 4.0).any()
    with pytest.raises(StructureError, match="no cell of three vectors"):
        converter.convert(ase.Atoms("Cu"))
    with pytest.raises(UnknownElementError, match="site 0 of the Atoms has the atomic number 0"):
        converter.convert(ase.Atoms("X", cell=[3, 3, 3], pbc=True))
    mixed = ase.Atoms("Cu", cell=[3, 3, 3], pbc=True, info={"occupancy": {"0": {"Cu": 0.5}}})
    with pytest.raises(StructureError, match="partial occupancies"):
        converter.convert(mixed)


TEXTS = [
    (lambda s: s.to(fmt="json"), "JSON text: json.loads"),
    (lambda s: s.to(fmt="cif"), "text of a CIF: Structure.from_str"),
    (lambda s: s.to(fmt="cif").encode(), "text of a CIF: Structure.from_str"),
    (lambda s: s.to(fmt="poscar"), "text of a POSCAR"),
    (str, "printed as text, which cannot be read back"),
    (lambda s: "nacl.cif", "name of a file, Structure.from_file"),
    (lambda s: Path("nacl.cif"), r"read the file \(Structure.from_file\)"),
    (lambda s: "NaCl", "build one with a lattice"),
]


@pytest.mark.parametrize(("make", "advice"), TEXTS)
def test_text_in_place_of_a_structure_is_told_apart(nacl, make, advice):
    with pytest.raises(StructureTypeError, match=advice):
        converter.convert(make(nacl))


def test_vacancies_only_are_refused():
    with pytest.raises(StructureError, match="every site is vacant"):
        converter.convert(Structure(Lattice.cubic(4), [{}], [[0, 0, 0]]))


def test_rule_of_numpy_numbers_is_plain_and_of_text_is_refused():
    rule = CrystalGraphConverter(cutoff=np.float32(7.5), max_neighbors=np.int64(10))
    assert type(rule.cutoff) is float
    assert type(rule.max_neighbors) is int
    assert json.loads(json.dumps(rule.as_dict()))["max_neighbors"] == 10
    for wrong in ({"max_neighbors": 12.0}, {"cutoff": "8"}, {"max_neighbors": 10**9}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            CrystalGraphConverter(**wrong)


def test_atom_batches_are_consecutive_and_bounded():
    batches = atom_batches(np.array([3, 4, 50, 2, 2]), 8)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2], [3, 4]]
    assert atom_batches(np.array([], dtype=int), 8) == []
    with pytest.raises(SettingsError, match="batch_atoms"):
        atom_batches(np.array([1]), 0)


def test_build_graph_needs_no_bonds():
    import torch

    empty = torch.zeros(0, dtype=torch.long)
    graph = build_graph(
        empty, empty, batch_num_nodes=torch.tensor([1]), batch_num_edges=torch.tensor([0])
    )
    assert graph.num_nodes() == 1
