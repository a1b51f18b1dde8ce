"""Where the training crystals are, to tell a new crystal that is unlike all of them.

Measured on log10 K of elastic_tensor_2015 without Al and Si, 600 crystals learned from and 211
others: 94 % of these were in the domain, with a mean absolute error of 0.041; it was 0.149 for the
rest. The relative distance had a rank correlation of 0.49 with the error. Not every crystal
outside is predicted badly: those with Al and Si, unseen, had an error of 0.041.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pymatgen.core import Element
from sklearn.neighbors import NearestNeighbors
from torch import nn

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.estimators.crystals import CrystalRows
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.serialization import load_weights, weights_to_dict

N_NEIGHBORS = 5
"""Training crystals whose mean distance counts."""
MAX_COMPONENTS = 16
"""Principal components of the embedding that are kept."""
MAX_REFERENCE = 1000
"""Training crystals that are kept; drawn at random where there are more."""
QUANTILE = 0.95
"""Share of the training crystals that lie within the unit of the relative distance."""
LEAST_UNIT = 1e-3
"""Least unit of the relative distance; every column of the embedding has been brought to 1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingDomain:
    """Elements, sizes and places in the embedding of the training crystals.

    Places are the coordinates along the first principal components of the embedding, whose
    columns were brought to a mean of 0 and a standard deviation of 1 on the training crystals.

    Attributes:
        mean: Of the columns, shape ``(n_columns,)``.
        scale: Their standard deviation, shape ``(n_columns,)``.
        components: Orthonormal rows, shape ``(n_components, n_columns)``.
        reference: Places of training crystals, shape ``(n_reference, n_components)``.
        elements: Whether a training crystal has the element, by atomic number, shape ``(101,)``.
        sizes: Least and largest number of sites, shape ``(2,)``.
        unit: The distance that ``QUANTILE`` of the training crystals stay within, shape ``(1,)``.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    components: NDArray[np.float32]
    reference: NDArray[np.float32]
    elements: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    unit: NDArray[np.float64]

    @classmethod
    def measure(cls, embeddings: NDArray[np.float32], graphs: CrystalGraphs, *, seed: int) -> Self:
        """The domain of training crystals.

        Args:
            embeddings: Shape ``(n_graphs, n_columns)``, of at least two crystals.
            graphs: The crystals.
            seed: Draws those that are kept.
        """
        wide = embeddings.astype(np.float64)
        mean, scale = wide.mean(axis=0), wide.std(axis=0)
        scale = np.where(scale > 1e-3, scale, 1.0)  # as the readout treats its input
        standard = (wide - mean) / scale
        variances, directions = np.linalg.eigh(standard.T @ standard / len(standard))
        kept = max(1, min(MAX_COMPONENTS, int((variances > 1e-6 * variances[-1]).sum())))
        components = directions[:, ::-1][:, :kept].T
        places = (standard @ components.T).astype(np.float32)
        reference = _drawn(places, MAX_REFERENCE, seed)
        return cls(
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            components=np.ascontiguousarray(components, dtype=np.float32),
            reference=reference,
            elements=_elements(graphs),
            sizes=np.array([graphs.n_atoms.min(), graphs.n_atoms.max()]),
            unit=_unit(reference),
        )

    def extended(
        self, embeddings: NDArray[np.float32], graphs: CrystalGraphs, *, seed: int
    ) -> TrainingDomain:
        """The domain of these and more training crystals.

        Of more than ``MAX_REFERENCE`` crystals the new ones get half the places at most, or what
        the others leave. Directions stay as they are.

        Args:
            embeddings: By the network of the others, shape ``(n_graphs, n_columns)``.
            graphs: The new crystals.
            seed: Draws those that are kept.
        """
        new = self._places(embeddings).astype(np.float32)
        room = max(MAX_REFERENCE // 2, MAX_REFERENCE - len(self.reference))
        new = _drawn(new, room, seed)
        old = _drawn(self.reference, MAX_REFERENCE - len(new), seed)
        reference = np.concatenate([old, new])
        sizes = [*self.sizes, graphs.n_atoms.min(), graphs.n_atoms.max()]
        return TrainingDomain(
            mean=self.mean,
            scale=self.scale,
            components=self.components,
            reference=reference,
            elements=self.elements | _elements(graphs),
            sizes=np.array([min(sizes), max(sizes)]),
            unit=_unit(reference),
        )

    def _places(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        standard = (embeddings - self.mean.astype(np.float64)) / self.scale
        return np.asarray(standard @ self.components.T)

    def distances(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean distance of each crystal to its nearest training crystals, shape ``(n_graphs,)``.

        Args:
            embeddings: Shape ``(n_graphs, n_columns)``.
        """
        if not len(embeddings):
            return np.empty(0)
        return _nearest(self.reference, self._places(embeddings))

    def unseen_elements(self, graphs: CrystalGraphs) -> list[str]:
        """The elements of each crystal that no training crystal has, such as ``"La, U"``."""
        names = []
        for start, stop in zip(graphs.species_offsets, graphs.species_offsets[1:], strict=False):
            numbers = np.unique(graphs.species_numbers[start:stop])
            unseen = numbers[~self.elements[numbers]]
            names.append(", ".join(Element.from_Z(int(number)).symbol for number in unseen))
        return names

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready; the arrays are packed as weights are."""
        n_components, n_columns = self.components.shape
        return {
            "n_columns": n_columns,
            "n_components": n_components,
            "n_reference": len(self.reference),
            "arrays": weights_to_dict(_Arrays(vars(self))),
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any], *, n_columns: int) -> Self:
        """Read what ``to_plain`` made.

        Raises:
            ModelFileError: it is damaged, or belongs to a network of another width.
        """
        sizes = ("n_columns", "n_components", "n_reference")
        if not isinstance(document, Mapping) or set(document) != {*sizes, "arrays"}:
            raise ModelFileError(f"the domain must have {', '.join(sizes)} and arrays.")
        if document["n_columns"] != n_columns:
            raise ModelFileError(
                f"the domain is one of {document['n_columns']} columns, the network has "
                f"{n_columns}."
            )
        n_components, n_reference = int(document["n_components"]), int(document["n_reference"])
        arrays = _Arrays(
            {
                "mean": np.zeros(n_columns, dtype=np.float32),
                "scale": np.zeros(n_columns, dtype=np.float32),
                "components": np.zeros((n_components, n_columns), dtype=np.float32),
                "reference": np.zeros((n_reference, n_components), dtype=np.float32),
                "elements": np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.bool_),
                "sizes": np.zeros(2, dtype=np.int64),
                "unit": np.zeros(1),
            }
        )
        load_weights(arrays, document["arrays"])
        return cls(**{name: tensor.numpy() for name, tensor in arrays.named_buffers()})


def domain_table(
    domain: TrainingDomain, embeddings: NDArray[np.float32], crystals: CrystalRows
) -> pd.DataFrame:
    """How near crystals are to the training crystals, one row an input.

    Args:
        domain: Of the training crystals.
        embeddings: Of the crystals that have a graph, by the network of ``domain``.
        crystals: The inputs; rows without a graph get None, NaN and False.
    """
    graphs = crystals.graphs
    sizes, distances = graphs.n_atoms, domain.distances(embeddings)
    least, largest = domain.sizes
    table = pd.DataFrame(
        {
            "unseen_elements": np.array(domain.unseen_elements(graphs), dtype=object),
            "n_sites": sizes,
            "size_in_range": (least <= sizes) & (sizes <= largest),
            "distance": distances,
            "relative_distance": distances / domain.unit,
        },
        index=crystals.rows,
    )
    table["in_domain"] = (
        (table["unseen_elements"] == "")
        & table["size_in_range"]
        & (table["relative_distance"] <= 1)
    )
    if crystals.errors:
        table = table.reindex(np.arange(crystals.n_rows))
        for name in ("size_in_range", "in_domain"):
            table[name] = table[name].eq(True)
        table.loc[sorted(crystals.errors), "unseen_elements"] = None
    table.index = pd.RangeIndex(crystals.n_rows) if crystals.labels is None else crystals.labels
    return table


class _Arrays(nn.Module):
    """Arrays as buffers, to be packed as weights are."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))


def _elements(graphs: CrystalGraphs) -> NDArray[np.bool_]:
    present = np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.bool_)
    present[graphs.species_numbers] = True
    return present


def _drawn(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """All rows, or ``count`` of them at random, in their order."""
    if len(rows) <= count:
        return rows
    return rows[np.sort(np.random.default_rng([seed, 3]).permutation(len(rows))[:count])]


def _nearest(
    reference: NDArray[np.float32], places: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Mean distance to the nearest of ``reference``; that of its own rows to each other if None.

    Distances are taken of differences, in a tree: as differences of squares they would lose
    half their digits.
    """
    count = min(N_NEIGHBORS, len(reference) - 1)
    tree = NearestNeighbors(n_neighbors=count, algorithm="kd_tree").fit(reference)
    distances, _ = tree.kneighbors(places)
    return np.asarray(distances.mean(axis=1))


def _unit(reference: NDArray[np.float32]) -> NDArray[np.float64]:
    unit = np.quantile(_nearest(reference), QUANTILE)
    return np.array([max(float(unit), LEAST_UNIT)])
