"""CrysXPPFeaturizer: columns are what the models predict, under matminer's contract."""

from __future__ import annotations

import importlib.resources
import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_structures
from matminer.featurizers.base import MultipleFeaturizer
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from crysxpp_mm import CrysXPPClassifier, CrysXPPFeaturizer, CrysXPPRegressor, check_featurizer
from crysxpp_mm.errors import (
    ModelFileError,
    NetworkOutputError,
    SettingsError,
    StructureTypeError,
    UnknownElementError,
    UnknownModelError,
)
from crysxpp_mm.graph.converter import CrystalGraphConverter, read_crystal
from crysxpp_mm.model_zoo import MODEL_FILE, list_models, shipped_predictors
from crysxpp_mm.models.crysae import CrysAE

FAST: dict[str, Any] = {"readout_dim": 4, "max_epochs": 1, "min_steps": 0, "pbar": False}
LABELS = [
    "CrysXPP K_VRH (GPa)",
    "CrysXPP K_VRH std (GPa)",
    "CrysXPP poisson",
    "CrysXPP poisson std",
    "CrysXPP e_form (eV/atom)",
    "CrysXPP P(metal)",
    "CrysXPP P(non-metal)",
]


def tiny(**options: Any) -> CrysAE:
    return CrysAE.random(hidden_dim=4, n_convs=1, **options)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    """An ensemble of two targets, a single network, a classifier; by name."""
    structures = make_structures()
    numbers = np.arange(1.0, 9.0)
    two = pd.DataFrame({"K_VRH": numbers, "poisson": 1 / numbers})
    return {
        "elastic": CrysXPPRegressor(
            pretrained=tiny(),
            n_members=2,
            transform={"K_VRH": "log10"},
            units={"K_VRH": "GPa"},
            **FAST,
        ).fit(structures, two),
        "energy": CrysXPPRegressor(
            pretrained=tiny(), target_names=["e_form"], units="eV/atom", **FAST
        ).fit(structures, -numbers),
        "metal": CrysXPPClassifier(pretrained=tiny(), **FAST).fit(
            structures, ["metal", "non-metal"] * 4
        ),
    }


@pytest.fixture(scope="module")
def shipped(fitted: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``pretrained/`` is, with the three models and an autoencoder."""
    folder = tmp_path_factory.mktemp("pretrained")
    for name, model in {**fitted, "autoencoder": tiny()}.items():
        (folder / name).mkdir()
        model.save(folder / name / MODEL_FILE)
    return folder


@pytest.fixture
def paths(shipped: Path) -> list[Path]:
    return [shipped / name / MODEL_FILE for name in ("elastic", "energy", "metal")]


@pytest.fixture
def installed(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in place of the one of the package."""
    monkeypatch.setattr(importlib.resources, "files", lambda name: shipped)
    return shipped


@pytest.fixture
def featurizer(paths: list[Path]) -> CrysXPPFeaturizer:
    return CrysXPPFeaturizer(paths)


def predicted(fitted: dict[str, Any], structures: list[Any]) -> np.ndarray:
    """The columns by the estimators' own methods, in the order of ``LABELS``."""
    values, spread = fitted["elastic"].predict(structures, return_std=True)
    return np.column_stack(
        [
            *(values[:, 0], spread[:, 0], values[:, 1], spread[:, 1]),
            fitted["energy"].predict(structures),
            fitted["metal"].predict_proba(structures),
        ]
    )


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Equal to ``tolerance`` of the largest number of a column."""
    actual, expected = np.array(actual, dtype=float), np.array(expected, dtype=float)
    assert actual.shape == expected.shape
    assert (np.isnan(actual) == np.isnan(expected)).all()
    scale = np.nanmax(np.abs(expected), axis=0)
    assert (np.nan_to_num(np.abs(actual - expected)) <= tolerance * scale).all()


# Columns.


def test_columns_are_what_the_models_predict(featurizer, fitted, structures):
    assert featurizer.feature_labels() == LABELS
    assert featurizer.feature_labels() is not featurizer.feature_labels()
    expected = predicted(fitted, structures)
    rows = featurizer.featurize_many(structures, pbar=False)
    assert_close(rows, expected)
    assert {type(value) for row in rows for value in row} == {float}
    assert_close([featurizer.featurize(structure) for structure in structures], expected)
    for batch_atoms in (1, 7):
        part = CrysXPPFeaturizer(featurizer.models, batch_atoms=batch_atoms)
        assert_close(part.featurize_many(structures, pbar=False), expected)


def test_forms_of_models(paths, fitted, structures, installed):
    expected = predicted(fitted, structures)[:, 4:5]
    for models in (
        "energy",
        ["energy"],
        ("energy",),
        paths[1],
        str(paths[1]),
        [paths[1]],
        fitted["energy"],
        [fitted["energy"]],
    ):
        one = CrysXPPFeaturizer(models)
        assert one.feature_labels() == ["CrysXPP e_form (eV/atom)"]
        assert_close(one.featurize_many(structures, pbar=False), expected)
    mixed = CrysXPPFeaturizer([fitted["metal"], "energy", str(paths[0])])
    assert mixed.feature_labels() == [*LABELS[5:], LABELS[4], *LABELS[:4]]


def test_all_shipped_predictors_are_the_default(installed, fitted, structures):
    assert shipped_predictors() == ["elastic", "energy", "metal"]
    everything = CrysXPPFeaturizer()
    assert everything.feature_labels() == LABELS
    assert_close(everything.featurize_many(structures, pbar=False), predicted(fitted, structures))
    assert CrysXPPFeaturizer.from_preset("default").models is None
    assert CrysXPPFeaturizer.from_preset("metal").models == "metal"
    with pytest.raises(SettingsError, match="unknown preset 'gap'; there are default, elastic, en"):
        CrysXPPFeaturizer.from_preset("gap")


def test_an_installation_without_predictors(monkeypatch, tmp_path, nacl):
    (tmp_path / "autoencoder").mkdir()
    tiny().save(tmp_path / "autoencoder" / MODEL_FILE)
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    for call in (
        CrysXPPFeaturizer().feature_labels,
        lambda: CrysXPPFeaturizer().featurize_many([nacl], ignore_errors=True),
        lambda: CrysXPPFeaturizer.from_preset("default"),
    ):
        with pytest.raises(UnknownModelError, match="ships no model that predicts a property; na"):
            call()


def test_classes_that_are_no_texts_are_named_with_the_target(structures):
    labels = pd.Series([True, False] * 4, name="is_metal")
    model = CrysXPPClassifier(pretrained=tiny(), **FAST).fit(structures, labels)
    assert CrysXPPFeaturizer(model).feature_labels() == [
        "CrysXPP P(is_metal=False)",
        "CrysXPP P(is_metal=True)",
    ]


def test_equal_labels_are_told_apart_by_the_names_of_the_models(
    installed, fitted, structures, tmp_path
):
    other = tmp_path / "mine.json.gz"
    fitted["energy"].save(other)
    both = CrysXPPFeaturizer(["energy", other, "metal"])
    assert both.feature_labels() == [
        "CrysXPP e_form (eV/atom) [energy]",
        "CrysXPP e_form (eV/atom) [mine]",
        *LABELS[5:],
    ]
    row = both.featurize(structures[0])
    assert row[0] == row[1]
    assert CrysXPPFeaturizer([installed / "energy" / MODEL_FILE, other]).feature_labels() == [
        "CrysXPP e_form (eV/atom) [energy]",
        "CrysXPP e_form (eV/atom) [mine]",
    ]
    for models in (["energy", "energy"], [fitted["energy"]] * 2):
        with pytest.raises(SettingsError, match=r"two columns are called 'CrysXPP e_form.*leave"):
            CrysXPPFeaturizer(models).feature_labels()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, "models is empty; None stands for all"),
        ({"models": tiny()}, "models must be names .* got a CrysAE"),
        ({"models": [Ridge()]}, "models must be names .* got a Ridge"),
        ({"models": 3}, "models must be names .* got a int"),
        ({"models": CrysXPPRegressor()}, "holds a CrysXPPRegressor that is not fitted; call fit"),
        ({"batch_atoms": 0}, "batch_atoms must be a whole number of at least 1, got 0"),
        ({"num_workers": -1}, "num_workers"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_settings_that_make_no_sense_are_named(paths, nacl, options, message):
    featurizer = CrysXPPFeaturizer(**{"models": paths, **options})
    for call in (
        lambda: featurizer.featurize(nacl),
        lambda: featurizer.featurize_many([nacl], ignore_errors=True, pbar=False),
    ):
        with pytest.raises(SettingsError, match=message):
            call()


def test_models_that_are_not_there_are_no_error_of_a_row(nacl, tmp_path):
    with pytest.raises(UnknownModelError, match="no model 'crysxpp-of-nobody'"):
        CrysXPPFeaturizer("crysxpp-of-nobody").featurize_many([nacl], ignore_errors=True)
    (tmp_path / "model.json.gz").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="no model file, or it is damaged"):
        CrysXPPFeaturizer(tmp_path / "model.json.gz").featurize_many([nacl], ignore_errors=True)


def test_whom_to_cite_and_to_ask(featurizer, fitted, tmp_path):
    assert len(featurizer.citations()) == 2
    assert all(text.startswith("@article") for text in featurizer.citations())
    assert featurizer.implementors() == ["crysxpp_mm developers"]
    model = pickle.loads(pickle.dumps(fitted["energy"]))
    model.metadata_ = {"citations": ["@misc{data}"]}
    model.save(tmp_path / "m.json.gz")
    cited = CrysXPPFeaturizer([tmp_path / "m.json.gz", fitted["metal"], model]).citations()
    assert cited[2:] == ["@misc{data}"]


# Rows.


def test_rules_are_shared_and_told_apart(fitted, structures, bad_inputs, monkeypatch):
    """Graphs are built once a rule; a structure needs a graph by every rule."""
    near = CrysXPPRegressor(
        pretrained=tiny(converter=CrystalGraphConverter(cutoff=4.0, max_neighbors=6)),
        target_names=["gap"],
        **FAST,
    ).fit(structures, np.arange(8.0))
    converted: list[tuple[float, int]] = []
    build = CrystalGraphConverter.build

    def counting(self: CrystalGraphConverter, crystals: Any) -> Any:
        converted.append((self.cutoff, len(crystals)))
        return build(self, crystals)

    monkeypatch.setattr(CrystalGraphConverter, "build", counting)
    both = CrysXPPFeaturizer([fitted["energy"], near, fitted["metal"]], batch_atoms=100)
    rows = both.featurize_many(structures, pbar=False)
    assert sorted(converted) == [(4.0, 8), (8.0, 8)]
    monkeypatch.undo()
    expected = np.column_stack(
        [
            fitted["energy"].predict(structures),
            near.predict(structures),
            fitted["metal"].predict_proba(structures),
        ]
    )
    assert_close(rows, expected)
    entries = [structures[0], bad_inputs["lawrencium"], *structures[1:]]
    rows = both.featurize_many(entries, ignore_errors=True, pbar=False)
    assert_close(rows, np.insert(expected, 1, np.nan, axis=0))

    odd = structures[3]
    refused = read_crystal(odd)

    def picky(self: CrystalGraphConverter, crystals: Any) -> Any:  # one rule alone refuses
        odd_one = [np.array_equal(crystal.positions, refused.positions) for crystal in crystals]
        if self.cutoff == 8.0 or not any(odd_one):
            return build(self, crystals)
        place = odd_one.index(True)
        rest = [crystal for row, crystal in enumerate(crystals) if row != place]
        return build(self, rest)[0], {place: UnknownElementError("odd")}

    monkeypatch.setattr(CrystalGraphConverter, "build", picky)
    rows = both.featurize_many(structures, ignore_errors=True, return_errors=True, pbar=False)
    expected[3] = np.nan
    assert_close([row[:-1] for row in rows], expected)
    assert "UnknownElementError: odd" in rows[3][-1]
    assert not both.precheck(odd)
    assert both.precheck(structures[0])


def test_every_bad_input_is_a_row_of_nan(featurizer, fitted, bad_inputs, structures):
    entries = [*bad_inputs.values(), *structures]
    rows = featurizer.featurize_many(entries, ignore_errors=True, return_errors=True, pbar=False)
    n_bad = len(bad_inputs)
    assert np.isnan([row[:-1] for row in rows[:n_bad]]).all()
    assert all("Error" in row[-1] for row in rows[:n_bad])
    assert_close([row[:-1] for row in rows[n_bad:]], predicted(fitted, structures))
    with pytest.raises(StructureTypeError, match=r"(?s)structure 1: .*got None.*ignore_errors"):
        featurizer.featurize_many([structures[0], None], pbar=False)
    with pytest.raises(SettingsError, match="set ignore_errors to True"):
        featurizer.featurize_many(structures, return_errors=True)
    table = featurizer.precheck_dataframe(pd.DataFrame({"s": entries}), "s", return_frac=False)
    assert table["CrysXPPFeaturizer precheck pass"].tolist() == [False] * n_bad + [True] * 8


def test_a_prediction_that_is_not_finite_is_an_error(fitted, nacl):
    model = pickle.loads(pickle.dumps(fitted["energy"]))
    model.members_[0].target_mean.fill_(float("inf"))
    with pytest.raises(NetworkOutputError, match="not finite"):
        CrysXPPFeaturizer(model).featurize(nacl)


def test_workers_give_the_same_rows(paths, fitted, structures):
    helped = CrysXPPFeaturizer(paths, batch_atoms=8, num_workers=1)
    rows = helped.featurize_many([*structures, None], ignore_errors=True, pbar=False)
    assert_close(rows[:-1], predicted(fitted, structures))
    assert np.isnan(rows[-1]).all()


def test_a_frame_gets_the_columns(featurizer, fitted, structures):
    frame = pd.DataFrame({"structure": structures}, index=list("hgfeddcb"))
    table = featurizer.featurize_dataframe(frame, "structure", pbar=False)
    assert list(table.columns) == ["structure", *LABELS]
    assert list(table.index) == list(frame.index)
    assert_close(table[LABELS], predicted(fitted, structures))
    empty = featurizer.featurize_dataframe(frame[:0], "structure", pbar=False)
    assert (empty[LABELS].dtypes == np.float64).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_gives_the_same_rows(fitted, structures):
    models = list(fitted.values())
    rows = CrysXPPFeaturizer(models, device="cuda").featurize_many(structures, pbar=False)
    assert_close(rows, predicted(fitted, structures), 1e-5)
    assert all(model.members_[0].device.type == "cpu" for model in models)


# The contract.


@pytest.mark.filterwarnings("ignore")
def test_it_keeps_every_promise(featurizer, structures):
    check_featurizer(featurizer, structures[:3], strict=True)


@pytest.mark.filterwarnings("ignore")
def test_estimators_as_objects_keep_the_basic_promises(fitted, structures):
    check_featurizer(CrysXPPFeaturizer(list(fitted.values())), structures[:3])


def test_a_pickle_leaves_models_out_that_have_a_name(paths, installed, structures):
    for models in (None, "energy", tuple(paths)):
        featurizer = CrysXPPFeaturizer(models)
        data = pickle.dumps(featurizer)
        assert len(data) < 2000
        copy = pickle.loads(data)
        assert copy.models == models
        assert copy.featurize(structures[0]) == featurizer.featurize(structures[0])


@pytest.mark.parametrize("several", [False, True])
def test_a_pickle_holds_an_estimator_as_data(fitted, structures, several):
    models: Any = [fitted["elastic"], fitted["metal"]] if several else fitted["elastic"]
    featurizer = CrysXPPFeaturizer(models)
    data = pickle.dumps(featurizer)
    assert b"torch" not in data
    assert len(data) < 100_000
    copy = pickle.loads(data)
    assert isinstance(copy.models, list) == several
    assert copy.featurize_many(structures, pbar=False) == featurizer.featurize_many(
        structures, pbar=False
    )


def test_an_estimator_in_training_is_left_alone(fitted, structures):
    model = pickle.loads(pickle.dumps(fitted["elastic"]))
    expected = CrysXPPFeaturizer(fitted["elastic"]).featurize_many(structures, pbar=False)
    model.members_[0].train()
    assert CrysXPPFeaturizer(model).featurize_many(structures, pbar=False) == expected
    assert model.members_[0].training
    assert not model.members_[1].training


def test_the_device_is_said_to_a_copy_of_an_estimator(fitted, paths):
    model = fitted["energy"]
    featurizer = CrysXPPFeaturizer(model)
    assert featurizer._ready(model) is model
    featurizer.device = "cpu"
    mine = featurizer._ready(model)
    assert (mine.accelerator, model.accelerator) == ("cpu", "auto")
    assert mine.members_ is model.members_
    assert featurizer._ready(paths[1]).accelerator == "cpu"


def test_a_clone_keeps_its_estimators_fitted(fitted, structures):
    options = {
        "models": [fitted["energy"], fitted["metal"]],
        "batch_atoms": 99,
        "device": "cpu",
        "num_workers": 0,
    }
    featurizer = CrysXPPFeaturizer(**options)
    assert all(getattr(featurizer, name) is value for name, value in options.items())
    for copy in (clone(featurizer), clone(CrysXPPFeaturizer(fitted["energy"]))):
        assert np.isfinite(copy.transform(structures)).all()
    assert clone(featurizer).get_params(deep=False) == options
    table = clone(featurizer.set_output(transform="pandas")).fit_transform(structures)
    assert list(table.columns) == LABELS[4:]
    with pytest.raises(TypeError, match="batch_size"):
        CrysXPPFeaturizer(batch_size=3)


def test_scikit_learn_takes_it(featurizer, fitted, structures):
    pipeline = make_pipeline(CrysXPPFeaturizer(fitted["elastic"]), Ridge())
    assert np.isfinite(cross_val_score(pipeline, structures, np.arange(8.0), cv=2)).all()
    frame = pd.DataFrame({"structure": structures, "pressure": np.arange(8.0)})
    side_by_side = ColumnTransformer(
        [("crystal", featurizer, "structure"), ("rest", "passthrough", ["pressure"])]
    )
    assert_close(side_by_side.fit_transform(frame)[:, :-1], predicted(fitted, structures))
    assert list(featurizer.get_feature_names_out()) == LABELS


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
def test_forked_children_after_torch_work(featurizer, structures):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(300, 300) @ torch.randn(300, 300)
        featurizer.set_params(device="cpu")
        expected = featurizer.featurize_many(structures, pbar=False)
        both = MultipleFeaturizer([featurizer.set_params(device=None)])
        both.set_n_jobs(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = both.featurize_many([*structures, None], ignore_errors=True, pbar=False)
    finally:
        torch.set_num_threads(before)
    assert_close(rows[:-1], expected)
    assert np.isnan(rows[-1]).all()


# The models beside each other.


def test_predictors_are_listed_with_what_they_predict(installed, fitted):
    table = list_models().set_index("name")
    assert list(table.columns) == [
        *("kind", "description", "target", "unit", "n_train"),
        *("test_mae", "test_accuracy", "hidden_dim", "n_convs", "path"),
    ]
    assert table["kind"].tolist() == [
        *("CrysAE", "CrysXPPRegressor", "CrysXPPRegressor", "CrysXPPClassifier"),
    ]
    assert table["target"].tolist() == ["", "K_VRH, poisson", "e_form", "class"]
    assert table["unit"].tolist() == ["", "GPa, -", "eV/atom", ""]
    assert table["n_train"].tolist()[1:] == [8, 8, 8]
    assert table["test_mae"].isna().all()
    assert (table["hidden_dim"] == 4).all()
    assert (table["n_convs"] == 1).all()
    model = pickle.loads(pickle.dumps(fitted["energy"]))
    model.metadata_ = {"description": "energies", "test_mae": {"e_form": 0.07}}
    model.save(table.loc["energy", "path"])
    model = pickle.loads(pickle.dumps(fitted["elastic"]))
    model.metadata_ = {"test_mae": {"K_VRH": 11.5, "poisson": 0.02}}
    model.save(table.loc["elastic", "path"])
    model = pickle.loads(pickle.dumps(fitted["metal"]))
    model.metadata_ = {"test_accuracy": {"class": 0.9}}
    model.save(table.loc["metal", "path"])
    try:
        table = list_models().set_index("name")
        assert table.loc["energy", ["description", "test_mae"]].tolist() == ["energies", 0.07]
        assert table.loc["elastic", "test_mae"] == "11.5, 0.02"
        assert table["test_accuracy"].dropna().to_dict() == {"metal": 0.9}
    finally:
        for name in ("elastic", "energy", "metal"):
            fitted[name].save(table.loc[name, "path"])
