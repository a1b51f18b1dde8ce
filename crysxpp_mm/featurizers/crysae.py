"""Learned features of crystals, from the encoder of CrysAE."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from numbers import Integral
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import IStructure
from torch import Tensor

from crysxpp_mm.errors import SettingsError, StructureTypeError
from crysxpp_mm.featurizers.base import BatchedFeaturizer, Compute, raise_again
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.pooling import MOMENTS, pool

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"model": "crysae-mp-paper", "layers": (-1,), "moments": ("mean",)},
    "last-layer-mean": {"layers": (-1,), "moments": ("mean",)},
    "all-layers-mean": {"moments": ("mean",)},
}
"""Arguments of ``CrysAEFeaturizer`` by the name of the preset."""

CRYSXPP_CITATION = (
    "@article{das2022crysxpp, "
    "title={CrysXPP: An explainable property predictor for crystalline materials}, "
    "author={Das, Kishalay and Samanta, Bidisha and Goyal, Pawan and Lee, Seung-Cheol and "
    "Bhattacharjee, Satadeep and Ganguly, Niloy}, "
    "journal={npj Computational Materials}, volume={8}, pages={43}, year={2022}, "
    "doi={10.1038/s41524-022-00716-8}}"
)
CGCNN_CITATION = (
    "@article{xie2018crystal, "
    "title={Crystal Graph Convolutional Neural Networks for an Accurate and Interpretable "
    "Prediction of Material Properties}, "
    "author={Xie, Tian and Grossman, Jeffrey C.}, "
    "journal={Physical Review Letters}, volume={120}, number={14}, pages={145301}, year={2018}, "
    "doi={10.1103/PhysRevLett.120.145301}}"
)


class CrysAEFeaturizer(BatchedFeaturizer):
    """Learned features of a crystal, from an autoencoder that was trained on structures alone.

    A crystal becomes a graph of atoms and bonds; the encoder of
    `CrysXPP <https://doi.org/10.1038/s41524-022-00716-8>`_, a
    `crystal graph network <https://doi.org/10.1103/PhysRevLett.120.145301>`_, embeds every atom,
    each layer looking one bond farther; moments over the atoms make columns that do not depend
    on the choice of cell, origin, orientation or site order. No property was used in training,
    so the columns serve any of them.

    Structures may be ordered or disordered, with vacancies, oxidation states and spins (which
    are ignored), of one atom or of thousands; elements 1 to 100. Dictionaries from
    ``Structure.as_dict`` are accepted in place of structures.

    The network is loaded on first use and is not part of a pickle; a ``CrysAE`` object given as
    ``model`` is. Rows are computed in this process, in batches, with one torch thread
    (``set_n_jobs`` has no effect; see ``num_workers``).

    Args:
        model: A shipped model by name (``crysxpp_mm.list_models()``), the path of a saved one,
            or a ``CrysAE``.
        layers: Layers that become columns: ``"all"``, or their numbers, such as ``(1, 3)``. 0 is
            the input layer, -1 the last.
        moments: What is taken over the atoms, of ``"mean"``, ``"std"`` (divided by the number
            of atoms, not one less) and ``"max"``.
        batch_atoms: Sites that go through the network at once, a compromise of speed and memory;
            the numbers do not depend on it.
        device: Where the network runs, such as ``"cpu"`` or ``"cuda"``; if None, CUDA where it
            is available (a ``CrysAE`` object stays where it is).
        num_workers: Processes that build graphs beside this one. Worth it from some ten
            thousand structures on.

    Features:
        - CrysAE L{layer} {moment} {channel}: ``moment`` over all atoms of the given channel of
          their embedding after the given layer. Layer 0 sees the atom's own element, layer n
          atoms up to n bonds away. Channels are learned and have no name. The default model has
          4 layers x 3 moments x 64 channels = 768 columns.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> salt = Structure(Lattice.cubic(2.8), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> len(CrysAEFeaturizer().featurize(salt))
        768
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CrysAE = "crysae-mp-v1",
        layers: str | Sequence[int] = "all",
        moments: Sequence[str] = MOMENTS,
        batch_atoms: int = 4096,
        device: str | None = None,
        num_workers: int = 0,
    ) -> None:
        self.model = model
        self.layers = layers
        self.moments = moments
        self.batch_atoms = batch_atoms
        self.device = device
        self.num_workers = num_workers

    @classmethod
    def from_preset(cls, preset: str) -> Self:
        """A featurizer with settings that have a name.

        Args:
            preset: ``"default"``; ``"paper"``, the published model's last layer, averaged;
                ``"last-layer-mean"`` and ``"all-layers-mean"``, fewer columns of the default
                model.

        Raises:
            SettingsError: the preset is unknown.

        Example:
            >>> len(CrysAEFeaturizer.from_preset("last-layer-mean").feature_labels())
            64
        """
        if preset not in PRESETS:
            raise SettingsError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}.")
        return cls(**PRESETS[preset])

    def feature_labels(self) -> list[str]:
        """Names of the columns, such as ``"CrysAE L2 mean 17"``."""
        self._check_settings()
        model = self._network()
        return [
            f"CrysAE L{layer} {moment} {channel}"
            for layer in self._layer_numbers(model)
            for moment in self.moments
            for channel in range(model.encoder.hidden_dim)
        ]

    def site_feature_labels(self) -> list[str]:
        """Names of the columns of ``site_embeddings``, such as ``"CrysAE L2 17"``."""
        self._check_settings()
        model = self._network()
        return [
            f"CrysAE L{layer} {channel}"
            for layer in self._layer_numbers(model)
            for channel in range(model.encoder.hidden_dim)
        ]

    def citations(self) -> list[str]:
        """BibTeX of CrysXPP, where CrysAE comes from, and of CGCNN, whose convolution it uses."""
        return [CRYSXPP_CITATION, CGCNN_CITATION]

    def implementors(self) -> list[str]:
        """Authors of this featurizer."""
        return ["crysxpp_mm developers"]

    def structure_embedding(self, structure: IStructure | Mapping[str, Any]) -> NDArray[np.float32]:
        """The columns of one structure as an array, shape ``(n_columns,)``.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: it has no crystal graph.

        Example:
            >>> from pymatgen.core import Lattice, Structure
            >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
            >>> CrysAEFeaturizer().structure_embedding(iron).shape
            (768,)
        """
        return self._embed_one(structure, self._rows)

    def structure_embeddings(
        self, structures: Iterable[IStructure | Mapping[str, Any]]
    ) -> NDArray[np.float32]:
        """The columns of many structures as an array, shape ``(n_structures, n_columns)``.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: one has no crystal graph; the
                message begins with its position.
        """
        rows = self._embed_each(structures, self._rows)
        return np.stack(rows) if rows else np.empty((0, len(self.feature_labels())), np.float32)

    def site_embedding(self, structure: IStructure | Mapping[str, Any]) -> NDArray[np.float32]:
        """The embedding of every site of one structure, in the order of its sites.

        Returns:
            The chosen layers side by side (see ``site_feature_labels``), shape
            ``(n_sites, n_layers * hidden_dim)``.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: it has no crystal graph.

        Example:
            >>> from pymatgen.core import Lattice, Structure
            >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
            >>> CrysAEFeaturizer(layers=(3,)).site_embedding(iron).shape
            (2, 64)
        """
        return self._embed_one(structure, self._sites)

    @overload
    def site_embeddings(
        self, structures: IStructure | Mapping[str, Any]
    ) -> NDArray[np.float32]: ...

    @overload
    def site_embeddings(
        self, structures: Iterable[IStructure | Mapping[str, Any]]
    ) -> list[NDArray[np.float32]]: ...

    def site_embeddings(
        self,
        structures: IStructure | Mapping[str, Any] | Iterable[IStructure | Mapping[str, Any]],
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """The embedding of every site of each structure.

        Args:
            structures: Several structures; one alone is treated as by ``site_embedding``.

        Returns:
            An array for each structure, as from ``site_embedding``; for one structure alone, its
            array.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: one has no crystal graph; the
                message begins with its position.
        """
        if isinstance(structures, IStructure | Mapping):
            return self._embed_one(structures, self._sites)
        return self._embed_each(structures, self._sites)

    def _embed_each(self, structures: Iterable[object], compute: Compute) -> list[NDArray[Any]]:
        """Apply ``compute`` to each structure.

        Raises:
            StructureTypeError: one structure was given in place of several.
            Exception: the error of the first structure that fails; the message begins with its
                position.
        """
        if isinstance(structures, IStructure | Mapping):
            raise StructureTypeError(
                f"expected several structures, got one {type(structures).__name__}; "
                "put it into a list."
            )
        arrays: list[NDArray[Any]] = []
        with closing(self._stream(list(structures), compute, {})) as rows:
            for batch in rows:
                if batch.errors:
                    first = min(batch.errors)
                    raise_again(batch.errors[first], f"structure {first}: ")
                arrays.extend(batch.values[position] for position in sorted(batch.values))
        return arrays

    def _check_settings(self) -> None:
        super()._check_settings()
        moments = [self.moments] if isinstance(self.moments, str) else list(self.moments)
        unknown = [moment for moment in moments if moment not in MOMENTS]
        if isinstance(self.moments, str) or unknown or not moments:
            raise SettingsError(
                f"moments must be a sequence of {', '.join(map(repr, MOMENTS))}, "
                f"got {self.moments!r}."
            )
        if len(set(moments)) < len(moments):
            raise SettingsError(f"moments names one twice: {self.moments!r}.")

    def _check_model(self, model: object) -> None:
        if not isinstance(model, CrysAE):
            raise SettingsError(
                "model must be the name of a CrysAE, the path of a saved one, or a CrysAE object, "
                f"got a {type(model).__name__}."
            )

    def _layer_numbers(self, model: CrysAE) -> list[int]:
        """The chosen layers, counted from 0.

        Raises:
            SettingsError: there is no such layer, or one is named twice.
        """
        n_layers = model.encoder.n_convs + 1
        if isinstance(self.layers, str) and self.layers == "all":
            return list(range(n_layers))
        layers = self._named_layers()
        if unknown := [layer for layer in layers if not -n_layers <= layer < n_layers]:
            raise SettingsError(
                f"layers names layer {unknown[0]}; the model has the layers 0 to {n_layers - 1}."
            )
        numbers = [int(layer) % n_layers for layer in layers]
        if len(set(numbers)) < len(numbers):
            raise SettingsError(f"layers names one twice: {self.layers!r}.")
        return numbers

    def _named_layers(self) -> list[Any]:
        """Whole numbers as the user gave them."""
        layers = list(self.layers) if isinstance(self.layers, Iterable) else []
        if not layers or not all(map(_is_whole, layers)):
            raise SettingsError(
                f"layers must be 'all' or a sequence of whole numbers, got {self.layers!r}."
            )
        return layers

    def _layers(self, model: CrysAE, graph: Graph) -> list[Tensor]:
        """Node embeddings after the chosen layers, each ``(n_atoms, hidden_dim)``."""
        layers = model.node_embeddings(graph)
        return [layers[number] for number in self._layer_numbers(model)]

    def _columns(self, model: CrysAE, graph: Graph) -> Tensor:
        return pool(graph, self._layers(model, graph), tuple(self.moments))

    def _sites(self, model: CrysAE, graph: Graph) -> list[NDArray[np.float32]]:
        """The site embeddings of every crystal of a batch."""
        sites = torch.cat(self._layers(model, graph), dim=1).cpu().numpy()
        counts = graph.batch_num_nodes().cpu().numpy()
        return np.split(sites, np.cumsum(counts)[:-1])


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
