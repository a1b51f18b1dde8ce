"""A fitted estimator goes on learning: what moves, and what has to stay."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import make_perovskite
from salts import CLASSES, SALTS, Y, classifier, regressor
from sklearn.exceptions import NotFittedError

from crysxpp_mm.errors import DataError, SettingsError, StructureTypeError
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor, ensemble, splits
from crysxpp_mm.training.fit import FitModule

TRAINED = {"max_epochs": 4, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def document():
    """A fitted ensemble as data; every test makes its own estimator of it."""
    model = regressor(n_members=2, transform="log10", units="GPa", target_names=["K"], **TRAINED)
    return model.fit(SALTS[:8], Y[:8], validation=(SALTS[8:], Y[8:])).as_dict()


@pytest.fixture
def fitted(document):
    return CrysXPPRegressor.from_dict(document)


@pytest.fixture
def fitted_classifier():
    return classifier(**TRAINED).fit(SALTS, CLASSES)


def weights(model):
    """Every weight and buffer of every member."""
    return [
        {name: value.clone() for name, value in member.state_dict().items()}
        for member in model.members_
    ]


# Laws.


def test_no_rate_no_change(fitted, fitted_classifier):
    before = fitted.predict(SALTS)
    assert fitted.fine_tune(SALTS, Y * 3, learning_rate=1e-12, max_epochs=2) is fitted
    assert fitted.predict(SALTS) == pytest.approx(before, rel=1e-6)
    before = fitted_classifier.predict_proba(SALTS)
    fitted_classifier.fine_tune(SALTS, CLASSES[::-1], learning_rate=1e-12, max_epochs=2)
    assert fitted_classifier.predict_proba(SALTS) == pytest.approx(before, rel=1e-6)


def test_predictions_move_towards_shifted_labels(fitted):
    def error():
        return np.abs(np.log(fitted.predict(SALTS) / (3 * Y))).mean()

    errors = [error()]
    for _ in range(2):
        fitted.fine_tune(SALTS, 3 * Y, learning_rate=0.05, max_epochs=6)
        errors.append(error())
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_classes_move_towards_new_labels(fitted_classifier):
    before = fitted_classifier.predict_proba(SALTS)[:, 0].mean()
    y = ["metal"] * 16  # one class alone is enough to go on
    fitted_classifier.fine_tune(SALTS, y, learning_rate=0.05, max_epochs=10)
    assert fitted_classifier.predict_proba(SALTS)[:, 0].mean() > before + 0.1
    assert fitted_classifier.classes_.tolist() == ["metal", "non-metal"]


def test_what_labels_mean_stays(fitted):
    scales = [(m.target_mean.clone(), m.target_scale.clone()) for m in fitted.members_]
    inputs = [m.readout.input_mean.clone() for m in fitted.members_]
    series = pd.Series(Y * 100, name="another")
    fitted.fine_tune(SALTS, series, learning_rate=0.05, max_epochs=2)
    for member, (mean, scale), measured in zip(fitted.members_, scales, inputs, strict=True):
        assert member.target_mean.equal(mean)
        assert member.target_scale.equal(scale)
        assert member.readout.input_mean.equal(measured)
    assert fitted.target_names_ == ["K"]
    assert fitted.units_ == ["GPa"]
    assert (fitted.predict(SALTS) > 0).all()  # still a logarithm


def test_batch_norms_keep_their_statistics(fitted):
    before = weights(fitted)
    fitted.fine_tune([make_perovskite()] * 4, [1.0] * 4, learning_rate=0.05, max_epochs=3)
    changed = set()
    for old, new in zip(before, weights(fitted), strict=True):
        changed |= {name for name in old if not old[name].equal(new[name])}
        for name in old:
            if "running" in name or "num_batches" in name:
                assert name not in changed, name
    assert any(name.startswith("encoder") for name in changed)
    assert any(name.startswith("readout") for name in changed)


def test_equal_calls_give_equal_models(document):
    first, second = (
        CrysXPPRegressor.from_dict(document).fine_tune(SALTS, Y, max_epochs=2) for _ in range(2)
    )
    assert np.array_equal(first.predict(SALTS), second.predict(SALTS))
    assert first.as_dict() == second.as_dict()


def test_gaps_and_columns_by_name():
    targets = pd.DataFrame({"K": Y, "G": Y**2})
    model = regressor().fit(SALTS, targets)
    again = CrysXPPRegressor.from_dict(model.as_dict())
    targets.loc[3:, "G"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fine_tune(SALTS, targets)
    again.fine_tune(SALTS, targets[["G", "K"]])
    assert np.array_equal(again.predict(SALTS), model.predict(SALTS))


# Settings.


def test_rates_and_steps_follow_the_estimator(monkeypatch, fitted):
    configs = []

    def spy(network, graphs, targets, objective, config, rows, **options):
        configs.append(config)
        return pd.DataFrame({"epoch": [0]})

    monkeypatch.setattr(ensemble, "fit_model", spy)
    fitted.set_params(min_steps=40, frozen_epochs=2, weight_decay=0.1, element_start=0.5)
    fitted.fine_tune(SALTS, Y)
    fitted.fine_tune(SALTS, Y, learning_rate=0.04, max_epochs=2)
    default, _, named, _ = configs
    assert default.learning_rate == 0.02 / 16
    assert default.selector_rate == 6e-3 / 16
    assert default.encoder_rate == 1.0
    assert default.max_epochs == 10
    assert default.min_steps == 100  # 10 an epoch, as fit had them
    assert default.frozen_epochs == 0
    assert default.element_start == 0
    assert default.weight_decay == 0.1
    assert named.selector_rate == 6e-3 * 2
    assert named.min_steps == 20
    assert [config.seed for config in configs] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"learning_rate": "small"}, "learning_rate must be a number"),
        ({"max_epochs": 0}, "max_epochs must be a whole number"),
        ({"max_epochs": 2.5}, "max_epochs must be a whole number"),
        ({"validation": SALTS}, "validation must be a tuple"),
        ({"validation": (SALTS, Y), "groups": Y}, "not both"),
    ],
)
def test_senseless_options_are_named(fitted, options, message):
    before = fitted.as_dict()
    with pytest.raises(SettingsError, match=message):
        fitted.fine_tune(SALTS, Y, **options)
    assert fitted.as_dict() == before


# What is refused.


def test_nothing_fitted():
    for model, y in ((regressor(), Y), (classifier(), CLASSES)):
        with pytest.raises(NotFittedError, match="call fit"):
            model.fine_tune(SALTS, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        (Y[:3], "y has 3 labels"),
        (np.ones((16, 2)), "y has 2 targets, the model predicts 1"),
        (np.full(16, np.nan), "got 0 of 16"),
        (-Y, "K is -1 at row 0, but transform log10 takes positive numbers"),
        (CLASSES, "labels must be numbers"),
    ],
)
def test_labels_of_another_kind_are_refused(fitted, y, message):
    before = fitted.as_dict()
    with pytest.raises(DataError, match=message):
        fitted.fine_tune(SALTS, y)
    assert fitted.as_dict() == before


def test_a_target_without_any_label_is_refused():
    model = regressor().fit(SALTS, np.stack([Y, Y], axis=1))
    with pytest.raises(DataError, match="'target 1' has no label at all"):
        model.fine_tune(SALTS, np.stack([Y, np.full(16, np.nan)], axis=1))


@pytest.mark.parametrize(
    ("known", "y", "message"),
    [
        (CLASSES, ["metal", "glass"] * 8, "y holds 'glass' at row 1; the model knows .* 'metal'"),
        ([0, 1] * 8, [0, 2] * 8, "y holds 2 at row 1; the model knows the classes 0, 1"),
        ([0, 1] * 8, [False, True] * 8, "y holds False at row 0"),
        (CLASSES, ["metal"] * 3, "y has 3 labels"),
    ],
)
def test_unknown_classes_are_refused(known, y, message):
    model = classifier().fit(SALTS, known)
    with pytest.raises(DataError, match=message):
        model.fine_tune(SALTS, y)


def test_a_model_of_equal_labels_cannot_go_on():
    with pytest.warns(UserWarning, match="are equal"):
        model = regressor().fit(SALTS, np.full(16, 2.0))
    with pytest.raises(DataError, match=r"'target' was learned from equal labels.*fit anew"):
        model.fine_tune(SALTS, Y)


def test_bad_crystals_are_named(fitted):
    with pytest.raises(StructureTypeError, match="row 1: "):
        fitted.fine_tune([SALTS[0], None], [1.0, 2.0])


def test_rows_without_a_label_are_left_out(fitted):
    y = Y.copy()
    y[2] = np.nan
    with pytest.warns(UserWarning, match="1 of 16 rows are left out") as caught:
        fitted.fine_tune(SALTS, y, max_epochs=1)
    assert caught[0].filename == __file__
    assert fitted.left_out_["row"].tolist() == [2]
    assert fitted.n_train_ == 8 + 15


def test_a_failure_midway_changes_nothing(fitted, monkeypatch):
    before, predicted = fitted.as_dict(), fitted.predict(SALTS)
    train_once, calls = ensemble.fit_model, []

    def fail_later(*args, **options):
        if calls:
            raise FloatingPointError("the loss is not finite")
        calls.append(args)
        return train_once(*args, **options)

    monkeypatch.setattr(ensemble, "fit_model", fail_later)
    with pytest.raises(FloatingPointError):
        fitted.fine_tune(SALTS, Y, learning_rate=0.1)
    assert len(calls) == 1
    assert fitted.as_dict() == before
    assert np.array_equal(fitted.predict(SALTS), predicted)


# What is remembered.


def test_history_and_learning_curve(fitted):
    first_hash = fitted.data_hash_
    fitted.fine_tune(SALTS[:5], Y[:5], max_epochs=3)
    fitted.fine_tune(SALTS[5:], Y[5:], max_epochs=2, validation=(SALTS[:5], Y[:5]))
    assert [record["stage"] for record in fitted.history_] == ["fit", "fine_tune", "fine_tune"]
    assert [record["n_train"] for record in fitted.history_] == [8, 5, 11]
    assert [record["n_validation"] for record in fitted.history_] == [8, 0, 5]
    assert fitted.n_train_ == 24
    hashes = [record["data_hash"] for record in fitted.history_]
    assert hashes[0] == first_hash
    assert len({*hashes, fitted.data_hash_}) == 4
    curve = fitted.learning_curve_
    for member in (0, 1):
        part = curve[curve["member"] == member]
        assert part["stage"].tolist() == [0] * 4 + [1] * 3 + [2] * 2
        assert part["epoch"].tolist() == list(range(9))
    facts = fitted.members_[1].metadata
    assert [one["n_train"] for one in (*facts["before"], facts)] == [8, 5, 11]
    assert facts["pretrained"] == facts["before"][0]["pretrained"]
    assert facts["config"]["seed"] == 1


def test_save_load_and_go_on_again(fitted, tmp_path):
    fitted.fine_tune(SALTS, 2 * Y, max_epochs=2)
    path = tmp_path / "model.json.gz"
    fitted.save(path)
    again = CrysXPPRegressor.load(path)
    assert again.as_dict() == fitted.as_dict()
    for model in (fitted, again):
        model.fine_tune(SALTS, 2 * Y, max_epochs=2)
    assert np.array_equal(again.predict(SALTS), fitted.predict(SALTS))
    assert again.data_hash_ == fitted.data_hash_
    pd.testing.assert_frame_equal(again.domain(SALTS), fitted.domain(SALTS))
    again.fit(SALTS, Y)  # begins anew
    assert [record["stage"] for record in again.history_] == ["fit"]
    assert again.learning_curve_["stage"].eq(0).all()
    assert again.as_dict()["state"]["embedder"] is None


def test_save_load_and_go_on_with_classes(fitted_classifier):
    fitted_classifier.set_params(class_weight="balanced")
    fitted_classifier.fine_tune(SALTS, ["metal"] * 15 + ["non-metal"], max_epochs=2)
    again = CrysXPPClassifier.from_dict(json.loads(json.dumps(fitted_classifier.as_dict())))
    assert np.array_equal(again.predict_proba(SALTS), fitted_classifier.predict_proba(SALTS))
    again.fine_tune(SALTS, CLASSES, max_epochs=1)
    assert len(again.history_) == 3


def test_intervals_come_from_newly_held_out_rows(fitted, monkeypatch):
    fitted.predict_interval(SALTS, confidence=0.8)
    fitted.fine_tune(SALTS, Y, max_epochs=1, validation=(SALTS[:5], Y[:5]))
    assert fitted.calibration_.source == "the rows that fine_tune held out"
    assert len(fitted.calibration_.scores[0]) == 5
    same = CrysXPPRegressor.from_dict(fitted.as_dict()).calibrate(SALTS[:5], Y[:5])
    assert same.calibration_.scores[0] == pytest.approx(fitted.calibration_.scores[0])
    fitted.fine_tune(SALTS, Y, max_epochs=1)
    with pytest.raises(SettingsError, match="none were held out"):
        fitted.predict_interval(SALTS)
    monkeypatch.setattr(splits, "MIN_VALIDATED", 10)
    groups = np.arange(16) // 4
    fitted.set_params(validation_fraction=0.25).fine_tune(SALTS, Y, max_epochs=1, groups=groups)
    assert fitted.history_[-1]["n_validation"] == 4
    assert len(fitted.calibration_.scores[0]) == 4


def test_the_domain_becomes_old_and_new_crystals(fitted):
    new = [make_perovskite(), make_perovskite()]
    before = fitted.domain([*SALTS, *new])
    assert before["unseen_elements"].iloc[-1] == "Sr"
    assert not before["in_domain"].iloc[-1]
    network = {name: value.clone() for name, value in fitted.members_[0].state_dict().items()}
    fitted.fine_tune(new, [1.0, 2.0], learning_rate=0.1, max_epochs=3)
    after = fitted.domain([*SALTS, *new])
    assert (after["unseen_elements"] == "").all()
    assert after["size_in_range"].all()
    assert len(fitted.domain_.reference) == 10
    assert after["distance"].iloc[-1] < before["distance"].iloc[-1]
    # Places are those of before, whatever the encoder has learned since: more crystals make the
    # nearest ones nearer.
    assert (after["distance"] <= before["distance"] + 1e-6).all()
    # The network that places them is that of before, also after the next time.
    fitted.fine_tune(new, [1.0, 2.0], max_epochs=1)
    assert not same_weights(fitted.members_[0], network)
    assert same_weights(fitted._embedder, network)


def same_weights(model, weights):
    return all(value.equal(weights[name]) for name, value in model.state_dict().items())


# Checkpoints.


class Killed(BaseException):
    """The end of a process."""


def test_a_killed_run_goes_on(document, tmp_path, monkeypatch):
    options = {"learning_rate": 0.02, "max_epochs": 4}
    expected = CrysXPPRegressor.from_dict(document).fine_tune(SALTS, Y, **options)
    first = CrysXPPRegressor.from_dict(document).set_params(checkpoint_dir=tmp_path)
    step = FitModule.training_step

    def killed(self, batch, batch_index):
        if self.current_epoch == 2:
            raise Killed
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(FitModule, "training_step", killed)
        with pytest.raises(Killed):
            first.fine_tune(SALTS, Y, **options)
    assert len(list(tmp_path.glob("run-*/last.ckpt"))) == 1
    epochs = []

    def watched(self, batch, batch_index):
        epochs.append(self.current_epoch)
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(FitModule, "training_step", watched)
        first.fine_tune(SALTS, Y, **options)
    assert epochs[0] == 2  # of the first member, which was killed in it
    assert np.array_equal(first.predict(SALTS), expected.predict(SALTS))
    assert first.learning_curve_["epoch"].tolist() == expected.learning_curve_["epoch"].tolist()
    # Another start is another run.
    first.fine_tune(SALTS, Y, **options)
    assert len(list(tmp_path.glob("run-*/last.ckpt"))) == 4
