"""Weights of the feature selector: by property, and as they thin out."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Element

from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.elements import PROPERTIES, column_names, describe_column, feature_table
from crysxpp_mm.errors import NoSelectorError, SettingsError
from crysxpp_mm.models.crysxpp import CrysXPP


def selector_weights(members: Sequence[CrysXPP]) -> NDArray[np.float64]:
    """The selector's weights, the mean over the members, shape ``(92,)``.

    Raises:
        NoSelectorError: the model has no selector.

    Example:
        >>> selector_weights([CrysXPP.random(hidden_dim=4, n_convs=1)]).shape
        (92,)
    """
    weights = [model.selector.weight for model in members if model.selector is not None]
    if len(weights) < len(members):
        raise NoSelectorError("the model has no feature selector; fit it with selector=True.")
    mean: NDArray[np.float64] = np.mean([w.detach().double().numpy() for w in weights], axis=0)
    return mean


def feature_weights(members: Sequence[CrysXPP]) -> pd.DataFrame:
    """The selector's weights as a table, one row per column of the node features.

    Returns:
        Columns ``column``, ``property``, ``bin``, ``unit``, ``weight``.

    Raises:
        NoSelectorError: the model has no selector.

    Example:
        >>> table = feature_weights([CrysXPP.random(hidden_dim=4, n_convs=1)])
        >>> list(table.columns)
        ['column', 'property', 'bin', 'unit', 'weight']
    """
    rows = [
        {"column": info.column, "property": info.property, "bin": info.bin, "unit": info.unit}
        for info in (describe_column(column) for column in range(len(column_names())))
    ]
    return pd.DataFrame(rows).assign(weight=selector_weights(members))


@one_torch_thread()
def explain(members: Sequence[CrysXPP], structure: Any) -> pd.DataFrame:
    """The selector's weights that a crystal switches on (Das et al. 2022, Figs. 4-6).

    Args:
        members: The networks of a model.
        structure: A Structure, or its dictionary.

    Returns:
        Index ``element``: symbols in the order of the sites; columns: the nine properties; NaN
        where the table of node features has no value.

    Raises:
        NoSelectorError: the model has no selector.
        StructureTypeError, UnknownElementError, StructureError: not a crystal.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> salt = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> list(explain([CrysXPP.random(hidden_dim=4, n_convs=1)], salt).index)
        ['Na', 'Cl']
    """
    weights = selector_weights(members)
    graphs = members[0].converter.convert(structure)
    rows = {}
    for number in dict.fromkeys(graphs.species_numbers.tolist()):
        features = feature_table()[number]
        rows[Element.from_Z(number).symbol] = [
            float(weights[item.start : item.stop][on][0])
            if (on := features[item.start : item.stop] > 0).any()
            else np.nan
            for item in PROPERTIES
        ]
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=[item.name for item in PROPERTIES], dtype=float
    )
    return table.rename_axis(index="element", columns="property")


@dataclass(frozen=True)
class SparsityPath:
    """The selector as it thins out while the L1 term of Eq. 10 grows.

    Attributes:
        weights: One row per value of lambda_1, one column per column of the node features.
        results: By lambda_1: ``n_zero``, the columns that are exactly off, and ``score``, the
            model's score on the test crystals (NaN without them).
    """

    weights: pd.DataFrame
    results: pd.DataFrame


def sparsity_path(
    estimator: Any,
    X: Any,
    y: Any,
    sparsities: Sequence[float] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1),
    *,
    test: tuple[Any, Any] | None = None,
) -> SparsityPath:
    """Fit a model for each weight of the L1 term.

    Args:
        estimator: A regressor or classifier; clones of it are fitted.
        X: Crystals to learn from.
        y: Their labels.
        sparsities: Values of lambda_1.
        test: Crystals and labels to score each model on.

    Raises:
        SettingsError: there is no value, or the estimator has no selector.
    """
    from sklearn.base import clone

    if not len(sparsities):
        raise SettingsError("sparsities is empty; name at least one weight.")
    if not estimator.selector:
        raise SettingsError("the path needs a feature selector; set selector=True.")
    weights, results = [], []
    for sparsity in sparsities:
        model = clone(estimator).set_params(sparsity=sparsity).fit(X, y)
        found = selector_weights(model.members_)
        weights.append(found)
        score = float("nan") if test is None else model.score(*test)
        results.append({"n_zero": int((found == 0).sum()), "score": score})
    index = pd.Index([float(value) for value in sparsities], name="sparsity")
    return SparsityPath(
        pd.DataFrame(weights, index=index, columns=column_names()),
        pd.DataFrame(results, index=index),
    )
