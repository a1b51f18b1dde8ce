"""The folder of a predictor that is to be shipped, and every folder that is."""

from __future__ import annotations

import importlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_structures
from sklearn.exceptions import NotFittedError

from crysxpp_mm import (
    CrysXPPClassifier,
    CrysXPPFeaturizer,
    CrysXPPRegressor,
    ElemNetRegressor,
    release,
)
from crysxpp_mm.benchmarks.predictors import PREDICTORS as SHIPPED_PREDICTORS
from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.model_zoo import MODEL_FILE, PREDICTORS, list_models, load_model, model_path
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.release.autoencoder import golden_outputs, model_card
from crysxpp_mm.release.predictor import (
    golden_predictions,
    predictor_card,
    write_predictor_release,
)

FAST: dict[str, Any] = {"readout_dim": 4, "max_epochs": 2, "min_steps": 0, "pbar": False}
SHIPPED = list_models()
PARTS = {"CrysAE": ("## Limits", "## Train it again")} | dict.fromkeys(
    PREDICTORS, ("## Test errors", "## Use", "## Limits", "## Train it again", "## Data and lic")
)
CHOSEN = {item.name: item.chosen for item in SHIPPED_PREDICTORS}
TRAIN = [f"mp-{number}" for number in range(8)]
TEST = ["mp-100", "mp-101"]
RESULTS = pd.DataFrame(
    {
        "method": ["this model", "random weights", "Magpie"],
        "mae": [0.0701, 0.0812, 0.12345],
        "mae_std": [0.0012, 0.0021, np.nan],
        "n_seeds": [3, 3, 1],
    }
)


def tiny() -> CrysAE:
    return CrysAE.random(hidden_dim=4, n_convs=1)


@pytest.fixture(scope="module")
def energy() -> CrysXPPRegressor:
    """An ensemble of two."""
    return CrysXPPRegressor(
        pretrained=tiny(), n_members=2, seed=5, target_names=["e_form"], units="eV/atom", **FAST
    ).fit(make_structures(), np.arange(8.0))


@pytest.fixture(scope="module")
def metal() -> CrysXPPClassifier:
    return CrysXPPClassifier(pretrained=None, hidden_dim=4, n_convs=1, **FAST).fit(
        make_structures(), ["metal", "non-metal"] * 4
    )


def write(estimator: Any, folder: Path, **changed: Any) -> Path:
    arguments: dict[str, Any] = {
        "title": "Formation energies of crystals",
        "summary": "Made in a test.",
        "results": RESULTS,
        "data": "eight crystals",
        "split": "The test crystals are of other chemical systems.",
        "train_ids": TRAIN,
        "test_ids": TEST,
        "licence": "Labels of the Materials Project, CC BY 4.0.",
        "citations": ["@misc{mp}"],
        "limits": ["Magnetic crystals are few."],
    }
    return write_predictor_release(estimator, folder, **{**arguments, **changed})


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the shipped models be in ``folder``."""
    monkeypatch.setattr(importlib.resources, "files", lambda name: folder)


def test_a_regressor_becomes_a_folder_to_ship(energy, structures, tmp_path, monkeypatch):
    folder = write(energy, tmp_path / "crysxpp-energy")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "curves.csv", "curves.png", "golden.json", "model.json.gz", "settings.json"),
    ]
    assert not hasattr(energy, "metadata_")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        *("# crysxpp-energy", "Formation energies of crystals.", "Made in a test.", "eight cryst"),
        *("| predicts | e_form, eV/atom |", "| crystals learned from | 8 |", "| test crystals | 2"),
        *("| seeds (weights, split, order) | 5, 6 |", energy.data_hash_, "of other chemical syst"),
        "| e_form (eV/atom) | this model | 0.0701 ± 0.0012 | 3 |",
        "| e_form (eV/atom) | Magpie | 0.1235 | 1 |",
        *('load_model("crysxpp-energy")', "CC BY 4.0", "@misc{mp}", "- Magnetic crystals are few."),
        *("within 8 Angstrom", "a CrysAE, weights `", "n_members 2", *PARTS["CrysXPPRegressor"]),
    ):
        assert part in card, part
    assert str(tmp_path) not in card
    assert len(pd.read_csv(folder / "curves.csv")) == len(energy.learning_curve_)

    install(monkeypatch, tmp_path)
    row = list_models().iloc[0]
    assert row[
        ["name", "kind", "description", "target", "unit", "n_train", "test_mae"]
    ].tolist() == [
        *("crysxpp-energy", "CrysXPPRegressor", "Formation energies of crystals"),
        *("e_form", "eV/atom", 8, 0.0701),
    ]
    assert row[["hidden_dim", "n_convs"]].tolist() == [4, 1]
    model = load_model("crysxpp-energy")
    assert np.array_equal(model.predict(structures), energy.predict(structures))
    assert model.metadata_["results"][2]["mae_std"] is None
    assert len(model.metadata_["train_ids"]) == 64
    golden = json.loads((folder / "golden.json").read_text())["predictions"]
    assert golden == golden_predictions(model)
    assert list(golden["Cu, fcc"]) == ["e_form", "e_form std"]
    settings = json.loads((folder / "settings.json").read_text())
    assert CrysXPPRegressor(**settings).seed == 5

    featurizer = CrysXPPFeaturizer.from_preset("crysxpp-energy")
    assert featurizer.feature_labels() == [
        "CrysXPP e_form (eV/atom)",
        "CrysXPP e_form std (eV/atom)",
    ]
    assert featurizer.citations()[2:] == ["@misc{mp}"]


def test_the_same_release_twice_is_the_same(energy, tmp_path):
    one, two = (write(energy, tmp_path / folder / "m") for folder in "ab")
    for name in (MODEL_FILE, "README.md", "golden.json", "settings.json", "curves.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_classifier_becomes_a_folder_to_ship(metal, tmp_path):
    results = pd.DataFrame({"method": ["this model", "Magpie"], "accuracy": [0.9, 0.8]})
    folder = write(metal, tmp_path / "m", results=results, test_ids=(), citations=())
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        *("| predicts | class, one of metal, non-metal |", "| test crystals | see below |"),
        *("| encoder starts from | chance |", "predict_proba", "| class | this model | 0.9 |"),
    ):
        assert part in card, part
    model = load_model(folder / MODEL_FILE)
    assert model.metadata_["test_accuracy"] == {"class": 0.9}
    golden = json.loads((folder / "golden.json").read_text())["predictions"]
    assert golden == golden_predictions(metal)
    assert sum(golden["Cu, fcc"].values()) == pytest.approx(1)


def test_several_targets_and_stages(structures, tmp_path):
    labels = pd.DataFrame({"K": np.arange(1.0, 9), "G": np.arange(2.0, 10)})
    model = CrysXPPRegressor(pretrained=tiny(), transform="log10", units="GPa", **FAST)
    model.fit(structures, labels)
    model.fine_tune(structures[:4], labels[:4], max_epochs=1)
    results = pd.concat([RESULTS.assign(target=target) for target in ("K", "G")])
    folder = write(model, tmp_path / "m", results=results, train_ids=pd.Series([*TRAIN, *"abcd"]))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        *("| predicts | K, GPa (learned as log10) |", "| predicts | G, GPa (learned as log10) |"),
        *(
            "| G (GPa) | this model | 0.0701 ± 0.0012 | 3 |",
            "Then `fine_tune` on 4 crystals: max_epochs",
        ),
    ):
        assert part in card, part
    golden = json.loads((folder / "golden.json").read_text())["predictions"]
    assert list(golden["Cu, fcc"]) == ["G", "K"]


def test_intervals_are_named_where_the_model_has_them(structures, tmp_path):
    model = CrysXPPRegressor(pretrained=tiny(), target_names=["gap"], **FAST)
    model.fit(structures[:6], np.arange(6.0), validation=(structures[6:], np.arange(2.0)))
    card = (write(model, tmp_path / "m") / "README.md").read_text(encoding="utf-8")
    assert "predict_interval" in card
    assert "| crystals learned from | 6 |" in card
    assert "| crystals that chose the best epoch | 2 |" in card


def test_a_card_says_when_a_network_tells_elements_apart(structures, tmp_path):
    settings = {key: value for key, value in FAST.items() if key != "readout_dim"}
    model = ElemNetRegressor(hidden_dims=(4,), target_names=["gap"], **settings)
    card = (write(model.fit(structures, np.arange(8.0)), tmp_path / "m") / "README.md").read_text()
    assert "embed alike, but for the element fractions that this model reads." in card
    assert "| encoder starts from | chance |" in card


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"results": RESULTS.drop(columns="method")}, "results has no column 'method'"),
        ({"results": RESULTS.drop(columns="mae")}, "results has no column 'mae'"),
        ({"results": RESULTS[1:]}, "results needs one row of 'this model' for the target 'e_form'"),
        ({"results": RESULTS.assign(target="gap")}, "one row of 'this model' for the target 'e_f"),
        ({"results": RESULTS[:1]}, "results has no control to compare 'e_form' with"),
        ({"train_ids": TRAIN[1:]}, "train_ids names 7 crystals; the model learned from 8"),
        ({"test_ids": ["mp-3", "mp-9"]}, "mp-3 and 0 others are in train_ids and in test_ids"),
    ],
)
def test_what_a_release_needs_is_named(energy, tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        write(energy, tmp_path / "m", **changed)
    assert not (tmp_path / "m").exists()


def test_models_that_cannot_be_shipped_are_named(energy, tmp_path, monkeypatch, structures):
    with pytest.raises(NotFittedError):
        write(CrysXPPRegressor(), tmp_path / "m")
    tiny().save(tmp_path / "mine.json.gz")
    local = CrysXPPRegressor(pretrained=tmp_path / "mine.json.gz", **FAST)
    local.fit(structures, np.arange(8.0))
    with pytest.raises(SettingsError, match=r"came from the file mine\.json\.gz; to ship"):
        write(local, tmp_path / "m")
    monkeypatch.setattr(release.predictor, "MAX_BYTES", 1000)
    with pytest.raises(SettingsError, match=r"takes 0\.\d MB, more than the 0\.001 MB"):
        write(energy, tmp_path / "m")
    assert not (tmp_path / "m" / MODEL_FILE).exists()


# What is shipped.


def golden(name: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The golden outputs of a shipped model as kept and as computed."""
    document = json.loads(model_path(name).with_name("golden.json").read_text(encoding="utf-8"))
    model = load_model(name)
    if isinstance(model, CrysAE):
        return document["embeddings"], golden_outputs(model)
    kept, computed = document["predictions"], golden_predictions(model)
    assert {crystal: set(row) for crystal, row in kept.items()} == {
        crystal: set(row) for crystal, row in computed.items()
    }
    return (
        {crystal: [row[column] for column in computed[crystal]] for crystal, row in kept.items()},
        {crystal: list(row.values()) for crystal, row in computed.items()},
    )


@pytest.mark.parametrize("name", SHIPPED["name"])
def test_a_shipped_model_gives_its_golden_numbers(name):
    kept, computed = golden(name)
    assert set(kept) == set(computed)
    assert len(kept) == 3
    for crystal, row in computed.items():
        expected = np.array(kept[crystal])
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SHIPPED["name"])
def test_a_shipped_model_has_its_card_and_is_small(name):
    (row,) = SHIPPED[SHIPPED["name"] == name].to_dict("records")
    assert row["description"]
    assert row["n_train"] > 0
    folder = Path(row["path"]).parent
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n\n{row['description']}.\n")
    for part in ("sha256", "| graph rule |", "seed", "curves.png", *PARTS[row["kind"]]):
        assert part in card, part
    for file in ("curves.csv", "curves.png", "settings.json", "golden.json"):
        assert (folder / file).is_file(), file
    assert Path(row["path"]).stat().st_size < 5_000_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    if row["kind"] in PREDICTORS:
        assert row["target"]
        model = load_model(name)
        assert len(model.metadata_["train_ids"]) == 64
        assert not Path(str(model.get_params().get("pretrained"))).is_absolute()
        assert any(metric in model.metadata_ for metric in ("test_mae", "test_accuracy"))


@pytest.mark.parametrize("name", SHIPPED["name"])
def test_a_release_would_write_the_card_that_is_shipped(name):
    path = model_path(name)
    card = path.with_name("README.md").read_text(encoding="utf-8")
    summary = card.split("\n\n")[2]
    model = load_model(name)
    if isinstance(model, CrysAE):
        curves = pd.read_csv(path.with_name("curves.csv"))
        assert model_card(name, model, curves, summary) == card
        return
    # One sentence was added by hand to the card of a model that was trained before.
    card = card.replace(f"{CHOSEN[name]} ", "") if CHOSEN.get(name) else card
    written = card.split("## Limits\n\n")[1].split("\n\n")[0].splitlines()
    limits = [line.removeprefix("- ") for line in written[4:]]
    results = pd.DataFrame(model.metadata_["results"])
    size = path.stat().st_size
    assert predictor_card(name, model, results, summary=summary, size=size, limits=limits) == card


@pytest.mark.parametrize(
    ("module", "name"),
    [("training.release", "write_release"), ("estimators.release", "write_predictor_release")],
)
def test_the_old_places_still_work(module, name):
    with pytest.warns(DeprecationWarning, match=r"import it from crysxpp_mm\.release"):
        moved = getattr(importlib.import_module(f"crysxpp_mm.{module}"), name)
    assert moved is getattr(release, name)
