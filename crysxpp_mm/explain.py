"""Why a prediction is what it is: weights of the selector, contributions, plots."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pymatgen.core import Element
from torch import Tensor

from crysxpp_mm.elements import PROPERTIES, column_names, describe_column, feature_table
from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.batch import ATOM_FEATURES, DISTANCE, ELEMENT_FRACTIONS, WEIGHT
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.plotting import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ELEMENT = "element"
"""Name of the part of the element channel among the properties."""


def selector_weights(members: Sequence[CrysXPP]) -> NDArray[np.float64]:
    """The selector's weights, the mean over the members, shape ``(92,)``.

    Raises:
        SettingsError: the model has no selector.
    """
    weights = [model.selector.weight for model in members if model.selector is not None]
    if len(weights) < len(members):
        raise SettingsError("the model has no feature selector; fit it with selector=True.")
    mean: NDArray[np.float64] = np.mean([w.detach().double().numpy() for w in weights], axis=0)
    return mean


def feature_weights(members: Sequence[CrysXPP]) -> pd.DataFrame:
    """The selector's weights as a table, one row a column of the node features.

    Returns:
        Columns ``column``, ``property``, ``bin``, ``unit``, ``weight``.

    Raises:
        SettingsError: the model has no selector.
    """
    rows = [
        {"column": info.column, "property": info.property, "bin": info.bin, "unit": info.unit}
        for info in (describe_column(column) for column in range(len(column_names())))
    ]
    return pd.DataFrame(rows).assign(weight=selector_weights(members))


def explain(members: Sequence[CrysXPP], structure: Any) -> pd.DataFrame:
    """The selector's weights that a crystal switches on (Das et al. 2022, Figs. 4-6).

    Args:
        members: The networks of a model.
        structure: A Structure, or its dictionary.

    Returns:
        Index ``element``: symbols in the order of the sites; columns: the nine properties; NaN
        where the table of node features knows no value.

    Raises:
        SettingsError: the model has no selector.
        StructureTypeError, UnknownElementError, StructureError: it is no crystal.
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
class Contributions:
    """What each property of each site adds to a prediction.

    Attributes:
        table: One row a site (index: ``site``, ``species``), one column a property.
        prediction: What the model predicts for the crystal.
        baseline: What it predicts for the same bonds between sites without any features. The
            entries of ``table`` sum to ``prediction - baseline``.
        name: What is predicted; with a transform, the transformed target, because only there
            contributions add up.
        unit: Its unit.
    """

    table: pd.DataFrame
    prediction: float
    baseline: float
    name: str
    unit: str

    def by_site(self) -> pd.Series:
        """Sum over the properties."""
        return self.table.sum(axis=1).rename("contribution")

    def by_property(self) -> pd.Series:
        """Sum over the sites."""
        return self.table.sum(axis=0).rename("contribution")

    @property
    def gap(self) -> float:
        """How far the contributions miss ``prediction - baseline``; more points make it smaller."""
        return float(self.table.to_numpy().sum() - (self.prediction - self.baseline))


def contributions(
    members: Sequence[CrysXPP],
    structure: Any,
    *,
    output: int = 0,
    name: str = "target",
    unit: str = "",
    n_points: int = 32,
) -> Contributions:
    """Integrated gradients of a prediction (Sundararajan et al., ICML 2017).

    The node features grow from nothing to their values along a straight line; what a column of a
    site adds is its value times the mean of the gradient along that line, by Gauss-Legendre
    quadrature in float64. Summed over all sites and columns this is the prediction minus that of
    the baseline, the same bonds between sites of which nothing is known.

    Args:
        members: The networks of a model; their contributions are averaged.
        structure: A Structure, or its dictionary.
        output: Number of the network's output.
        name: What is predicted.
        unit: Its unit.
        n_points: Points of the quadrature.

    Raises:
        SettingsError: ``n_points`` is less than 1.
        StructureTypeError, UnknownElementError, StructureError: it is no crystal.
    """
    if n_points < 1:
        raise SettingsError(f"n_points must be at least 1, got {n_points}.")
    graphs = members[0].converter.convert(structure)
    parts, predictions, baselines = [], [], []
    for model in members:
        part, prediction, baseline = _integrate(model, graphs, output, n_points)
        parts.append(part)
        predictions.append(prediction)
        baselines.append(baseline)
    table = pd.concat(parts).groupby(level=0).mean()
    table.index = pd.MultiIndex.from_arrays(
        [range(len(table)), _species_texts(graphs)], names=["site", "species"]
    )
    return Contributions(
        table.rename_axis(columns="property"),
        float(np.mean(predictions)),
        float(np.mean(baselines)),
        name,
        unit,
    )


def _integrate(
    model: CrysXPP, graphs: CrystalGraphs, output: int, n_points: int
) -> tuple[pd.DataFrame, float, float]:
    """Contributions by site and property, the prediction and the baseline of one network."""
    network = deepcopy(model).double().eval().requires_grad_(False)
    graph = network.make_graph(graphs)
    for field in (DISTANCE, WEIGHT):
        graph.edata[field] = graph.edata[field].double()
    fields = [ATOM_FEATURES] + [ELEMENT_FRACTIONS] * network.encoder.element_channel
    full = {field: graph.ndata[field].double() for field in fields}

    def value(share: float) -> tuple[Tensor, list[Tensor]]:
        inputs = [(full[field] * share).requires_grad_() for field in fields]
        for field, tensor in zip(fields, inputs, strict=True):
            graph.ndata[field] = tensor
        return network(graph)[0, output], inputs

    points, weights = np.polynomial.legendre.leggauss(n_points)
    gradients = [torch.zeros_like(full[field]) for field in fields]
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        prediction, inputs = value(float(point))
        for total, gradient in zip(gradients, torch.autograd.grad(prediction, inputs), strict=True):
            total += float(weight) * gradient
    scale = float(network.target_scale[output])
    mean = float(network.target_mean[output])
    columns = (gradients[0] * full[ATOM_FEATURES]).numpy() * scale
    table = pd.DataFrame(
        {item.name: columns[:, item.start : item.stop].sum(axis=1) for item in PROPERTIES}
    )
    if network.encoder.element_channel:
        table[ELEMENT] = (gradients[1] * full[ELEMENT_FRACTIONS]).sum(dim=1).numpy() * scale
    with torch.no_grad():
        ends = [float(value(share)[0]) * scale + mean for share in (1.0, 0.0)]
    return table, ends[0], ends[1]


def _species_texts(graphs: CrystalGraphs) -> list[str]:
    """What sits on each site, such as ``"Cu"`` or ``"Cu0.5 Zn0.5"``."""
    texts: list[list[str]] = [[] for _ in range(int(graphs.n_atoms[0]))]
    entries = zip(
        graphs.species_sites.tolist(),
        graphs.species_numbers.tolist(),
        graphs.occupancies.tolist(),
        strict=True,
    )
    for site, number, occupancy in entries:
        symbol = Element.from_Z(number).symbol
        texts[site].append(symbol if occupancy == 1 else f"{symbol}{occupancy:g}")
    return [" ".join(parts) or "vacancy" for parts in texts]


@dataclass(frozen=True)
class SparsityPath:
    """How the selector thins out as the L1 term of Eq. 10 grows.

    Attributes:
        weights: One row a value of lambda_1, one column a column of the node features.
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


# Plots: axes come in and go out; nothing of matplotlib's global state is touched.


def _new_axes(axes: Axes | None, *, width: float = 5.0, height: float = 4.0) -> Axes:
    """``axes``, or those of a figure of its own; in a notebook that figure shows itself."""
    if axes is not None:
        return axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def plot_parity(
    y_true: Any,
    y_pred: Any,
    *,
    std: Any = None,
    name: str = "",
    unit: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Predicted against true values, with the mean absolute error.

    Args:
        y_true: True values, NaN where unknown, shape ``(n,)``.
        y_pred: Predicted values, same shape.
        std: Standard deviation of each prediction, drawn as a bar.
        name: What is predicted; the name of a Series is used if it is empty.
        unit: Its unit.
        axes: Where to draw; axes of a new figure if None.

    Returns:
        The axes; ``axes.figure.savefig(path)`` writes them.

    Raises:
        DataError: the shapes differ, or no pair is known.
    """
    truth, predicted = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise DataError(
            f"y_true and y_pred must be of one shape (n,), got {truth.shape} and {predicted.shape}."
        )
    known = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        raise DataError("there is no pair of a true and a predicted value.")
    name = name or str(getattr(y_true, "name", None) or getattr(y_pred, "name", None) or "value")
    axes = _new_axes(axes, width=4.4, height=4.4)
    bars = None if std is None else np.asarray(std, dtype=float)[known]
    truth, predicted = truth[known], predicted[known]
    low = float(min(truth.min(), predicted.min()))
    high = float(max(truth.max(), predicted.max()))
    margin = 0.04 * (high - low) or 1.0
    ends = [low - margin, high + margin]
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=1)
    if bars is not None:
        axes.errorbar(
            truth, predicted, yerr=bars, fmt="none", ecolor=COLORS[0], alpha=0.3, zorder=2
        )
    size = 18 if len(truth) < 500 else 6
    axes.scatter(truth, predicted, s=size, color=COLORS[0], alpha=0.6, linewidths=0, zorder=3)
    label = f" ({unit})" if unit else ""
    error = np.abs(predicted - truth).mean()
    axes.set(
        xlim=ends,
        ylim=ends,
        xlabel=f"{name}, true{label}",
        ylabel=f"{name}, predicted{label}",
        title=f"MAE {error:.3g}{f' {unit}' if unit else ''}, {len(truth)} crystals",
        aspect="equal",
    )
    return axes


def plot_explanation(explanation: pd.DataFrame, *, axes: Axes | None = None) -> Axes:
    """Bars of the weights that a crystal switches on, by property, a colour an element.

    The bin that each element falls into is printed at its bar (as in Figs. 4-6 of the paper); a
    property that an element has no value of has no bar.

    Args:
        explanation: What ``explain`` gave.
        axes: Where to draw; axes of a new figure if None.

    Raises:
        DataError: it is no such table.
    """
    known = [item.name for item in PROPERTIES]
    if not isinstance(explanation, pd.DataFrame) or list(explanation.columns) != known:
        raise DataError("plot_explanation draws the table that explain(structure) gives.")
    from crysxpp_mm.elements import element_properties

    elements = [str(symbol) for symbol in explanation.index]
    axes = _new_axes(axes, width=1.6 + 1.15 * len(known), height=4.2)
    width = 0.8 / len(elements)
    places = np.arange(len(known))
    for row, symbol in enumerate(elements):
        values = explanation.loc[symbol].to_numpy(dtype=float)
        shifts = places + (row - (len(elements) - 1) / 2) * width
        axes.bar(
            shifts,
            np.nan_to_num(values),
            width=0.92 * width,
            color=COLORS[row % len(COLORS)],
            label=symbol,
        )
        bins = element_properties(symbol)
        for place, value, name in zip(shifts, values, known, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    bins[name] or "",
                    (place, max(value, 0.0)),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=7,
                    color="#333333",
                )
    units = {item.name: item.unit for item in PROPERTIES}
    axes.set_xticks(
        places,
        [f"{name}\n({units[name]})" if units[name] else name for name in known],
        fontsize=7,
    )
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_ylabel("weight of the selector")
    axes.margins(y=0.28)
    axes.legend(frameon=False, ncols=len(elements), loc="upper right", fontsize=8)
    return axes


def plot_learning_curve(source: Any, *, axes: Axes | None = None) -> Axes:
    """Training and validation loss by epoch.

    Args:
        source: A fitted estimator, or its ``learning_curve_``.
        axes: Where to draw; axes of a new figure if None.

    Raises:
        DataError: there is no curve in ``source``.
    """
    table = getattr(source, "learning_curve_", source)
    if not isinstance(table, pd.DataFrame) or not {"epoch", "train_loss"} <= set(table.columns):
        raise DataError("plot_learning_curve draws a fitted estimator or its learning_curve_.")
    axes = _new_axes(axes)
    members = table.groupby("member") if "member" in table else [(0, table)]
    for number, (_, part) in enumerate(members):
        for color, column, label in (
            (COLORS[0], "train_loss", "training"),
            (COLORS[1], "val_loss", "validation"),
        ):
            if column in part and part[column].notna().any():
                axes.plot(
                    part["epoch"] + 1, part[column], color=color, label=None if number else label
                )
    axes.set(xlabel="epoch", ylabel="loss (standardized target)", yscale="log")
    axes.legend(frameon=False)
    return axes


def plot_sparsity_path(path: SparsityPath, *, axes: Axes | None = None) -> Axes:
    """The selector's weights against lambda_1, a colour a property, one line a column.

    Args:
        path: What ``sparsity_path`` gave.
        axes: Where to draw; axes of a new figure if None.
    """
    axes = _new_axes(axes, width=6.4, height=4.4)
    values = path.weights.index.to_numpy(dtype=float)
    colors = (*COLORS, "#bbaa00")
    for color, item in zip(colors, PROPERTIES, strict=True):
        block = path.weights.iloc[:, item.start : item.stop].to_numpy()
        for number, line in enumerate(block.T):
            axes.plot(
                values,
                line,
                color=color,
                linewidth=1,
                alpha=0.8,
                label=None if number else item.name,
            )
    positive = values[values > 0]
    axes.set_xscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    axes.set(xlabel=r"sparsity $\lambda_1$", ylabel="weight of the selector")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    return axes
