"""Intervals: they hold the truth as often as they say, and say when they cannot."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import make_isolated_atom, make_nacl
from monty.serialization import dumpfn, loadfn
from salts import CLASSES, SALTS, Y, classifier, make_salts, regressor
from sklearn.exceptions import NotFittedError

from crysxpp_mm.data.reference import Arrays
from crysxpp_mm.errors import DataError, ModelFileError, SettingsError, StructureTypeError
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor, splits
from crysxpp_mm.estimators import ensemble as training
from crysxpp_mm.estimators.document import document_hash
from crysxpp_mm.estimators.intervals import (
    FLOOR,
    MIN_ADAPTIVE,
    Calibration,
    check_confidence,
    needed_rows,
    quantile_rank,
)
from crysxpp_mm.serialization import weights_to_dict

COLUMNS = ["prediction", "lower", "upper", "in_domain"]
pytestmark = pytest.mark.filterwarnings("ignore:all intervals are of one width:UserWarning")


@pytest.fixture(scope="module")
def single():
    """One network with 12 calibration crystals; not to be changed."""
    return regressor(transform="log10").fit(SALTS[:4], Y[:4], validation=(SALTS[4:], Y[4:]))


@pytest.fixture(scope="module")
def ensemble():
    """Three networks; not to be changed."""
    return regressor(n_members=3).fit(SALTS[:4], Y[:4], validation=(SALTS[4:], Y[4:]))


# The law.


@pytest.mark.parametrize(("n", "n_factors"), [(29, 2), (39, 2), (39, 3)])
@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(n, n_factors, confidence):
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(600):
        difficulty = rng.uniform(0.2, 2.0, 49)
        errors = np.abs(difficulty[:, None] * rng.standard_t(3, size=(49, 1)))
        factors = difficulty * rng.uniform(0.5, 2, size=(n_factors, 49))
        calibration = Calibration.measure(errors[:n], factors[:, :n, None], source="")
        widths = calibration.half_widths(factors[:, n:, None], confidence=confidence, names=["y"])
        inside.append((errors[n:] <= widths).mean())
    assert confidence - 0.01 < np.mean(inside) < confidence + 1 / n + 0.01
    assert bool(calibration.constant()) == (n < MIN_ADAPTIVE)


def test_the_rank_is_the_least_that_is_enough():
    for n in range(1, 200):
        for percent in range(1, 100):
            rank = quantile_rank(n, percent / 100)
            assert rank * 100 >= (n + 1) * percent  # in whole numbers
            assert (rank - 1) * 100 < (n + 1) * percent


def test_needed_rows_are_the_least_that_have_the_quantile():
    for percent in range(1, 1000):
        needed = needed_rows(percent / 1000)
        assert quantile_rank(needed, percent / 1000) <= needed
        assert needed == 1 or quantile_rank(needed - 1, percent / 1000) > needed - 1
    assert (needed_rows(0.9), needed_rows(0.95), needed_rows(0.99)) == (9, 19, 99)


# What users see.


@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.9])
def test_that_share_of_the_calibration_crystals_lies_inside(single, ensemble, confidence):
    for model in (single, ensemble):
        found = model.predict_interval(SALTS[4:], confidence=confidence)
        assert list(found.columns) == COLUMNS
        assert np.array_equal(found["prediction"], model.predict(SALTS[4:]))
        assert (found["lower"] <= found["prediction"]).all()
        assert (found["prediction"] <= found["upper"]).all()
        tolerance = 1e-9  # the outermost crystal lies on the border
        inside = (found["lower"] - tolerance <= Y[4:]) & (Y[4:] <= found["upper"] + tolerance)
        assert inside.sum() == quantile_rank(12, confidence)


def test_the_interval_of_a_logarithm_is_a_factor(single):
    found = single.predict_interval(SALTS)
    factor = found["upper"] / found["prediction"]
    assert factor.to_numpy() == pytest.approx(found["prediction"] / found["lower"])
    assert factor.to_numpy() == pytest.approx(np.full(16, factor[0]))
    assert factor[0] > 1


def many(n):
    """Salts of many sizes, and labels that vary among them."""
    structures = make_salts(n)
    return structures, np.linspace(1.0, 4.0, n) + np.arange(n) % 6


@pytest.mark.parametrize("n_members", [1, 2])
def test_where_prediction_is_difficult_the_interval_is_wider(n_members):
    structures, y = many(50)
    model = regressor(n_members=n_members)
    model.fit(structures[:20], y[:20], validation=(structures[20:], y[20:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none says that widths are equal
        found = model.predict_interval(structures)
    width = (found["upper"] - found["lower"]).to_numpy()
    assert len(model.calibration_.medians[0]) == 1 + n_members
    distance = model.domain(structures)["distance"].to_numpy()
    middle = model.calibration_.medians[0]
    assert middle[0] == pytest.approx(np.median(distance[20:]))
    rest = width / (distance / middle[0] + FLOOR)  # what the other factors say
    if n_members == 2:
        _, spread = model.predict(structures, return_std=True)
        rest /= spread / middle[2] + FLOOR
    assert (rest > 0).all()
    assert np.corrcoef(np.log(width), np.log(distance + 1e-3))[0, 1] > 0
    far = model.predict_interval([structures[0], make_isolated_atom()])
    assert far["in_domain"].tolist() == [True, False]
    assert np.diff(far["upper"] - far["lower"]) > 0


def test_few_calibration_crystals_have_equal_widths_and_say_so(single):
    with pytest.warns(UserWarning, match="of one width: 12 calibration crystals are fewer than 30"):
        single.predict_interval(SALTS)
    assert single.calibration_.constant()


def test_a_factor_without_a_median_does_not_count():
    errors, factors = np.ones((40, 1)), np.zeros((2, 40, 1))
    factors[1] = 2.0
    calibration = Calibration.measure(errors, factors, source="")
    widths = calibration.half_widths(factors, confidence=0.9, names=["y"])
    assert widths == pytest.approx(np.ones((40, 1)))


def test_more_confidence_wider_intervals(ensemble):
    widths = [
        ensemble.predict_interval(SALTS, confidence=confidence).eval("upper - lower").mean()
        for confidence in (0.3, 0.6, 0.9)
    ]
    assert widths == sorted(widths)


def test_a_root_is_never_negative():
    model = regressor(transform="sqrt").fit(SALTS[:4], Y[:4])
    model.calibrate(SALTS[4:], Y[4:] * 1e4)
    found = model.predict_interval(SALTS)
    assert (found["lower"] == 0).all()
    assert (found["upper"] > found["prediction"]).all()


def test_several_targets_with_gaps():
    targets = pd.DataFrame({"K": Y, "G": Y**2})
    targets.loc[4:6, "G"] = np.nan
    model = regressor(target_names=["K", "G"])
    model.fit(SALTS[:4], targets[:4], validation=(SALTS[4:], targets[4:]))
    assert [len(scores) for scores in model.calibration_.scores] == [12, 9]
    series = pd.Series(SALTS, index=[f"mp-{i}" for i in range(16)])
    found = model.predict_interval(series)
    assert list(found.columns) == [(name, column) for name in ("K", "G") for column in COLUMNS]
    assert list(found.index) == list(series.index)
    assert np.array_equal(found["G", "prediction"], model.predict(series)["G"])
    with pytest.raises(SettingsError, match="at least 10 calibration crystals with 'G', there are"):
        model.predict_interval(SALTS, confidence=0.905)


def test_pandas_in_and_rows_that_are_no_crystals(single):
    series = pd.Series([SALTS[0], None], index=["a", "b"], name="structure")
    with pytest.raises(StructureTypeError, match=r"row 1 \(index 'b'\)"):
        single.predict_interval(series)
    found = single.predict_interval(series, ignore_errors=True)
    assert list(found.index) == ["a", "b"]
    assert found.loc["a"].notna().all()
    assert found.loc["b", COLUMNS[:3]].isna().all()
    assert not found.loc["b", "in_domain"]
    assert single.predict_interval([]).shape == (0, 4)


def test_equal_labels_have_intervals_of_no_width():
    with pytest.warns(UserWarning, match="are equal"):
        model = regressor(n_members=2).fit(SALTS, np.full(16, 0.1))
    found = model.calibrate(SALTS, np.full(16, 0.1)).predict_interval(SALTS)
    assert found[COLUMNS[:3]].to_numpy() == pytest.approx(np.full((16, 3), 0.1))


# Calibration crystals.


def test_all_members_hold_out_the_same_rows(monkeypatch):
    monkeypatch.setattr(splits, "MIN_VALIDATED", 10)
    seen = []
    train_once = training.fit_model

    def spy(*args, **options):
        rows = args[5]
        seen.append((list(rows.train), list(rows.held_out)))
        return train_once(*args, **options)

    monkeypatch.setattr(training, "fit_model", spy)
    model = regressor(n_members=3, validation_fraction=0.3, seed=5).fit(SALTS, Y)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    train, held_out = splits.split_rows(16, fraction=0.3, seed=5)
    assert seen[0] == (list(train), list(held_out))
    expected = regressor(n_members=3, seed=5).fit(
        [SALTS[i] for i in train], Y[train], validation=([SALTS[i] for i in held_out], Y[held_out])
    )
    assert model.calibration_.scores[0] == pytest.approx(expected.calibration_.scores[0], rel=1e-4)
    assert model.calibration_.source == "the rows that fit held out"


def test_calibrate_takes_the_place_of_held_out_rows(single):
    model = CrysXPPRegressor.from_dict(single.as_dict())
    assert model.calibrate(SALTS[4:], Y[4:]) is model
    assert model.calibration_.scores[0] == pytest.approx(single.calibration_.scores[0])
    assert model.calibration_.source == "the rows given to calibrate"
    model.calibrate(SALTS[:10], np.where(np.arange(10) == 3, np.nan, Y[:10]))
    assert len(model.calibration_.scores[0]) == 9
    assert np.array_equal(model.predict(SALTS), single.predict(SALTS))


def test_nothing_held_out_no_intervals():
    for model in (regressor().fit(SALTS, Y), regressor(validation_fraction=0.0).fit(SALTS, Y)):
        assert model.calibration_ is None
        with pytest.raises(SettingsError, match=r"none were held out; call calibrate\(X, y\)"):
            model.predict_interval(SALTS)
        assert model.calibrate(SALTS, Y).predict_interval(SALTS).shape == (16, 4)
        model.fit(SALTS, Y)  # forgets them
        with pytest.raises(SettingsError, match="none were held out"):
            model.predict_interval(SALTS)


def test_too_few_for_the_confidence(single):
    few = CrysXPPRegressor.from_dict(single.as_dict()).calibrate(SALTS[:5], Y[:5])
    with pytest.raises(SettingsError, match=r"confidence=0.99 needs at least 99 .* there are 5"):
        few.predict_interval(SALTS, confidence=0.99)
    with pytest.raises(SettingsError, match="at least 9 calibration crystals"):
        few.predict_interval(SALTS)
    assert few.predict_interval(SALTS, confidence=0.8).notna().all(axis=None)


@pytest.mark.parametrize("confidence", [0, 1, -0.1, 90, float("nan")])
def test_confidence_is_a_share(single, confidence):
    with pytest.raises(SettingsError, match="confidence must lie between 0 and 1"):
        single.predict_interval(SALTS, confidence=confidence)


@pytest.mark.parametrize("confidence", ["0.9", None, True])
def test_confidence_is_a_number(confidence):
    with pytest.raises(SettingsError, match="confidence must be a number"):
        check_confidence(confidence)


def test_nothing_fitted():
    for call in (
        lambda: regressor().predict_interval(SALTS),
        lambda: regressor().calibrate(SALTS, Y),
    ):
        with pytest.raises(NotFittedError):
            call()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        (Y[:3], "y has 3 labels"),
        (np.ones((16, 2)), "y has 2 targets, the model predicts 1"),
        (np.full(16, np.nan), "'target' has no label at all"),
        (-Y, "target is -1 at row 0, but transform log10 takes positive"),
    ],
)
def test_labels_that_cannot_calibrate(single, y, message):
    before = single.calibration_
    with pytest.raises(DataError, match=message):
        single.calibrate(SALTS, y)
    assert single.calibration_ is before


def test_labels_are_found_by_name():
    targets = pd.DataFrame({"K": Y, "G": Y**2})
    model = regressor().fit(SALTS, targets)
    expected = model.calibrate(SALTS, targets).calibration_
    assert model.calibrate(SALTS, targets[["G", "K"]]).calibration_ == expected
    assert model.calibrate(SALTS, targets.to_numpy()).calibration_ == expected
    assert model.calibrate(SALTS, targets.set_axis(["a", "b"], axis=1)).calibration_ == expected
    assert model.score(SALTS, targets[["G", "K"]]) == model.score(SALTS, targets)
    with pytest.raises(DataError, match="y has the targets 'G', 'nu', the model predicts 'K', 'G'"):
        model.calibrate(SALTS, targets.rename(columns={"K": "nu"})[["G", "nu"]])


def test_bad_crystals_cannot_calibrate(single):
    with pytest.raises(StructureTypeError, match="row 1: "):
        single.calibrate([make_nacl(), None], [1.0, 2.0])


# Files.


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_a_loaded_model_has_equal_intervals(single, ensemble, tmp_path, ending):
    for model in (single, ensemble):
        path = tmp_path / f"model.{ending}"
        model.save(path)
        again = CrysXPPRegressor.load(path)
        assert again.calibration_ == model.calibration_
        pd.testing.assert_frame_equal(
            again.predict_interval(SALTS), model.predict_interval(SALTS), check_exact=True
        )
        dumpfn({"model": model}, tmp_path / "m.json")
        assert loadfn(tmp_path / "m.json")["model"].calibration_ == model.calibration_


def _rehashed(document):
    plain = {key: value for key, value in document.items() if not key.startswith("@")}
    return {**document, "sha256": document_hash(plain)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["calibration"].pop("medians"), "must have scores, medians and source"),
        (lambda s: s["calibration"].update(more=1), "must have scores, medians and source"),
        (lambda s: s.update(calibration=[]), "must have scores, medians and source"),
        (lambda s: s["calibration"]["scores"].append([1.0]), "not one of 1 targets"),
    ],
)
def test_damaged_calibrations_are_refused(single, change, message):
    document = json.loads(json.dumps(single.as_dict()))
    change(document["state"])
    with pytest.raises(ModelFileError, match=message):
        CrysXPPRegressor.from_dict(_rehashed(document))


def first_version(model):
    """The document that version 1 of the format made of a model with a calibration."""
    document = json.loads(json.dumps(model.as_dict()))
    document["format_version"], state = 1, document["state"]
    state["calibration"] = {"scores": [[1.0] * 20], "floors": [0.0], "source": "fit"}
    domain, reference = model.domain_, model.domain_.reference
    arrays = {
        **{name: getattr(reference, name) for name in ("mean", "scale", "components")},
        "reference": reference.places.astype(np.float32),
        "elements": domain.elements,
        "sizes": domain.sizes,
        "unit": domain.units[:1],
    }
    state["domain"] = {
        "n_columns": len(reference.mean),
        "n_components": len(reference.components),
        "n_reference": len(reference),
        "arrays": weights_to_dict(Arrays(arrays)),
    }
    return _rehashed(document)


def test_files_of_version_1_keep_what_they_had_and_say_so(single):
    model = CrysXPPRegressor.from_dict(first_version(single))
    with pytest.warns(UserWarning, match="version 1") as told:
        found = model.predict_interval(SALTS)
    assert "one width: the model file is of version 1" in str(told[0].message)
    factor = found["upper"] / found["prediction"]
    assert factor.to_numpy() == pytest.approx(np.full(16, 10.0))  # an error of 1 in log10
    with pytest.warns(UserWarning, match=r"names no training crystals.*measure_again"):
        domain = model.domain([*SALTS, make_isolated_atom()])
    assert domain[["nearest_1", "formula_3"]].isna().all(axis=None)
    assert not domain["learned_from"].any()
    assert domain["in_domain"].tolist()[:4] == [True] * 4
    assert not domain["in_domain"].iloc[-1]
    again = CrysXPPRegressor.from_dict(json.loads(json.dumps(model.as_dict())))
    assert again.calibration_ == model.calibration_
    assert again.domain_.first
    assert again.fine_tune(SALTS, Y, max_epochs=1).domain_.first
    ensemble = Calibration.from_plain(
        {"scores": [[1.0] * 20], "floors": [0.5], "source": ""}, n_targets=1
    )
    assert not ensemble.constant()
    factors = np.array([[[9.0], [9.0]], [[0.0], [1.2]]])
    widths = ensemble.half_widths(factors, confidence=0.9, names=["y"])
    assert widths[:, 0] == pytest.approx([0.5, 1.3])


def test_measured_again_from_the_crystals_of_fit(monkeypatch):
    monkeypatch.setattr(splits, "MIN_VALIDATED", 40)
    structures, y = many(120)
    series = pd.Series(structures, index=[f"mp-{i}" for i in range(120)])
    model = regressor(validation_fraction=0.3, seed=2).fit(series, y)
    old = CrysXPPRegressor.from_dict(first_version(model))
    assert old.measure_again(series, y) is old
    assert old.calibration_ == model.calibration_
    pd.testing.assert_frame_equal(old.domain(series), model.domain(series))
    with pytest.raises(DataError, match="not the crystals and labels that the model has learned"):
        old.measure_again(series[::-1], y[::-1])
    tuned = model.fine_tune(series, y, max_epochs=1)
    with pytest.raises(DataError, match="give those of its one fit"):
        tuned.measure_again(series, y)
    with pytest.raises(NotFittedError):
        regressor().measure_again(series, y)


# Sets of classes.


def test_sets_of_classes_hold_the_true_one():
    model = classifier().fit(SALTS[:4], CLASSES[:4], validation=(SALTS[4:], CLASSES[4:]))
    assert not hasattr(model, "predict_interval")
    series = pd.Series(SALTS[4:], index=list("abcdefghijkl"))
    for confidence in (0.5, 0.9):
        found = model.predict_set(series, confidence=confidence)
        assert list(found.columns) == ["metal", "non-metal", "in_domain"]
        assert list(found.index) == list(series.index)
        right = found[["metal", "non-metal"]].to_numpy()[np.arange(12), np.arange(12) % 2]
        assert right.sum() >= quantile_rank(12, confidence)
        assert found[["metal", "non-metal"]].any(axis=1).all()
    again = CrysXPPClassifier.from_dict(json.loads(json.dumps(model.as_dict())))
    pd.testing.assert_frame_equal(again.predict_set(series), model.predict_set(series))
    bad = model.predict_set([SALTS[0], None], ignore_errors=True)
    assert not bad.iloc[1].any()
    assert model.predict_set([]).shape == (0, 3)
    with pytest.raises(SettingsError, match=r"confidence=0.99 needs at least 99"):
        model.predict_set(SALTS, confidence=0.99)
    model.calibrate(SALTS[:5], [*CLASSES[:4], None])
    assert len(model.calibration_.scores[0]) == 4
    with pytest.raises(SettingsError, match="there are no calibration crystals"):
        classifier().fit(SALTS, CLASSES).predict_set(SALTS)
