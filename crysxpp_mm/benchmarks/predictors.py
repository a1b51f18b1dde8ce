"""Train, test and release the predictors that the package ships.

Of the labelled crystals 80 % are learned from, 10 % choose the epoch and calibrate the intervals,
and 10 % are the test set, which the finished model reads once. The metal classifier shares the
labels of the band gap: a metal has a gap of zero.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.benchmarks.methods import MAGPIE, fit_simple_model, magpie_of_formulas
from crysxpp_mm.benchmarks.pages import markdown_table, page
from crysxpp_mm.benchmarks.properties import (
    SETTINGS_CHOSEN,
    LabelledCrystals,
    Property,
    Split,
    find_property,
)
from crysxpp_mm.benchmarks.reliability import SHIPPED, interval_table, summarize
from crysxpp_mm.benchmarks.runner import HERE, Place, RunTable, check_names
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
from crysxpp_mm.estimators.splits import split_rows
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.model_zoo import MODEL_FILE, load_model
from crysxpp_mm.release.cards import CARD
from crysxpp_mm.release.predictor import THIS_MODEL, predictor_card, write_predictor_release

COMMAND = "crysxpp benchmark predictors"
LEARNED_FRACTION = 0.9
"""Share of the labelled crystals that a predictor gets, those that choose the epoch included."""
VALIDATION_FRACTION = 1 / 9
"""Of these; so 80, 10 and 10 %."""
METAL, NON_METAL = "metal", "non-metal"
ALWAYS = "the commonest class"
N_TREES = 200
ELEMENT_START = 0.5
"""Share of the epochs after which the vectors of elements learn, where a predictor has them.

With 19,000 labels of the magnetic moment, vectors that learned from the start took the place of
the properties: 70 of the 92 weights of the selector went to zero, and what was left explained
nothing. On development crystals, with 4,010 labels, the error was the same (0.0494 against 0.0486).
"""

DATA = (
    "Materials Project, the set of the CrysXPP and CGCNN papers with the labels of "
    "`mp_properties.csv`"
)
LICENCE = "Structures and labels: Materials Project, CC BY 4.0. The weights: MIT, as the package."
CITATION = """@article{Jain2013,
  author = {Jain, Anubhav and Ong, Shyue Ping and Hautier, Geoffroy and Chen, Wei and Richards,
            William Davidson and Dacek, Stephen and Cholia, Shreyas and Gunter, Dan and Skinner,
            David and Ceder, Gerbrand and Persson, Kristin A.},
  title = {Commentary: The Materials Project: A materials genome approach to accelerating materials
           innovation},
  journal = {APL Materials},
  volume = {1},
  pages = {011002},
  year = {2013},
  doi = {10.1063/1.4812323}
}"""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """One model to ship.

    Attributes:
        name: Its name, that of its folder.
        property: Name of the property.
        title: What it predicts, for the card.
        aim: Error on the test crystals that the project aims for; None where it names none.
        n_members: Networks of the ensemble; fewer where many labels make a network costly, more
            for the moduli, whose networks differ most.
        element_channel: Whether the networks have a learned vector of each element.
        max_epochs: Epochs; fewer for the metals, whose labels a network learns by heart: after some
            twenty of 40 epochs its loss on the validation crystals rises.
        chosen: Sentence on what was chosen for it alone, for the card.
        limits: Sentences on the labels, for the card.
        classify: Whether it tells metals from other crystals by the labels of the property.
    """

    name: str
    property: str
    title: str
    aim: float | None = None
    n_members: int = 3
    element_channel: bool = False
    max_epochs: int = CrysXPPRegressor().max_epochs
    chosen: str = ""
    limits: tuple[str, ...] = ()
    classify: bool = False


_PBE = (
    "The labels are of density functional theory (PBE), whose gaps are too small by about 40 %.",
)
PREDICTORS = (
    Predictor(
        name="crysxpp-formation-energy",
        property="formation energy",
        n_members=2,
        element_channel=True,
        title="Formation energy of a crystal, eV/atom, as in the Materials Project of 2018",
        aim=0.042,
    ),
    Predictor(
        name="crysxpp-band-gap",
        property="band gap",
        n_members=2,
        element_channel=True,
        title="Band gap of a crystal, eV, PBE",
        aim=0.32,
        limits=_PBE,
    ),
    Predictor(
        name="crysxpp-fermi-energy",
        property="Fermi energy",
        title="Fermi energy of a crystal, eV, as in the Materials Project",
        aim=0.40,
        limits=(
            "A Fermi energy has no absolute zero in a periodic calculation: compare within it.",
        ),
    ),
    Predictor(
        name="crysxpp-magnetic-moment",
        property="magnetic moment",
        n_members=2,
        element_channel=True,
        title="Magnitude of the magnetic moment of a crystal per site, Bohr magneton",
        limits=(
            (
                "The labels are totals of the cell, joined by formula where it has one polymorph, "
                "divided by the number of sites; multiply by the sites of a cell for its moment. "
                "Their sign was dropped: all spins of a crystal may be reversed."
            ),
        ),
    ),
    Predictor(
        name="crysxpp-bulk-modulus",
        property="bulk modulus",
        n_members=5,
        title="Bulk modulus of a crystal, Voigt-Reuss-Hill average, GPa, learned as log10",
        aim=0.060,
    ),
    Predictor(
        name="crysxpp-shear-modulus",
        property="shear modulus",
        n_members=5,
        title="Shear modulus of a crystal, Voigt-Reuss-Hill average, GPa, learned as log10",
        aim=0.095,
    ),
    Predictor(
        name="crysxpp-poisson-ratio",
        property="Poisson ratio",
        title="Poisson ratio of a crystal",
        aim=0.040,
    ),
    Predictor(
        name="crysxpp-metal",
        property="band gap",
        n_members=1,
        element_channel=True,
        max_epochs=12,
        title="Whether a crystal is a metal (a PBE gap of zero) or not",
        chosen=(
            "For this model alone the number of epochs (12 or 40) and the vectors of elements were "
            "chosen by the crystals that choose the epoch."
        ),
        limits=_PBE,
        classify=True,
    ),
)
"""The shipped predictors."""


def run_predictors(
    place: Place = HERE,
    *,
    folder: str | Path = "pretrained",
    names: Sequence[str] | None = None,
    n_members: int | None = None,
    max_epochs: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Train the predictors that are not in ``folder`` yet, and write the table of all.

    Writes a folder a predictor, and ``predictors.csv`` and ``predictors.md``. A training that was
    stopped goes on from its last epoch.

    Args:
        place: Where data are and results go.
        folder: Where the predictors go.
        names: Which predictors; all without it.
        n_members: Networks of each; what ``PREDICTORS`` says if None.
        max_epochs: Epochs of each; what ``PREDICTORS`` says if None.
        seed: Of the split, the weights and the order.

    Returns:
        One row a predictor and method, as in ``predictors.csv``.

    Raises:
        DataError: the data are missing.
        SettingsError: there is no predictor of a name.
    """
    known = {item.name: item for item in PREDICTORS}
    chosen = list(known) if names is None else list(names)
    check_names("names", chosen, known)
    crystals = place.labelled()
    target = Path(folder)
    with one_torch_thread():
        for predictor in (known[name] for name in chosen):
            path = target / predictor.name
            if (path / MODEL_FILE).exists():
                place.say(f"{predictor.name}: it is there; remove {path} to train it anew")
                continue
            started = time.monotonic()
            settings = {
                "n_members": n_members or predictor.n_members,
                "max_epochs": max_epochs or predictor.max_epochs,
                "seed": seed,
            }
            _release(predictor, crystals, path, settings=settings)
            place.say(f"{predictor.name}: {(time.monotonic() - started) / 60:.0f} minutes")
    table, text = tabulate(target)
    place.write("predictors", text, predictors=table)
    return table


def _release(
    predictor: Predictor,
    crystals: LabelledCrystals,
    folder: Path,
    *,
    settings: Mapping[str, Any],
) -> None:
    """Train a predictor, test it beside its controls, and write its folder."""
    seed = settings["seed"]
    item = find_property(predictor.property)
    rows = crystals.split(item, fraction=LEARNED_FRACTION, seed=seed)
    labels = crystals.labels(item)
    checkpoints = folder.parent / f"checkpoints-{predictor.name}"
    estimator = _estimator(predictor, item).set_params(
        **settings,
        validation_fraction=VALIDATION_FRACTION,
        checkpoint_dir=checkpoints,
    )
    y = _classes(labels) if predictor.classify else labels
    ids = crystals.table["material_id"].to_numpy()
    estimator.fit(_named(crystals, rows.train), y[rows.train])
    estimator.set_params(checkpoint_dir=None, accelerator="auto", pbar=True)
    predicted = estimator.predict(crystals.graphs.select(rows.test))
    score = _score_classes if predictor.classify else _score_numbers
    write_predictor_release(
        estimator,
        folder,
        title=predictor.title,
        summary=_summary(estimator),
        results=pd.DataFrame(score(item, crystals, labels, rows, predicted, seed)),
        data=DATA,
        split=_split_text(predictor, seed),
        train_ids=ids[rows.train].tolist(),
        test_ids=ids[rows.test].tolist(),
        licence=LICENCE,
        citations=[CITATION],
        limits=predictor.limits,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)


def calibrate_shipped(
    place: Place = HERE,
    *,
    folder: str | Path = "pretrained",
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure intervals and domain of predictors anew, from the splits of their seeds.

    Weights and predictions stay. Rewrites model and card of each, and writes ``calibrated.csv``:
    how the intervals, and the domain, do on the test crystals.

    Args:
        place: Where data are and results go.
        folder: Where the predictors are.
        names: Which predictors; all without it.
        seed: Of their split.

    Returns:
        One row a predictor, as in ``calibrated.csv``.

    Raises:
        DataError: the data are missing, or others than those of a predictor.
        SettingsError: there is no predictor of a name.
    """
    known = {item.name: item for item in PREDICTORS}
    chosen = list(known) if names is None else list(names)
    check_names("names", chosen, known)
    crystals = place.labelled()
    done = RunTable(place.file(SHIPPED), ["predictor"])
    rows: list[dict[str, Any]] = []
    with one_torch_thread():
        for predictor in (known[name] for name in chosen):
            path = Path(folder) / predictor.name
            started = time.monotonic()
            rows += done.add(predictor.name, [_calibrate(predictor, crystals, path, seed)])
            place.say(f"{predictor.name}: {time.monotonic() - started:.0f} s")
    return pd.DataFrame(rows)


def _calibrate(
    predictor: Predictor, crystals: LabelledCrystals, folder: Path, seed: int
) -> dict[str, Any]:
    """Measure one predictor again and write it; returns how it does on its test crystals."""
    item = find_property(predictor.property)
    rows = crystals.split(item, fraction=LEARNED_FRACTION, seed=seed)
    labels = crystals.labels(item)
    y = _classes(labels) if predictor.classify else labels
    model = load_model(folder / MODEL_FILE)
    model.measure_again(_named(crystals, rows.train), y[rows.train])
    split = model.metadata_["split"]
    if predictor.chosen not in split:
        model.metadata_ = {**model.metadata_, "split": f"{split} {predictor.chosen}"}
    model.save(folder / MODEL_FILE)
    results = pd.DataFrame(model.metadata_["results"])
    card = predictor_card(
        folder.name,
        model,
        results,
        summary=_summary(model),
        size=(folder / MODEL_FILE).stat().st_size,
        limits=predictor.limits,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    test = crystals.graphs.select(rows.test)
    facts = {"predictor": predictor.name, "n_test": len(rows.test)}
    if predictor.classify:
        sets = model.predict_set(test)
        classes = sets[model.classes_].to_numpy()
        true = np.searchsorted(model.classes_, y[rows.test])
        right = classes[np.arange(len(true)), true]
        inside = sets["in_domain"].to_numpy(dtype=bool)
        return {
            **facts,
            "coverage": right.mean(),
            "coverage_outside": right[~inside].mean(),
            "outside": 1 - inside.mean(),
            "two_classes": (classes.sum(axis=1) == 2).mean(),
        }
    held_out = rows.train[
        split_rows(len(rows.train), fraction=model.validation_fraction, seed=seed)[1]
    ]
    table = interval_table(
        model,
        (test, labels[rows.test]),
        (crystals.graphs.select(held_out), labels[held_out]),
        learned=item.learned,
    )
    return {**facts, **summarize(table)}


def _split_text(predictor: Predictor, seed: int) -> str:
    return (
        f"One split, seed {seed}: 80 % of the labelled crystals to learn from, 10 % to choose "
        f"the epoch and to calibrate the {'sets' if predictor.classify else 'intervals'}, 10 % for "
        "the test, which was read once. "
        f"{' '.join(filter(None, (SETTINGS_CHOSEN, predictor.chosen)))} "
        "The encoder saw the structures of all crystals before, and no label. Spreads over "
        "seeds are in the package's benchmark of small data."
    )


def _named(crystals: LabelledCrystals, rows: NDArray[np.int64]) -> GraphStore:
    """Graphs with the ids that the domain of a model gives."""
    ids = crystals.table["material_id"].to_numpy()[rows].tolist()
    return GraphStore(ids, crystals.graphs.select(rows), CrystalGraphConverter(), "")


def _summary(estimator: CrysXPPRegressor | CrysXPPClassifier) -> str:
    return f"`{type(estimator).__name__}` fine-tuned from `crysae-mp-v1`; made by `{COMMAND}`."


def _estimator(predictor: Predictor, item: Property) -> CrysXPPRegressor | CrysXPPClassifier:
    settings: dict[str, Any] = {
        "element_channel": predictor.element_channel,
        "element_start": ELEMENT_START if predictor.element_channel else 0.0,
        "accelerator": "cpu",
        "pbar": False,
    }
    if predictor.classify:
        return CrysXPPClassifier(target_names=["metal"], **settings)
    return CrysXPPRegressor(
        transform=item.transform,
        target_names=[item.target],
        units=item.target_unit,
        **settings,
    )


def _classes(gaps: NDArray[np.float64]) -> NDArray[Any]:
    return np.where(gaps == 0, METAL, NON_METAL)


def _score_numbers(
    item: Property,
    crystals: LabelledCrystals,
    labels: NDArray[np.float64],
    rows: Split,
    predicted: NDArray[np.float64],
    seed: int,
) -> list[dict[str, Any]]:
    """Test errors of the model, of a simple one on Magpie features, and of the mean."""
    truth = labels[rows.test]
    magpie, settings = fit_simple_model(
        magpie_of_formulas(crystals), item, labels, rows, method=MAGPIE, seed=seed
    )
    center = item.learned(labels[rows.train]).mean()
    constant = item.labels_of(np.full(len(truth), center))
    results = []
    for method, values in (
        (THIS_MODEL, predicted),
        (f"Magpie, {settings}", magpie),
        ("the mean of the training labels", constant),
    ):
        row: dict[str, Any] = {"method": method, "mae": np.abs(values - truth).mean()}
        if item.transform == "log10":
            row["mae_log10"] = np.abs(np.log10(values) - np.log10(truth)).mean()
        if item.per_site:
            error = np.abs(values - truth) * crystals.graphs.n_atoms[rows.test]
            row["mae_per_cell"] = error.mean()
        results.append(row)
    return results


def _score_classes(
    item: Property,
    crystals: LabelledCrystals,
    labels: NDArray[np.float64],
    rows: Split,
    predicted: NDArray[Any],
    seed: int,
) -> list[dict[str, Any]]:
    """Accuracies of the model, of extra trees on Magpie features, and of the commonest class."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import balanced_accuracy_score

    classes = _classes(labels)
    columns = magpie_of_formulas(crystals)
    trees = ExtraTreesClassifier(N_TREES, random_state=seed, n_jobs=1)
    magpie = trees.fit(columns[rows.train], classes[rows.train]).predict(columns[rows.test])
    names, counts = np.unique(classes[rows.train], return_counts=True)
    constant = np.full(len(rows.test), names[counts.argmax()])
    truth = classes[rows.test]
    return [
        {
            "method": method,
            "accuracy": float((guess == truth).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(truth, guess)),
        }
        for method, guess in (
            (THIS_MODEL, predicted),
            (f"Magpie, {N_TREES} extra trees", magpie),
            (ALWAYS, constant),
        )
    ]


def tabulate(folder: Path) -> tuple[pd.DataFrame, str]:
    """Make the table and the page of the predictors in a folder, from the errors they carry."""
    rows = []
    for predictor in PREDICTORS:
        path = folder / predictor.name / MODEL_FILE
        if not path.exists():
            continue
        model = load_model(path)
        facts = {
            "predictor": predictor.name,
            "n_train": sum(stage["n_train"] for stage in model.history_),
            "n_validation": sum(stage["n_validation"] for stage in model.history_),
            "n_test": model.metadata_["n_test"],
            "n_members": len(model.members_),
            "element_channel": model.element_channel,
            "unit": "" if predictor.classify else model.units_[0],
        }
        errors = model.metadata_["results"]
        rows += [{**facts, **result, "aim": predictor.aim} for result in errors]
    table = pd.DataFrame(rows).drop(columns="target", errors="ignore")
    text = page(
        "The shipped predictors on their test crystals",
        "One split for each: 80 % of the labelled crystals are learned from (`n_train`), 10 % "
        "choose the epoch (`n_validation`), 10 % are the test. `mae` is in the unit of the label; "
        "the aims of the moduli are for `mae_log10`. Networks with an `element_channel` have a "
        "learned vector of each element.",
        markdown_table(table),
        command=COMMAND,
    )
    return table, text
