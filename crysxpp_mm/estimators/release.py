"""From a fitted estimator to a folder that can be shipped: weights, card, golden predictions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators.base import CrysXPPEstimator
from crysxpp_mm.estimators.classifier import CrysXPPClassifier
from crysxpp_mm.estimators.regressor import CrysXPPRegressor
from crysxpp_mm.serialization import write_document
from crysxpp_mm.shipped import MODEL_FILE, is_path
from crysxpp_mm.training.curves import CURVES, PICTURE, plot_curves
from crysxpp_mm.training.release import (
    CARD,
    GOLDEN,
    SETTINGS,
    golden_crystals,
    graph_rule,
    items,
    limits_of_graphs,
    n_parameters,
    seven_digits,
)

THIS_MODEL = "this model"
"""What the column ``method`` of the results calls the model that is shipped."""
MAX_BYTES = 5_000_000
"""Largest model file that is shipped."""


def golden_predictions(
    estimator: CrysXPPRegressor | CrysXPPClassifier,
) -> dict[str, dict[str, float]]:
    """What the model predicts for the golden crystals, to seven digits.

    Returns:
        For each crystal the value of every target, in its unit, and of an ensemble the standard
        deviation over the members (``"K_VRH std"``); of a classifier the probability of every
        class.
    """
    crystals = golden_crystals()
    table = pd.Series(list(crystals.values()), index=list(crystals), dtype=object)
    if isinstance(estimator, CrysXPPClassifier):
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
    estimator: CrysXPPRegressor | CrysXPPClassifier,
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
    estimator._check_fitted()
    start = estimator.pretrained
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
    estimator: CrysXPPRegressor | CrysXPPClassifier,
    results: pd.DataFrame,
    *,
    summary: str,
    size: int,
    limits: Sequence[str] = (),
) -> str:
    """The card of a property predictor, in Markdown.

    Args:
        name: The model's.
        estimator: The model, with the facts of its release as ``metadata_``.
        results: As ``write_predictor_release`` takes them.
        summary: A paragraph.
        size: Of the model file, bytes.
        limits: Further limits, a sentence each.
    """
    facts, network = estimator.metadata_, estimator.members_[0]
    stages, n_members = estimator.history_, len(estimator.members_)
    seeds = [stages[0]["config"]["seed"] + member for member in range(n_members)]
    origin = network.metadata.get("pretrained")
    start = estimator.pretrained if isinstance(estimator.pretrained, str) else "a CrysAE"
    lines = [
        f"# {name}",
        "",
        f"{facts['description']}.",
        "",
        summary,
        "",
        "| | |",
        "|---|---|",
        *(f"| predicts | {text} |" for text in _predicts(estimator)),
        f"| data | {facts['data']} |",
        f"| crystals learned from | {sum(stage['n_train'] for stage in stages):,} |",
        f"| crystals that chose the best epoch | {sum(s['n_validation'] for s in stages):,} |",
        f"| test crystals | {format(facts['n_test'], ',') if facts['test_ids'] else 'see below'} |",
        f"| sha256 of the sorted ids of the first two | `{facts['train_ids']}` |",
        *([f"| ... of the test crystals | `{facts['test_ids']}` |"] if facts["test_ids"] else []),
        f"| sha256 of graphs and labels | `{estimator.data_hash_}` |",
        f"| seeds (weights, split, order) | {', '.join(map(str, seeds))} |",
        f"| encoder starts from | {f'{start}, weights `{origin}`' if origin else 'chance'} |",
        f"| networks | {n_members}, each of {n_parameters(network):,} parameters |",
        f"| network | {items(network.settings)} |",
        f"| graph rule | {graph_rule(estimator.converter_)} |",
        f"| settings other than the defaults | {_changed(estimator)} |",
        f"| model file | {size / 1e6:.2f} MB |",
        f"| version | {stages[-1]['version']} |",
        "",
        "## Test errors",
        "",
        f"{facts['split']}",
        "",
        *_results_rows(results, _units(estimator)),
        "",
        (
            f"Every epoch of the training is in `{CURVES}`; the mean of the networks is drawn in "
            f"`{PICTURE}`."
        ),
        "",
        "## Use",
        "",
        "```python",
        "from crysxpp_mm import CrysXPPFeaturizer, load_model",
        "",
        f'model = load_model("{name}")',
        *_use(estimator),
        f'CrysXPPFeaturizer("{name}").featurize_dataframe(df, "structure")  # as columns',
        "```",
        "",
        "## Limits",
        "",
        *limits_of_graphs(estimator.converter_, network.settings["element_channel"]),
        (
            "- Crystals unlike those that it learned from may be predicted badly; "
            "`model.domain(structures)` says which they are."
        ),
        *(f"- {limit}" for limit in limits),
        "",
        "## Train it again",
        "",
        "    import json",
        "",
        f"    {type(estimator).__name__}(**json.load(open({SETTINGS!r}))).fit(structures, labels)",
        "",
        *_history(stages),
        "## Data and licence",
        "",
        facts["licence"],
        "",
        *(line for text in facts["citations"] for line in ("```bibtex", text, "```", "")),
    ]
    return "\n".join(lines)


# What is checked.


def _metric(estimator: CrysXPPEstimator) -> str:
    return "accuracy" if isinstance(estimator, CrysXPPClassifier) else "mae"


def _check_results(results: pd.DataFrame, estimator: CrysXPPEstimator) -> pd.DataFrame:
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
    train_ids: Sequence[str], test_ids: Sequence[str], estimator: CrysXPPEstimator
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


def _settings(estimator: CrysXPPEstimator) -> dict[str, Any]:
    """The arguments of the estimator; a CrysAE that was given as an object is left out."""
    settings: dict[str, Any] = dict(estimator.as_dict()["settings"])
    if isinstance(settings["pretrained"], Mapping):
        settings["pretrained"] = None
    return settings


def _changed(estimator: CrysXPPEstimator) -> str:
    """Settings that are not the defaults, in a line."""
    defaults = _settings(type(estimator)())
    mine = {k: v for k, v in _settings(estimator).items() if k != "pbar" and v != defaults[k]}
    return items(mine) or "none"


def _predicts(estimator: CrysXPPRegressor | CrysXPPClassifier) -> list[str]:
    if isinstance(estimator, CrysXPPClassifier):
        classes = ", ".join(map(str, estimator.classes_.tolist()))
        return [f"{estimator.target_names_[0]}, one of {classes}"]
    return [
        target + (f", {unit}" if unit else "") + (f" (learned as {kind})" if kind else "")
        for target, unit, kind in zip(
            estimator.target_names_, estimator.units_, estimator._transforms, strict=True
        )
    ]


def _use(estimator: CrysXPPRegressor | CrysXPPClassifier) -> list[str]:
    if isinstance(estimator, CrysXPPClassifier):
        return ["model.predict(structures), model.predict_proba(structures)"]
    lines = ["model.predict(structures)  # structures: a list of pymatgen Structures"]
    if estimator.calibration_ is not None:
        lines.append("model.predict_interval(structures, confidence=0.9)")
    return lines


def _history(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The stages after the first."""
    lines = []
    for stage in stages[1:]:
        n_crystals = stage["n_train"] + stage["n_validation"]
        text = f"Then `{stage['stage']}` on {n_crystals:,} crystals: {items(stage['config'])}."
        lines += [text, ""]
    return lines


def _units(estimator: CrysXPPRegressor | CrysXPPClassifier) -> dict[str, str]:
    """Unit of every target, empty if it has none."""
    targets = estimator.target_names_
    if isinstance(estimator, CrysXPPClassifier):
        return dict.fromkeys(targets, "")
    return dict(zip(targets, estimator.units_, strict=True))


def _results_rows(results: pd.DataFrame, units: Mapping[str, str]) -> list[str]:
    """A table in Markdown, the spread beside its metric, the unit beside the target."""
    columns = [
        str(name)
        for name in results.columns
        if name not in ("target", "method") and str(name).removesuffix("_std") == name
    ]
    head = ["target", "method", *(name.replace("_", " ") for name in columns)]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in results.to_dict("records"):
        cells = [_cell(row[name], row.get(f"{name}_std")) for name in columns]
        unit = units.get(row["target"])
        target = f"{row['target']} ({unit})" if unit else str(row["target"])
        rows.append("| " + " | ".join([target, str(row["method"]), *cells]) + " |")
    return rows


def _cell(value: Any, spread: Any) -> str:
    if isinstance(value, float | np.floating):
        value = "-" if np.isnan(value) else f"{value:.4g}"
    return str(value) if spread is None or pd.isna(spread) else f"{value} ± {spread:.2g}"
