"""CrysAE, the crystal-graph autoencoder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from monty.json import MSONable
from torch import Tensor, nn

from crysxpp_mm.errors import ModelFileError, SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Backend, Graph
from crysxpp_mm.graph.batch import make_batch
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.decoder import CrysAEDecoder, PairIndex, Reconstruction
from crysxpp_mm.models.encoder import CrystalGraphEncoder
from crysxpp_mm.serialization import (
    FORMAT_VERSION,
    check_keys,
    load_weights,
    read_document,
    weights_to_dict,
    write_document,
)
from crysxpp_mm.version import __version__


class CrysAE(nn.Module, MSONable):
    """Crystal-graph autoencoder (Das et al., npj Comput. Mater. 8, 43 (2022), Eqs. 1-7).

    The encoder embeds every atom of a crystal graph; the decoder rebuilds from the embeddings
    what the graph was made of. Trained on structures alone, the encoder gives learned features
    to ``CrysAEFeaturizer`` and a start to CrysXPP.

    The graph rule is part of the model and cannot be changed afterwards.

    Args:
        converter: The graph rule; the published cutoff and neighbours if None.
        hidden_dim: Width of the node embeddings.
        n_convs: Number of convolutions.
        n_gaussians: Gaussians of a bond length.
        element_channel: Whether every element has a learned vector beside its 92 columns.
        pair_dim: Components of the pair embedding, Eq. 2.
        normalize: Whether the decoder normalizes the embeddings that it reads.
        metadata: JSON-ready facts about the training, kept with the weights.

    Raises:
        SettingsError: a size is less than 1.
    """

    def __init__(
        self,
        *,
        converter: CrystalGraphConverter | None = None,
        hidden_dim: int = 64,
        n_convs: int = 3,
        n_gaussians: int = 41,
        element_channel: bool = False,
        pair_dim: int = 6,
        normalize: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._converter = converter or CrystalGraphConverter()
        self.encoder = CrystalGraphEncoder(
            hidden_dim=hidden_dim,
            n_convs=n_convs,
            cutoff=self._converter.cutoff,
            n_gaussians=n_gaussians,
            element_channel=element_channel,
        )
        self.decoder = CrysAEDecoder(hidden_dim=hidden_dim, pair_dim=pair_dim, normalize=normalize)
        self.metadata: dict[str, Any] = dict(metadata or {})

    @classmethod
    def random(cls, *, seed: int = 0, **settings: Any) -> Self:
        """An untrained model with the weights of ``seed``, the control of every benchmark.

        Its batch norms know no data; ``calibrated`` gives them statistics.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(**settings)
        return model.eval()

    def calibrated(self, graphs: CrystalGraphs) -> Self:
        """Set the running statistics of the batch norms to those of ``graphs``; returns itself.

        An untrained network needs this to be a fair control: with the initial statistics its
        activations grow from layer to layer.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm1d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        self.train()
        with torch.no_grad():
            self.encoder(self.make_graph(graphs))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return self.eval()

    @property
    def converter(self) -> CrystalGraphConverter:
        """The graph rule that the weights belong to."""
        return self._converter

    @property
    def settings(self) -> dict[str, Any]:
        """Sizes and switches, as the constructor takes them."""
        settings = {**self.encoder.settings, **self.decoder.settings}
        del settings["cutoff"]  # the converter's
        return settings

    def make_graph(
        self,
        graphs: CrystalGraphs,
        *,
        device: str | torch.device | None = None,
        backend: Backend = "torch",
    ) -> Graph:
        """The batched graph that this model reads, on its device if none is named."""
        return make_batch(
            graphs,
            device=device or self.device,
            backend=backend,
            element_fractions=self.encoder.element_channel,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.embedding.weight.device

    def forward(self, graph: Graph, pairs: PairIndex) -> Reconstruction:
        """Rebuild a batch from its own embeddings.

        Args:
            graph: Batched crystal graph.
            pairs: Its pairs, from ``crysxpp_mm.models.decoder.pair_index``.

        Raises:
            GraphError: the graph lacks a field.
        """
        rebuilt: Reconstruction = self.decoder(self.encoder(graph)[-1], pairs)
        return rebuilt

    @torch.no_grad()
    def node_embeddings(self, graphs: CrystalGraphs | Graph) -> list[Tensor]:
        """Embeddings of every atom after the input layer and after each convolution.

        Args:
            graphs: Graphs of this model's converter, or a batched graph with the fields of
                ``crysxpp_mm.graph.batch``, such as a ``dgl.DGLGraph``.

        Returns:
            ``n_convs + 1`` tensors of shape ``(n_atoms, hidden_dim)``.

        Raises:
            GraphError: the graph lacks a field.
        """
        if self.training:
            raise SettingsError("the model is in training mode; call eval() before embedding.")
        graph = self.make_graph(graphs) if isinstance(graphs, CrystalGraphs) else graphs
        layers: list[Tensor] = self.encoder(graph)
        return layers

    def as_dict(self) -> dict[str, Any]:
        """The whole model as a JSON-ready dictionary."""
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "@version": __version__,
            "format_version": FORMAT_VERSION,
            "converter": self.converter.as_dict(),
            "settings": self.settings,
            "metadata": self.metadata,
            "weights": weights_to_dict(self),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild a model from ``as_dict``, in evaluation mode.

        Raises:
            ModelFileError: keys or tensors are missing, unknown, damaged or of a later format.
        """
        check_keys(
            d,
            required={"converter", "settings", "weights"},
            optional={"metadata", "format_version"},
        )
        try:
            rule = {key: value for key, value in d["converter"].items() if key[:1] != "@"}
            with torch.random.fork_rng(devices=[]):
                model = cls(
                    converter=CrystalGraphConverter(**rule),
                    metadata=d.get("metadata"),
                    **d["settings"],
                )
        except (TypeError, AttributeError, SettingsError) as error:
            raise ModelFileError(f"the settings of the model make no sense: {error}") from error
        load_weights(model, d["weights"])
        return model.eval()

    def save(self, path: str | os.PathLike[str]) -> None:  # type: ignore[override]
        """Write the model to ``path``, usually ``<name>.json.gz``."""
        write_document(self.as_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model that ``save`` wrote; nothing is unpickled.

        Raises:
            ModelFileError: as ``from_dict``; the message names the file.
        """
        document = read_document(path)
        if document.get("@class") != cls.__name__:
            raise ModelFileError(
                f"{path} holds a {document.get('@class')!r}, expected a {cls.__name__}."
            )
        try:
            return cls.from_dict(document)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error

    @classmethod
    def from_released(cls, path: str | os.PathLike[str]) -> Self:
        """The encoder that the authors of CrysXPP released, in this package's graphs.

        Args:
            path: Their checkpoint (``model_pretrain.pth``), or an npz of its tensors. Nothing of
                it is run.

        Returns:
            A model with their encoder; the decoder is untrained, because theirs has other
            outputs (one layer of six classes, no bond lengths).

        Raises:
            ModelFileError: the file is no such checkpoint.
        """
        from crysxpp_mm.models.released import read_released_tensors

        tensors = read_released_tensors(path)
        widths = tensors["embedding.weight"].shape
        n_convs = len({name.split(".")[1] for name in tensors if name.startswith("convs.")})
        model = cls.random(
            hidden_dim=widths[0],
            n_convs=n_convs,
            metadata={"description": "Encoder released with Das et al. (2022); decoder untrained."},
        )
        state = {"embedding.weight": tensors["embedding.weight"]}
        for name, value in tensors.items():
            if name.startswith("convs."):
                _, layer, part, entry = name.split(".")
                ours = {"fc_full": "linear", "bn1": "bond_norm", "bn2": "atom_norm"}[part]
                state[f"convolutions.{layer}.{ours}.{entry}"] = value
        try:
            model.encoder.load_state_dict(state)
        except RuntimeError as error:
            raise ModelFileError(f"{path}: the tensors do not fit: {error}") from error
        return model

    def structure_graphs(self, structures: Iterable[Any]) -> CrystalGraphs:
        """Graphs of structures by this model's rule.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: as
                ``CrystalGraphConverter.convert_many``.
        """
        return self.converter.convert_many(structures)
