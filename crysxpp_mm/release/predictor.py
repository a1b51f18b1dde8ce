"""From a fitted estimator to a folder that can be shipped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators.base import PropertyEstimator
from crysxpp_mm.estimators.transforms import choose_transforms
from crysxpp_mm.plots import plot_curves
from crysxpp_mm.release.cards import (
    CARD,
    GOLDEN,
    SETTINGS,
    golden_crystals,
    n_parameters,
    render_card,
    seven_digits,
)
from crysxpp_mm.serialization import write_document
from crysxpp_mm.shipped import MODEL_FILE, is_path
from crysxpp_mm.training.checkpoints import CURVES, PICTURE

THIS_MODEL = "this model"
"""What the column ``method`` of the results calls the model that is shipped."""
MAX_BYTES = 5_000_000
"""Largest model file that is shipped."""


def golden_predictions(estimator: PropertyEstimator) -> dict[str, dict[str, float]]:
    """Predictions for the golden crystals, to seven digits.

    Returns:
        For each crystal the value of every target, in its unit, and of an ensemble the standard
        deviation over the members (``"K_VRH std"``); of a classifier the probability of every
        class.
    """
    crystals = golden_crystals()
    table = pd.Series(list(crystals.values()), index=list(crystals), dtype=object)
    if is_classifier(estimator):
        probabilities = estimator.predict_proba(table)
        predicted = pd.DataFrame(probabilities, index=table.index, columns=estimator.classes_)
    elif len(estimator.members_) == 1:
        predicted = pd.DataFrame(cast("pd.Series[Any]", estimator.predict(table)))
    else:
        pair = cast("list[pd.Series[Any]]", estimator.predict(table, return_std=True))
        values, spread = (pd.DataFrame(part) for part in pair)
        predicted = pd.concat([values, spread.add_suffix(" std")], axis=1)
    return {
        str(crystal): {str(column): seven_digits(value) for column, value in row.items()}
        for crystal, row in predicted.iterrows()
    }


def write_predictor_release(
    estimator: PropertyEstimator,
    folder: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    results: pd.DataFrame,
    data: str,
    split: str,
    train_ids: Sequence[str],
    test_ids: Sequence[str] = (),
    licence: str,
    citations: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> Path:
    """Write the folder of a property predictor that is to be shipped.

    It receives ``model.json.gz``, ``README.md`` (the card), ``settings.json`` (to train it again),
    ``golden.json``, and the log of the training as ``curves.csv`` and ``curves.png``. The
    estimator stays as it is.

    Args:
        estimator: A fitted regressor or classifier.
        folder: Folder of the model; its name is the model's.
        title: What the model predicts, in a line without a full stop.
        summary: A paragraph for the card: how it was made, what it is for.
        results: Errors on crystals that were held out, one row for each method (and target):
            ``method`` is ``"this model"`` or the name of a control, of which there must be one at
            least; ``target`` may be absent if there is one. Every other column is printed; a
            column ``{metric}_std``, the spread over seeds, beside its metric. A regressor needs
            ``mae``, in the unit of the target, a classifier ``accuracy``.
        data: Where crystals and labels come from.
        split: How the test crystals were set apart, and what the spread is over.
        train_ids: Names of all crystals that were learned from, those that chose the best epoch
            included.
        test_ids: Names of the test crystals; none if the shipped weights learned from all, and
            the errors are those of other weights (``split`` has to say so).
        licence: Under which licence the data are.
        citations: BibTeX of the data, also given by ``CrysXPPFeaturizer.citations``.
        limits: Further limits for the card, a sentence each.

    Returns:
        ``folder``.

    Raises:
        NotFittedError: nothing was learned yet.
        SettingsError: the encoder came from a path, which means nothing elsewhere, or the file
            is too large to be shipped.
        DataError: ``results`` lack a row or a column, or the ids are not those of the crystals
            learned from, or a test crystal is among them.
    """
    check_is_fitted(estimator)
    start = getattr(estimator, "pretrained", None)
    if isinstance(start, str | os.PathLike) and is_path(start):
        raise SettingsError(
            f"the encoder came from the file {Path(start).name}; to ship a predictor, start it "
            "from a shipped model by name or from a CrysAE object."
        )
    results = _check_results(results, estimator)
    train_ids, test_ids = list(train_ids), list(test_ids)
    _check_ids(train_ids, test_ids, estimator)
    metric = _metric(estimator)
    own = results[results["method"] == THIS_MODEL].set_index("target")[metric]
    facts = {
        "description": title,
        "data": data,
        "split": split,
        "licence": licence,
        "citations": list(citations),
        "train_ids": _hash_of(train_ids),
        "test_ids": _hash_of(test_ids) if test_ids else None,
        "n_test": len(test_ids),
        f"test_{metric}": {target: float(own[target]) for target in estimator.target_names_},
        "results": [
            {str(k): None if pd.isna(v) else v for k, v in row.items()}
            for row in results.to_dict("records")
        ],
    }
    shipped = copy(estimator)
    shipped.metadata_ = facts
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    shipped.save(out / MODEL_FILE)
    if (size := (out / MODEL_FILE).stat().st_size) > MAX_BYTES:
        (out / MODEL_FILE).unlink()
        raise SettingsError(
            f"the model takes {size / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:g} MB that are "
            "shipped; fit fewer members or a smaller network."
        )
    write_document({"predictions": golden_predictions(estimator)}, out / GOLDEN)
    write_document(_settings(estimator), out / SETTINGS)
    curve = estimator.learning_curve_
    curve.to_csv(out / CURVES, index=False)
    plot_curves(curve.groupby("epoch", as_index=False).mean()).savefig(out / PICTURE, dpi=120)
    card = predictor_card(out.name, shipped, results, summary=summary, size=size, limits=limits)
    (out / CARD).write_text(card, encoding="utf-8")
    return out


def predictor_card(
    name: str,
    estimator: PropertyEstimator,
    results: pd.DataFrame,
    *,
    summary: str,
    size: int,
    limits: Sequence[str] = (),
) -> str:
    """Card of a property predictor, in Markdown.

    Args:
        name: The model's.
        estimator: The model, with the facts of its release as ``metadata_``.
        results: As ``write_predictor_release`` takes them.
        summary: A paragraph.
        size: Of the model file, bytes.
        limits: Further limits, a sentence each.
    """
    network, n_members = estimator.members_[0], len(estimator.members_)
    seed = estimator.history_[0]["config"]["seed"]
    head, rows = _results_rows(results, _units(estimator))
    return render_card(
        "predictor",
        name=name,
        kind=type(estimator).__name__,
        summary=summary,
        facts=estimator.metadata_,
        stages=estimator.history_,
        predicts=_predicts(estimator),
        classes=hasattr(estimator, "classes_"),
        calibrated=estimator.calibration_ is not None,
        widths=_widths(estimator),
        named=not estimator.domain_.first,
        data_hash=estimator.data_hash_,
        seeds=range(seed, seed + n_members),
        origin=_origin(estimator),
        n_members=n_members,
        n_parameters=n_parameters(network),
        network=network.settings,
        converter=estimator.converter_,
        reads_elements=network.reads_elements,
        changed=_changed(estimator),
        size=size,
        head=head,
        rows=rows,
        limits=limits,
    )


# What is checked.


def _metric(estimator: PropertyEstimator) -> str:
    return "accuracy" if hasattr(estimator, "classes_") else "mae"


def _check_results(results: pd.DataFrame, estimator: PropertyEstimator) -> pd.DataFrame:
    """The results with a column of targets.

    Raises:
        DataError: a row or a column is missing.
    """
    targets = estimator.target_names_
    if "target" not in results and len(targets) == 1:
        results = results.assign(target=targets[0])
    for column in ("target", "method", _metric(estimator)):
        if column not in results:
            raise DataError(f"results has no column {column!r}.")
    for target in targets:
        methods = results.loc[results["target"] == target, "method"].tolist()
        if methods.count(THIS_MODEL) != 1:
            raise DataError(f"results needs one row of {THIS_MODEL!r} for the target {target!r}.")
        if len(methods) == 1:
            raise DataError(f"results has no control to compare {target!r} with.")
    return results


def _check_ids(
    train_ids: Sequence[str], test_ids: Sequence[str], estimator: PropertyEstimator
) -> None:
    """Refuse ids that cannot be those of the crystals.

    Raises:
        DataError: they are too many or too few, or an id is on both sides.
    """
    learned = sum(stage["n_train"] + stage["n_validation"] for stage in estimator.history_)
    if len(train_ids) != learned:
        raise DataError(
            f"train_ids names {len(train_ids)} crystals; the model learned from {learned}, those "
            "that chose the best epoch included."
        )
    if both := sorted(set(train_ids) & set(test_ids)):
        raise DataError(f"{both[0]} and {len(both) - 1} others are in train_ids and in test_ids.")


def _hash_of(ids: Iterable[str]) -> str:
    """sha256 of the sorted ids, one a line."""
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()


# What is written.


def _settings(estimator: PropertyEstimator) -> dict[str, Any]:
    """Arguments of the estimator; a CrysAE that was given as an object is left out."""
    settings: dict[str, Any] = dict(estimator.as_dict()["settings"])
    if isinstance(settings.get("pretrained"), Mapping):
        settings["pretrained"] = None
    return settings


def _changed(estimator: PropertyEstimator) -> dict[str, Any]:
    """Settings that are not the defaults."""
    defaults = _settings(type(estimator)())
    mine = _settings(estimator)
    return {k: v for k, v in mine.items() if k != "pbar" and v != defaults[k]}


def _origin(estimator: PropertyEstimator) -> str:
    """Start of the encoder, for the card."""
    weights = estimator.members_[0].metadata.get("pretrained")
    if not weights:
        return "chance"
    named = isinstance(estimator.pretrained, str)
    return f"{estimator.pretrained if named else 'a CrysAE'}, weights `{weights}`"


def _predicts(estimator: PropertyEstimator) -> list[str]:
    targets = estimator.target_names_
    if hasattr(estimator, "classes_"):
        return [f"{targets[0]}, one of {', '.join(map(str, estimator.classes_.tolist()))}"]
    kinds = choose_transforms(estimator.transform, targets)
    return [
        target + (f", {unit}" if unit else "") + (f" (learned as {kind})" if kind else "")
        for (target, unit), kind in zip(_units(estimator).items(), kinds, strict=True)
    ]


def _units(estimator: PropertyEstimator) -> dict[str, str]:
    """Unit of every target, empty if it has none."""
    targets = estimator.target_names_
    return dict(zip(targets, getattr(estimator, "units_", [""] * len(targets)), strict=True))


def _widths(estimator: PropertyEstimator) -> str:
    """Widths of intervals, for the card."""
    reason = estimator.calibration_.constant() if estimator.calibration_ else ""
    return f"all of one width: {reason}" if reason else "wider where prediction is difficult"


def _results_rows(
    results: pd.DataFrame, units: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of errors, with spreads and units in their cells."""
    names = [str(name) for name in results.columns if name not in ("target", "method")]
    metrics = [name for name in names if not name.endswith("_std")]
    rows = []
    for row in results.to_dict("records"):
        unit = units.get(row["target"])
        target = f"{row['target']} ({unit})" if unit else str(row["target"])
        cells = [_cell(row[name], row.get(f"{name}_std")) for name in metrics]
        rows.append([target, str(row["method"]), *cells])
    return ["target", "method", *(name.replace("_", " ") for name in metrics)], rows


def _cell(value: Any, spread: Any) -> str:
    if isinstance(value, float | np.floating):
        value = "-" if np.isnan(value) else f"{value:.4g}"
    return str(value) if spread is None or pd.isna(spread) else f"{value} ± {spread:.2g}"
