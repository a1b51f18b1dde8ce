"""ElemNet, a network of the composition alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import ELEMENT_FRACTIONS, check_graph
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.pooling import mean_pool
from crysxpp_mm.models.property import FitSettings, PropertyModel
from crysxpp_mm.settings import share, whole_number


class ElemNet(PropertyModel[FitSettings]):
    """Predict properties from element fractions (Jha et al., Sci. Rep. 8, 17593 (2018)).

    Dense layers act on the share that each element has of the atoms of a crystal. Bonds and
    structure are not seen, so all polymorphs of a formula are alike.

    Args:
        converter: The graph rule; only the atoms of the graph are read.
        hidden_dims: Widths of the dense layers; the article has 17 of them, from 1024 to 32.
        dropout: Share of a layer that is switched off at random in training.
        n_targets: Number of outputs.
        metadata: JSON-ready facts about the training, kept with the weights.

    Raises:
        SettingsError: an option has a value that makes no sense.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> model = ElemNet.random(hidden_dims=(8, 4))
        >>> model(model.make_graph(model.converter.convert(iron))).shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        *,
        converter: CrystalGraphConverter | None = None,
        hidden_dims: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        n_targets: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(hidden_dims, str) or not isinstance(hidden_dims, Iterable):
            raise SettingsError(f"hidden_dims must be a list of widths, got {hidden_dims!r}.")
        self._converter = converter or CrystalGraphConverter()
        self.hidden_dims = [whole_number("hidden_dims", dim, at_least=1) for dim in hidden_dims]
        if not self.hidden_dims:
            raise SettingsError("hidden_dims must name at least one width.")
        self.dropout = share("dropout", dropout)
        widths = [MAX_ATOMIC_NUMBER, *self.hidden_dims]
        layers: list[nn.Module] = []
        for width, following in zip(widths, self.hidden_dims, strict=False):
            dense = nn.Linear(width, following, dtype=torch.float32)
            layers += [dense, nn.ReLU(), nn.Dropout(self.dropout)]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(
            widths[-1], whole_number("n_targets", n_targets, at_least=1), dtype=torch.float32
        )
        self._register_targets(n_targets)
        self.metadata: dict[str, Any] = dict(metadata or {})

    @property
    def settings(self) -> dict[str, Any]:
        """Sizes and switches, as the constructor takes them."""
        sizes = {"hidden_dims": self.hidden_dims, "dropout": self.dropout}
        return {**sizes, "n_targets": self.n_targets}

    @property
    def reads_elements(self) -> bool:
        """Always true."""
        return True

    @property
    def n_columns(self) -> int:
        """Width of the last dense layer."""
        return self.hidden_dims[-1]

    def embed(self, graph: Graph) -> Tensor:
        """Compute the last dense layer of every crystal, shape ``(n_graphs, n_columns)``."""
        check_graph(graph, element_fractions=True)
        counts = mean_pool(graph, graph.ndata[ELEMENT_FRACTIONS])
        hidden: Tensor = self.layers(counts / counts.sum(dim=1, keepdim=True))
        return hidden

    def forward(self, graph: Graph) -> Tensor:
        """Predict the standardized targets, shape ``(n_graphs, n_targets)``."""
        prediction: Tensor = self.output(self.embed(graph))
        return prediction
