"""Contributions of each property of each site to a prediction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Element
from torch import Tensor

from crysxpp_mm.compute import ready_to_learn
from crysxpp_mm.elements import PROPERTIES
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.batch import ATOM_FEATURES, DISTANCE, ELEMENT_FRACTIONS, WEIGHT
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.settings import whole_number

ELEMENT = "element"
"""Name of the part of the element channel among the properties."""
POINTS = (32, 64, 128, 256, 512)
"""Points of the quadrature that are tried, until the sum is near enough to what it has to be."""
NEAR = 1e-3
"""How far the sum may miss, as a share of the prediction minus the baseline."""
SHOWN_SITES = 12
"""A notebook shows more sites than these summed by what sits on them."""


@dataclass(frozen=True)
class Contributions:
    """Contributions of each property of each site to a prediction.

    Attributes:
        table: One row per site (index: ``site``, ``species``), one column per property.
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
        """Contributions less ``prediction - baseline``; more points of the quadrature shrink it."""
        return float(self.table.to_numpy().sum() - (self.prediction - self.baseline))

    def _repr_html_(self) -> str:
        """A table for notebooks: contributions of each site, or each kind of site.

        Crystals of many sites are summed by what sits on the sites.
        """
        table = self.table.copy()
        if len(table) > SHOWN_SITES:
            counts = table.groupby(level="species", sort=False).size()
            table = table.groupby(level="species", sort=False).sum()
            table.index = pd.Index([f"{name} ({count} sites)" for name, count in counts.items()])
        else:
            table.index = pd.Index([f"{site} {species}" for site, species in table.index])
        table.loc["sum"] = table.sum()
        table["sum"] = table.sum(axis=1)
        unit = f" {self.unit}" if self.unit else ""
        head = "".join(f"<th>{escape(str(column))}</th>" for column in table.columns)
        body = "".join(
            f"<tr><th>{escape(str(name))}</th>"
            + "".join(f"<td>{f'{value:+.3g}' if value else 0}</td>" for value in row)
            + "</tr>"
            for name, row in zip(table.index, table.to_numpy(), strict=True)
        )
        return (
            f"<div><p><b>{escape(self.name)}</b>: {self.prediction:.4g}{escape(unit)} predicted "
            f"= {self.baseline:.4g} of the baseline {self.table.to_numpy().sum():+.4g} of the "
            f"contributions (they miss by {abs(self.gap):.1g})</p>"
            f"<table><thead><tr><th>site</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


@ready_to_learn()
def contributions(
    members: Sequence[CrysXPP],
    structure: Any,
    *,
    output: int = 0,
    name: str = "target",
    unit: str = "",
    n_points: int | None = None,
) -> Contributions:
    """Integrated gradients of a prediction (Sundararajan et al., ICML 2017).

    The node features grow from nothing to their values along a straight line; what a column of a
    site adds is its value times the mean of the gradient along that line, by Gauss-Legendre
    quadrature in float64. Summed over all sites and columns this is the prediction minus that of
    the baseline, the same bonds between sites without features.

    Args:
        members: The networks of a model; their contributions are averaged.
        structure: A Structure, or its dictionary.
        output: Number of the network's output.
        name: What is predicted.
        unit: Its unit.
        n_points: Points of the quadrature. If None they are doubled from 32 on until the sum
            misses by less than a thousandth of the prediction minus the baseline, up to 512; a
            warning says if that is not enough.

    Raises:
        SettingsError: ``n_points`` is no whole number of at least 1.
        StructureTypeError, UnknownElementError, StructureError: not a crystal.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> salt = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> found = contributions([CrysXPP.random(hidden_dim=4, n_convs=1)], salt)
        >>> abs(found.gap) < 1e-3
        True
    """
    points = POINTS if n_points is None else (whole_number("n_points", n_points, at_least=1),)
    graphs = members[0].converter.convert(structure)
    for count in points:
        parts = [_integrate(model, graphs, output, count) for model in members]
        table = pd.concat([part.table for part in parts]).groupby(level=0).mean()
        table.index = pd.MultiIndex.from_arrays(
            [range(len(table)), _species_texts(graphs)], names=["site", "species"]
        )
        result = Contributions(
            table.rename_axis(columns="property"),
            float(np.mean([part.prediction for part in parts])),
            float(np.mean([part.baseline for part in parts])),
            name,
            unit,
        )
        if abs(result.gap) <= NEAR * abs(result.prediction - result.baseline):
            return result
    if n_points is None:
        warnings.warn(
            f"the contributions to {name} miss their sum by {result.gap:.2g} of "
            f"{result.prediction - result.baseline:.3g}; a larger n_points brings them nearer.",
            stacklevel=2,
        )
    return result


class _Part(NamedTuple):
    """Contributions to the prediction of one network."""

    table: pd.DataFrame
    prediction: float
    baseline: float


def _integrate(model: CrysXPP, graphs: CrystalGraphs, output: int, n_points: int) -> _Part:
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
    return _Part(table, ends[0], ends[1])


def _species_texts(graphs: CrystalGraphs) -> list[str]:
    """Species on each site, such as ``"Cu"`` or ``"Cu0.5 Zn0.5"``."""
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
