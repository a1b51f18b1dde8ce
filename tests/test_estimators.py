"""The estimators: scikit-learn's contract, labels of every kind, and models as files."""

from __future__ import annotations

import gzip
import inspect
import json
import multiprocessing
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_bad_inputs
from matminer.featurizers.base import BaseFeaturizer, StackedFeaturizer
from monty.json import jsanitize
from monty.serialization import dumpfn, loadfn
from pymatgen.core import Lattice, Structure
from salts import CLASSES, SALTS, TINY, Y, classifier, regressor
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import VotingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVR
from sklearn.utils.validation import check_is_fitted

import crysxpp_mm
from crysxpp_mm import compute
from crysxpp_mm.data import matminer_tables
from crysxpp_mm.data.store import build_store
from crysxpp_mm.errors import (
    CrysXPPError,
    DataError,
    ModelFileError,
    NetworkOutputError,
    NoSelectorError,
    SettingsError,
    StructureError,
    StructureTypeError,
    UnknownModelError,
)
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor, networks
from crysxpp_mm.estimators.document import document_hash
from crysxpp_mm.featurizers import CrysAEFeaturizer
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.training import loop
from crysxpp_mm.training.fit import FitModule


@pytest.fixture(scope="module")
def fitted():
    """A regressor with an ensemble; not to be changed."""
    return regressor(n_members=2, units="GPa", transform="log10", target_names=["K"]).fit(SALTS, Y)


@pytest.fixture(scope="module")
def fitted_classifier():
    return classifier().fit(SALTS, CLASSES)


# Containers.


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        lambda s: [[item] for item in s],
        lambda s: [item.as_dict() for item in s],
        lambda s: [CrystalGraphConverter().convert(item) for item in s],
        lambda s: CrystalGraphConverter().convert_many(s),
        lambda s: [*s[:3], *CrystalGraphConverter().convert_many(s[3:9]), *s[9:]],
        lambda s: _object_array(s),
        lambda s: _object_array(s)[:, None],
    ],
)
def test_containers_of_crystals(fitted, container):
    found = fitted.predict(container(SALTS))
    assert isinstance(found, np.ndarray)
    assert found.shape == (16,)
    assert np.array_equal(found, fitted.predict(SALTS))


def _object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def test_pandas_in_pandas_out(fitted, fitted_classifier):
    index = [f"mp-{i}" for i in range(16)]
    series = pd.Series(SALTS, index=index, name="structure")
    found = fitted.predict(series)
    assert isinstance(found, pd.Series)
    assert found.name == "K"
    assert list(found.index) == index
    pd.testing.assert_series_equal(found, fitted.predict(series.to_frame()))
    values, spread = fitted.predict(series, return_std=True)
    assert values.name == spread.name == "K"
    assert list(spread.index) == index
    classes = fitted_classifier.predict(series)
    assert list(classes.index) == index
    probabilities = fitted_classifier.predict_proba(series)
    assert isinstance(probabilities, np.ndarray)  # which scikit-learn's scorers need
    assert np.array_equal(probabilities, fitted_classifier.predict_proba(SALTS))


@pytest.mark.parametrize(
    "columns", [[0, 1], [("K", "GPa"), ("G", "GPa")], [1.5, "G"], np.array([2, 3])]
)
def test_names_of_columns_survive(columns):
    series = pd.Series(SALTS)
    frame = pd.DataFrame(np.stack([Y, Y**2], axis=1), columns=columns)
    model = regressor().fit(series, frame)
    again = CrysXPPRegressor.from_dict(json.loads(json.dumps(model.as_dict())))
    for predicted in (model.predict(series), again.predict(series)):
        assert predicted.columns.equals(frame.columns)
        assert (frame - predicted).shape == frame.shape
    assert model.target_names_ == [str(column) for column in frame.columns]
    single = regressor().fit(series, frame.iloc[:, 0])
    assert single.predict(series).name == frame.iloc[:, 0].name
    assert classifier().fit(series, pd.Series(CLASSES, name=3)).predict(series).name == 3


@pytest.mark.parametrize("scoring", ["roc_auc", "neg_log_loss", "average_precision"])
@pytest.mark.parametrize("kind", [list, pd.Series, lambda x: pd.DataFrame({"structure": x})])
def test_scorers_of_probabilities(scoring, kind):
    y = [0, 1] * 8
    scores = cross_val_score(classifier(), kind(SALTS), y, scoring=scoring, error_score="raise")
    assert np.isfinite(scores).all()


def test_cross_validation_of_graphs():
    graphs = regressor().fit(SALTS, Y).converter_.convert_many(SALTS)
    scores = cross_val_score(regressor(), graphs, Y, cv=2, error_score="raise")
    assert scores == pytest.approx(cross_val_score(regressor(), SALTS, Y, cv=2), rel=1e-4)
    assert [len(graph) for graph in graphs] == [1] * 16
    with pytest.raises(IndexError, match="index 16 is out of range for 16"):
        graphs[16]


def test_graph_store(fitted, tmp_path):
    store = build_store(SALTS, tmp_path / "salts.graphs", pbar=False)
    assert np.array_equal(fitted.predict(store), fitted.predict(SALTS))
    scores = cross_val_score(regressor(), store, Y, cv=2, error_score="raise")
    assert np.array_equal(scores, cross_val_score(regressor(), store.graphs, Y, cv=2))
    other = CrystalGraphConverter(max_neighbors=6)
    store = build_store(SALTS, tmp_path / "other.graphs", converter=other, pbar=False)
    for crystals in (store, list(store)):
        with pytest.raises(DataError, match="store was built by"):
            fitted.predict(crystals)


def test_an_entry_of_several_graphs_costs_its_row(fitted):
    crystals = [SALTS[0], [CrystalGraphConverter().convert_many(SALTS)], SALTS[1]]
    with pytest.raises(StructureTypeError, match="row 1: it holds the graphs of 16 crystals"):
        fitted.predict(crystals)
    found = fitted.predict(crystals, ignore_errors=True)
    assert np.isnan(found[1])
    assert np.array_equal(found[[0, 2]], fitted.predict(SALTS[:2]))


def test_shape_of_predictions_follows_y():
    targets = np.stack([Y, Y**2], axis=1)
    assert regressor().fit(SALTS, targets).predict(SALTS).shape == (16, 2)
    assert regressor().fit(SALTS, Y[:, None]).predict(SALTS).shape == (16, 1)
    frame = pd.DataFrame(targets, columns=["K", "G"])
    model = regressor().fit(SALTS, frame)
    assert model.target_names_ == ["K", "G"]
    found = model.predict(pd.Series(SALTS))
    assert list(found.columns) == ["K", "G"]


def test_no_crystals_no_predictions(fitted, fitted_classifier):
    assert fitted.predict([]).shape == (0,)
    assert fitted_classifier.predict([]).shape == (0,)


def test_batch_equals_single(fitted):
    singles = [fitted.predict([structure])[0] for structure in SALTS]
    assert fitted.predict(SALTS) == pytest.approx(singles, rel=1e-5)


def test_prediction_does_not_depend_on_the_cell(fitted):
    big = SALTS[1].copy()
    big.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    assert fitted.predict([big]) == pytest.approx(fitted.predict([SALTS[1]]), rel=1e-5)


@pytest.mark.parametrize("kind", make_bad_inputs())
def test_bad_crystals_are_named(fitted, kind):
    bad = make_bad_inputs()[kind]
    series = pd.Series([SALTS[0], bad, SALTS[1]], index=["a", "b", "c"])
    with pytest.raises((StructureError, StructureTypeError), match=r"row 1 \(index 'b'\)"):
        fitted.predict(series)
    found = fitted.predict(series, ignore_errors=True)
    assert np.isnan(found["b"])
    assert found.notna().sum() == 2


def test_bad_crystals_in_fit_and_for_classes(fitted_classifier):
    with pytest.raises(StructureTypeError, match="row 2: "):
        regressor().fit([*SALTS[:2], "NaCl"], [1, 2, 3])
    found = fitted_classifier.predict([SALTS[0], None], ignore_errors=True)
    assert found[1] is None
    assert found[0] in CLASSES


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (SALTS[0], StructureTypeError, "put it into a list"),
        ("NaCl", StructureTypeError, "must be list-like"),
        (5, StructureTypeError, "must be list-like"),
        (pd.DataFrame({"a": SALTS, "b": SALTS}), DataError, "has 2 columns"),
        ([np.array([1, 2])], StructureTypeError, "array of sites"),
    ],
)
def test_what_is_no_column_of_crystals(fitted, X, error, message):  # noqa: N803
    with pytest.raises(error, match=message):
        fitted.predict(X)


# scikit-learn.


@pytest.mark.parametrize("kind", [CrysXPPRegressor, CrysXPPClassifier])
def test_constructor_stores_what_it_gets(kind):
    signature = inspect.signature(kind)
    marks = {name: object() for name in signature.parameters}
    assert kind(**marks).get_params(deep=False) == marks
    with pytest.raises(TypeError):
        kind("crysae-mp-v1")  # keywords only
    with pytest.raises(TypeError):
        kind(max_epoch=3)
    assert "members_" not in signature.parameters


@pytest.mark.parametrize("kind", [CrysXPPRegressor, CrysXPPClassifier])
def test_every_argument_is_documented_once(kind):
    arguments = inspect.getdoc(kind).partition("Args:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w+): ", arguments, re.MULTILINE)
    assert sorted(documented) == sorted(inspect.signature(kind).parameters)


def test_clone_and_params(fitted):
    again = clone(fitted)
    assert not hasattr(again, "members_")
    assert again.get_params(deep=False).keys() == fitted.get_params(deep=False).keys()
    assert again.set_params(max_epochs=7).max_epochs == 7
    with pytest.raises(ValueError, match="Invalid parameter"):
        again.set_params(epochs=7)
    assert "CrysXPPRegressor" in repr(fitted)
    assert fitted._repr_html_()


def test_kinds_and_fittedness(fitted, fitted_classifier):
    assert is_regressor(fitted)
    assert is_classifier(fitted_classifier)
    check_is_fitted(fitted)
    for model in (regressor(), classifier()):
        with pytest.raises(NotFittedError):
            check_is_fitted(model)
        with pytest.raises(NotFittedError, match="call fit"):
            model.predict(SALTS)
    for name in ("feature_weights_", "converter_"):
        with pytest.raises(NotFittedError):
            getattr(regressor(), name)


def test_cross_validation_and_grid_search():
    series = pd.Series(SALTS, index=range(100, 116))
    y = pd.Series(Y, index=series.index, name="K")
    scores = cross_val_score(regressor(), series, y, cv=2, scoring="neg_mean_absolute_error")
    assert np.isfinite(scores).all()
    search = GridSearchCV(regressor(), {"learning_rate": [1e-3, 1e-2]}, cv=2)
    search.fit(SALTS, Y)
    assert search.best_estimator_.predict(SALTS).shape == (16,)
    groups = np.arange(16) // 4
    found = cross_val_predict(classifier(), SALTS, CLASSES, cv=GroupKFold(2), groups=groups)
    assert set(found) <= set(CLASSES)


def test_pipeline():
    model = make_pipeline(FunctionTransformer(), regressor())
    series = pd.Series(SALTS)
    assert model.fit(series, Y).predict(series).shape == (16,)


def test_mean_with_a_model_on_columns():
    svr = TransformedTargetRegressor(SVR(), transformer=StandardScaler())
    columns = make_pipeline(CrysAEFeaturizer(), StandardScaler(), svr)
    model = VotingRegressor([("network", regressor()), ("columns", columns)]).fit(SALTS, Y)
    parts = [part.predict(SALTS) for part in model.estimators_]
    np.testing.assert_allclose(model.predict(SALTS), np.mean(parts, axis=0))
    assert not np.allclose(*parts)


class PassOn(BaseFeaturizer):
    """Gives the structure itself as its feature."""

    def featurize(self, structure):
        return [structure]

    def feature_labels(self):
        return ["structure"]

    def citations(self):
        return []

    def implementors(self):
        return []


def test_stacked_featurizer(fitted, fitted_classifier):
    (value,) = StackedFeaturizer(PassOn(), fitted, name="K").featurize(SALTS[0])
    assert value[0] == pytest.approx(fitted.predict(SALTS[:1])[0])
    stacked = StackedFeaturizer(PassOn(), fitted_classifier, class_names=CLASSES[:2])
    assert stacked.featurize(SALTS[0])[0] == pytest.approx(
        fitted_classifier.predict_proba(SALTS[:1])[0, 0]
    )


def test_scores(fitted, fitted_classifier):
    from sklearn.metrics import accuracy_score, r2_score

    assert fitted.score(SALTS, Y) == pytest.approx(r2_score(Y, fitted.predict(SALTS)))
    gappy = Y.copy()
    gappy[:4] = np.nan
    assert fitted.score(SALTS, gappy) == pytest.approx(r2_score(Y[4:], fitted.predict(SALTS[4:])))
    weight = np.arange(16)
    assert fitted.score(SALTS, Y, sample_weight=weight) != fitted.score(SALTS, Y)
    with pytest.raises(DataError, match="no label of 'K'"):
        fitted.score(SALTS, np.full(16, np.nan))
    with pytest.raises(DataError, match="y has 2 targets"):
        fitted.score(SALTS, np.ones((16, 2)))
    assert fitted_classifier.score(SALTS, CLASSES) == accuracy_score(
        CLASSES, fitted_classifier.predict(SALTS)
    )
    right = fitted_classifier.predict(SALTS) == np.array(CLASSES)
    gappy = [None, *CLASSES[1:14], "glass", np.nan]  # an unknown class is a wrong answer
    assert fitted_classifier.score(SALTS, gappy) == right[1:14].sum() / 14
    weighted = fitted_classifier.score(SALTS, CLASSES, sample_weight=weight)
    assert weighted == pytest.approx(np.average(right, weights=weight))
    with pytest.raises(DataError, match="y has no class"):
        fitted_classifier.score(SALTS, [None] * 16)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must"),
        ({"n_members": 0}, "n_members must"),
        ({"n_members": 1.5}, "n_members must"),
        ({"selector": "yes"}, "selector must be True or False"),
        ({"element_channel": 1}, "element_channel must be True or False"),
        ({"element_channel": True, "encoder_rate": 0}, "encoder_rate=0 keeps them there"),
        ({"element_channel": True, "element_start": 0.5, "max_epochs": 1}, "leaves no epoch"),
        ({"pbar": 1}, "pbar must be True or False"),
        ({"encoder": "gcn"}, "set pretrained=None"),
        ({"encoder": "mlp", "pretrained": None}, "encoder must be"),
        ({"layers": "first"}, "layers must be"),
        ({"moments": ()}, "moments must be"),
        ({"readout_dim": 0}, "readout_dim must be"),
        ({"hidden_dim": 32}, "hidden_dim is 32, but the pretrained model has 4"),
        ({"n_convs": 0, "pretrained": None}, "n_convs must be"),
        ({"hidden_dim": "8"}, "hidden_dim must be a whole number"),
        ({"n_convs": 1.5}, "n_convs must be a whole number"),
        ({"readout_dim": 8.0}, "readout_dim must be a whole number"),
        ({"pretrained": 5}, "pretrained must be"),
        ({"loss": "huber"}, "loss must be"),
    ],
)
def test_senseless_options_are_named(options, message):
    with pytest.raises(SettingsError, match=message):
        regressor(**options).fit(SALTS, Y)


def test_unknown_pretrained_model(tmp_path):
    with pytest.raises(CrysXPPError):
        regressor(pretrained="no-such-model").fit(SALTS, Y)
    with pytest.raises(UnknownModelError, match="no model file"):
        regressor(pretrained=tmp_path / "absent.json.gz").fit(SALTS, Y)


def test_pretrained_by_path_and_by_object_are_equal(tmp_path):
    TINY.save(tmp_path / "tiny.json.gz")
    by_path = regressor(pretrained=str(tmp_path / "tiny.json.gz")).fit(SALTS, Y)
    assert np.array_equal(by_path.predict(SALTS), regressor().fit(SALTS, Y).predict(SALTS))
    random = regressor(pretrained=None, hidden_dim=4, n_convs=1).fit(SALTS, Y)
    assert not np.array_equal(by_path.predict(SALTS), random.predict(SALTS))


def test_plain_graph_convolution():
    model = regressor(encoder="gcn", pretrained=None, hidden_dim=4, n_convs=1).fit(SALTS, Y)
    assert np.isfinite(model.predict(SALTS)).all()


@pytest.mark.parametrize(
    "start", [{}, {"pretrained": None, "hidden_dim": 4, "n_convs": 1}, {"element_start": 0.3}]
)
def test_an_element_channel_tells_samarium_from_gadolinium(start):
    pairs = [
        Structure(Lattice.cubic(4 + 0.01 * place), [symbol, "N"], [[0, 0, 0], [0.5] * 3])
        for place in range(8)
        for symbol in ("Sm", "Gd")
    ]
    labels = np.array([0.0, 7.0] * 8)
    options = {**start, "max_epochs": 60, "learning_rate": 0.02, "loss": "mse"}
    model = regressor(element_channel=True, **options).fit(pairs, labels)
    assert model.score(pairs, labels) > 0.9
    assert regressor(**options).fit(pairs, labels).score(pairs, labels) < 0.1
    found = model.contributions(pairs[1])
    assert found.by_property().sum() == pytest.approx(found.prediction - found.baseline, abs=1e-3)
    assert found.by_property()["element"] != 0
    again = CrysXPPRegressor.from_dict(model.as_dict())
    assert again.element_channel
    assert again.element_start == start.get("element_start", 0)
    assert np.array_equal(again.predict(pairs), model.predict(pairs))


def test_files_of_before_the_element_channel_are_read(fitted):
    document = fitted.as_dict()
    del document["settings"]["element_channel"], document["settings"]["element_start"]
    _rehash(document)
    older = CrysXPPRegressor.from_dict(document)
    assert older.element_channel is False
    assert older.element_start == 0
    assert np.array_equal(older.predict(SALTS), fitted.predict(SALTS))


def test_fit_gives_equal_models_for_a_seed():
    first, second = (regressor(seed=3).fit(SALTS, Y).predict(SALTS) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, regressor(seed=4).fit(SALTS, Y).predict(SALTS))


def test_ensemble(fitted):
    values, spread = fitted.predict(SALTS, return_std=True)
    assert np.array_equal(values, fitted.predict(SALTS))
    assert (spread > 0).all()
    graphs = fitted.converter_.convert_many(SALTS)
    members = np.stack([member.predict(graphs) for member in fitted.members_])
    assert values == pytest.approx(10 ** members[..., 0].mean(axis=0))
    assert spread == pytest.approx((10 ** members[..., 0]).std(axis=0, ddof=1))
    assert set(fitted.learning_curve_["member"]) == {0, 1}
    single = regressor().fit(SALTS, Y)
    with pytest.raises(SettingsError, match="n_members of 2"):
        single.predict(SALTS, return_std=True)


# Checkpoints.


def test_checkpoint_folder_is_reused_by_equal_fits_only(tmp_path):
    model = regressor(checkpoint_dir=tmp_path, n_members=2).fit(SALTS, Y)
    assert len(list(tmp_path.glob("run-*/last.ckpt"))) == 2
    again = regressor(checkpoint_dir=tmp_path, n_members=2).fit(SALTS, Y)
    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(model.predict(SALTS), again.predict(SALTS))
    regressor(checkpoint_dir=tmp_path, learning_rate=1e-3).fit(SALTS, Y)
    assert len(list(tmp_path.iterdir())) == 3
    regressor(checkpoint_dir=tmp_path, moments=("max",)).fit(SALTS, Y)  # weights of equal shape
    assert len(list(tmp_path.iterdir())) == 4
    regressor(checkpoint_dir=tmp_path, transform="nonnegative").fit(SALTS, Y)
    assert len(list(tmp_path.iterdir())) == 5
    uneven = ["metal"] * 12 + ["glass"] * 4
    for count, weight in ((6, None), (7, "balanced")):
        model = classifier(checkpoint_dir=tmp_path, class_weight=weight).fit(SALTS, uneven)
        assert len(list(tmp_path.iterdir())) == count
        without = classifier(class_weight=weight).fit(SALTS, uneven)
        assert np.array_equal(model.predict_proba(SALTS), without.predict_proba(SALTS))
    assert model.as_dict()["settings"]["checkpoint_dir"] is None


# matminer's tables.


def test_fit_dataset(monkeypatch):
    table = pd.DataFrame(
        {"structure": [*SALTS, None], "K_VRH": [0.0, np.nan, *Y[2:], 5.0], "formula": "X"},
        index=range(10, 27),
    )

    def load_table(name, *, data_home=None):
        assert (name, data_home) == ("salts", "here")
        return table

    monkeypatch.setattr(matminer_tables, "load_table", load_table)
    model = regressor(transform="log10", units="GPa")
    with pytest.warns(UserWarning, match="3 of 17 rows are left out"):
        model.fit_dataset("salts", target="K_VRH", data_home="here")
    assert model.target_names_ == ["K_VRH"]
    reasons = dict(zip(model.left_out_["row"], model.left_out_["reason"], strict=True))
    assert list(reasons) == [10, 11, 26]
    assert "log10 takes positive numbers" in reasons[10]
    assert reasons[11] == "no label"
    assert "StructureTypeError" in reasons[26]
    with pytest.raises(DataError, match="no column 'G_VRH'"):
        model.fit_dataset("salts", target="G_VRH", data_home="here")
    with pytest.warns(UserWarning, match="left out"):
        regressor().fit_dataset("salts", target=["K_VRH"], data_home="here")


# Files.


@pytest.mark.parametrize("ending", ["json", "json.gz", "yaml"])
def test_round_trip_beside_a_structure(fitted, fitted_classifier, tmp_path, ending):
    path = tmp_path / f"both.{ending}"
    dumpfn({"model": fitted, "classes": fitted_classifier, "structure": SALTS[0]}, path)
    content = loadfn(path)
    again = content["model"]
    assert np.array_equal(again.predict(SALTS), fitted.predict(SALTS))
    assert again.units_ == ["GPa"]
    assert again.target_names_ == ["K"]
    assert again.data_hash_ == fitted.data_hash_
    assert again.converter_ == fitted.converter_
    pd.testing.assert_frame_equal(again.learning_curve_, fitted.learning_curve_)
    classes = content["classes"]
    assert np.array_equal(
        classes.predict_proba([content["structure"]]), fitted_classifier.predict_proba(SALTS[:1])
    )
    assert classes.classes_.tolist() == fitted_classifier.classes_.tolist()
    assert clone(again).fit(SALTS, Y).predict(SALTS).shape == (16,)


def test_save_and_load(fitted, fitted_classifier, tmp_path):
    path = tmp_path / "model.json.gz"
    fitted.save(path)
    first = path.read_bytes()
    fitted.save(path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]  # no pickle beside it
    for again in (load_model(path), CrysXPPRegressor.load(path), crysxpp_mm.load_model(str(path))):
        assert np.array_equal(again.predict(SALTS), fitted.predict(SALTS))
    with pytest.raises(ModelFileError, match="expected a CrysXPPClassifier"):
        CrysXPPClassifier.load(path)
    fitted_classifier.save(path)
    assert list(load_model(path).predict(SALTS)) == list(fitted_classifier.predict(SALTS))
    with pytest.raises(SettingsError, match="got a CrysXPPClassifier"):
        CrysAEFeaturizer(model=path).featurize(SALTS[0])
    with pytest.raises(
        SettingsError, match="an encoder comes from a CrysAE, got a CrysXPPClassifier"
    ):
        regressor(pretrained=path).fit(SALTS, Y)


def test_settings_of_numpy_and_pandas_can_be_saved():
    settings = {
        "target_names": pd.Index(["K", "G"]),
        "units": pd.Series(["GPa", "GPa"]),
        "moments": np.array(["mean"]),
        "learning_rate": np.float32(1e-3),
        "seed": np.int64(3),
    }
    model = regressor(**settings).fit(SALTS, np.stack([Y, Y], axis=1))
    again = CrysXPPRegressor.from_dict(json.loads(json.dumps(model.as_dict())))
    assert np.array_equal(again.predict(SALTS), model.predict(SALTS))
    assert again.target_names == ["K", "G"]
    with pytest.raises(SettingsError, match="units cannot be saved with the model"):
        regressor(units={"K": {1, 2}}).fit(SALTS, Y)


def test_unfitted_estimator_is_data_too(tmp_path):
    dumpfn(regressor(max_epochs=9, transform=("log10",)), tmp_path / "m.json")
    again = loadfn(tmp_path / "m.json")
    assert again.max_epochs == 9
    assert not hasattr(again, "members_")


def test_jsanitize(fitted):
    plain = jsanitize(fitted, strict=True)
    again = CrysXPPRegressor.from_dict(plain)
    assert np.array_equal(again.predict(SALTS), fitted.predict(SALTS))
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize("values", [[True, False], [3, 7], ["a", "b"]])
def test_classes_keep_their_kind(values):
    y = values * 8
    model = classifier().fit(SALTS, y)
    again = CrysXPPClassifier.from_dict(json.loads(json.dumps(model.as_dict())))
    found = again.predict(SALTS)
    assert found.dtype == np.array(y).dtype
    assert set(found.tolist()) <= set(values)


def _rehash(document):
    plain = {k: v for k, v in document.items() if not k.startswith("@")}
    document["sha256"] = document_hash(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "unknown keys: extra"),
        (lambda d: d.pop("state"), "lacks state"),
        (lambda d: d.update(format_version=99), "format version 99"),
        (lambda d: d["settings"].update(units="eV"), "does not match its sha256"),
        (lambda d: (d["settings"].update(epochs=3), _rehash(d)), "do not know epochs"),
        (lambda d: (d["settings"].pop("seed"), _rehash(d)), "lack or do not know seed"),
        (lambda d: (d["state"].pop("units"), _rehash(d)), "lacks 'units'"),
        (lambda d: (d["state"].update(extra=1), _rehash(d)), "unknown keys: extra"),
        (lambda d: (d["state"].update(members=[]), _rehash(d)), "no members"),
        (lambda d: (d["state"].update(members=5), _rehash(d)), "makes no sense .*TypeError"),
        (lambda d: (d["state"].update(history=None), _rehash(d)), "makes no sense"),
        (lambda d: (d["state"].update(embedder=5), _rehash(d)), "makes no sense"),
        (lambda d: (d["state"].update(n_train="x"), _rehash(d)), "makes no sense"),
        (lambda d: (d["state"].update(learning_curve={}), _rehash(d)), "curve lack columns"),
        (lambda d: (d["state"].update(columns=[]), _rehash(d)), "units or transforms are not"),
        (lambda d: (d["state"].update(target_names=[]), _rehash(d)), "targets or .* lack columns"),
        (lambda d: (d["state"].update(transforms=[]), _rehash(d)), "units or transforms are not"),
        (lambda d: (d["state"].update(units=[]), _rehash(d)), "units or transforms are not"),
        (lambda d: (d["settings"].update(max_epochs=-1), _rehash(d)), "max_epochs must be"),
        (lambda d: (d.update(settings=None), _rehash(d)), "makes no sense .*TypeError"),
        (lambda d: (d.update(metadata=None), _rehash(d)), "makes no sense .*TypeError"),
        (lambda d: (d["state"].update(transforms=["exp"]), _rehash(d)), "unknown transform"),
        (
            lambda d: (d["state"]["members"][0]["settings"].update(readout_dim=5), _rehash(d)),
            "readout.*the model needs",
        ),
    ],
)
def test_damaged_documents_are_refused(fitted, tmp_path, change, message):
    document = json.loads(json.dumps(fitted.as_dict()))
    change(document)
    with pytest.raises(ModelFileError, match=message):
        CrysXPPRegressor.from_dict(document)
    path = tmp_path / "model.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    for load in (load_model, CrysXPPRegressor.load):
        with pytest.raises(ModelFileError, match=f"model.json.gz: .*{message}"):
            load(path)


def test_classes_that_are_none_are_refused(fitted_classifier):
    for classes, message in (([["a", "b"]], "not a list"), (["a", "b", "c"], "3 outputs")):
        document = json.loads(json.dumps(fitted_classifier.as_dict()))
        document["state"]["classes"] = classes
        _rehash(document)
        with pytest.raises(ModelFileError, match=message):
            CrysXPPClassifier.from_dict(document)


def test_names_and_rights_of_files(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o077)
    try:
        fitted.save("plain")  # a file without a suffix
    finally:
        os.umask(mask)
    assert stat.S_IMODE(Path("plain").stat().st_mode) == 0o600
    assert np.array_equal(load_model("plain").predict(SALTS), fitted.predict(SALTS))


def test_any_changed_byte_is_refused(fitted, tmp_path):
    path = tmp_path / "model.json"
    fitted.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 40):
        line = data[data.rfind(b"\n", 0, position) + 1 :].lstrip()
        if not chr(data[position]).isalnum() or line.startswith(b'"@'):
            continue  # names of the class and version of the package
        changed = bytearray(data)
        changed[position] = ord("x") if data[position] != ord("x") else ord("y")
        path.write_bytes(bytes(changed))
        with pytest.raises(ModelFileError):
            load_model(path)


def test_unknown_class_state_is_refused(fitted_classifier):
    document = fitted_classifier.as_dict()
    document["state"]["extra"] = 1
    _rehash(document)
    with pytest.raises(ModelFileError, match="unknown keys: extra"):
        CrysXPPClassifier.from_dict(document)


# Classes.


def test_probabilities_sum_to_one(fitted_classifier):
    found = fitted_classifier.predict_proba(SALTS)
    assert found.shape == (16, 2)
    assert found.sum(axis=1) == pytest.approx(1)
    chosen = fitted_classifier.classes_[found.argmax(axis=1)]
    assert list(fitted_classifier.predict(SALTS)) == list(chosen)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_class_that_appears_once(class_weight):
    y = ["rare"] + ["common"] * 15
    model = classifier(class_weight=class_weight).fit(SALTS, y)
    assert model.classes_.tolist() == ["common", "rare"]


def test_unknown_classes_are_left_out():
    y = pd.Series([None, *CLASSES[1:]])
    with pytest.warns(UserWarning, match="1 of 16 rows"):
        assert classifier().fit(SALTS, y).n_train_ == 15
    y = pd.Series([np.nan, *([0.0, 1.0, 2.0] * 5)])  # integers with a gap, as pandas has them
    with pytest.warns(UserWarning, match="1 of 16 rows"):
        assert classifier().fit(SALTS, y).classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        (["metal"] * 16, "all labels are 'metal'"),
        (Y, "For numbers use CrysXPPRegressor"),
        (["a", 1] * 8, "mixes labels of the kinds int, str"),
        (CLASSES[:3], "y has 3 labels"),
        (pd.DataFrame({"a": CLASSES, "b": CLASSES}), "one column of classes, got the shape"),
        (np.array([CLASSES, CLASSES]).T, "one column of classes"),
        (5, "must be list-like"),
    ],
)
def test_unusable_classes_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        classifier().fit(SALTS, y)


def test_class_columns_names_and_weights():
    frame = pd.DataFrame({"kind": CLASSES})
    assert classifier().fit(SALTS, frame).target_names_ == ["kind"]
    array = np.array(CLASSES)[:, None]
    assert classifier(target_names=["state"]).fit(SALTS, array).target_names_ == ["state"]
    with pytest.raises(SettingsError, match="one name"):
        classifier(target_names=["a", "b"]).fit(SALTS, CLASSES)
    with pytest.raises(SettingsError, match="class_weight must be"):
        classifier(class_weight="heavy").fit(SALTS, CLASSES)


def test_progress_bar_and_silence(capfd):
    regressor(pbar=True).fit(SALTS, Y)
    shown = capfd.readouterr()
    assert "CrysXPPRegressor" in shown.err
    regressor().fit(SALTS, Y)
    silent = capfd.readouterr()
    assert silent.err == silent.out == ""


# Threads and devices.


def test_learning_and_predicting_use_one_torch_thread(fitted, fitted_classifier, monkeypatch):
    seen = []
    forward, embed = CrysXPP.forward, CrysXPP.embed_sites
    before = torch.get_num_threads()

    def spy(function):
        def call(*args, **options):
            seen.append(torch.get_num_threads())
            return function(*args, **options)

        return call

    monkeypatch.setattr(CrysXPP, "forward", spy(forward))
    monkeypatch.setattr(CrysXPP, "embed_sites", spy(embed))
    try:
        torch.set_num_threads(2)
        fitted.predict(SALTS)
        fitted.domain(SALTS)
        fitted_classifier.predict_proba(SALTS)
        assert torch.get_num_threads() == 2
        assert set(seen) == {1}
        seen.clear()
        regressor().fit(SALTS, Y)
        assert torch.get_num_threads() == 2
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="torch trains in no child of a process that has used CUDA"
)
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fit_in_a_forked_child_after_torch_has_used_threads():
    before = torch.get_num_threads()
    expected = regressor().fit(SALTS, Y).predict(SALTS)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(
        target=lambda: results.put(regressor().fit(SALTS, Y).predict(SALTS).tolist())
    )
    try:
        torch.set_num_threads(2)
        torch.rand(600, 600) @ torch.rand(600, 600)  # the pool of threads that a fork loses
        child.start()
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        torch.set_num_threads(before)
    assert results.get() == pytest.approx(expected, rel=1e-4)


def test_a_forked_child_trains_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [][0])  # as after a fork
    with pytest.raises(IndexError):
        regressor(accelerator="cpu").fit(SALTS, Y)
    monkeypatch.setattr(compute, "is_forked", lambda: True)
    assert regressor(accelerator="cpu").fit(SALTS, Y).predict(SALTS).shape == (16,)
    assert torch.cuda.is_available()


@pytest.mark.parametrize("forked", [True, False])
def test_a_fork_after_training_on_a_gpu_is_named(monkeypatch, forked):
    def step(*given):
        raise RuntimeError("no autograd's threading in combination with fork")

    monkeypatch.setattr(FitModule, "training_step", step)
    monkeypatch.setattr(loop, "is_forked", lambda: forked)
    error, message = (SettingsError, "spawn") if forked else (RuntimeError, "autograd")
    with pytest.raises(error, match=message):
        regressor().fit(SALTS, Y)


@pytest.mark.parametrize("name", ["abacus", "cuda:99", 5])
def test_an_accelerator_that_is_absent(fitted, name):
    model = CrysXPPRegressor.from_dict(fitted.as_dict()).set_params(accelerator=name)
    for call in (
        lambda: model.predict(SALTS),
        lambda: model.domain(SALTS),
        lambda: regressor(accelerator=name).fit(SALTS, Y),
    ):
        with pytest.raises(SettingsError, match=r"cannot be used here .*accelerator='auto'"):
            call()


def test_what_accelerators_mean(monkeypatch):
    asked = []

    def empty(size, device):
        asked.append(device)
        return SimpleNamespace(device=device)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("auto", "cpu", "gpu", "cuda"):
        compute.usable_device(name)
    monkeypatch.setattr(compute, "is_forked", lambda: True)
    compute.usable_device("auto")  # CUDA does not work in a forked child
    assert asked == ["cuda", "cpu", "cuda", "cuda", "cpu"]


def test_networks_elsewhere_are_copied(fitted):
    """The meta device computes nothing, but shows what goes where."""
    network = fitted.members_[0]
    assert networks.on_device(network, torch.device("meta")).device.type == "meta"
    assert network.device.type == "cpu"
    assert networks.on_device(network, torch.device("cpu")) is network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_gives_the_same_predictions():
    on_cpu = regressor(n_members=2, accelerator="cpu").fit(SALTS, Y).calibrate(SALTS, Y)
    on_cuda = CrysXPPRegressor.from_dict(on_cpu.as_dict()).set_params(accelerator="cuda")
    assert on_cuda.predict(SALTS) == pytest.approx(on_cpu.predict(SALTS), rel=1e-5)
    found, expected = (model.domain(SALTS)["distance"] for model in (on_cuda, on_cpu))
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-3)
    assert all(member.device.type == "cpu" for member in on_cuda.members_)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("encoder", ["cgcnn", "gcn"])
def test_cuda_gives_equal_models_for_a_seed(encoder):
    first, second = (
        regressor(pretrained=None, encoder=encoder, max_epochs=5, accelerator="cuda").fit(SALTS, Y)
        for _ in range(2)
    )
    assert np.array_equal(first.predict(SALTS), second.predict(SALTS))
    assert np.array_equal(first.predict(SALTS), first.predict(SALTS))


def test_html_shows_what_was_learned():
    model = regressor(units="eV", target_names=["<gap>"], n_members=2)
    assert "fitted CrysXPPRegressor" not in model._repr_mimebundle_()["text/html"]
    page = model.fit(SALTS, Y)._repr_mimebundle_()["text/html"]
    assert "fitted CrysXPPRegressor" in page
    assert "&lt;gap&gt; (eV)" in page
    assert "<gap>" not in page.split("fitted CrysXPPRegressor")[1]
    assert ">2</td>" in page
    page = classifier(selector=False).fit(SALTS, CLASSES)._repr_mimebundle_()["text/html"]
    assert "switched off" not in page


def test_without_a_selector_there_is_no_attribute_of_its_weights():
    model = regressor(selector=False).fit(SALTS, Y)
    assert not hasattr(model, "feature_weights_")
    with pytest.raises(NoSelectorError, match="selector=True"):
        model.explain(SALTS[0])


def test_what_belongs_to_a_machine_is_neither_kept_nor_taken_from_a_file(tmp_path):
    here = {"checkpoint_dir": tmp_path / "runs", "accelerator": "cpu", "devices": "1"}
    document = regressor(**here).fit(SALTS, Y).as_dict()
    expected = {"checkpoint_dir": None, "accelerator": "auto", "devices": 1}
    assert {name: document["settings"][name] for name in expected} == expected
    document["settings"] |= {"checkpoint_dir": str(tmp_path / "elsewhere"), "devices": 8}
    _rehash(document)
    again = CrysXPPRegressor.from_dict(document)
    assert {name: getattr(again, name) for name in expected} == expected


def test_a_prediction_that_is_not_finite_names_the_crystal(fitted, fitted_classifier):
    for model in (fitted, fitted_classifier):
        broken = type(model).from_dict(model.as_dict())
        with torch.no_grad():
            broken.members_[0].readout.output.weight.fill_(float("nan"))
        series = pd.Series(SALTS[:2], index=["first", "second"])
        with pytest.raises(NetworkOutputError, match=r"row 0 \(index 'first'\): .* not finite"):
            broken.predict(series)
        assert broken.predict(series, ignore_errors=True).isna().all()


def test_fit_and_predict_work_where_gradients_are_off():
    expected = regressor().fit(SALTS, Y).predict(SALTS)
    with torch.inference_mode():
        model = regressor().fit(SALTS, Y)
        assert np.array_equal(model.predict(SALTS), expected)
        assert model.contributions(SALTS[0]).table.notna().all().all()
    model.fine_tune(SALTS, Y, max_epochs=1)  # its weights can still learn
    assert not np.array_equal(model.predict(SALTS), expected)
