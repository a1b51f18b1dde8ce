"""The domain: what is like the training crystals, and what is not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import (
    make_copper,
    make_disordered,
    make_isolated_atom,
    make_nacl,
    make_partial_occupancy,
    make_perovskite,
    make_silicon,
)
from pymatgen.core import Lattice, Structure
from salts import CLASSES, SALTS, Y, classifier, regressor
from sklearn.exceptions import NotFittedError

from crysxpp_mm.data.bonds import MEASURES, bond_measures, covalent_radii
from crysxpp_mm.data.reference import ReferenceSet, plain_names, reduced_formulas
from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.errors import ModelFileError, StructureTypeError
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
from crysxpp_mm.estimators.document import document_hash
from crysxpp_mm.estimators.domain import LEAST_UNIT, TrainingDomain
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.serialization import write_document

COLUMNS = [
    "unseen_elements",
    "n_sites",
    "size_in_range",
    "distance",
    "relative_distance",
    "shortest_bond",
    "bond_over_radii",
    "learned_from",
    "reason",
    "in_domain",
    *("nearest_1", "nearest_2", "nearest_3", "formula_1", "formula_2", "formula_3"),
]


@pytest.fixture(scope="module")
def fitted():
    """Not to be changed."""
    return regressor().fit(SALTS, Y)


@pytest.fixture(scope="module")
def graphs():
    return CrystalGraphConverter().convert_many(SALTS)


def many(n_graphs, n_columns, graphs):
    """Embeddings at random, and crystals for them."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(n_graphs, n_columns)).astype(np.float32)
    return embeddings, graphs.select(np.arange(n_graphs) % len(graphs))


def test_training_crystals_are_inside_and_their_own_nearest(fitted):
    found = fitted.domain(SALTS)
    assert list(found.columns) == COLUMNS
    assert list(found.index) == list(range(16))
    assert found["in_domain"].all()
    assert found["learned_from"].all()
    assert (found[["unseen_elements", "reason"]] == "").all(axis=None)
    assert (found["n_sites"] == 2).all()
    assert found["nearest_1"].tolist() == list(range(16))
    assert found["formula_1"].tolist()[:3] == ["LiF", "NaCl", "KBr"]
    assert found["shortest_bond"][1] == pytest.approx(2.75 * 3**0.5 / 2)
    for name in ("size_in_range", "in_domain", "learned_from"):
        assert found[name].dtype == bool


def test_a_training_crystal_is_known_in_any_cell_and_slightly_moved(fitted):
    salt = SALTS[1]
    wide = salt.copy().make_supercell([3, 1, 1], in_place=False)
    moved = wide.copy().perturb(4e-4)
    assert fitted.domain([salt, wide, moved])["in_domain"].all()
    swapped = Structure(salt.lattice, ["Cl", "Na"], salt.frac_coords)
    strained = Structure(Lattice.cubic(2.754), ["Na", "Cl"], salt.frac_coords)
    other = fitted.domain([swapped, strained, wide])
    assert other["learned_from"].tolist() == [True, False, True]


def test_known_also_where_a_shell_of_equal_distance_falls_apart():
    learned = [make_perovskite(), make_copper(), make_silicon()]
    graphs = CrystalGraphConverter().convert_many(learned)
    reference = ReferenceSet.build(np.eye(3, dtype=np.float32), graphs, ["a", "b", "c"])
    again = CrystalGraphConverter().convert_many(
        [structure.make_supercell(2).perturb(3e-4) for structure in learned]
    )
    assert reference.find(again).tolist() == [0, 1, 2]
    assert reference.find(CrystalGraphs.empty()).tolist() == []


def test_reasons_in_words(fitted):
    salt = SALTS[1]
    close = salt.copy()
    close.append("Na", [0.004, 0, 0])
    cases = {
        "no training crystal has U": Structure(Lattice.cubic(2.8), ["U", "Cl"], salt.frac_coords),
        "a site without neighbors": make_isolated_atom(),
        "the shortest bond is 0.00": close,
        "of the sum of the radii, learned from": Structure(
            Lattice(salt.lattice.matrix * 0.6), ["Na", "Cl"], salt.frac_coords
        ),
        "a site has its nearest neighbor at": Structure(
            Lattice(salt.lattice.matrix * 2.2), ["Na", "Cl"], salt.frac_coords
        ),
        "cell of 16, learned from 2 to 2": SALTS[2].copy().make_supercell(2).perturb(0.05),
        "neighbors, learned from 12": Structure(
            Lattice.cubic(12), ["Na", "Cl"], [[0, 0, 0], [0.2, 0, 0]]
        ),
    }
    found = fitted.domain(list(cases.values()))
    assert not found["in_domain"].any()
    for reason, words in zip(found["reason"], cases, strict=True):
        assert words in reason


def test_names_are_index_labels_or_those_of_a_store(graphs):
    series = pd.Series(SALTS, index=[f"mp-{i}" for i in range(16)])
    model = regressor().fit(series, Y)
    assert model.domain(SALTS)["nearest_1"].tolist() == series.index.tolist()
    names = [f"salt-{i}" for i in range(16)]
    store = GraphStore(names, graphs, CrystalGraphConverter(), "")
    assert regressor().fit(store, Y).domain(store)["nearest_1"].tolist() == names
    assert plain_names([np.int64(3), "a", 2.5, (1, "x")]) == [3, "a", "2.5", "(1, 'x')"]


def test_formulas_do_not_depend_on_the_cell():
    structures = [make_perovskite(), make_partial_occupancy(), make_disordered()]
    structures += [structure.copy().make_supercell(2) for structure in structures]
    formulas = reduced_formulas(CrystalGraphConverter().convert_many(structures))
    assert formulas[:3] == formulas[3:]
    assert formulas[0] == "SrTiO3"


@pytest.mark.parametrize("n_elements", [1, 2, 3])
def test_a_twentieth_of_fresh_crystals_is_outside(n_elements, graphs):
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, 1500, p=[0.1, 0.3, 0.6])
    spread = np.array([4.0, 2.0, 1.0])[kinds]  # elements lie far apart
    embeddings = (rng.normal(size=(1500, 3)) * spread[:, None]).astype(np.float32)
    cells = [make_copper(), SALTS[1], make_perovskite()]
    crystals = CrystalGraphConverter().convert_many(cells).select(kinds)
    learned = np.arange(1500) < 1000
    domain = TrainingDomain.measure(
        embeddings[learned], crystals.select(np.flatnonzero(learned)), range(1000)
    )
    fresh = np.flatnonzero(~learned & (kinds == n_elements - 1))
    table = domain.table(embeddings[fresh], crystals.select(fresh))
    far = table["relative_distance"] > 1
    away = domain.table(np.full((1, 3), 99, dtype=np.float32), graphs.select([7]))
    assert "times as far from them as training crystals are" in away["reason"][0]
    assert 0.01 < far.mean() < 0.1


def test_bonds_of_known_crystals():
    converter = CrystalGraphConverter()
    found = bond_measures(
        converter.convert_many([make_silicon(), make_nacl(), make_isolated_atom()])
    )
    assert list(found.columns) == list(MEASURES)
    bond = 5.43 * 3**0.5 / 4
    assert found["shortest_bond"][0] == pytest.approx(bond, rel=1e-4)
    assert found["bond_over_radii"][0] == pytest.approx(bond / 2.22, rel=1e-4)  # Si: 1.11
    assert found["loneliest_site"][1] == pytest.approx(2.82 / (1.66 + 1.02), rel=1e-4)
    assert found["fewest_neighbors"].tolist() == [12, 12, 0]
    assert np.isinf(found.loc[2, list(MEASURES[:4])].astype(float)).all()
    assert bond_measures(CrystalGraphs.empty()).shape == (0, 5)
    assert covalent_radii()[100] == covalent_radii()[96]


def test_only_crystals_that_were_learned_from_count():
    model = regressor().fit(SALTS[:6], Y[:6], validation=(SALTS[6:], Y[6:]))
    assert len(model.domain_.reference) == 6
    model = regressor().fit(SALTS[:2], Y[:2], validation=(SALTS[2:], Y[2:]))
    found = model.domain(SALTS)
    assert found["unseen_elements"][1] == ""
    assert found["unseen_elements"][2] == "K, Br"


def test_unseen_elements_are_named(fitted):
    strange = Structure(Lattice.cubic(5), ["U", "La"], [[0, 0, 0], [0.5] * 3])
    alloy = Structure(Lattice.cubic(3), [{"Na": 0.5, "Cs": 0.5}], [[0, 0, 0]])
    found = fitted.domain([strange, alloy, SALTS[0]])
    assert found["unseen_elements"].tolist() == ["La, U", "Cs", ""]
    assert not found["in_domain"][0]
    assert not found["in_domain"][1]


def test_sizes_out_of_range(fitted, copper, perovskite):
    found = fitted.domain([copper, perovskite, make_nacl()])
    assert found["n_sites"].tolist() == [1, 5, 2]
    assert found["size_in_range"].tolist() == [False, False, True]
    assert not found["in_domain"][:2].any()


def test_a_crystal_unlike_all_others_is_far(fitted):
    found = fitted.domain([make_isolated_atom(), SALTS[3]])
    assert found["relative_distance"][0] > 1 > found["relative_distance"][1]


def test_a_supercell_is_as_near_as_its_primitive_cell(fitted):
    for structure in (SALTS[5], make_perovskite()):
        cells = [structure, structure.copy().make_supercell([2, 1, 3], in_place=False)]
        found = fitted.domain(cells)
        assert found["distance"][1] == pytest.approx(found["distance"][0], abs=1e-4)
        assert found["n_sites"][1] == 6 * found["n_sites"][0]


def test_pandas_in_and_rows_that_are_no_crystals(fitted):
    series = pd.Series([SALTS[0], "NaCl", SALTS[1]], index=["a", "b", "c"], name="structure")
    with pytest.raises(StructureTypeError, match=r"row 1 \(index 'b'\)"):
        fitted.domain(series)
    found = fitted.domain(series, ignore_errors=True)
    assert list(found.index) == ["a", "b", "c"]
    bad = found.loc["b"]
    assert bad["unseen_elements"] is None
    assert bad[["n_sites", "distance", "relative_distance", "nearest_1"]].isna().all()
    assert bad["reason"] == "not a crystal"
    assert found["size_in_range"].tolist() == [True, False, True]
    assert not bad["in_domain"]
    for name in ("size_in_range", "in_domain", "learned_from"):
        assert found[name].dtype == bool
    good = fitted.domain(series[["a", "c"]])
    assert found.loc[["a", "c"], "distance"].to_numpy() == pytest.approx(
        good["distance"].to_numpy(), abs=1e-6
    )


def test_no_crystals(fitted):
    assert fitted.domain([]).shape == (0, len(COLUMNS))
    assert fitted.domain([None], ignore_errors=True)["in_domain"].tolist() == [False]


def test_nothing_fitted():
    for model in (regressor(), classifier()):
        with pytest.raises(NotFittedError):
            model.domain(SALTS)


def test_equal_training_crystals():
    model = regressor().fit([SALTS[0]] * 4, [1.0, 2.0, 3.0, 4.0])
    assert (model.domain_.units == LEAST_UNIT).all()
    found = model.domain([SALTS[0], make_perovskite()])
    assert found["in_domain"].tolist() == [True, False]
    assert found["distance"].notna().all()


def test_two_training_crystals():
    found = regressor().fit(SALTS[:2], [1.0, 2.0]).domain(SALTS)
    assert found["distance"].notna().all()
    assert found["nearest_2"].notna().all()
    assert found["nearest_3"].isna().all()


def test_all_of_many_crystals_are_kept_in_little_room(graphs, tmp_path):
    embeddings, crystals = many(3000, 256, graphs)
    names = [f"mp-{i}" for i in range(3000)]
    domain = TrainingDomain.measure(embeddings, crystals, names, embeddings[:, :1])
    assert domain.reference.components.shape == (16, 256)
    assert domain.reference.places.shape == (3000, 16)
    write_document(domain.to_plain(), tmp_path / "domain.json.gz")
    assert (tmp_path / "domain.json.gz").stat().st_size < 3000 * 80  # 36,000 crystals: 3 MB


def test_nearest_are_those_of_the_distances(graphs):
    embeddings, crystals = many(400, 3, graphs)
    reference = ReferenceSet.build(embeddings, crystals, range(400), embeddings * 1e9)
    assert np.isfinite(reference.values).all()
    standard = (embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0)
    between = np.linalg.norm(standard[:, None] - standard[None], axis=2)
    for given, first in ((embeddings, 0), (None, 1)):  # None leaves the crystal itself out
        distances, rows = reference.nearest(given, 5)
        expected = np.sort(between, axis=1)[:, first : first + 5]
        assert distances == pytest.approx(expected, rel=1e-2, abs=5e-3)  # half precision
        assert (np.diff(distances, axis=1) >= 0).all()
        assert rows.shape == (400, 5)


def test_extension_keeps_old_and_new(graphs):
    embeddings, crystals = many(400, 4, graphs)
    small = TrainingDomain.measure(embeddings[:10], crystals.select(range(10)), range(10))
    both = small.extended(embeddings[10:16], crystals.select(range(10, 16)), ["x"] * 6)
    assert np.array_equal(both.reference.places[:10], small.reference.places)
    assert both.reference.names == [*range(10), *["x"] * 6]
    converter = CrystalGraphConverter()
    new = converter.convert_many([make_perovskite(), make_isolated_atom()])
    assert domain_words(small, embeddings, new) == ["Sr", "Ar"]
    both = small.extended(embeddings[16:18], new, ["a", "b"])
    assert both.sizes.tolist() == [1, 5]
    assert both.table(embeddings[16:18], new)["in_domain"].all()
    assert domain_words(both, embeddings, new) == ["", ""]
    assert domain_words(small, embeddings, new) == ["Sr", "Ar"]  # the old one stays as it is


def domain_words(domain, embeddings, graphs):
    return domain.table(embeddings[: len(graphs)], graphs)["unseen_elements"].tolist()


# Files.


def test_a_loaded_model_has_the_same_domain(fitted, tmp_path):
    fitted.save(tmp_path / "model.json.gz")
    again = CrysXPPRegressor.load(tmp_path / "model.json.gz")
    pd.testing.assert_frame_equal(again.domain(SALTS), fitted.domain(SALTS), check_exact=True)
    model = classifier().fit(SALTS, CLASSES)
    again = CrysXPPClassifier.from_dict(json.loads(json.dumps(model.as_dict())))
    pd.testing.assert_frame_equal(again.domain(SALTS), model.domain(SALTS), check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("domain"), "lacks 'domain'; if another version"),
        (lambda s: s["domain"].pop("arrays"), "the domain must have"),
        (lambda s: s["domain"].update(n_reference=5), "the domain must have n_columns"),
        (lambda s: s["domain"]["reference"].pop("names"), "the reference set must have"),
        (lambda s: s["domain"]["reference"]["names"].pop(), "has 15 names and 16 formulas"),
        (lambda s: s.update(domain=None), "the domain must have"),
        (lambda s: s["domain"].update(more=1), "the domain must have"),
        (lambda s: s["domain"]["reference"].update(n_columns=5), "the tensor mean is"),
        (lambda s: s["domain"]["arrays"].update(data="AAAA"), "do not match their sha256"),
    ],
)
def test_damaged_domains_are_refused(fitted, change, message):
    document = json.loads(json.dumps(fitted.as_dict()))
    change(document["state"])
    plain = {key: value for key, value in document.items() if not key.startswith("@")}
    document["sha256"] = document_hash(plain)
    with pytest.raises(ModelFileError, match=message):
        CrysXPPRegressor.from_dict(document)


def test_a_domain_of_another_network_is_refused(fitted):
    with pytest.raises(ModelFileError, match="one of 8 columns, the network has 9"):
        TrainingDomain.from_plain(fitted.domain_.to_plain(), n_columns=9)
