"""Intervals: they hold the truth as often as they say, and say when they cannot."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import make_nacl
from monty.serialization import dumpfn, loadfn
from salts import CLASSES, SALTS, Y, classifier, regressor
from sklearn.exceptions import NotFittedError

from crysxpp_mm.errors import DataError, ModelFileError, SettingsError, StructureTypeError
from crysxpp_mm.estimators import CrysXPPRegressor, splits
from crysxpp_mm.estimators import ensemble as training
from crysxpp_mm.estimators.document import document_hash
from crysxpp_mm.estimators.intervals import (
    Calibration,
    check_confidence,
    needed_rows,
    quantile_rank,
)

COLUMNS = ["prediction", "lower", "upper"]


@pytest.fixture(scope="module")
def single():
    """One network with 12 calibration crystals; not to be changed."""
    return regressor(transform="log10").fit(SALTS[:4], Y[:4], validation=(SALTS[4:], Y[4:]))


@pytest.fixture(scope="module")
def ensemble():
    """Three networks; not to be changed."""
    return regressor(n_members=3).fit(SALTS[:4], Y[:4], validation=(SALTS[4:], Y[4:]))


# The law.


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(n_members, confidence):
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(600):
        difficulty = rng.uniform(0.2, 2.0, 49)
        outputs = difficulty[None, :, None] * rng.normal(size=(n_members, 49, 1))
        truth = difficulty[:, None] * rng.standard_t(3, size=(49, 1))
        calibration = Calibration.measure(outputs[:, :29], truth[:29], source="")
        widths = calibration.half_widths(outputs[:, 29:], confidence=confidence, names=["y"])
        inside.append(np.abs(truth[29:] - outputs[:, 29:].mean(axis=0)) <= widths)
    assert confidence - 0.01 < np.mean(inside) < confidence + 1 / 30 + 0.01


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


def test_where_members_disagree_the_interval_is_wider(ensemble):
    found = ensemble.predict_interval(SALTS)
    width = found["upper"] - found["lower"]
    _, spread = ensemble.predict(SALTS, return_std=True)
    assert np.array_equal(np.argsort(width), np.argsort(spread))
    floor = ensemble.calibration_.floors[0]
    assert floor == pytest.approx(np.median(ensemble.predict(SALTS[4:], return_std=True)[1]))
    ratio = width / np.sqrt(spread**2 + floor**2)
    assert ratio.to_numpy() == pytest.approx(np.full(16, ratio[0]))


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
    assert found.loc["b"].isna().all()
    assert single.predict_interval([]).shape == (0, 3)


def test_equal_labels_have_intervals_of_no_width():
    with pytest.warns(UserWarning, match="are equal"):
        model = regressor(n_members=2).fit(SALTS, np.full(16, 0.1))
    found = model.calibrate(SALTS, np.full(16, 0.1)).predict_interval(SALTS)
    assert found.to_numpy() == pytest.approx(np.full((16, 3), 0.1))


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
        assert model.calibrate(SALTS, Y).predict_interval(SALTS).shape == (16, 3)
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
        (lambda s: s["calibration"].pop("floors"), "must have scores, floors and source"),
        (lambda s: s["calibration"].update(more=1), "must have scores, floors and source"),
        (lambda s: s.update(calibration=[]), "must have scores, floors and source"),
        (lambda s: s["calibration"]["scores"].append([1.0]), "not one of 1 targets"),
    ],
)
def test_damaged_calibrations_are_refused(single, change, message):
    document = json.loads(json.dumps(single.as_dict()))
    change(document["state"])
    with pytest.raises(ModelFileError, match=message):
        CrysXPPRegressor.from_dict(_rehashed(document))


def test_a_classifier_has_none():
    model = classifier().fit(SALTS[:4], CLASSES[:4], validation=(SALTS[4:], CLASSES[4:]))
    assert model.calibration_ is None
    assert not hasattr(model, "predict_interval")
