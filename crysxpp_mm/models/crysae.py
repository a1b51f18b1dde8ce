"""CrysAE, the crystal-graph autoencoder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from crysxpp_mm.errors import ModelFileError, SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.base import CrystalGraphModel
from crysxpp_mm.models.decoder import CrysAEDecoder, PairIndex, Reconstruction
from crysxpp_mm.models.encoder import CrystalGraphEncoder
from crysxpp_mm.models.targets import TargetHead


class CrysAE(CrystalGraphModel):
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
        targets: Names of pretext targets (``crysxpp_mm.graph.targets.TARGETS``) that a head of
            the decoder predicts; without any there is no such head.
        metadata: JSON-ready facts about the training, kept with the weights.

    Raises:
        SettingsError: a size is less than 1, or there is no target of a name.
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
        targets: Sequence[str] = (),
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
        self.target_head = TargetHead(hidden_dim=hidden_dim, targets=targets) if targets else None
        self.metadata: dict[str, Any] = dict(metadata or {})

    @property
    def reads_elements(self) -> bool:
        """True with an element channel."""
        return self.encoder.element_channel

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
    def settings(self) -> dict[str, Any]:
        """Sizes and switches, as the constructor takes them."""
        settings = {**self.encoder.settings, **self.decoder.settings}
        del settings["cutoff"]  # the converter's
        if self.target_head is not None:
            settings["targets"] = list(self.target_head.targets)
        return settings

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
        width = len(tensors["embedding.weight"])
        n_convs = len({name.split(".")[1] for name in tensors if name.startswith("convs.")})
        if tensors["convs.0.fc_full.weight"].numel() < width * width:  # nothing is allocated first
            raise ModelFileError(f"{path}: the tensors do not fit: the embedding is too wide.")
        model = cls.random(
            hidden_dim=width,
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
