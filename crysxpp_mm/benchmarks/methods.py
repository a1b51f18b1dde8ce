"""Methods that are compared where labels are few: networks, and simple models on columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition

from crysxpp_mm.benchmarks.properties import LabelledCrystals, Property, Split, find_property
from crysxpp_mm.benchmarks.simple_models import (
    N_TREES,
    RIDGE,
    SVR,
    TREES,
    magpie_columns,
    predictions,
    regressor_settings,
    split,
)
from crysxpp_mm.estimators import CrysXPPRegressor
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.models.pooling import MOMENTS, pool
from crysxpp_mm.shipped import DEFAULT_MODEL, load_autoencoder

Values = NDArray[np.float64]

INNER_FOLDS = 3
BATCH_ATOMS = 4096
INNER_ROWS = 3000
"""Training rows at most on which the settings of a simple model are compared."""

PRETRAINED, UNTRAINED = "CrysXPP", "CrysXPP without pretraining"
SINGLE = "CrysXPP, one network"
"""The mean error of the networks of an ensemble, each alone."""
MIXED = "CrysXPP and columns"
"""The mean of two predictions, of an ensemble and of the simple model of ``COLUMNS``."""
COLUMNS, MAGPIE = "CrysAE columns", "Magpie"
LONGER, LONGER_UNTRAINED = "trained longer", "trained longer without pretraining"
LONGER_SINGLE = "trained longer, one network"
WITH_ELEMENTS = "with vectors of elements"
WITHOUT_ELEMENTS = "without vectors of elements"
LONGER_SETTINGS: Mapping[str, Any] = {
    "max_epochs": 60,
    "batch_size": 32,
    "selector_rate": 5e-4,
    "validation_fraction": 0.05,
}
"""For thousands of labels: three times the steps, a slower selector, fewer crystals held out."""
LONGER_PROPERTIES = ("formation energy",)
"""Properties that are trained longer as well; each takes hours."""
SINGLES = {PRETRAINED: SINGLE, LONGER: LONGER_SINGLE}
"""The ensembles, and the mean error of the networks of each, one by one."""
METHODS = (PRETRAINED, UNTRAINED, COLUMNS, MAGPIE)
"""What is compared on every property."""
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    PRETRAINED: {},
    UNTRAINED: {"pretrained": None},
    "no selector": {"selector": False},
    "sparsity 0": {"sparsity": 0.0},
    "sparsity 0.0001": {"sparsity": 1e-4},
    "sparsity 0.01 (published)": {"sparsity": 0.01},
    "sparsity 0.05": {"sparsity": 0.05},
    "encoder frozen": {"encoder_rate": 0.0},
    "encoder at 0.3 of the rate": {"encoder_rate": 0.3},
    "last layer (Eq. 8)": {"layers": "last"},
    "mean, std and max": {"moments": ("mean", "std", "max")},
    "embeddings pooled (Eq. 8)": {"pooled": "embeddings"},
    "GCN encoder, no pretraining": {"pretrained": None, "encoder": "gcn"},
}
"""Methods that are networks, and the settings in which they differ from the defaults."""
LONGER_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    LONGER: LONGER_SETTINGS,
    LONGER_UNTRAINED: {**LONGER_SETTINGS, "pretrained": None},
}
"""The same of those that are trained longer, on ``LONGER_PROPERTIES``."""
ELEMENT_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    WITH_ELEMENTS: {"element_channel": True},
    WITHOUT_ELEMENTS: {"element_channel": False},
}
"""The same of the control of ``Property.element_channel``: every property learned the other way."""
ALL_NETWORKS = {**NETWORKS, **LONGER_NETWORKS, **ELEMENT_NETWORKS}
WHAT = {
    PRETRAINED: "`CrysXPPRegressor` with its default settings and {n_members}",
    SINGLE: "the networks of an ensemble one by one, their mean error",
    MIXED: "the mean of what CrysXPP and the model of CrysAE columns predict",
    UNTRAINED: "one network with `pretrained=None`: a CGCNN with a feature selector",
    LONGER: (
        "{n_members} with "
        + ", ".join(f"`{name}={value}`" for name, value in LONGER_SETTINGS.items())
        + ", which were chosen on development crystals of this property"
    ),
    LONGER_SINGLE: "the networks of that ensemble one by one, their mean error",
    LONGER_UNTRAINED: "one network with these settings and `pretrained=None`",
    WITH_ELEMENTS: "one network with `element_channel=True`",
    WITHOUT_ELEMENTS: "one network with `element_channel=False`",
    COLUMNS: (
        "the default columns of `CrysAEFeaturizer` with the better of ridge and SVR, chosen by "
        f"{INNER_FOLDS} folds of the training rows"
    ),
    MAGPIE: (
        "matminer's Magpie features of the formula with the better of ridge and extra trees, "
        "chosen in the same way"
    ),
}
CANDIDATES = {COLUMNS: RIDGE[1::2] + SVR[4:16], MAGPIE: RIDGE[1::2] + TREES}
"""Simple models to choose from, by their columns."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train and test.

    Attributes:
        property: Name of the property.
        fraction: Share of the labelled crystals that is learned from.
        seed: Of the split, the weights and the order.
        method: One of ``METHODS`` or ``ALL_NETWORKS``.
        n_members: Networks of the ensemble; 0 for a simple model.
    """

    property: str
    fraction: float
    seed: int
    method: str
    n_members: int


def make_run(name: str, fraction: float, seed: int, method: str, n_members: int) -> Run:
    """Make a run; controls among the networks are single ones, a simple model has none."""
    if method not in SINGLES:
        n_members = 1 if method in ALL_NETWORKS else 0
    return Run(property=name, fraction=fraction, seed=seed, method=method, n_members=n_members)


def _other_choice(item: Property) -> str:
    """The control of the choice of ``element_channel`` for a property."""
    return WITHOUT_ELEMENTS if item.element_channel else WITH_ELEMENTS


def estimator_of(run: Run) -> CrysXPPRegressor:
    """Make the estimator of a run of a network."""
    item = find_property(run.property)
    estimator = CrysXPPRegressor(
        element_channel=item.element_channel,
        transform=item.transform,
        target_names=[item.target],
        units=item.target_unit,
        n_members=run.n_members,
        seed=run.seed,
        accelerator="cpu",
        pbar=False,
    )
    estimator.set_params(**ALL_NETWORKS[run.method])
    return estimator


def fit_simple_model(
    columns: NDArray[np.floating],
    item: Property,
    labels: Values,
    rows: Split,
    *,
    method: str,
    seed: int,
) -> tuple[Values, str]:
    """Choose a simple model on the training rows, fit it on them, and predict the test rows.

    Args:
        columns: Of all crystals, shape ``(n, n_columns)``.
        item: The property.
        labels: Of all crystals, shape ``(n,)``, in the unit of the target.
        rows: Training and test rows.
        method: ``COLUMNS`` or ``MAGPIE``: which models there are to choose from.
        seed: Of the folds and the trees.

    Returns:
        Predictions in the unit of the target, shape ``(n_test,)``, and the model in words.
    """
    x, y = columns[rows.train].astype(np.float64), item.learned(labels[rows.train])
    candidates = CANDIDATES[method]
    some = np.random.default_rng(seed).permutation(len(x))[:INNER_ROWS]
    errors = np.zeros(len(candidates))
    for part, rest in split(len(some), INNER_FOLDS, seed):
        inner, outer = some[part], some[rest]
        guesses = predictions(candidates, x[inner], y[inner], x[outer], seed=seed)
        errors += np.abs(guesses - y[outer]).mean(axis=1)
    chosen = candidates[int(errors.argmin())]
    guess = predictions([chosen], x, y, columns[rows.test].astype(np.float64), seed=seed)[0]
    predicted = item.labels_of(guess)
    found = regressor_settings(chosen)
    if found["chosen"] == "trees":
        return predicted, f"{N_TREES} extra trees"
    return predicted, f"{found['chosen']} {found['settings']}"


def magpie_of_formulas(crystals: LabelledCrystals) -> NDArray[np.float64]:
    """Magpie features (matminer) of every formula, shape ``(n, 132)``."""
    return magpie_columns(Composition(formula) for formula in crystals.table["formula"])


def learned_columns(crystals: LabelledCrystals) -> NDArray[np.float32]:
    """Default columns of ``CrysAEFeaturizer``, of graphs in place of structures."""
    model = load_autoencoder(DEFAULT_MODEL)
    blocks = []
    for rows in atom_batches(crystals.graphs.n_atoms, BATCH_ATOMS):
        graph = model.make_graph(crystals.graphs.select(rows))
        blocks.append(pool(graph, model.node_embeddings(graph), MOMENTS).numpy())
    return np.concatenate(blocks)
