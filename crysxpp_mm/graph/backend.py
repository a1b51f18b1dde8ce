"""The one module that knows DGL: DGL's graphs where it can be imported, plain tensors elsewhere.

The models read a graph through the vocabulary of ``dgl.DGLGraph`` (``edges()``, ``ndata``,
``edata``, ``batch_num_nodes()``, ``batch_num_edges()``, ``batch_size``, ``to()``), which
:class:`TorchGraph` speaks as well. Numbers are the same either way. The environment variable
``CRYSXPP_BACKEND`` forces one of them: ``dgl``, or ``torch`` for plain tensors.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import torch
from torch import Tensor

from crysxpp_mm.errors import MissingDependencyError, SettingsError

if TYPE_CHECKING:
    import dgl

logger = logging.getLogger(__name__)

Backend = Literal["auto", "dgl", "torch"]
BACKENDS = ("auto", "dgl", "torch")
BACKEND_VARIABLE = "CRYSXPP_BACKEND"
"""Environment variable with the backend that ``"auto"`` stands for."""


class TorchGraph:
    """A batch of directed graphs in plain tensors, with the vocabulary of ``dgl.DGLGraph``."""

    def __init__(
        self,
        sources: Tensor,
        destinations: Tensor,
        *,
        batch_num_nodes: Tensor,
        batch_num_edges: Tensor,
        num_nodes: int | None = None,
    ) -> None:
        self._sources = sources
        self._destinations = destinations
        self._batch_num_nodes = batch_num_nodes
        self._batch_num_edges = batch_num_edges
        self._num_nodes = int(batch_num_nodes.sum()) if num_nodes is None else num_nodes
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
        """Device of the tensors."""
        return self._sources.device

    def to(self, device: str | torch.device) -> TorchGraph:
        """Copy the graph to ``device``."""
        moved = TorchGraph(
            self._sources.to(device),
            self._destinations.to(device),
            batch_num_nodes=self._batch_num_nodes.to(device),
            batch_num_edges=self._batch_num_edges.to(device),
            num_nodes=self._num_nodes,
        )
        moved.ndata = {name: value.to(device) for name, value in self.ndata.items()}
        moved.edata = {name: value.to(device) for name, value in self.edata.items()}
        return moved


Graph: TypeAlias = Union["dgl.DGLGraph", TorchGraph]
"""A batched graph, as the models take it."""


def dgl_is_installed() -> bool:
    """Tell whether DGL is installed, without importing it."""
    return importlib.util.find_spec("dgl") is not None


@lru_cache(maxsize=1)
def dgl_is_usable() -> bool:
    """Tell whether DGL can be imported. One that is installed but broken is logged."""
    if not dgl_is_installed():
        return False
    try:
        import_dgl()
    except MissingDependencyError as error:
        logger.warning("Graphs are made of plain tensors. %s", error)
        return False
    return True


def choose_backend(backend: Backend = "auto") -> Literal["dgl", "torch"]:
    """Resolve ``"auto"``: what ``CRYSXPP_BACKEND`` names, else DGL where it can be imported.

    Raises:
        SettingsError: there is no such backend.
    """
    wanted: str = backend
    if wanted == "auto":
        wanted = os.environ.get(BACKEND_VARIABLE) or "auto"
    if wanted not in BACKENDS:
        source = "backend" if backend != "auto" else BACKEND_VARIABLE
        raise SettingsError(f"{source} must be 'auto', 'dgl' or 'torch', got {wanted!r}.")
    if wanted == "auto":
        return "dgl" if dgl_is_usable() else "torch"
    return "dgl" if wanted == "dgl" else "torch"


def import_dgl() -> ModuleType:
    """Import DGL with its PyTorch backend.

    Raises:
        MissingDependencyError: DGL is not installed, or does not work with this PyTorch.
    """
    # Without the variable DGL prints two lines and writes a file into the user's home.
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        import dgl
    except (ImportError, OSError) as error:  # OSError: its libraries do not load
        raise MissingDependencyError(
            f"DGL cannot be imported ({error}). It has wheels for Python up to 3.11 on Linux and "
            "macOS: pip install 'dgl>=1.1.3,<2'. Everything but DGLGraph objects works without it."
        ) from error
    module: ModuleType = dgl
    return module


def dgl_dataset_base() -> type[Any]:
    """Return DGL's base class of data sets, or ``object`` where DGL cannot be imported."""
    base: type[Any] = import_dgl().data.DGLDataset if dgl_is_usable() else object
    return base


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
        backend: ``"dgl"``, ``"torch"``, or ``"auto"`` as ``choose_backend`` resolves it.

    Raises:
        SettingsError: there is no such backend.
        MissingDependencyError: ``"dgl"`` is asked for and cannot be imported.
    """
    if choose_backend(backend) == "torch":
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


def move_graph(graph: Graph, device: str | torch.device) -> Graph:
    """Return the graph on ``device``; as plain tensors where DGL was built without that device.

    Args:
        graph: A batched graph.
        device: Where its tensors go.
    """
    wanted = torch.device(device)
    if isinstance(graph, TorchGraph) or wanted.type == "cpu" or _dgl_knows(wanted):
        return graph.to(wanted)
    plain = TorchGraph(
        *graph.edges(),
        batch_num_nodes=graph.batch_num_nodes(),
        batch_num_edges=graph.batch_num_edges(),
    )
    plain.ndata = dict(graph.ndata)
    plain.edata = dict(graph.edata)
    return plain.to(wanted)


@lru_cache(maxsize=8)
def _dgl_knows(device: torch.device) -> bool:
    """Tell whether this build of DGL can hold a graph on ``device``."""
    dgl = import_dgl()
    index = torch.zeros(1, dtype=torch.int64)
    try:
        dgl.graph((index, index)).to(device)
    except (dgl.DGLError, KeyError, RuntimeError):
        return False
    return True
