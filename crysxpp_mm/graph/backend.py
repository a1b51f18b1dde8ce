"""The one module that knows DGL: graphs of DGL where it is installed, of plain tensors where not.

The models read a graph through the vocabulary of ``dgl.DGLGraph`` (``edges()``, ``ndata``,
``edata``, ``batch_num_nodes()``, ``batch_num_edges()``, ``batch_size``, ``to()``), which
:class:`TorchGraph` speaks as well.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

import torch
from torch import Tensor

from crysxpp_mm.errors import MissingDependencyError, SettingsError

if TYPE_CHECKING:
    import dgl

Backend = Literal["auto", "dgl", "torch"]


class TorchGraph:
    """A batch of directed graphs in plain tensors, with the vocabulary of ``dgl.DGLGraph``."""

    def __init__(
        self,
        sources: Tensor,
        destinations: Tensor,
        *,
        batch_num_nodes: Tensor,
        batch_num_edges: Tensor,
    ) -> None:
        self._sources = sources
        self._destinations = destinations
        self._batch_num_nodes = batch_num_nodes
        self._batch_num_edges = batch_num_edges
        self._num_nodes = int(batch_num_nodes.sum())
        self.ndata: dict[str, Tensor] = {}
        self.edata: dict[str, Tensor] = {}

    def edges(self) -> tuple[Tensor, Tensor]:
        """Source and destination of every edge, each ``(n_edges,)``."""
        return self._sources, self._destinations

    def num_nodes(self) -> int:
        """Number of nodes of the whole batch."""
        return self._num_nodes

    def num_edges(self) -> int:
        """Number of edges of the whole batch."""
        return len(self._sources)

    def batch_num_nodes(self) -> Tensor:
        """Number of nodes of each graph, shape ``(batch_size,)``."""
        return self._batch_num_nodes

    def batch_num_edges(self) -> Tensor:
        """Number of edges of each graph, shape ``(batch_size,)``."""
        return self._batch_num_edges

    @property
    def batch_size(self) -> int:
        """Number of graphs."""
        return len(self._batch_num_nodes)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._sources.device

    def to(self, device: str | torch.device) -> TorchGraph:
        """The same graph on ``device``."""
        moved = TorchGraph(
            self._sources.to(device),
            self._destinations.to(device),
            batch_num_nodes=self._batch_num_nodes.to(device),
            batch_num_edges=self._batch_num_edges.to(device),
        )
        moved.ndata = {name: value.to(device) for name, value in self.ndata.items()}
        moved.edata = {name: value.to(device) for name, value in self.edata.items()}
        return moved


Graph: TypeAlias = Union["dgl.DGLGraph", TorchGraph]
"""What the models take."""


def dgl_is_installed() -> bool:
    """Whether DGL can be found; nothing is imported."""
    return importlib.util.find_spec("dgl") is not None


def import_dgl() -> ModuleType:
    """DGL with its PyTorch backend.

    Raises:
        MissingDependencyError: DGL is not installed.
    """
    # Without the variable DGL prints two lines and writes a file into the user's home.
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        import dgl
    except ImportError as error:
        raise MissingDependencyError(
            f"DGL cannot be imported ({error}). It has wheels for Python up to 3.11 on Linux and "
            "macOS: pip install 'dgl>=1.1.3,<2'. Everything but DGLGraph objects works without it."
        ) from error
    module: ModuleType = dgl
    return module


def build_graph(
    sources: Tensor,
    destinations: Tensor,
    *,
    batch_num_nodes: Tensor,
    batch_num_edges: Tensor,
    backend: Backend = "auto",
) -> Graph:
    """A batched graph from concatenated index arrays.

    Args:
        sources: Shape ``(n_edges,)``, int64, numbered through the batch.
        destinations: Shape ``(n_edges,)``.
        batch_num_nodes: Shape ``(n_graphs,)``.
        batch_num_edges: Shape ``(n_graphs,)``.
        backend: ``"dgl"``, ``"torch"``, or ``"auto"`` for DGL where it is installed.

    Raises:
        SettingsError: there is no such backend.
        MissingDependencyError: ``"dgl"`` is asked for and not installed.
    """
    if backend not in ("auto", "dgl", "torch"):
        raise SettingsError(f"backend must be 'auto', 'dgl' or 'torch', got {backend!r}.")
    if backend == "torch" or (backend == "auto" and not dgl_is_installed()):
        return TorchGraph(
            sources,
            destinations,
            batch_num_nodes=batch_num_nodes,
            batch_num_edges=batch_num_edges,
        )
    dgl = import_dgl()
    graph = dgl.graph((sources, destinations), num_nodes=int(batch_num_nodes.sum()))
    graph.set_batch_num_nodes(batch_num_nodes)
    graph.set_batch_num_edges(batch_num_edges)
    return graph
