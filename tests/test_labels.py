"""What an estimator makes of labels: their kinds, gaps, names, transforms and splits."""

from __future__ import annotations

import re
import warnings
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from salts import CLASSES, SALTS, Y, classifier, regressor
from sklearn.exceptions import NotFittedError

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators import CrysXPPRegressor, splits
from crysxpp_mm.estimators.splits import split_rows

# Labels.


def test_transform_is_undone():
    y = 10.0 ** np.linspace(-3, 4, 16)
    config = {"max_epochs": 12, "learning_rate": 0.03}
    for transform in ("log10", "log"):
        model = regressor(transform=transform, **config).fit(SALTS, y)
        found = model.predict(SALTS)
        assert (found > 0).all()
        assert np.corrcoef(np.log(found), np.log(y))[0, 1] > 0.5


def test_transforms_of_several_targets():
    targets = pd.DataFrame({"K": Y, "gap": Y - 1, "nu": -Y})
    model = regressor(transform={"K": "log10", "gap": "sqrt"}).fit(SALTS, targets)
    assert (model.predict(SALTS)[:, 1] >= 0).all()
    same = regressor(transform=["log10", "sqrt", None]).fit(SALTS, targets)
    assert np.array_equal(model.predict(SALTS), same.predict(SALTS))
    assert (regressor(transform="log1p").fit(SALTS, Y - 1).predict(SALTS) > -1).all()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("log2", "unknown transform 'log2'"),
        (["log10", "log10"], "2 entries for 1 targets"),
        ({"G": "log10"}, "names the target 'G'"),
        (5, "transform must be"),
        ([5], "unknown transform 5"),
    ],
)
def test_senseless_transforms(transform, message):
    with pytest.raises(SettingsError, match=message):
        regressor(transform=transform).fit(SALTS, Y)


def test_label_outside_the_transform_is_named():
    y = pd.Series(Y.copy(), name="K")
    y[3] = -1
    with pytest.raises(DataError, match=r"K is -1 at row 3, but transform log10 takes positive"):
        regressor(transform="log10").fit(SALTS, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        (Y[:5], "16 crystals and y has 5 labels"),
        (["1.0"] * 16, "y holds '1.0' at row 0; labels must be numbers"),
        ([1.0, 2.0, "high"] + [3.0] * 13, "y holds 'high' at row 2; labels must be numbers"),
        ([1j] * 16, "must be numbers"),
        ([object()] * 16, "not a number"),
        ([[1], [1, 2]] * 8, "not a table of numbers"),
        (np.ones((16, 2, 2)), "one or two dimensions"),
        (np.ones((16, 0)), "no columns"),
        (np.where(Y > 3, np.inf, Y), "y is infinite at row"),
        (pd.date_range("2020", periods=16), "y holds datetime64.*must be numbers"),
        ([timedelta(1)] * 16, "y holds timedelta64.*must be numbers"),
        ([1.0] * 15 + [datetime(2020, 1, 1)], "y holds datetime.* at row 15"),
        (np.full(16, np.nan), "at least 2 rows .* got 0 of 16"),
        ([1.0] + [None] * 15, "at least 2 rows .* got 1 of 16"),
        (np.stack([Y, np.full(16, np.nan)], axis=1), "'target 1' has no label at all"),
    ],
)
def test_unusable_labels_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        regressor().fit(SALTS, y)


@pytest.mark.parametrize("index", [range(100, 116), pd.MultiIndex.from_product([["a"], range(16)])])
def test_a_row_is_named_by_its_index(index):
    crystals = pd.Series(SALTS, index=index)
    y = np.where(np.arange(16) == 3, np.inf, Y)
    name = re.escape(repr(list(index)[3]))
    with pytest.raises(DataError, match=rf"row 3 \(index {name}\)"):
        regressor().fit(crystals, y)


def test_a_fit_that_fails_leaves_nothing_fitted():
    model = regressor().fit(SALTS, Y)
    with pytest.raises(DataError):
        model.fit(SALTS, Y[:3])
    with pytest.raises(NotFittedError):
        model.predict(SALTS)


def test_no_rows():
    with pytest.raises(DataError, match="X is empty"):
        regressor().fit([], [])


def test_one_label_is_refused_and_two_are_enough():
    with pytest.raises(DataError, match="got 1 of 1"):
        regressor().fit(SALTS[:1], [1.0])
    assert np.isfinite(regressor().fit(SALTS[:2], [1.0, 2.0]).predict(SALTS)).all()


def test_constant_labels_give_the_constant():
    with pytest.warns(UserWarning, match="all labels of 'target' are equal"):
        model = regressor().fit(SALTS, np.full(16, 0.1))
    assert model.predict(SALTS) == pytest.approx(np.full(16, 0.1), rel=1e-15)


def test_unknown_labels_are_left_out_and_listed():
    y = pd.Series(Y.copy(), index=[f"mp-{i}" for i in range(16)])
    y.iloc[[2, 5]] = np.nan
    with pytest.warns(UserWarning, match="2 of 16 rows are left out"):
        model = regressor().fit(pd.Series(SALTS, index=y.index), y)
    assert model.n_train_ == 14
    assert model.left_out_["row"].tolist() == ["mp-2", "mp-5"]
    assert set(model.left_out_["reason"]) == {"no label"}
    kept = [i for i in range(16) if i not in (2, 5)]
    same = regressor().fit([SALTS[i] for i in kept], Y[kept])
    assert np.array_equal(model.predict(SALTS), same.predict(SALTS))
    assert model.data_hash_ == same.data_hash_


def test_gaps_in_several_targets():
    targets = np.stack([Y, Y], axis=1)
    targets[3:, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = regressor().fit(SALTS, targets)
    assert np.isfinite(model.predict(SALTS)).all()


def test_names_and_units():
    model = regressor(units=["GPa", ""], target_names=["K", "nu"])
    model.fit(SALTS, np.stack([Y, Y], axis=1))
    assert model.target_names_ == ["K", "nu"]
    assert model.units_ == ["GPa", ""]
    by_name = regressor(units={"K": "GPa"}).fit(SALTS, pd.Series(Y, name="K"))
    assert by_name.units_ == ["GPa"]
    for options, message in (
        ({"units": ["GPa", "eV"]}, "units has 2 entries"),
        ({"units": {"G": "GPa"}}, "units names the target 'G'"),
        ({"target_names": ["a", "b"]}, "target_names has 2 names"),
    ):
        with pytest.raises(SettingsError, match=message):
            regressor(**options).fit(SALTS, Y)
    with pytest.raises(SettingsError, match="two targets have one name"):
        regressor(target_names=["a", "a"]).fit(SALTS, np.stack([Y, Y], axis=1))


def test_masked_labels_are_unknown():
    y = np.ma.array([1e6, *Y[1:]], mask=[True] + [False] * 15)
    with pytest.warns(UserWarning, match="1 of 16 rows are left out"):
        model = regressor().fit(SALTS, y)
    same = regressor().fit(SALTS[1:], Y[1:])
    assert np.array_equal(model.predict(SALTS), same.predict(SALTS))


def test_nonnegative_labels_are_learned_as_such():
    y = np.where(np.arange(16) < 8, 0.0, Y)
    settings = {"max_epochs": 4, "min_steps": 40, "learning_rate": 0.02}
    model = regressor(transform="nonnegative", units="eV", n_members=2, **settings).fit(SALTS, y)
    graphs = model.converter_.convert_many(SALTS)
    raw = np.stack([member.predict(graphs)[:, 0] for member in model.members_])
    assert raw.min() < 0  # which the loss leaves alone
    assert model.predict(SALTS) == pytest.approx(np.maximum(raw, 0).mean(axis=0))
    assert model.predict(SALTS).min() == 0
    plain = regressor(n_members=2, **settings).fit(SALTS, y)
    assert not np.array_equal(plain.members_[0].predict(graphs)[:, 0], raw[0])
    again = CrysXPPRegressor.from_dict(model.as_dict())
    assert np.array_equal(again.predict(SALTS), model.predict(SALTS))
    intervals = model.calibrate(SALTS, y).predict_interval(SALTS, confidence=0.5)
    assert intervals.to_numpy().min() == 0
    errors = np.abs(model.predict(SALTS) - y)  # of predictions, not of raw outputs
    assert model.calibration_.scores[0] == pytest.approx(np.sort(errors))  # few, so of one width
    negative = int(raw.mean(axis=0).argmin())
    found = model.contributions(SALTS[negative])
    assert found.name == "target (0 where negative)"
    assert found.prediction < 0
    with pytest.raises(DataError, match="nonnegative takes numbers of at least 0"):
        regressor(transform="nonnegative").fit(SALTS, y - 1)


def test_columns_of_validation_are_found_by_name():
    y = pd.DataFrame({"a": Y, "b": 100 * Y})
    straight, turned = (
        regressor().fit(SALTS[:12], y[:12], validation=(SALTS[12:], y.loc[12:, names]))
        for names in (["a", "b"], ["b", "a"])
    )
    assert straight.learning_curve_.equals(turned.learning_curve_)
    assert straight.calibration_ == turned.calibration_
    with pytest.raises(DataError, match="validation: y has the targets 'a', 'c'"):
        regressor().fit(SALTS, y, validation=(SALTS, y.rename(columns={"b": "c"})))


def test_what_is_learned_from_has_to_say_something_of_every_target(monkeypatch):
    y = np.stack([Y, Y], axis=1)
    with pytest.raises(DataError, match="'target 1' has no label at all"):
        regressor().fit(SALTS, np.where([True, False], y, np.nan), validation=(SALTS, y))
    with pytest.warns(UserWarning, match="all labels of 'target' are equal"):
        regressor().fit(SALTS, np.ones(16), validation=(SALTS, Y))
    with pytest.raises(DataError, match="validation: y holds 'glass' at row 0; the model knows"):
        classifier().fit(SALTS, CLASSES, validation=(SALTS[:1], ["glass"]))
    monkeypatch.setattr(
        "crysxpp_mm.estimators.base.split_rows",
        lambda n_rows, **options: (np.arange(8), np.arange(8, n_rows)),
    )
    y[:8, 1] = np.nan
    with pytest.raises(DataError, match="left to learn from have no label of 'target 1'"):
        regressor().fit(SALTS, y)


# Splits.


def test_groups_are_never_divided():
    groups = np.repeat(np.arange(10), 30)
    for seed in range(20):
        train, held_out = split_rows(300, fraction=0.2, seed=seed, groups=groups)
        assert len(held_out) == 60
        assert not set(groups[train]) & set(groups[held_out])
        assert sorted([*train, *held_out]) == list(range(300))
    with pytest.raises(DataError, match="of one group"):
        split_rows(300, fraction=0.2, seed=0, groups=np.zeros(300, dtype=int))


@pytest.mark.parametrize(
    ("sizes", "expected"), [([199, 1], 1), ([180, 20], 20), ([90, 90, 20], 20), ([50] * 4, 50)]
)
@pytest.mark.filterwarnings("ignore:whole groups make")
def test_a_large_group_is_learned_from(sizes, expected):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    chosen = set()
    for seed in range(40):
        _, held_out = split_rows(200, fraction=0.1, seed=seed, groups=groups)
        assert len(held_out) == expected
        chosen |= set(groups[held_out].tolist())
    assert len(chosen) == sizes.count(expected)  # the seed draws among equal ones


def test_groups_that_cannot_be_held_out_as_asked():
    halves = np.repeat([0, 1], 100)
    with pytest.warns(UserWarning, match="100 of 200 rows that are held out, where 20 were asked"):
        split_rows(200, fraction=0.1, seed=0, groups=halves)
    with pytest.raises(DataError, match="no group can be held out"):
        split_rows(200, fraction=0.1, seed=0, groups=halves, strata=halves)


def test_groups_leave_every_class_in_training():
    groups = np.repeat(np.arange(10), 20)
    strata = (groups == 4).astype(int)
    for seed in range(20):
        _, held_out = split_rows(200, fraction=0.3, seed=seed, groups=groups, strata=strata)
        assert len(held_out) == 60
        assert not (groups[held_out] == 4).any()


def test_every_class_stays_in_training():
    strata = np.array([0] * 199 + [1])
    for seed in range(20):
        train, held_out = split_rows(200, fraction=0.5, seed=seed, strata=strata)
        assert 199 in train
        assert len(held_out) == 100


def test_few_rows_are_all_learned_from():
    train, held_out = split_rows(199, fraction=0.5, seed=0)
    assert len(train) == 199
    assert len(held_out) == 0


def test_groups_and_validation(monkeypatch):
    monkeypatch.setattr(splits, "MIN_VALIDATED", 10)
    groups = [f"system {i % 4}" for i in range(16)]
    model = regressor().fit(SALTS, Y, groups=groups)
    assert model.members_[0].metadata["n_validation"] == 4
    model = regressor().fit(SALTS[:12], Y[:12], validation=(SALTS[12:], Y[12:]))
    assert model.n_train_ == 12
    assert model.members_[0].metadata["n_validation"] == 4
    for options, error, message in (
        ({"groups": groups[:3]}, DataError, "groups has 3 entries"),
        ({"groups": [None, *groups[1:]]}, DataError, "no entry at row 0"),
        ({"validation": SALTS}, SettingsError, "validation must be a tuple"),
        ({"validation": (SALTS[:1], [np.nan])}, DataError, "no row of validation"),
        ({"validation": (SALTS[:1], np.ones((1, 2)))}, DataError, "validation: y has 2 targets"),
        ({"validation": (SALTS[:1], ["x"])}, DataError, "validation: y holds 'x' at row 0"),
        ({"validation": (SALTS, Y), "groups": groups}, SettingsError, "not both"),
    ):
        with pytest.raises(error, match=message):
            regressor().fit(SALTS, Y, **options)
