"""Reference crystals, to find those that a new crystal is like, in little room."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Composition, Element
from sklearn.neighbors import NearestNeighbors
from torch import nn

from crysxpp_mm.data.bonds import SiteBonds, site_means
from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.serialization import load_weights, weights_to_dict

MAX_COMPONENTS = 16
"""Principal components of the embedding that are kept."""
SAME_LENGTH = 1e-3
"""Bonds that differ by no more than this are equal, Angstrom."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceSet:
    """Crystals with their names, formulas, marks and places in a reduced embedding.

    A place is the coordinates along the first principal components of the embedding, whose columns
    were brought to a mean of 0 and a standard deviation of 1. Marks are means of bond lengths
    that tell a crystal again (see :func:`marks_of`).

    Attributes:
        names: Name of each crystal.
        formulas: Its reduced formula.
        mean: Of the columns, shape ``(n_columns,)``.
        scale: Their standard deviation, shape ``(n_columns,)``.
        components: Orthonormal rows, shape ``(n_components, n_columns)``.
        places: Shape ``(n_crystals, n_components)``, in half precision.
        marks: Shape ``(n_crystals, 5)``, Angstrom.
        values: Numbers that go with each crystal, such as what a model says of it, shape
            ``(n_crystals, n_values)``, in half precision.
    """

    names: list[str | int]
    formulas: list[str]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    components: NDArray[np.float32]
    places: NDArray[np.floating]
    marks: NDArray[np.float32]
    values: NDArray[np.float16]

    ARRAYS: ClassVar = ("mean", "scale", "components", "places", "marks", "values")

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def build(
        cls,
        embeddings: NDArray[np.float32],
        graphs: CrystalGraphs,
        names: Sequence[Any],
        values: NDArray[np.floating] | None = None,
    ) -> Self:
        """Take crystals as the reference.

        Args:
            embeddings: Shape ``(n_graphs, n_columns)``, of at least two crystals.
            graphs: The crystals.
            names: Name of each.
            values: Numbers that go with each, if any.
        """
        wide = embeddings.astype(np.float64)
        mean, scale = wide.mean(axis=0), wide.std(axis=0)
        scale = np.where(scale > 1e-3, scale, 1.0)  # as the readout treats its input
        standard = (wide - mean) / scale
        variances, directions = np.linalg.eigh(standard.T @ standard / len(standard))
        kept = max(1, min(MAX_COMPONENTS, int((variances > 1e-6 * variances[-1]).sum())))
        components = directions[:, ::-1][:, :kept].T
        return cls(
            names=plain_names(names),
            formulas=reduced_formulas(graphs),
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            components=np.ascontiguousarray(components, dtype=np.float32),
            places=(standard @ components.T).astype(np.float16),
            marks=marks_of(graphs),
            values=_half(values, len(graphs)),
        )

    def extended(
        self,
        embeddings: NDArray[np.float32],
        graphs: CrystalGraphs,
        names: Sequence[Any],
        values: NDArray[np.floating] | None = None,
    ) -> ReferenceSet:
        """These and more crystals, along the same directions.

        Args:
            embeddings: By the network of the others, shape ``(n_graphs, n_columns)``.
            graphs: The new crystals.
            names: Name of each.
            values: As many numbers of each as the others have.
        """
        places = self.placed(embeddings).astype(self.places.dtype)
        return ReferenceSet(
            names=[*self.names, *plain_names(names)],
            formulas=[*self.formulas, *reduced_formulas(graphs)],
            mean=self.mean,
            scale=self.scale,
            components=self.components,
            places=np.concatenate([self.places, places]),
            marks=np.concatenate([self.marks, marks_of(graphs)]),
            values=np.concatenate(
                [self.values, _half(values, len(graphs))[:, : self.values.shape[1]]]
            ),
        )

    def placed(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Places of crystals, shape ``(n_graphs, n_components)``."""
        standard = (embeddings - self.mean.astype(np.float64)) / self.scale
        return np.asarray(standard @ self.components.T)

    def nearest(
        self, embeddings: NDArray[np.float32] | None, count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The nearest reference crystals.

        Args:
            embeddings: Of crystals, shape ``(n_graphs, n_columns)``; None for the reference
                crystals themselves, each beside all others.
            count: How many; fewer where there are not so many.

        Returns:
            Distances, ascending, and positions in the reference, each ``(n_graphs, count)``.
        """
        count = max(1, min(count, len(self) - (embeddings is None)))
        if embeddings is not None and not len(embeddings):
            return np.empty((0, count)), np.empty((0, count), dtype=np.int64)
        places = None if embeddings is None else self.placed(embeddings)
        distances, rows = self._tree.kneighbors(places, n_neighbors=count)
        return distances, rows

    @cached_property
    def _tree(self) -> NearestNeighbors:
        """Distances of differences: as differences of squares they would lose half their digits."""
        return NearestNeighbors(algorithm="kd_tree").fit(self.places.astype(np.float64))

    def find(self, graphs: CrystalGraphs) -> NDArray[np.int64]:
        """Position of an equal crystal in the reference, -1 where there is none.

        Equal crystals have one composition, and bonds that differ by at most ``SAME_LENGTH``.
        """
        found = np.full(len(graphs), -1)
        marks = marks_of(graphs).astype(np.float64)
        for row, formula in enumerate(reduced_formulas(graphs)):
            rows = self._rows_of.get(formula, [])
            gaps = np.abs(self.marks[rows] - marks[row]).max(axis=1)
            if len(gaps) and gaps.min() <= SAME_LENGTH + 1e-6:  # and what rounding adds
                found[row] = rows[int(gaps.argmin())]
        return found

    @cached_property
    def _rows_of(self) -> Mapping[str, list[int]]:
        rows: dict[str, list[int]] = defaultdict(list)
        for row, formula in enumerate(self.formulas):
            rows[formula].append(row)
        return dict(rows)

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready; the arrays are packed as weights are."""
        arrays = {name: getattr(self, name) for name in self.ARRAYS}
        return {
            "names": self.names,
            "formulas": self.formulas,
            "n_columns": len(self.mean),
            "n_components": len(self.components),
            "n_values": self.values.shape[1],
            "arrays": weights_to_dict(Arrays(arrays)),
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> Self:
        """Read what ``to_plain`` made.

        Raises:
            ModelFileError: it is damaged.
        """
        sizes = ("n_columns", "n_components", "n_values")
        keys = {"names", "formulas", "arrays", *sizes}
        if not isinstance(document, Mapping) or set(document) != keys:
            raise ModelFileError(f"the reference set must have {', '.join(sorted(keys))}.")
        names, formulas = list(document["names"]), list(document["formulas"])
        if len(names) != len(formulas):
            raise ModelFileError(
                f"the reference set has {len(names)} names and {len(formulas)} formulas."
            )
        n_columns, n_components, n_values = (int(document[size]) for size in sizes)
        arrays = read_arrays(
            document["arrays"],
            mean=np.zeros(n_columns, dtype=np.float32),
            scale=np.zeros(n_columns, dtype=np.float32),
            components=np.zeros((n_components, n_columns), dtype=np.float32),
            places=np.zeros((len(names), n_components), dtype=np.float16),
            marks=np.zeros((len(names), 5), dtype=np.float32),
            values=np.zeros((len(names), n_values), dtype=np.float16),
        )
        return cls(names=names, formulas=formulas, **arrays)


def marks_of(graphs: CrystalGraphs) -> NDArray[np.float32]:
    """Numbers by which a crystal is known again, whatever its cell, shape ``(n_graphs, 5)``.

    Means over the sites of the nearest and of the mean bond, and the same weighted by two numbers
    of the site's element. None changes by more than the bonds do, also where a shell of equal
    distances falls apart, so that they need no rounding.
    """
    if not len(graphs):
        return np.empty((0, 5), dtype=np.float32)
    bonds = SiteBonds(graphs, graphs.distances.astype(np.float64))
    nearest, mean = (np.where(np.isfinite(part), part, 0.0) for part in (bonds.nearest, bonds.mean))
    number = np.arange(MAX_ATOMIC_NUMBER + 1, dtype=np.float64)
    first, second = (site_means(graphs, number * step % 1) for step in (0.6180339887, 0.4142135624))
    sites = (nearest, mean, first * nearest, first * mean, second * mean)
    starts = graphs.atom_offsets[:-1]
    sums = np.stack([np.add.reduceat(values, starts) for values in sites], axis=1)
    return np.asarray(sums / graphs.n_atoms[:, None], dtype=np.float32)


def reduced_formulas(graphs: CrystalGraphs) -> list[str]:
    """Reduced formula of every crystal; of a disordered one that of a site."""
    formulas = []
    runs = pairwise(graphs.species_offsets.tolist())
    for (start, stop), n_atoms in zip(runs, graphs.n_atoms, strict=True):
        numbers, occupancies = graphs.species_numbers[start:stop], graphs.occupancies[start:stop]
        amounts = np.bincount(numbers, occupancies)
        if (occupancies < 1).any():
            amounts = (amounts / n_atoms).round(3)
        elements = {Element.from_Z(int(z)).symbol: amounts[z] for z in np.flatnonzero(amounts)}
        formulas.append(Composition(elements).reduced_formula)
    return formulas


def plain_names(names: Sequence[Any]) -> list[str | int]:
    """Names as JSON has them: texts and whole numbers as they are, others as texts."""
    plain = (name.item() if isinstance(name, np.generic) else name for name in names)
    return [name if isinstance(name, str | int) else str(name) for name in plain]


def _half(values: NDArray[np.floating] | None, n_crystals: int) -> NDArray[np.float16]:
    """Numbers of crystals in half precision, whose largest stands for what is larger."""
    if values is None:
        return np.empty((n_crystals, 0), dtype=np.float16)
    largest = float(np.finfo(np.float16).max)
    return np.asarray(np.clip(values, -largest, largest), dtype=np.float16)


class Arrays(nn.Module):
    """Arrays as buffers, to be packed as weights are."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))


def read_arrays(document: Mapping[str, Any], **like: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Read packed arrays of known shapes and types.

    Raises:
        ModelFileError: they are damaged, or others.
    """
    arrays = Arrays(like)
    load_weights(arrays, document)
    return {name: tensor.numpy() for name, tensor in arrays.named_buffers()}
