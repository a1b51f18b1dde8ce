"""The domain: what is like the training crystals, and what is not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import make_isolated_atom, make_nacl, make_perovskite
from pymatgen.core import Lattice, Structure
from salts import CLASSES, SALTS, Y, classifier, regressor
from sklearn.exceptions import NotFittedError

from crysxpp_mm.errors import ModelFileError, StructureTypeError
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
from crysxpp_mm.estimators.document import document_hash
from crysxpp_mm.estimators.domain import LEAST_UNIT, MAX_REFERENCE, TrainingDomain
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter

COLUMNS = [
    "unseen_elements",
    "n_sites",
    "size_in_range",
    "distance",
    "relative_distance",
    "in_domain",
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


def test_training_crystals_are_inside(fitted):
    found = fitted.domain(SALTS)
    assert list(found.columns) == COLUMNS
    assert list(found.index) == list(range(16))
    assert (found["unseen_elements"] == "").all()
    assert (found["n_sites"] == 2).all()
    assert found["size_in_range"].all()
    assert found["relative_distance"].le(1).mean() >= 0.9  # a crystal is its own nearest
    assert found["in_domain"].equals(found["relative_distance"] <= 1)
    for name in ("size_in_range", "in_domain"):
        assert found[name].dtype == bool


def test_the_unit_is_the_distance_that_nearly_all_stay_within(graphs):
    embeddings, crystals = many(400, 3, graphs)
    domain = TrainingDomain.measure(embeddings, crystals, seed=0)
    standard = (embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0)
    distances = np.linalg.norm(standard[:, None] - standard[None], axis=2)
    others = np.sort(distances, axis=1)[:, 1:6].mean(axis=1)  # without the crystal itself
    assert domain.unit[0] == pytest.approx(np.quantile(others, 0.95), rel=1e-5)
    expected = np.sort(distances, axis=1)[:, :5].mean(axis=1)
    assert domain.distances(embeddings) == pytest.approx(expected, rel=1e-4, abs=1e-5)


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
    assert bad[["n_sites", "distance", "relative_distance"]].isna().all()
    assert found["size_in_range"].tolist() == [True, False, True]
    assert not bad["in_domain"]
    for name in ("size_in_range", "in_domain"):
        assert found[name].dtype == bool
    good = fitted.domain(series[["a", "c"]])
    assert found.loc[["a", "c"], "distance"].to_numpy() == pytest.approx(
        good["distance"].to_numpy(), abs=1e-6
    )


def test_no_crystals(fitted):
    assert fitted.domain([]).shape == (0, 6)
    assert fitted.domain([None], ignore_errors=True)["in_domain"].tolist() == [False]


def test_nothing_fitted():
    for model in (regressor(), classifier()):
        with pytest.raises(NotFittedError):
            model.domain(SALTS)


def test_equal_training_crystals():
    model = regressor().fit([SALTS[0]] * 4, [1.0, 2.0, 3.0, 4.0])
    assert model.domain_.unit[0] == LEAST_UNIT
    found = model.domain([SALTS[0], make_perovskite()])
    assert found["in_domain"].tolist() == [True, False]
    assert found["distance"].notna().all()


def test_two_training_crystals():
    found = regressor().fit(SALTS[:2], [1.0, 2.0]).domain(SALTS)
    assert found["distance"].notna().all()


def test_of_many_crystals_some_are_kept(graphs):
    embeddings, crystals = many(3000, 8, graphs)
    first, second = (TrainingDomain.measure(embeddings, crystals, seed=1) for _ in range(2))
    assert first.reference.shape == (MAX_REFERENCE, 8)
    assert np.array_equal(first.reference, second.reference)
    other = TrainingDomain.measure(embeddings, crystals, seed=2)
    assert not np.array_equal(first.reference, other.reference)


def test_a_large_training_set_adds_little_to_the_file(graphs):
    embeddings, crystals = many(3000, 256, graphs)
    domain = TrainingDomain.measure(embeddings, crystals, seed=0)
    assert domain.components.shape == (16, 256)
    assert len(json.dumps(domain.to_plain())) < 150_000


def test_extension_keeps_old_and_new(graphs):
    embeddings, crystals = many(3000, 4, graphs)
    small = TrainingDomain.measure(embeddings[:10], crystals.select(range(10)), seed=0)
    both = small.extended(embeddings[10:30], crystals.select(range(10, 16)), seed=0)
    assert len(both.reference) == 30
    assert np.array_equal(both.reference[:10], small.reference)
    large = TrainingDomain.measure(embeddings, crystals, seed=0)
    assert len(large.extended(embeddings[:30], crystals, seed=0).reference) == MAX_REFERENCE
    crowded = large.extended(embeddings + 100, crystals, seed=0)
    assert len(crowded.reference) == MAX_REFERENCE
    assert (crowded.reference[:, 0] ** 2 > 100).sum() == MAX_REFERENCE // 2


def test_extension_knows_more_elements_and_sizes(graphs):
    converter = CrystalGraphConverter()
    embeddings = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    domain = TrainingDomain.measure(embeddings[:16], graphs, seed=0)
    new = converter.convert_many([make_perovskite(), make_isolated_atom()])
    assert domain.unseen_elements(new) == ["Sr", "Ar"]
    both = domain.extended(embeddings[16:18], new, seed=0)
    assert both.unseen_elements(new) == ["", ""]
    assert both.sizes.tolist() == [1, 5]
    assert domain.unseen_elements(new) == ["Sr", "Ar"]  # the old one stays as it is
    assert domain.unseen_elements(CrystalGraphs.empty()) == []


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
        (lambda s: s.update(domain=None), "the domain must have"),
        (lambda s: s["domain"].update(more=1), "the domain must have"),
        (lambda s: s["domain"].update(n_columns=5), "one of 5 columns, the network has 8"),
        (lambda s: s["domain"].update(n_reference=5), "the tensor reference is"),
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
